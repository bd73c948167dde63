"""The parent carries out the decisions about workers: in memory and in virtual time."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.support.control import ControlSocket
from topicsvc.admin.request import AdminRequest
from topicsvc.errors import ConfigError, WorkerUnavailable
from topicsvc.process.setup import CannotStart
from topicsvc.settings import (
    Config,
    LocalSettings,
    OperatorSettings,
    RedisSettings,
    StopSettings,
)
from topicsvc.topics import Unit
from topicsvc.validators.token_id import KEY_BYTES
from topicsvc.workers import parent
from topicsvc.workers.command import WorkerArguments
from topicsvc.workers.control import TIMEOUT, Members
from topicsvc.workers.identity import WorkerIdentity
from topicsvc.workers.parent import (
    CHECK_TIMEOUT,
    DRAIN_MARGIN,
    KILL_DELAY,
    START_TIMEOUT,
    ParentService,
)
from topicsvc.workers.supervisor import RELOAD_GRACE

SETTINGS = Config(
    ("tcp:0:interface=127.0.0.1",),
    Unit("https://unit1.example/"),
    LocalSettings(b"key"),
    broker=RedisSettings("localhost"),
    stop=StopSettings(drain=2),
    workers=3,
    admin="tcp:0:interface=127.0.0.1",
)


class FakeReactor(Clock):
    """A reactor in virtual time; `iterate` passes time, and lets workers become ready."""

    def __init__(self) -> None:
        super().__init__()
        self.each_iteration: Callable[[], None] = lambda: None
        self.when_running: list[Callable[[], None]] = []

    def iterate(self, delay: float) -> None:
        self.advance(delay)
        self.each_iteration()

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.when_running.append(call)

    def callFromThread(self, call: Callable[..., None], *arguments: Any) -> None:
        call(*arguments)


class FakeWorker:
    """Takes the place of `WorkerProcess`: a worker in this process."""

    def __init__(
        self,
        test: ParentTests,
        arguments: WorkerArguments,
        ready: Callable[[str], None],
        ended: Callable[[str, bool], None],
        tell_metrics: Callable[[str], None],
    ) -> None:
        self.tell_metrics = tell_metrics
        self.number = arguments.number
        self.ready = ready
        self.end = ended
        self.done: list[str] = []
        self.problems: list[str] = []
        self.digest = "new"
        self.is_silent = self.has_ended = False
        self.error = ""
        self.sockets: list[int] = []
        self.killed = 0
        actions = {
            name: lambda members, name=name: self.act(name, members)
            for name in ("ping", "check", "apply", "drop", "drain", "stop_at_once")
        }
        self.socket = ControlSocket(test.reactor, actions)
        self.control = self.socket.parent
        test.started.append(self)

    def act(self, name: str, members: Members) -> Any:
        self.done.append(f"{name} {members}" if members else name)
        if self.is_silent:
            return Deferred()
        if self.error:
            raise WorkerUnavailable(self.error)
        if name == "check":
            return {"problems": self.problems, "digest": self.digest}
        return {"applied": ["[session]"], "needs_restart": ["listen"]}

    def ended(self, reason: str, is_refused: bool = False) -> None:
        self.has_ended = True
        self.end(reason, is_refused)

    def start(self, sockets: list[int], environment: dict[str, str]) -> None:
        self.sockets = sockets
        self.environment = environment

    def kill(self, reason: str = "") -> None:
        self.killed += 1
        self.reason = reason


class FakeListener:
    """Takes the place of the listener of the admin endpoint."""

    text = "ssl:1"
    certificate_expiry = None

    def __init__(self) -> None:
        self.error: ValueError | None = None
        self.is_tls = False
        self.replaced = 0
        self.calls: list[str] = []

    def bind(self) -> None:
        self.calls.append("bind")

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> Deferred[None]:
        self.calls.append("stop")
        return succeed(None)

    def read_certificates(self) -> Callable[[], str] | None:
        if self.error is not None:
            raise self.error
        return self.replace if self.is_tls else None

    def replace(self) -> str:
        self.replaced += 1
        return "the certificate of the parent"


class ParentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.started: list[FakeWorker] = []
        self.patch(parent, "reapAllProcesses", lambda: None)
        self.patch(
            parent,
            "WorkerProcess",
            lambda arguments, reactor, ready, ended, metrics: FakeWorker(
                self, arguments, ready, ended, metrics
            ),
        )
        self.admin = FakeListener()
        self.patch(parent, "Listener", lambda *_: self.admin)
        self.settings = SETTINGS
        self.parent = ParentService(
            SETTINGS,
            lambda number: WorkerArguments(number, 3, 1, Path("/"), "", "relay", ()),
            self.read,
            self.reactor,
            lambda: 0,
        )
        self.log: list[str] = []
        self.patch(self.parent, "_log", self)
        for number in (signal.SIGHUP, signal.SIGUSR2):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.parent.privilegedStartService()
        self.addCleanup(lambda: [each.close() for each in self.parent._sockets])

    def info(self, text: str, **fields: Any) -> None:
        self.log.append(text.format(**fields))

    warn = error = info

    def failure(self, text: str, *_: Any) -> None:
        self.log.append(text)

    def read(self) -> Config:
        if isinstance(self.settings, Config):
            return self.settings
        raise self.settings

    def start(self) -> None:
        """Start; all workers become ready one after another."""
        waiting = [1, 2, 3]

        def iteration() -> None:
            if waiting:
                self.started[waiting.pop() - 1].ready("old")

        self.reactor.each_iteration = iteration
        self.parent.startService()
        self.log.clear()

    def pump(self) -> None:
        for each in self.started:
            each.socket.pump()

    def done(self) -> list[list[str]]:
        """What each worker has done since the last call."""
        self.pump()
        done = [each.done for each in self.started]
        for each in self.started:
            each.done = []
        return done

    # Starting

    def test_the_start_ends_when_all_workers_are_ready(self) -> None:
        self.start()
        self.assertEqual([each.number for each in self.started], [1, 2, 3])
        sockets = [each.sockets for each in self.started]
        self.assertEqual(len({tuple(each) for each in sockets}), 3)
        self.assertEqual(list(self.parent.controls.values()), [e.control for e in self.started])

    def test_a_worker_that_fails_ends_the_start_with_its_reason(self) -> None:
        reasons = ["key: Permission denied"]

        def iteration() -> None:
            if reasons:
                self.started[1].ended(reasons.pop())

        self.reactor.each_iteration = iteration
        error = self.assertRaises(CannotStart, self.parent.startService)
        self.assertEqual(error.problems, ("worker 2: key: Permission denied",))
        self.assertEqual([each.killed for each in self.started], [1, 0, 1])

    def test_workers_that_are_never_ready_end_the_start(self) -> None:
        error = self.assertRaises(CannotStart, self.parent.startService)
        self.assertEqual(error.problems, (f"the workers: not ready within {START_TIMEOUT:.0f} s",))
        self.assertEqual([each.killed for each in self.started], [1, 1, 1])

    # Crashes

    def test_a_crashed_worker_is_started_again_with_the_same_sockets(self) -> None:
        self.start()
        self.started[1].ended("signal 9")
        self.assertEqual(self.log, ["worker 2 has ended: signal 9; the next one starts in 0.1 s"])
        self.assertIsNone(self.parent.controls[2])
        self.reactor.advance(0.1)
        self.assertEqual(self.started[3].sockets, self.started[1].sockets)
        self.started[3].ready("old")
        self.assertIs(self.parent.controls[2], self.started[3].control)

    def test_a_new_worker_that_is_never_ready_is_killed_and_started_again(self) -> None:
        self.start()
        self.started[1].ended("signal 9")
        self.reactor.advance(0.1)
        new = self.started[3]
        self.reactor.advance(START_TIMEOUT - 0.001)
        self.assertEqual(new.killed, 0)
        self.reactor.advance(0.001)
        self.assertEqual((new.killed, new.reason), (1, f"not ready within {START_TIMEOUT:.0f} s"))
        new.ended(new.reason)
        self.assertIn("not ready within 120 s; the next one starts in 0.2 s", self.log[-2])
        self.reactor.advance(0.2)
        self.parent.reload()
        self.started[4].ready("old")
        self.assertEqual(self.done()[4], ["check", "apply"])

    def test_a_worker_that_became_ready_or_has_ended_is_not_killed_later(self) -> None:
        self.start()
        for end in (lambda: self.started[3].ready("old"), lambda: self.started[4].ended("bad")):
            self.started[1 if len(self.started) == 3 else 2].ended("signal 9")
            self.reactor.advance(0.1)
            end()
        self.reactor.advance(START_TIMEOUT)
        self.assertEqual([each.killed for each in self.started[3:5]], [0, 0])

    def fail_to_start(self, place: int, seconds: float, is_refused: bool = True) -> None:
        """For so many seconds, each worker of a place ends while it starts."""
        until = self.reactor.seconds() + seconds
        while self.reactor.seconds() < until:
            self.reactor.advance(0.1)
            last = self.started[-1]
            if last.number == place and not last.has_ended:
                last.ended("key_file: not a key", is_refused)

    def listens(self, worker: FakeWorker) -> int:
        with socket.socket(fileno=os.dup(worker.sockets[0])) as copy:
            return copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    def test_the_socket_of_a_place_whose_workers_cannot_start_refuses_connections(self) -> None:
        """Otherwise half of the new connections of two workers would wait in its backlog."""
        self.start()
        self.started[1].ended("signal 9")
        self.fail_to_start(2, 2)
        self.assertEqual([self.listens(each) for each in self.started[:3]], [1, 1, 1])
        self.fail_to_start(2, 20)
        self.assertEqual([self.listens(each) for each in self.started[:3]], [1, 0, 1])
        line = "worker 2 cannot start: until it can, new connections go to the other workers only"
        self.assertEqual(self.log.count(line), 1)

    def test_if_no_worker_serves_connections_wait_for_the_next_one(self) -> None:
        self.start()
        for each in (0, 2, 1):
            self.started[each].ended("signal 9")
        self.reactor.advance(0.1)
        for each in self.started[3:5]:
            each.ended("signal 9")
        self.fail_to_start(2, 20)
        self.assertEqual([self.listens(each) for each in self.started[:3]], [1, 1, 1])

    # Reload

    def test_all_workers_check_before_all_change(self) -> None:
        self.start()
        signal.raise_signal(signal.SIGHUP)
        for each in self.started[:2]:
            each.socket.pump()
        self.assertEqual([each.done for each in self.started], [["check"], ["check"], []])
        self.pump()
        self.assertEqual(self.done(), [["check", "apply"]] * 3)
        self.assertEqual(
            self.log,
            [
                "listen: needs a restart; the old value stays in effect",
                "reloaded: [session]",
            ],
        )

    def test_the_parent_names_what_workers_cannot_compare(self) -> None:
        """Workers get endpoints and their number as options, whatever the file says."""
        self.start()
        self.settings = replace(
            SETTINGS, workers=2, listen=("tcp:1",), admin="tcp:2", stop=StopSettings(drain=60)
        )
        for _ in range(2):
            self.log.clear()
            signal.raise_signal(signal.SIGHUP)
            self.pump()
            self.done()
            waits = "{}: needs a restart; the old value stays in effect"
            self.assertEqual(
                self.log,
                [
                    *(waits.format(name) for name in ("admin.listen", "listen", "workers")),
                    "reloaded: [session]",
                ],
            )
        self.log.clear()
        self.parent.roll()
        self.assertEqual(self.log, ["rolling restart: 3 workers"])
        self.started[3].ready("new")
        self.reactor.advance(2 + DRAIN_MARGIN)
        self.assertEqual(self.started[0].killed, 0)
        self.reactor.advance(58)
        self.assertEqual(self.started[0].killed, 1)

    def test_a_problem_of_one_worker_keeps_all_from_changing(self) -> None:
        self.start()
        self.started[2].problems = ["tls: no file"]
        self.parent.reload()
        self.pump()
        self.assertEqual(self.done(), [["check", "drop"]] * 3)
        self.assertEqual(self.log, ["not reloaded, the old settings stay in effect: tls: no file"])

    def test_a_problem_that_the_parent_finds_is_not_asked_of_the_workers(self) -> None:
        self.start()
        self.settings: Any = ConfigError(["listen: bad"])
        self.parent.reload()
        self.assertEqual(self.done(), [[], [], []])
        self.assertEqual(self.log, ["not reloaded, the old settings stay in effect: listen: bad"])

    def test_a_worker_that_does_not_answer_keeps_all_from_changing(self) -> None:
        self.start()
        self.started[0].is_silent = True
        self.parent.reload()
        self.done()
        self.reactor.advance(CHECK_TIMEOUT)
        self.assertEqual(self.done()[1:], [["drop"], ["drop"]])
        self.assertEqual(
            self.log,
            ["not reloaded, the old settings stay in effect: worker 1: no answer within 60 s"],
        )

    def test_a_worker_that_has_closed_its_control_socket_is_named_too(self) -> None:
        self.start()
        self.started[1].control.connectionLost(Failure(ConnectionDone()))
        self.parent.reload()
        self.pump()
        self.assertEqual(
            self.log,
            [
                "not reloaded, the old settings stay in effect: worker 2: its control socket is "
                "closed"
            ],
        )

    def block_a_reload(self) -> None:
        """The first worker is stopped, and does not check."""
        self.start()
        self.started[0].is_silent = True
        self.parent.reload()
        self.done()

    def test_a_crashed_worker_is_started_again_although_another_one_does_not_check(self) -> None:
        self.block_a_reload()
        self.started[1].ended("signal 9")
        self.assertEqual(self.log, ["worker 2 has ended: signal 9; the next one starts in 0.1 s"])
        self.reactor.advance(0.1)
        self.reactor.advance(RELOAD_GRACE - 0.01)
        self.assertEqual(len(self.started), 3)
        self.reactor.advance(0.01)
        self.assertEqual([each.number for each in self.started[3:]], [2])
        self.assertEqual(
            self.log[1:],
            [
                "not reloaded, the old settings stay in effect: worker 1 has not answered yet, "
                "and another one must start: reload again"
            ],
        )
        self.assertEqual(self.done()[2], ["drop"])

    def test_a_rolling_restart_begins_although_a_worker_does_not_check(self) -> None:
        self.block_a_reload()
        signal.raise_signal(signal.SIGUSR2)
        self.reactor.advance(RELOAD_GRACE)
        self.assertEqual(self.started[3].number, 1)
        self.started[3].ready("new")
        self.reactor.advance(2 + DRAIN_MARGIN)
        self.assertEqual(self.started[0].killed, 1)
        self.started[0].ended("signal 9")
        self.assertEqual(self.started[4].number, 2)

    def test_the_late_answer_of_a_reload_that_was_given_up_is_not_one_of_the_next(self) -> None:
        self.block_a_reload()
        self.started[1].ended("signal 9")
        self.reactor.advance(0.1)
        self.reactor.advance(RELOAD_GRACE)
        self.started[3].ready("old")
        self.parent.reload()
        self.done()
        self.reactor.advance(CHECK_TIMEOUT - RELOAD_GRACE)  # the first check has no answer
        self.assertEqual(self.done()[2], [])
        self.reactor.advance(RELOAD_GRACE)
        self.assertEqual(self.done()[2], ["drop"])

    def test_a_worker_that_does_not_confirm_is_named_and_the_others_report(self) -> None:
        self.start()
        self.parent.reload()
        for each in self.started:
            each.socket.pump()
        self.started[1].is_silent = True
        self.pump()
        self.assertEqual(self.log, [])
        self.reactor.advance(TIMEOUT)
        self.assertEqual(
            self.log,
            [
                "reloaded, but worker 2 has not confirmed it: no answer within 5 s",
                "listen: needs a restart; the old value stays in effect",
                "reloaded: [session]",
            ],
        )
        self.assertEqual(len(self.started), 3)

    def test_a_worker_that_has_failed_to_change_is_replaced(self) -> None:
        self.start()
        self.parent.reload()
        for each in self.started:
            each.socket.pump()
        self.started[1].error = "internal error: see the log"
        self.pump()
        self.assertEqual(
            self.log[0],
            "reloaded, but worker 2 has failed to: internal error: see the log; another one takes "
            "its place",
        )
        self.assertEqual(self.log[-1], "reloaded: [session]")
        self.assertEqual(self.started[3].number, 2)
        self.done()
        self.started[3].ready("new")
        self.assertEqual(self.done()[1], ["drain {'is_replaced': True}"])

    def test_a_second_signal_during_a_reload_changes_only_the_next_one(self) -> None:
        """The parent changes what it has read for the reload that the workers have checked."""
        self.start()
        tree, admin = self.parent._admin_tree, self.admin
        assert tree is not None
        self.parent.reload()
        self.started[0].socket.pump()
        self.settings = replace(SETTINGS, operator=OperatorSettings(token="x"))
        admin.is_tls = True
        self.parent.reload()
        for each in self.started[1:]:
            each.socket.pump()
        self.assertEqual(self.started[2].done, ["check", "apply", "check"])
        self.assertEqual((tree.token.is_set, admin.replaced), (False, 0))
        self.pump()
        self.assertEqual(self.done(), [["check", "apply", "check", "apply"]] * 3)
        self.assertEqual((tree.token.is_set, admin.replaced), (True, 1))

    # Rolling restart

    def test_a_replacement_that_is_never_ready_is_killed_and_the_next_one_can_follow(self) -> None:
        self.start()
        self.parent.roll()
        new = self.started[3]
        self.reactor.advance(START_TIMEOUT)
        self.assertEqual(new.killed, 1)
        new.ended(new.reason)
        self.assertEqual(
            self.log[-1],
            "rolling restart: not continued, as a new worker 1 has failed: not ready within 120 s",
        )
        self.parent.roll()
        self.assertEqual(len(self.started), 5)

    def test_a_rolling_restart_drains_each_worker_when_the_next_is_ready(self) -> None:
        self.start()
        signal.raise_signal(signal.SIGUSR2)
        for old in range(3):
            new = self.started[-1]
            self.assertEqual(new.number, old + 1)
            self.assertEqual(self.done()[old], [])
            new.ready("old")
            self.assertEqual(self.done()[old], ["drain {'is_replaced': True}"])
            self.started[old].ended("exit code 0")
        self.assertEqual(self.log[-1], "rolling restart: all workers are new")

    def test_a_further_rolling_restart_is_queued(self) -> None:
        self.start()
        self.parent.roll()
        self.parent.roll()
        self.assertEqual(
            self.log,
            [
                "rolling restart: 3 workers",
                "rolling restart: queued; it begins when the present one has ended",
            ],
        )

    def test_the_parent_has_the_settings_of_the_new_workers(self) -> None:
        """A longer drain of a rolling restart, for example: the parent must not kill earlier."""
        self.start()
        self.settings = replace(SETTINGS, stop=StopSettings(drain=60), workers=2)
        self.parent.roll()
        for old in range(3):
            self.started[-1].ready("new")
            self.started[old].ended("exit code 0")
        self.parent.roll()
        self.assertEqual(self.log[-1], "rolling restart: 3 workers")
        self.started[-1].ready("new")
        self.reactor.advance(2 + DRAIN_MARGIN)
        self.assertEqual(self.started[3].killed, 0)
        self.reactor.advance(58)
        self.assertEqual(self.started[3].killed, 1)

    def test_a_worker_that_does_not_end_is_killed(self) -> None:
        self.start()
        self.parent.roll()
        self.started[3].ready("old")
        self.done()
        self.reactor.advance(2 + DRAIN_MARGIN)
        self.assertEqual(self.started[0].killed, 1)

    # Stopping

    def test_a_stop_drains_all_workers_and_waits_for_them(self) -> None:
        self.start()
        stopped = self.parent.stopService()
        self.assertEqual(self.done(), [["drain {'is_replaced': False}"]] * 3)
        for each in self.started:
            self.assertNoResult(stopped)
            each.ended("exit code 0")
        self.successResultOf(stopped)
        self.assertEqual(self.log, ["stopping: 3 workers"])

    def test_a_stop_with_one_worker_left(self) -> None:
        self.start()
        for each in self.started[:2]:
            each.ended("exit code 1")
        self.parent.stopService()
        self.assertEqual(self.log[-1], "stopping: 1 worker")

    def test_new_connections_are_refused_as_soon_as_the_workers_know_of_the_stop(self) -> None:
        """They do not wait in a backlog that no worker accepts any more."""
        self.start()
        addresses = []
        for each in self.started:
            with socket.socket(fileno=os.dup(each.sockets[0])) as copy:
                addresses.append(copy.getsockname())
        stopped = self.parent.stopService()
        for address in addresses:
            self.assertRaises(ConnectionRefusedError, socket.create_connection, address, 10)
        for each in self.started:
            each.ended("exit code 0")
        self.successResultOf(stopped)

    def test_a_second_signal_stops_all_at_once(self) -> None:
        self.start()
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        self.parent.stopService()
        self.done()
        signal.raise_signal(signal.SIGTERM)
        self.assertEqual(self.done(), [["stop_at_once"]] * 3)
        for each in self.started:
            each.ended("exit code 0")
        self.reactor.advance(KILL_DELAY)
        self.assertEqual([each.killed for each in self.started], [0, 0, 0])

    def stop_with_one_that_hangs(self) -> Deferred[None]:
        """The last worker does not end."""
        self.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        stopped = self.parent.stopService()
        signal.raise_signal(signal.SIGTERM)
        for each in self.started[:2]:
            each.ended("exit code 0")
        return stopped

    def test_a_worker_that_hangs_is_killed_soon_after_the_second_signal(self) -> None:
        stopped = self.stop_with_one_that_hangs()
        self.reactor.advance(KILL_DELAY - 0.01)
        self.assertEqual(self.started[2].killed, 0)
        self.reactor.advance(0.01)
        self.assertEqual([each.killed for each in self.started], [0, 0, 1])
        self.assertEqual(
            self.log[1:],
            [
                "stopping at once: a second signal",
                "worker 3 has not ended within 2 s after the second signal: it is killed",
            ],
        )
        self.assertNoResult(stopped)
        self.started[2].ended("signal 9")
        self.successResultOf(stopped)

    def test_a_third_signal_kills_all_workers_and_leaves_no_orphan(self) -> None:
        stopped = self.stop_with_one_that_hangs()
        signal.raise_signal(signal.SIGINT)
        self.assertEqual([each.killed for each in self.started], [0, 0, 1])
        self.assertEqual(
            self.log[1:],
            [
                "stopping at once: a second signal",
                "stopping at once: a third signal: the workers are killed",
            ],
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            self.assertEqual(signal.getsignal(number), signal.SIG_DFL)
        self.started[2].ended("signal 9")
        self.successResultOf(stopped)

    def test_a_third_signal_counts_too_if_the_first_two_came_together(self) -> None:
        self.parent._signals.counted = 2
        stopped = self.stop_with_one_that_hangs()
        self.reactor.advance(0)
        self.assertEqual([each.killed for each in self.started], [0, 0, 1])
        self.started[2].ended("signal 9")
        self.successResultOf(stopped)

    def test_signals_during_a_stop_change_nothing(self) -> None:
        self.start()
        self.parent.stopService()
        self.done()
        self.parent.reload()
        self.parent.roll()
        self.assertEqual(self.done(), [[], [], []])
        for each in self.started:
            each.ended("exit code 0")

    # The admin endpoint

    def test_it_is_there_when_all_workers_are_ready_and_until_all_have_ended(self) -> None:
        self.assertEqual(self.admin.calls, ["bind"])
        self.start()
        self.assertEqual(self.admin.calls, ["bind", "start"])
        self.parent.stopService()
        for each in self.started:
            self.assertEqual(len(self.admin.calls), 2)
            each.ended("exit code 0")
        self.assertEqual(self.admin.calls, ["bind", "start", "stop"])

    def asked(self) -> list[tuple[int, int, bool]]:
        return [(each.number, each.place, each.is_serving) for each in self.parent._asked_workers()]

    def test_workers_are_asked_from_when_they_are_ready_until_they_have_ended(self) -> None:
        self.assertEqual(self.asked(), [])
        self.start()
        self.assertEqual(self.asked(), [(1, 1, True), (2, 2, True), (3, 3, True)])
        self.parent.roll()
        self.assertEqual(len(self.asked()), 3)
        self.started[3].ready("old")
        self.assertEqual(self.asked()[0], (1, 1, False))
        self.assertEqual(self.asked()[-1], (4, 1, True))
        self.started[0].ended("exit code 0")
        self.assertEqual(self.asked(), [(2, 2, True), (3, 3, True), (4, 1, True)])

    def test_a_reload_changes_the_admin_endpoint_with_the_workers_and_not_before(self) -> None:
        self.start()
        tree, admin = self.parent._admin_tree, self.admin
        admin.is_tls = True
        assert tree is not None
        self.settings = replace(SETTINGS, operator=OperatorSettings(token="x"))
        self.parent.reload()
        self.assertEqual((tree.token.is_set, admin.replaced), (False, 0))
        self.pump()
        self.assertEqual((tree.token.is_set, admin.replaced), (True, 1))
        self.pump()
        self.assertEqual(self.log[-1], "reloaded: [session], the certificate of the parent")

    def roll(self) -> None:
        self.parent.roll()
        for place in range(3):
            self.started[-1].ready("new")
            self.started[place].ended("exit code 0")

    def test_a_rolling_restart_changes_it_too(self) -> None:
        self.start()
        tree = self.parent._admin_tree
        assert tree is not None
        self.settings = replace(SETTINGS, operator=OperatorSettings(token="x"))
        self.roll()
        self.assertTrue(tree.token.is_set)

    def test_settings_that_are_wrong_after_a_rolling_restart_change_nothing(self) -> None:
        self.start()
        self.settings = ConfigError(["admin.token_file: no such file"])
        self.roll()
        self.assertEqual(
            self.log[-1],
            "not reloaded, the old settings stay in effect: admin.token_file: no such file",
        )

    def test_a_certificate_of_the_admin_endpoint_that_cannot_be_used_keeps_all(self) -> None:
        self.start()
        self.admin.error = ValueError("no key")
        self.parent.reload()
        self.assertEqual(self.done(), [[], [], []])
        self.assertEqual(
            self.log, ["not reloaded, the old settings stay in effect: admin: 'ssl:1': no key"]
        )

    def test_the_last_metrics_of_a_worker_stay_in_the_sums(self) -> None:
        self.start()
        self.started[0].tell_metrics("# TYPE x_total counter\nx_total 17\n")
        self.started[0].ended("exit code 0")
        tree = self.parent._admin_tree
        assert tree is not None
        answer = tree.respond(AdminRequest(b"GET", b"/metrics"))
        for each in self.started[1:]:
            each.is_silent = True
        self.reactor.advance(60)
        self.assertIn(b"\nx_total 17.0\n", self.successResultOf(answer).body)

    def test_each_worker_has_a_number_and_all_have_one_key(self) -> None:
        self.start()
        self.started[1].ended("signal 9")
        self.reactor.advance(0.1)
        identities = [WorkerIdentity.take(dict(each.environment)) for each in self.started]
        self.assertEqual([each.number for each in identities], [1, 2, 3, 4])
        [key] = {each.token_id_key for each in identities}
        self.assertEqual(len(key), KEY_BYTES)

    # systemd's watchdog

    def test_the_probe_succeeds_when_all_workers_have_answered(self) -> None:
        self.start()
        answer = self.parent._probe(5)
        self.assertNoResult(answer)
        self.pump()
        self.successResultOf(answer)

    def test_the_probe_fails_if_one_worker_does_not_answer(self) -> None:
        self.start()
        self.started[1].is_silent = True
        answer = self.parent._probe(5)
        self.pump()
        self.reactor.advance(5)
        self.failureResultOf(answer)

    def test_the_probe_fails_if_no_place_has_a_worker(self) -> None:
        self.start()
        for each in self.started:
            each.ended("signal 11")
        self.failureResultOf(self.parent._probe(5), WorkerUnavailable)

    def test_the_probe_fails_if_one_place_has_no_worker_for_longer_than_the_interval(self) -> None:
        self.start()
        self.started[1].ended("signal 11")
        self.reactor.advance(5)
        answer = self.parent._probe(5)
        self.pump()
        self.successResultOf(answer)
        self.reactor.advance(0.1)
        answer = self.parent._probe(5)
        self.pump()
        self.failureResultOf(answer)

    def probe(self) -> Deferred[Any]:
        answer = self.parent._probe(5)
        self.pump()
        self.reactor.advance(5)
        return answer

    def test_settings_that_keep_one_worker_from_starting_do_not_end_the_others(self) -> None:
        """The watchdog would end them too, and the start would fail for the same reason."""
        self.start()
        self.started[1].ended("signal 9")
        self.fail_to_start(2, 60)
        self.successResultOf(self.probe())
        self.assertIn("worker 2 has ended: key_file: not a key; the next one", self.log[-1])
        self.started[0].is_silent = True
        self.failureResultOf(self.probe())

    def test_a_place_whose_workers_crash_while_they_start_counts_after_that_again(self) -> None:
        self.start()
        self.started[1].ended("signal 9")
        self.fail_to_start(2, 60)
        self.fail_to_start(2, 4, is_refused=False)
        self.successResultOf(self.probe())
        self.fail_to_start(2, 4, is_refused=False)
        self.failureResultOf(self.probe())

    def test_settings_that_keep_all_workers_from_starting_fail_the_probe(self) -> None:
        self.start()
        for each in list(self.started):
            each.ended("signal 9")
        self.reactor.advance(0.1)
        for each in self.started[3:]:
            each.ended("key_file: not a key", True)
        self.failureResultOf(self.probe(), WorkerUnavailable)

    def test_during_a_stop_only_the_workers_that_still_run_are_asked(self) -> None:
        self.start()
        self.parent.stopService()
        self.started[1].ended("exit code 0")
        self.reactor.advance(20)
        answer = self.parent._probe(5)
        self.pump()
        self.successResultOf(answer)
        for each in (self.started[0], self.started[2]):
            each.ended("exit code 0")
        self.successResultOf(self.parent._probe(5))

    def test_a_worker_that_is_started_again_is_not_asked(self) -> None:
        self.start()
        self.started[1].ended("signal 11")
        answer = self.parent._probe(5)
        self.pump()
        self.successResultOf(answer)
