"""Connections to brokers: what is logged when the service stops during an attempt."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from topicsvc.brokers.reconnection import CONNECT_TIMEOUT, BrokerClient


@implementer(IHostnameResolver)
class NoAnswer:
    """A resolver whose look-ups never end."""

    def resolveHostName(self, receiver: Any, *_: Any, **__: Any) -> Any:
        receiver.resolutionBegan(None)
        return receiver


class Client(BrokerClient[Any, Any]):
    """A client that never has a connection."""

    broker = "Redis"
    _log = Logger()


class StopTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        endpoint = HostnameEndpoint(self.reactor, "127.0.0.1", 6379)
        self.client = Client("reader", endpoint, self.reactor, object(), Random(1), "127.0.0.1")
        events: list[Any] = []
        self.events = events
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)

    def lines(self) -> list[str]:
        return [formatEvent(each) for each in self.events]

    def start(self, looks_up: bool) -> None:
        if looks_up:
            self.reactor.nameResolver = NoAnswer()
        self.client.startService()
        self.assertEqual(len(self.reactor.tcpClients), 0 if looks_up else 1)

    def test_a_stop_during_an_attempt_is_no_failure(self) -> None:
        """Twisted fails with other errors than `CancelledError`: no such name, for example."""
        for looks_up in (True, False):
            self.setUp()
            self.start(looks_up)
            self.successResultOf(self.client.stopService())
            self.assertEqual((self.lines(), self.client.last_error), ([], ""))

    def test_a_look_up_that_takes_too_long_is_one(self) -> None:
        self.start(looks_up=True)
        self.reactor.advance(CONNECT_TIMEOUT)
        [line] = self.lines()
        self.assertIn("the reader cannot reach Redis at 127.0.0.1: ", line)
        self.successResultOf(self.client.stopService())
        self.assertEqual(len(self.lines()), 1)
