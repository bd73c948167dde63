"""Test cases for each real broker: outages, pressure and hostile topic names."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from twisted.internet import reactor
from twisted.internet.defer import gatherResults, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from tests.support.processes import Deployment, Server, TopicsvcServer, until
from tests.support.subscriber import Subscriber
from topicsvc.delivery import channel, hub
from topicsvc.errors import PathRefused
from topicsvc.interfaces import Broker, Message
from topicsvc.topics import TopicAddress

__all__ = [
    "CELL",
    "DETECTION_TIME",
    "RECOVERY_TIME",
    "BrokerServer",
    "CloseOnLossCases",
    "HostileNamesCases",
    "KeepOnLossCases",
    "PressureCases",
    "ProcessesCases",
    "RightAfterSuccessCases",
    "data",
    "directory",
    "figure",
]

DETECTION_TIME = 45
"""Seconds in which the loss of a broker must be noticed. A frozen ActiveMQ is noticed after up to
30 s (docs/brokers.md); the rest is for a machine that runs timers late."""

RECOVERY_TIME = 20
"""Seconds after the return of a broker in which everything must work again. A pause between two
attempts takes up to 4.5 s, and an attempt up to 5 s; the rest is for a loaded machine."""

LOOKS = 60
"""How often the topics of a broker are listed, every 0.5 s: the list may be late."""

CELL = "https://cell2.unit1.example/"

_log = Logger()


class BrokerServer(Server, Protocol):
    """A real broker.

    Attributes:
        settings: the lines of ``[broker]`` for it.
    """

    @property
    def settings(self) -> str: ...

    def remove(self) -> None: ...


def figure(what: str, number: float, unit: str = "s") -> None:
    """Write a measurement into the test log."""
    _log.info("FIGURE {what}: {number:.2f} {unit}", what=what, number=number, unit=unit)


def directory(test: Any) -> Path:
    """Create a directory that the end of the test removes."""
    made = Path(tempfile.mkdtemp(prefix="topicsvc-test-"))
    test.addCleanup(shutil.rmtree, made, ignore_errors=True)
    return made


def data(sender: str, number: int) -> bytes:
    """Encode a data message as a client receives it."""
    return b'{"From":"%s","Body":{"number":%d}}' % (sender.encode(), number)


class ProcessesCases:
    """Fixture: a broker, two topicsvc processes, and sessions at both.

    Mix this class and its subclasses into a TestCase.
    """

    timeout = 400
    on_loss = "keep"
    sessions = 50

    def make_server(self) -> BrokerServer:
        raise NotImplementedError

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server = self.make_server()
        self.addCleanup(self.server.remove)
        yield self.server.start()
        self.deployment = Deployment(
            directory(self), f'{self.server.settings}\non_loss = "{self.on_loss}"'
        )
        self.services = [TopicsvcServer(self.deployment), TopicsvcServer(self.deployment)]
        for service in self.services:
            self.addCleanup(service.program.stop)
        yield gatherResults([service.start() for service in self.services])
        self.topic = TopicAddress("cell1", "box1", ("many",), "name")
        self.subscribers = yield gatherResults(
            [self.services[each % 2].join(self.topic) for each in range(self.sessions)]
        )
        self.addCleanup(self.leave)

    def leave(self) -> Any:
        return gatherResults([subscriber.leave() for subscriber in self.subscribers])

    def send(self, number: int) -> int:
        """Send a message over HTTP, alternately to both processes; return the status."""
        service = self.services[number % 2]
        return service.send(self.topic.send_path, b'{"number":%d}' % number)

    @inlineCallbacks
    def assert_delivered(self, number: int) -> Any:
        """A new message reaches all sessions; fires with the seconds that this took."""
        began = monotonic()
        self.assertEqual(self.send(number), 200)
        expected = b'"Body":{"number":%d}}' % number
        yield until(
            lambda: all(
                each.messages and each.messages[-1].endswith(expected) for each in self.subscribers
            ),
            "the message reaches all sessions",
        )
        return monotonic() - began


class KeepOnLossCases(ProcessesCases):
    """With ``on_loss = "keep"`` fifty sessions stay open during an outage."""

    def send_many(self, count: int) -> Any:
        """Another client of the broker sends so many numbered messages without a pause."""
        raise NotImplementedError

    def check_numbers(self, numbers: list[int]) -> None:
        """Check the messages of a session that was open before, during and after an outage."""
        raise NotImplementedError

    def during_outage(self) -> Any:
        """Called after the loss of the broker, before it is noticed."""

    def after_outage(self) -> Any:
        """Called after the return of the broker."""

    @inlineCallbacks
    def test_ten_thousand_messages_to_fifty_sessions(self) -> Any:
        count = 10000
        began = monotonic()
        yield self.send_many(count)
        figure(f"{count} messages sent by another client", monotonic() - began)
        yield until(
            lambda: all(len(each.messages) >= count for each in self.subscribers), "all arrive", 120
        )
        figure(f"{count} messages at each of {self.sessions} sessions", monotonic() - began)
        yield self.assert_delivered(count)
        expected = [data(CELL, number) for number in range(count)]
        for subscriber in self.subscribers:
            self.assertEqual(subscriber.messages[:-1], expected)

    @inlineCallbacks
    def test_kill_and_restart(self) -> Any:
        yield self.assert_delivered(1)
        began = monotonic()
        self.server.program.kill()
        yield self.during_outage()
        yield gatherResults([service.until_not_ready(DETECTION_TIME) for service in self.services])
        figure("kill -9 noticed", monotonic() - began)
        yield self.assert_unavailable()
        yield self.server.start()
        yield self.assert_recovers("restart")

    @inlineCallbacks
    def test_stop_and_continue(self) -> Any:
        yield self.assert_delivered(1)
        began = monotonic()
        self.server.program.pause()
        yield self.during_outage()
        sending = deferToThread(self.send, 2)
        yield gatherResults([service.until_not_ready(DETECTION_TIME) for service in self.services])
        figure("SIGSTOP noticed", monotonic() - began)
        self.assertEqual((yield sending), 503)
        yield self.assert_unavailable()
        yield deferLater(reactor, max(0, 30 - (monotonic() - began)))
        self.server.program.resume()
        yield self.assert_recovers("SIGCONT")

    @inlineCallbacks
    def assert_unavailable(self) -> Any:
        """New sessions and sends are refused."""
        self.assertEqual(self.send(3), 503)
        for topic in (self.topic, TopicAddress("cell1", "box1", ("many",), "other")):
            subscriber = yield self.services[0].connect(topic.websocket_path)
            self.assertFalse((yield subscriber.subscribed))
            self.assertEqual(subscriber.replies[0]["Reason"], "Service unavailable")
            self.assertEqual(subscriber.close_code, 1013)

    @inlineCallbacks
    def assert_recovers(self, after: str) -> Any:
        """Everything works again in time, for open sessions and for a new one."""
        began = monotonic()
        yield gatherResults([service.until_ready(RECOVERY_TIME) for service in self.services])
        new = yield self.services[1].join(self.topic)
        yield self.after_outage()
        yield self.assert_delivered(4)
        figure(f"working again after {after}", monotonic() - began)
        self.assertLess(monotonic() - began, RECOVERY_TIME)
        self.assertEqual([each.close_code for each in self.subscribers], [None] * self.sessions)
        for subscriber in self.subscribers:
            self.check_numbers([json.loads(each)["Body"]["number"] for each in subscriber.messages])
        yield until(lambda: new.messages, "the message reaches the new session")
        yield new.leave()
        for service in self.services:
            self.check_log(service.program.log)

    def check_log(self, log: str) -> None:
        """Check the log lines of one outage."""
        raise NotImplementedError


class CloseOnLossCases(ProcessesCases):
    """With ``on_loss = "close"`` the sessions are closed, so that clients know of the gap."""

    on_loss = "close"
    sessions = 10

    @inlineCallbacks
    def test_sessions_are_closed_with_code_1013(self) -> Any:
        yield self.assert_delivered(1)
        self.server.program.kill()
        yield gatherResults([subscriber.gone for subscriber in self.subscribers])
        self.assertEqual([each.close_code for each in self.subscribers], [1013] * self.sessions)
        yield self.server.start()
        yield gatherResults([service.until_ready(RECOVERY_TIME) for service in self.services])
        self.subscribers = [(yield self.services[0].join(self.topic))]
        yield self.assert_delivered(2)


class RightAfterSuccessCases:
    """A message that is sent after a client has read Success reaches the client.

    Mix into a TestCase that has a server in ``self.server`` and a broker in ``self.broker``.
    """

    timeout = 400
    attempts = 1000
    at_once = 4
    server: BrokerServer
    broker: Broker

    @inlineCallbacks
    def test_no_message_is_missed(self) -> Any:
        service = TopicsvcServer(Deployment(directory(self), self.server.settings))
        self.addCleanup(service.program.stop)
        yield service.start()
        numbers = iter(range(self.attempts))
        began = monotonic()
        yield gatherResults([self.run_attempts(service, numbers) for _ in range(self.at_once)])
        figure(f"{self.attempts} attempts", monotonic() - began)

    @inlineCallbacks
    def run_attempts(self, service: TopicsvcServer, numbers: Any) -> Any:
        for number in numbers:
            # Each topic is subscribed for the first time.
            topic = TopicAddress("cell1", "box1", ("attempts",), str(number))
            message = Message(topic, CELL, b'{"number":%d}' % number)
            sent: list[Any] = []
            subscriber = Subscriber(
                lambda message=message, sent=sent: sent.append(self.broker.publish(message))
            )
            yield service.join(topic, subscriber)
            yield sent[0]
            yield until(lambda each=subscriber: each.messages, f"message {number} arrives", 60)
            self.assertEqual(subscriber.messages, [data(CELL, number)])
            yield subscriber.leave()


class PressureCases:
    """The broker brings more messages than the hub can deliver.

    The hub delivers only while the broker is paused, or when no message is left to arrive. So the
    queue fills on a machine of any speed.

    Mix into a TestCase that has a broker in ``self.broker``.
    """

    broker: Broker
    name = "pressure"
    flood = 2000
    size = 10000
    high_water = 1_000_000
    slack = 200_000
    """Bytes that a broker may still bring after it was paused."""

    @inlineCallbacks
    def test_the_queue_is_bounded_and_all_messages_arrive_in_order(self) -> Any:
        self.patch(hub, "HIGH_WATER", self.high_water)
        self.patch(hub, "LOW_WATER", self.high_water // 2)
        self.patch(channel, "MAX_JOINED", 0)  # one message per reactor iteration
        self.patch(hub, "MAX_DELIVERIES_PER_ITERATION", 1)
        topic = TopicAddress("cell1", "box1", (self.name,), "name")
        clock = _HeldClock()
        self.addCleanup(clock.release)
        arrived = 0

        def encode(message: Message) -> bytes:
            nonlocal arrived
            arrived += 1
            if arrived == self.flood:
                clock.release()
            return message.body

        fan_out = hub.Hub(self.broker, clock, clock.seconds, encode)
        member = _Member(fan_out)
        yield fan_out.join(topic, member)
        pauses: list[int] = []
        pause, resume = self.broker.pause, self.broker.resume

        def paused() -> None:
            pauses.append(len(member.received))
            pause()
            clock.release()

        def resumed() -> None:
            resume()
            if arrived < self.flood:
                clock.hold()

        self.patch(self.broker, "pause", paused)
        self.patch(self.broker, "resume", resumed)
        clock.hold()
        bodies = [b'"%0*d"' % (self.size, number) for number in range(self.flood)]
        began = monotonic()
        yield gatherResults([self.broker.publish(Message(topic, CELL, body)) for body in bodies])
        yield until(lambda: len(member.received) == self.flood, "all arrive", 60)
        seconds = monotonic() - began
        figure(f"{self.flood} messages of {self.size} bytes, {len(pauses)} pauses", seconds)
        figure("largest queue", member.most / 1e6, "MB")
        self.assertEqual(member.received, bodies)
        self.assertGreater(len(pauses), 1)
        self.assertLess(member.most, self.high_water + self.slack)
        self.assertTrue(self.broker.is_up)
        fan_out.leave(topic, member)


class _HeldClock:
    """The reactor as a clock. It can hold back the calls that are scheduled through it."""

    def __init__(self) -> None:
        self.seconds = reactor.seconds
        self._is_held = False
        self._calls: list[tuple[Any, ...]] = []

    def callLater(self, delay: float, *call: Any) -> Any:
        return reactor.callLater(delay, self._run, *call)

    def hold(self) -> None:
        self._is_held = True

    def release(self) -> None:
        self._is_held = False
        calls, self._calls = self._calls, []
        for function, *arguments in calls:
            reactor.callLater(0, function, *arguments)

    def _run(self, *call: Any) -> None:
        if self._is_held:
            self._calls.append(call)
        else:
            call[0](*call[1:])


class _Member:
    """Collects messages and notes the largest queue of the hub, in bytes."""

    def __init__(self, fan_out: hub.Hub) -> None:
        self.received: list[bytes] = []
        self.most = 0
        self._hub = fan_out

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        self.received.append(frames)
        self.most = max(self.most, self._hub.queued)

    def broker_lost(self) -> None:
        raise AssertionError("the broker was not lost")


class HostileNamesCases:
    """Topic names with a special meaning for a broker do not reach it."""

    server: BrokerServer

    def names_at_the_broker(self) -> Any:
        """Fires with a list of all topics of the broker."""
        raise NotImplementedError

    @inlineCallbacks
    def test_hostile_names_do_not_reach_the_broker(self) -> Any:
        service = TopicsvcServer(Deployment(directory(self), self.server.settings))
        self.addCleanup(service.program.stop)
        yield service.start()
        hostile = ["a>", "*", "a,cell2", "a,topic%3A%2F%2Fb", "a?consumer.retroactive=true", "a.b"]
        hostile += ["%3E", "%2A", "a%2Cb", "a%3Fb", "a%0Ab", "a%00", ">", "a%2Eb", "%2F", "a:b"]
        hostile += ["^.*", "%5E.%2A", "^a", "a%7Cb", "a%24"]
        for name in hostile:
            path = f"/cell1/__topic/box1/probe.topic.{name}"
            subscriber = yield service.connect(path)
            # The part after "?" is a query, which is ignored.
            if name.startswith("a?"):
                self.assertEqual(subscriber.status, 101)
                self.assertTrue((yield subscriber.subscribed))
                yield subscriber.leave()
            else:
                self.assertEqual(subscriber.status, 404, name)
                self.assertEqual(service.send(f"/cell1/box1/probe/topic/{name}", b"1"), 404)
            yield subscriber.gone
        for name in ("a>", "*", "a,b", "a?b", "a.b", "a:b", "a/b", "a b", "a\n", "", "^a", "a$"):
            self.assertRaises(PathRefused, TopicAddress, "cell1", "box1", ("probe",), name)
        # A valid topic proves that the hostile ones would be in the list as well.
        self.assertEqual(service.send("/cell1/box1/probe/topic/valid", b"1"), 200)
        expected = [f"cell1.box1.probe.topic.{name}" for name in ("a", "valid")]
        probes: list[str] = []
        for _ in range(LOOKS):
            yield deferLater(reactor, 0.5)
            names = yield self.names_at_the_broker()
            probes = sorted(name for name in names if "probe" in name)
            if len(probes) >= len(expected):
                break
        self.assertEqual(probes, expected)
