"""A worker does what its parent wants, in virtual time."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.support.admin_case import AdminTestCase
from topicsvc.errors import ConfigError
from topicsvc.service import PreparedReload
from topicsvc.worker_process import (
    FLUSH_TIME,
    ORPHAN_GRACE,
    ORPHAN_TIMEOUT,
    READY_GRACE,
    READY_INTERVAL,
    Worker,
)
from topicsvc.workers.control import WorkerControl


class FakeReactor(Clock):
    """A reactor that runs; it connects the control socket to a parent in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0
        self.events: list[tuple[str, Any]] = []
        self.end: Any = None

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        self.end = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.end.makeConnection(self.transport)
        self.parent = WorkerControl(
            self, lambda event, members: self.events.append((event, members))
        )
        self.parent_transport = StringTransport()
        self.parent.makeConnection(self.parent_transport)

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        call()

    def stop(self) -> None:
        self.stops += 1

    def pump(self) -> None:
        while self.transport.value() or self.parent_transport.value():
            for transport, other in (
                (self.transport, self.parent),
                (self.parent_transport, self.end),
            ):
                data = transport.value()
                transport.clear()
                if data:
                    other.dataReceived(data)


class FakeMetrics:
    """Takes the place of `Metrics`."""

    def page(self, accept: str) -> tuple[str, bytes]:
        return "text/plain", b"x_total 17\n"


class FakeService:
    """Takes the place of `TopicService`."""

    def __init__(self) -> None:
        self.read_settings: Any = lambda: None
        self.admin_tree: Any = None
        self.hands_over = self.has_stopped = False
        self.is_ready = True
        self.problems: list[str] = []
        self.metrics = FakeMetrics()
        self.applied = 0
        self.aborted = self.drains = 0

    def prepare_reload(self) -> PreparedReload:
        if self.problems:
            raise ConfigError(self.problems)

        def apply() -> tuple[str, ...]:
            self.applied += 1
            return ("[send]",)

        return PreparedReload("digest", ("listen",), apply)

    def stop_at_once(self) -> None:
        self.aborted += 1

    def drain_at_once(self) -> None:
        self.drains += 1


class WorkerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        own, other = socket.socketpair()
        self.addCleanup(own.close)
        self.addCleanup(other.close)
        self.reactor = FakeReactor()
        self.service: Any = FakeService()
        self.exits: list[int] = []
        self.patch(os, "_exit", self.exits.append)
        Worker(self.service, "old digest", self.reactor, own)

    def call(self, do: str, **members: Any) -> Any:
        answer = self.reactor.parent.call(do, **members)
        self.reactor.pump()
        return self.successResultOf(answer)

    def test_it_tells_when_it_serves_and_ignores_sigterm(self) -> None:
        self.reactor.pump()
        self.assertEqual(self.reactor.events, [("ready", {"digest": "old digest"})])
        self.assertEqual(signal.getsignal(signal.SIGTERM), signal.SIG_IGN)

    def events_of(self, is_ready_after: float) -> list[float]:
        """Start a worker whose service is ready after so many seconds; return when it tells so."""
        service: Any = FakeService()
        service.is_ready = False
        reactor = FakeReactor()
        own, other = socket.socketpair()
        self.addCleanup(own.close)
        self.addCleanup(other.close)
        Worker(service, "digest", reactor, own)
        reactor.callLater(is_ready_after, setattr, service, "is_ready", True)
        times = []
        while reactor.seconds() < 2 * READY_GRACE:
            reactor.advance(0.01)
            reactor.pump()
            times += [reactor.seconds()] * len(reactor.events)
            reactor.events.clear()
        return times

    def test_it_serves_when_it_has_the_broker(self) -> None:
        [told] = self.events_of(0.5)
        self.assertTrue(0.5 <= told <= 0.5 + 2 * READY_INTERVAL, told)

    def test_without_the_broker_it_serves_after_some_seconds(self) -> None:
        [told] = self.events_of(60)
        self.assertTrue(READY_GRACE <= told <= READY_GRACE + 2 * READY_INTERVAL, told)

    def test_it_tells_its_last_metrics_before_it_ends(self) -> None:
        self.reactor.pump()
        ended = self.service.on_stopped()
        self.reactor.pump()
        self.assertEqual(self.reactor.events[1:], [("metrics", {"text": "x_total 17\n"})])
        self.assertNoResult(ended)
        self.reactor.advance(FLUSH_TIME)
        self.successResultOf(ended)

    def test_it_checks_and_applies_later(self) -> None:
        self.assertEqual(self.call("check"), {"problems": [], "digest": "digest"})
        self.assertEqual(self.service.applied, 0)
        answer = self.call("apply")
        self.assertEqual(answer, {"applied": ["[send]"], "needs_restart": ["listen"]})
        self.assertEqual(self.service.applied, 1)

    def test_it_does_not_apply_what_it_has_dropped_or_applied_already(self) -> None:
        self.call("check")
        self.call("drop")
        for _ in range(2):
            answer = self.reactor.parent.call("apply")
            self.reactor.pump()
            self.assertIn("checked no settings", str(self.failureResultOf(answer).value))
        self.assertEqual(self.service.applied, 0)

    def test_it_tells_its_problems(self) -> None:
        self.service.problems = ["limits: bad", "tls: bad"]
        self.assertEqual(
            self.call("check"), {"problems": ["limits: bad", "tls: bad"], "digest": ""}
        )

    def test_an_internal_error_is_a_problem(self) -> None:
        self.service.prepare_reload = lambda: 1 / 0
        [problem] = self.call("check")["problems"]
        self.assertIn("internal error", problem)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_it_drains_once_and_knows_whether_another_has_taken_over(self) -> None:
        self.call("drain", is_replaced=True)
        self.assertTrue(self.service.hands_over)
        self.call("drain", is_replaced=False)
        self.assertEqual(self.reactor.stops, 1)
        self.call("stop_at_once")
        self.assertEqual(self.service.aborted, 1)

    def test_without_its_parent_it_ends_within_its_time(self) -> None:
        self.reactor.end.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((self.reactor.stops, self.service.drains), (1, 1))
        self.reactor.advance(ORPHAN_GRACE)
        self.assertEqual((self.service.aborted, self.exits), (1, []))
        self.reactor.advance(ORPHAN_TIMEOUT - ORPHAN_GRACE)
        self.assertEqual(self.exits, [1])
        self.assertLess(ORPHAN_TIMEOUT, 2)

    def test_a_socket_that_is_closed_at_the_end_is_no_loss(self) -> None:
        self.service.has_stopped = True
        self.reactor.end.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((self.reactor.stops, self.reactor.getDelayedCalls()), (0, []))

    def test_without_an_admin_endpoint_pages_are_refused(self) -> None:
        answer = self.reactor.parent.request("GET", "/metrics")
        self.reactor.pump()
        self.assertIn("no admin endpoint", str(self.failureResultOf(answer).value))


class PageTests(AdminTestCase):
    """The parent gets the pages of a worker."""

    def test_the_pages_are_those_of_the_admin_endpoint(self) -> None:
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        own, other = socket.socketpair()
        self.addCleanup(own.close)
        self.addCleanup(other.close)
        reactor = FakeReactor()
        service: Any = FakeService()
        service.admin_tree = self.admin_tree
        Worker(service, "", reactor, own)
        for path, status in (("/health/ready", 200), ("/metrics", 200), ("/nowhere?x=1", 404)):
            answer = reactor.parent.request("GET", path)
            reactor.pump()
            response = self.successResultOf(answer)
            self.assertEqual(response.status, status)
            if path != "/metrics":  # process metrics change between two scrapes
                self.assertEqual(response.body, self.request(path)[1])
