"""Test cases for positions over each broker: clients come back, to another process as well."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count, cycle
from time import monotonic
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import DeferredList, gatherResults, inlineCallbacks
from twisted.internet.task import LoopingCall, deferLater

from tests.integration.support.broker_cases import CELL, BrokerServer, directory, figure
from tests.support.processes import Deployment, TopicsvcServer, until
from tests.support.returning_client import ReturningClient
from topicsvc.interfaces import Broker, Message
from topicsvc.topics import TopicAddress

__all__ = ["CLIENTS", "RecoveryCase", "RollingRestartCases"]

CLIENTS = int(os.environ.get("TOPICSVC_RECOVERY_CLIENTS", "100"))
"""The number of clients; docs/brokers.md has figures for 2,000."""

NO_LIMITS = "[limits]\nunauthenticated = 0\nunauthenticated_per_address = 0\n"
"""All clients have one address and come back at once."""

TOPIC = TopicAddress("cell1", "box1", ("recovery",), "name")


class RecoveryCase:
    """Fixture: a broker, two topicsvc processes, and clients with positions at both.

    Mix this class and its subclasses into a TestCase.
    """

    timeout = 600
    clients_count = CLIENTS
    on_loss = "keep"
    interval = max(0.1, CLIENTS / 4000)
    """Seconds between two messages."""

    def make_server(self) -> BrokerServer | None:
        """Make the broker; None: it is in the process."""
        raise NotImplementedError

    def make_sender(self) -> Any:
        """Fires with a running broker, from which the messages come."""
        raise NotImplementedError

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server = self.make_server()
        settings = 'kind = "memory"'
        if self.server is not None:
            self.addCleanup(self.server.remove)
            yield self.server.start()
            settings = f'{self.server.settings}\non_loss = "{self.on_loss}"'
        self.deployment = Deployment(directory(self), f"{settings}\n{NO_LIMITS}")
        self.services = [TopicsvcServer(self.deployment, drain=0.2) for _ in range(2)]
        for service in self.services:
            self.addCleanup(service.program.stop)
        yield gatherResults([service.start() for service in self.services])
        self.balancer = cycle(self.services)
        self.clients = [self.make_client() for _ in range(self.clients_count)]
        for client in self.clients:
            client.start()
        self.addCleanup(self.stop_clients)
        yield self.until_all_active()
        self.sent: list[int] = []
        self.unclear: set[int] = set()
        self._numbers = count(1)

    def make_client(self, port: Callable[[], int] | None = None) -> ReturningClient:
        token = self.deployment.token()
        return ReturningClient(TOPIC.websocket_path, token, port or self.port)

    def stop_clients(self) -> Any:
        return DeferredList([each for each in (c.stop() for c in self.clients) if each is not None])

    def port(self) -> int:
        """The port of a process that runs, in turn."""
        for _ in self.services:
            service = next(self.balancer)
            if service.program.runs:
                break
        return service.port

    def until_all_active(self) -> Any:
        """Fires when all clients have a session, with the seconds that this took."""
        return until(lambda: all(each.is_active for each in self.clients), "all are there", 60)

    @inlineCallbacks
    def send_one(self, sender: Broker) -> Any:
        """Send the next number. What a failed send has done is not known."""
        number = next(self._numbers)
        message = Message(TOPIC, CELL, b'{"number":%d}' % number)
        try:
            yield sender.publish(message)
        except Exception:
            self.unclear.add(number)
        else:
            self.sent.append(number)

    def send_steadily(self, sender: Broker) -> LoopingCall:
        """Send numbers, one after another, until the result is stopped."""
        sending = LoopingCall(self.send_one, sender)
        sending.start(self.interval).addErrback(lambda failure: failure.raiseException())
        return sending

    def numbers_of(self, client: ReturningClient) -> list[int]:
        """What a client has read, without numbers whose sending has failed."""
        return [each["number"] for each in client.bodies if each["number"] not in self.unclear]

    @inlineCallbacks
    def until_all_have_the_last(self) -> Any:
        """Fires when the last message has reached all clients."""
        last = self.sent[-1]
        yield until(
            lambda: all(each.bodies and each.bodies[-1]["number"] >= last for each in self.clients),
            "the last message reaches all clients",
            60,
        )

    @inlineCallbacks
    def restart(self, service: TopicsvcServer) -> Any:
        """Stop a process with its sessions, and start it again; all clients are back then."""
        service.program.signal(signal.SIGTERM)
        yield until(lambda: not service.program.runs, "the process has stopped", 60)
        yield self.until_all_active()
        yield service.start()
        # A client may not have noticed before that its connection was lost.
        yield self.until_all_active()


class RollingRestartCases(RecoveryCase):
    """Two processes are restarted one after the other, while messages are sent."""

    @inlineCallbacks
    def test_nothing_is_missed_or_doubled_in_a_rolling_restart(self) -> Any:
        sender = yield self.make_sender()
        sending = self.send_steadily(sender)
        began = monotonic()
        for service in self.services:
            yield deferLater(reactor, 5 * self.interval)
            yield self.restart(service)
        yield deferLater(reactor, 5 * self.interval)
        sending.stop()
        yield self.send_one(sender)
        yield self.until_all_have_the_last()
        figure(
            f"{len(self.clients)} clients, {len(self.sent)} messages, rolling restart",
            monotonic() - began,
        )
        returns = [missed for client in self.clients for missed in client.returns]
        self.assertGreaterEqual(len(returns), len(self.clients))
        self.assertEqual(set(returns), {False})
        for client in self.clients:
            self.assertEqual(self.numbers_of(client), self.sent)
            self.assertEqual(client.unasked, 0)
