"""The attributes that the fast paths read: without one of them, the fallback is used."""

from __future__ import annotations

import random
import socket
import sys
from collections import deque
from types import SimpleNamespace
from typing import Any

from twisted.internet import reactor, tcp
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import Clock, deferLater
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.support.send_queue_cases import SendQueueCase, TlsCase
from topicsvc.delivery import transports
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.delivery.transports import (
    SocketSendQueue,
    TlsSendQueue,
    TransportSendQueue,
    make_send_queue,
)
from topicsvc.listening.tls import TlsTransport
from topicsvc.settings import LimitSettings

MISSING = object()

TCP_ATTRIBUTES = {
    "dataBuffer": (MISSING, None, bytearray(), deque()),
    "offset": (MISSING, None, 0.0),
    "_tempDataLen": (MISSING, None, 0.0),
    "disconnecting": (MISSING, None, "no"),
    "getHandle": (MISSING, lambda: None, lambda: 7),
}
TLS_ATTRIBUTES = {
    "_appSendBuffer": (MISSING, None, deque(), bytearray()),
    "_aggregator": (
        *(MISSING, None, object()),
        *(SimpleNamespace(_buffer=None), SimpleNamespace(_buffer=b"")),
    ),
    "getHandle": (MISSING, lambda: None, object),
}


def updated(kind: Any, name: str, value: Any) -> Any:
    """A transport as after an update of its library: `name` is missing, or is something else.

    It works as before. Only `topicsvc.delivery.transports` sees the difference.
    """

    class Updated(kind):  # type: ignore[misc]
        def __getattribute__(self, wanted: str) -> Any:
            if wanted == name and sys._getframe(1).f_globals is vars(transports):
                if value is MISSING:
                    raise AttributeError(wanted)
                return value
            return super().__getattribute__(wanted)

    return Updated


class LookAlike(SimpleNamespace):
    """An object with all attributes that are read, but not a TCP connection."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        self.streaming = streaming

    def getHandle(self) -> socket.socket:
        return self.socket


class LookAlikeTests(SynchronousTestCase):
    def test_a_transport_of_another_kind_gets_the_fallback(self) -> None:
        clock = Clock()
        slow_consumers = SlowConsumers(
            lambda: LimitSettings().queued_bytes, lambda _: None, clock, clock.seconds
        )
        with socket.socket() as handle:
            internals = {"dataBuffer": b"", "offset": 0, "_tempDataLen": 0, "disconnecting": False}
            transport = LookAlike(socket=handle, **internals)
            send_queue = make_send_queue(transport, 1, slow_consumers, print)
        self.assertIs(type(send_queue), TransportSendQueue)
        self.assertTrue(transport.streaming)


class InternalsCase(SendQueueCase):
    """Mix into a TestCase whose connections have the expected internals."""

    open = staticmethod(make_send_queue)

    @inlineCallbacks
    def assert_fallback(self, change: str) -> Any:
        """The next connection uses the fallback, and all that is written arrives in order."""
        self.receiver.transport.loseConnection()
        yield self.receiver.lost
        yield self.sender.lost
        yield self.connect()
        self.assertIs(type(self.send_queue), TransportSendQueue, change)
        generator = random.Random(change)
        self.socket.take = lambda size: min(size, generator.choice([1, 5000, 60000]))
        written = bytearray()
        for size in (5, 100_000, 7, 300_000, 1):
            data = generator.randbytes(size)
            self.send_queue.write(data)
            written += data
            yield deferLater(reactor, 0)
        yield self.assert_received(bytes(written))

    @inlineCallbacks
    def test_tcp(self) -> Any:
        for name, values in TCP_ATTRIBUTES.items():
            for value in values:
                self.transport = updated(tcp.Server, name, value)
                yield self.assert_fallback(f"{name}: {value}")


class TcpInternalsTests(InternalsCase, TestCase):
    kind = SocketSendQueue


class TlsInternalsTests(InternalsCase, TlsCase, TestCase):
    kind = TlsSendQueue

    @inlineCallbacks
    def test_tls(self) -> Any:
        for name, values in TLS_ATTRIBUTES.items():
            for value in values:
                self.port.factory.protocol = updated(TlsTransport, name, value)
                yield self.assert_fallback(f"{name}: {value}")

    @inlineCallbacks
    def test_a_tls_transport_that_does_not_join_small_writes(self) -> Any:
        self.port.factory.protocol = TLSMemoryBIOProtocol
        yield self.assert_fallback("no aggregator")
