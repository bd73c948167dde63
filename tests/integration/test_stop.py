"""Stopping processes: one with 2,000 sessions, and two on one port one after the other."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.integration.support.activemq_server import ActiveMQ, need_activemq
from tests.integration.support.run_delay import run_delay
from tests.support.processes import (
    Deployment,
    Program,
    Shared,
    TopicsvcServer,
    until,
)
from tests.support.subscriber import Subscriber
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("col",), "stop")
DRAIN = 4.0
SESSIONS = 2000
AT_ONCE = 50
CLOSE_TIMEOUT = 5.0
MARGIN = 8.0

_log = Logger()
shared = Shared(ActiveMQ)


def figure(what: str, **figures: object) -> None:
    _log.info("FIGURE {what}: {figures}", what=what, figures=figures)


class StallMeter:
    """Measures how long this process and others did not run, because the machine was busy.

    Args:
        programs: the other processes.

    Attributes:
        here: the longest time of this process, in seconds; events in it are noticed late.
        there: the longest time of one of the others; what is due in it happens late.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self.here = self.there = 0.0
        self._programs = programs
        self._waited: dict[int, float] = {}
        self._last_call = reactor.seconds()
        self._calls = LoopingCall(self._call)
        self._calls.start(0.05)

    @property
    def longest(self) -> float:
        """How long an event may take more."""
        return self.here + self.there

    def stop(self) -> None:
        if self._calls.running:
            self._calls.stop()

    def _call(self) -> None:
        now = reactor.seconds()
        self.here = max(self.here, now - self._last_call - 0.05)
        self._last_call = now
        for program in self._programs:
            waited = run_delay(program.pid)
            before = self._waited.get(program.pid, waited)
            self.there = max(self.there, waited - before)
            self._waited[program.pid] = waited


class TimedSubscriber(Subscriber):
    """Notes the time of the close frame."""

    closed_at = 0.0

    def frame_received(self, opcode: int, payload: bytes) -> None:
        if opcode == 8:
            self.closed_at = reactor.seconds()
        super().frame_received(opcode, payload)


class StopTestCase(TestCase):
    timeout = 400
    broker = 'kind = "memory"'

    def setUp(self) -> Any:
        directory = tempfile.TemporaryDirectory(prefix="topicsvc-stop-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.deployment = Deployment(self.directory, self.broker)

    def topicsvc(self, drain: float) -> TopicsvcServer:
        service = TopicsvcServer(self.deployment, drain)
        self.addCleanup(service.program.kill)
        return service


class ManySessionsTests(StopTestCase):
    @inlineCallbacks
    def test_the_close_frames_of_2000_sessions_are_spread_over_the_drain_time(self) -> Any:
        service = self.topicsvc(DRAIN)
        yield service.start()
        subscribers: list[TimedSubscriber] = []
        for _ in range(SESSIONS // AT_ONCE):
            batch = [service.join(TOPIC, TimedSubscriber()) for _ in range(AT_ONCE)]
            subscribers += yield gatherResults(batch)
        stalls = StallMeter([service.program])
        self.addCleanup(stalls.stop)
        began = reactor.seconds()
        service.program.signal(signal.SIGTERM)
        yield until(lambda: says_that_it_stops(service), "the health endpoint says that it stops")
        refused = yield deferToThread(self.is_refused, service.port)
        yield gatherResults([subscriber.gone for subscriber in subscribers])
        yield until(lambda: not service.program.runs, "the process has ended", 60)
        took = reactor.seconds() - began
        moments = sorted(subscriber.closed_at - began for subscriber in subscribers)
        fullest = most_within(moments, 0.5)
        figure(
            "2,000 sessions",
            stall=stalls.longest,
            first=moments[0],
            last=moments[-1],
            half_second=fullest,
            end=took,
        )
        self.assertEqual({subscriber.close_code for subscriber in subscribers}, {1001})
        self.assertTrue(refused, "no new connections")
        self.assertLess(took, DRAIN + CLOSE_TIMEOUT + MARGIN)
        # Evenly: half a second has little more than an eighth of the close frames.
        self.assertLess(fullest, 2 * SESSIONS * (0.5 + stalls.longest) / DRAIN)
        tolerance = 0.2 + stalls.longest / DRAIN
        for tenth in range(1, 10):
            share = sum(moment < DRAIN * tenth / 10 for moment in moments) / SESSIONS
            self.assertTrue(tenth / 10 - tolerance < share < tenth / 10 + tolerance, (tenth, share))

    def is_refused(self, port: int) -> bool:
        with socket.socket() as probe:
            probe.settimeout(5)
            return probe.connect_ex(("127.0.0.1", port)) != 0


def says_that_it_stops(service: TopicsvcServer) -> bool:
    """Whether the health endpoint says it. While the process has other work, it may be late."""
    return service.parts.get("accepting") is False


def most_within(moments: list[float], seconds: float) -> int:
    """The largest number of `moments`, which are sorted, within so many seconds."""
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] < moment - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


class LastMessageCases:
    """For each broker: an accepted message reaches the sessions of the process before it stops."""

    @inlineCallbacks
    def test_a_message_that_got_200_arrives_before_the_close_frame(self) -> Any:
        service = self.topicsvc(0)
        yield service.start()
        members = yield gatherResults([service.join(TOPIC) for _ in range(20)])
        status = yield deferToThread(service.send, TOPIC.send_path, b'"last"')
        service.program.signal(signal.SIGTERM)
        self.assertEqual(status, 200)
        yield gatherResults([member.gone for member in members])
        for member in members:
            self.assertEqual([json.loads(each)["Body"] for each in member.messages], ["last"])
            self.assertEqual(member.close_code, 1001)
        yield until(lambda: not service.program.runs, "the process has ended", 30)


class MemoryTests(LastMessageCases, StopTestCase): ...


class SignalTests(StopTestCase):
    @inlineCallbacks
    def test_a_second_signal_ends_the_process_at_once(self) -> Any:
        service = self.topicsvc(60)
        yield service.start()
        yield gatherResults([service.join(TOPIC) for _ in range(20)])
        service.program.signal(signal.SIGTERM)
        yield until(lambda: says_that_it_stops(service), "the health endpoint says that it stops")
        service.program.signal(signal.SIGTERM)
        # Much sooner than after 60 s, over which the sessions would be closed.
        took = yield until(lambda: not service.program.runs, "the process has ended", 20)
        figure("a second signal", seconds=took)
        self.assertIn("stopping at once: a second signal", service.program.log)
        self.assertNotIn("Traceback", service.program.log)

    @inlineCallbacks
    def test_a_second_signal_in_the_same_reactor_iteration_counts(self) -> Any:
        service = self.topicsvc(60)
        yield service.start()
        yield gatherResults([service.join(TOPIC) for _ in range(20)])
        service.program.pause()
        # The system merges two pending signals of the same number.
        service.program.signal(signal.SIGTERM)
        service.program.signal(signal.SIGINT)
        service.program.resume()
        yield until(lambda: not service.program.runs, "the process has ended", 30)
        self.assertIn("stopping at once: a second signal", service.program.log)
        self.assertNotIn("Traceback", service.program.log)

    @inlineCallbacks
    def test_systemd_notifications(self) -> Any:
        systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(systemd.close)
        systemd.bind(str(self.directory / "notify"))
        systemd.setblocking(False)
        service = self.topicsvc(0)
        service.program.environment |= {
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "WATCHDOG_USEC": "400000",
        }
        notifications: list[str] = []

        def received(words: str) -> bool:
            try:
                while True:
                    notifications.append(systemd.recv(1000).decode())
            except BlockingIOError:
                return any(words in each for each in notifications)

        yield service.start()
        yield until(lambda: received("READY=1"), "ready", 60)
        yield until(lambda: received("WATCHDOG=1"), "a watchdog notification", 30)
        service.program.pause()
        received("")  # what it sent before it was stopped
        notifications.clear()
        yield deferLater(reactor, 1)
        self.assertFalse(received("WATCHDOG=1"), "a paused process sends no watchdog notification")
        service.program.resume()
        yield until(lambda: received("WATCHDOG=1"), "a watchdog notification again", 30)
        service.program.signal(signal.SIGHUP)
        yield until(lambda: received("RELOADING=1\nMONOTONIC_USEC="), "reloading", 30)
        yield until(lambda: received("READY=1"), "and ready again", 30)
        service.program.signal(signal.SIGTERM)
        yield until(lambda: received("STOPPING=1\nEXTEND_TIMEOUT_USEC="), "stopping", 30)
        yield until(lambda: not service.program.runs, "the process has ended", 30)


class Instance(TopicsvcServer):
    """One of several processes on one socket, as with systemd's socket activation."""

    def __init__(self, deployment: Deployment, drain: float, shared_socket: socket.socket) -> None:
        super().__init__(deployment, drain, "systemd:domain=INET:index=0")
        self.port = shared_socket.getsockname()[1]
        # systemd passes descriptor 3, to the process that it names.
        number = shared_socket.fileno()
        command = 'exec 3<&"$0"; exec env LISTEN_FDS=1 LISTEN_FDNAMES=x LISTEN_PID=$$ "$@"'
        self.program = Program(
            ["/bin/bash", "-c", command, str(number), *self.program.command],
            deployment.directory / f"instance-{self.admin}.log",
            {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            deployment.directory,
            pass_fds=[number],
        )


class ReconnectingClient:
    """A client that reconnects at once after each close."""

    def __init__(self, port: TopicsvcServer) -> None:
        self._port = port
        self.reconnects: list[float] = []
        self.failures = 0
        self.messages = 0
        self.session: Subscriber | None = None
        self._is_done = False

    def begin(self) -> Deferred[Any]:
        return self._port.join(TOPIC).addCallback(self._joined)

    def leave(self) -> Deferred[Any]:
        self._is_done = True
        return self.session.leave()

    @property
    def latest(self) -> int:
        """The number of the latest message in this session; -1: none."""
        if self.session is None or not self.session.messages:
            return -1
        return json.loads(self.session.messages[-1])["Body"]

    def _joined(self, session: Subscriber) -> None:
        self.session = session
        session.gone.addCallback(lambda _: self._reconnect())

    def _reconnect(self) -> None:
        if self._is_done:
            return
        self.messages += len(self.session.messages)
        self.session = None
        self.reconnects.append(reactor.seconds())
        self._port.join(TOPIC).addCallbacks(self._joined, self._failed)

    def _failed(self, _: Failure) -> None:
        self.failures += 1
        reactor.callLater(0.2, self._try_again)

    def _try_again(self) -> None:
        if not self._is_done:
            self._port.join(TOPIC).addCallbacks(self._joined, self._failed)


class ActiveMQTests(LastMessageCases, StopTestCase):
    CLIENTS = 200

    @inlineCallbacks
    def setUp(self) -> Any:
        need_activemq()
        server = yield shared.get()
        self.broker = f'kind = "activemq"\nendpoint = "tcp:127.0.0.1:{server.stomp}"'
        super().setUp()

    @inlineCallbacks
    def test_a_rolling_restart_of_two_processes_on_one_port(self) -> Any:
        listening = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.addCleanup(listening.close)
        instances = [Instance(self.deployment, DRAIN, listening) for _ in range(2)]
        for instance in instances:
            self.addCleanup(instance.program.kill)
        yield gatherResults([instance.start() for instance in instances])
        clients = [ReconnectingClient(instances[0]) for _ in range(self.CLIENTS)]
        for at in range(0, self.CLIENTS, AT_ONCE):
            yield gatherResults([client.begin() for client in clients[at : at + AT_ONCE]])
        statuses: list[int] = []

        def send() -> Deferred[None]:
            sent = deferToThread(instances[0].send, TOPIC.send_path, b"%d" % len(statuses))
            return sent.addCallbacks(statuses.append, lambda _: statuses.append(0))

        stalls = StallMeter([instance.program for instance in instances])
        self.addCleanup(stalls.stop)
        stream = LoopingCall(send)
        streaming = stream.start(0.02)
        for instance in instances:
            instance.program.signal(signal.SIGTERM)
            yield until(lambda i=instance: not i.program.runs, "the process has ended", 60)
            yield instance.start()
        yield until(
            lambda: all(client.session for client in clients), "all clients have reconnected", 60
        )
        sent = len(statuses)
        yield until(
            lambda: all(client.latest > sent for client in clients),
            "all clients receive messages",
            60,
        )
        stream.stop()
        yield streaming
        moments = sorted(moment for client in clients for moment in client.reconnects)
        figure(
            "a rolling restart",
            reconnects=len(moments),
            most_in_a_second=most_within(moments, 1),
            failures=sum(client.failures for client in clients),
            stall=stalls.longest,
            sends=len(statuses),
            not_accepted=sum(status != 200 for status in statuses),
        )
        for client in clients:
            client.leave()
        yield gatherResults([client.session.gone for client in clients])
        # The clients of the first process go to the second one, then all go to the first one.
        self.assertGreaterEqual(len(moments), self.CLIENTS)
        most = 1.5 * self.CLIENTS / DRAIN * (1 + stalls.longest)
        self.assertLessEqual(most_within(moments, 1), most)
        self.assertGreater(sum(status == 200 for status in statuses), 0.95 * len(statuses))
