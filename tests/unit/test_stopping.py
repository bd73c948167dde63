"""Stopping in order: sends are answered and delivered, then all sessions are closed."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support import harness
from tests.support.fakes import FakeBroker, FakeValidator
from tests.support.harness import EPOCH, SEND_PATH, ServiceTestCase
from topicsvc import service
from topicsvc.interfaces import Message
from topicsvc.service import TopicService
from topicsvc.settings import (
    Config,
    LocalSettings,
    StopSettings,
)
from topicsvc.topics import Unit
from topicsvc.validators.local import make_key

AUTHORIZED = {"Authorization": "Bearer x"}


class DrainTests(ServiceTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.tree = self.site.resource
        self.send = self.tree._send

    def test_requests_on_kept_connections_get_503_and_are_closed(self) -> None:
        client = self.client()
        client.request("OPTIONS", SEND_PATH)
        self.assertEqual(client.status, 200)
        self.tree.drain()
        for path in (SEND_PATH, harness.WEBSOCKET_PATH):
            client = client if path == SEND_PATH else self.client()
            client.request("POST", path, AUTHORIZED, b"1")
            self.assertEqual(client.status, 503)
            self.assertEqual(client.headers["connection"], ["close"])
            self.assertEqual(client.headers["retry-after"], ["1"])
            self.assertTrue(client.transport.disconnecting)
        self.assertEqual(self.validator.checks, [])

    def test_a_send_in_flight_is_answered(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH, AUTHORIZED, b"1")
        answered = self.send.all_answered()
        self.tree.drain()
        self.assertNoResult(answered)
        self.validator.last.grant(self.now + 60)
        client.read_answer()
        self.assertEqual(client.status, 200)
        self.successResultOf(answered)
        self.successResultOf(self.send.all_answered())

    def test_a_send_whose_validator_hangs_gets_503(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH, AUTHORIZED, b"1")
        answered = self.send.all_answered()
        self.send.cancel_pending()
        client.read_answer()
        self.assertEqual(client.status, 503)
        self.assertTrue(self.validator.last.was_cancelled)
        self.successResultOf(answered)
        self.assertEqual(self.broker.published, [])

    def test_a_sender_that_disconnects_is_not_waited_for(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH, AUTHORIZED, b"1")
        answered = self.send.all_answered()
        client.disconnect()
        self.successResultOf(answered)

    def test_the_hub_is_idle_when_all_messages_are_written(self) -> None:
        client = self.subscribe()
        self.assertTrue(self.hub.is_idle)
        self.broker.deliver(Message(harness.TOPIC, None, b"1"))
        self.assertFalse(self.hub.is_idle)
        self.iterate()
        self.assertTrue(self.hub.is_idle)
        self.assertEqual(len(client.texts()), 1)

    def test_sessions_are_closed_evenly_over_the_drain_with_jitter(self) -> None:
        self.websocket_server._drain = 5.0
        clients = [self.subscribe() for _ in range(10)]
        self.websocket_server.stopService()
        times = []
        for tick in range(5001):
            for client in clients:
                if client.transport.written:
                    client.transport.written.clear()
                    times.append(tick / 1000)
            self.clock.advance(0.001)
        shares = [int(time / 0.5) for time in times]
        self.assertEqual(sorted(shares), list(range(10)), "one session in each tenth of the drain")
        self.assertGreater(len({round(time % 0.5, 2) for time in times}), 1, "with jitter")
        for client in clients:
            client.disconnect()


class ClockReactor(Clock):
    """A reactor in virtual time on which nothing listens."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = EPOCH

    def callWhenRunning(self, call: Any) -> None:
        call()

    def callFromThread(self, call: Any) -> None:
        self.callLater(0, call)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class NeverStops(FakeBroker):
    """A broker that never finishes stopping."""

    def startService(self) -> None: ...

    def stopService(self) -> Deferred[None]:
        return Deferred()


class ServiceStopTests(SynchronousTestCase):
    """The whole service, with a broker that never finishes stopping."""

    def setUp(self) -> None:
        self.clock = ClockReactor()
        self.broker = NeverStops(confirms_at_once=True)
        self.patch(service, "make_broker", lambda *_: self.broker)
        settings = Config(
            ("tcp:0:interface=127.0.0.1",),
            Unit("https://unit1.example/"),
            LocalSettings(make_key()),
            stop=StopSettings(drain=2),
        )
        self.service = TopicService(settings, self.clock, self.clock.seconds)
        self.validator = FakeValidator()
        self.service._send_resource.configure(self.validator, False, 10)
        self.service.broker.startService()
        self.service.websocket_server.startService()
        self.addCleanup(self.service._signals.restore)

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 20)):
            self.clock.advance(0.05)

    def test_stopping_ends_in_time_if_the_broker_hangs(self) -> None:
        stopping = self.service.stopService()
        self.assertFalse(self.service._health_parts()["accepting"])
        timeout = service.SENDS_GRACE + 2 + 5 + service.STOP_MARGIN
        self.pass_time(timeout - 1)
        self.assertNoResult(stopping)
        self.pass_time(2)
        self.successResultOf(stopping)

    def test_a_second_signal_aborts_the_stop(self) -> None:
        import os
        import signal

        stopping = self.service.stopService()
        self.assertNoResult(stopping)
        os.kill(os.getpid(), signal.SIGTERM)
        self.assertNoResult(stopping)
        self.clock.advance(0)
        self.successResultOf(stopping)

    def test_a_second_signal_before_the_stop_counts_too(self) -> None:
        import signal

        stops: list[object] = []
        before = signal.signal(signal.SIGTERM, lambda *_: stops.append(_))
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        self.service._on_reactor_running()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        self.assertEqual(len(stops), 1)
        stopping = self.service.stopService()
        self.clock.advance(0)
        self.successResultOf(stopping)

    def test_if_another_worker_has_taken_over_accepted_connections_are_still_served(self) -> None:
        tree = self.service._tree
        closed: list[float] = []

        def close() -> Deferred[None]:
            closed.append(self.clock.seconds())
            return succeed(None)

        for listener in self.service._listeners:
            self.patch(listener, "stop", close)
        self.service.hands_over = True
        self.service.stopService()
        self.assertEqual(len(closed), 1)
        self.pass_time(service.HANDOVER_GRACE - 0.1)
        self.assertFalse(tree._is_draining)
        self.pass_time(0.2)
        self.assertTrue(tree._is_draining)

    def test_without_another_worker_requests_are_refused_at_once(self) -> None:
        self.service.stopService()
        self.assertTrue(self.service._tree._is_draining)

    def test_without_its_parent_a_worker_closes_all_sessions_at_once(self) -> None:
        self.service.drain_at_once()
        self.assertEqual(self.service.websocket_server._drain, 0)
        stopping = self.service.stopService()
        self.pass_time(service.SENDS_GRACE + 0.5)
        self.service.stop_at_once()
        self.successResultOf(stopping)

    def stops_of_sessions(self) -> list[float]:
        """Record the times at which the closing of sessions begins."""
        stops: list[float] = []
        self.patch(
            self.service.websocket_server, "stopService", lambda: stops.append(self.clock.seconds())
        )
        return stops

    def test_close_frames_wait_for_accepted_messages(self) -> None:
        stops = self.stops_of_sessions()
        self.broker.waiting.append(Message(harness.TOPIC, None, b"1"))
        self.service.stopService()
        self.pass_time(service.SENDS_GRACE / 2)
        self.assertEqual(stops, [])
        self.broker.resume()
        self.pass_time(0.1)
        self.assertEqual(len(stops), 1)

    def test_close_frames_wait_for_accepted_messages_only_for_a_time(self) -> None:
        stops = self.stops_of_sessions()
        self.broker.waiting.append(Message(harness.TOPIC, None, b"1"))
        self.service.stopService()
        self.pass_time(service.SENDS_GRACE + 0.5)
        self.assertEqual(len(stops), 1)

    def test_close_frames_wait_for_a_send_in_flight_only_for_a_time(self) -> None:
        send: Deferred[None] = Deferred()
        self.service._send_resource._in_flight[send] = None
        stops = self.stops_of_sessions()
        send.addErrback(lambda _: None)
        self.service.stopService()
        self.pass_time(service.SENDS_GRACE - 0.5)
        self.assertEqual(stops, [])
        self.pass_time(1)
        self.assertEqual(len(stops), 1)
        self.assertTrue(send.called, "the send is answered in the end")
