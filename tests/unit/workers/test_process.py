"""One worker as the parent sees it: what becomes of a process that cannot be started."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.error import ConnectionDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.workers.command import CONTROL, RELAY, WorkerArguments
from topicsvc.workers.control import encode_event
from topicsvc.workers.process import WorkerProcess


class FakeReactor(Clock):
    """A reactor in virtual time.

    Attributes:
        spawned: the descriptors of each process.
        adopts, spawns: raise errors, if a test wants that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[dict[int, int | str]] = []
        self.adopts: Callable[..., None] = lambda *_: None
        self.spawns: Callable[..., None] = lambda *_: None

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        self.adopts()
        protocol = factory.buildProtocol(None)
        transport = StringTransport()
        transport.loseConnection = lambda: self.callLater(  # type: ignore[method-assign]
            0, protocol.connectionLost, Failure(ConnectionDone())
        )
        protocol.makeConnection(transport)

    def spawnProcess(
        self, protocol: Any, program: str, arguments: list[str], environment: Any, childFDs: Any
    ) -> None:
        self.spawns()
        self.spawned.append(childFDs)


def too_many(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class StartTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.ended: list[tuple[str, bool]] = []
        arguments = WorkerArguments(1, 2, 1, Path("/"), "", RELAY, ())
        self.process = WorkerProcess(
            arguments,
            self.reactor,
            lambda _: None,
            lambda *each: self.ended.append(each),
            lambda _: None,
        )

    def assert_it_ends_with_a_reason(self) -> None:
        files = os.listdir("/proc/self/fd")
        self.process.start([7], {})
        self.assertEqual(self.ended, [])  # not before the caller knows the process
        self.reactor.advance(0)
        self.assertEqual(self.ended, [("it cannot be started: Too many open files", False)])
        self.assertEqual(os.listdir("/proc/self/fd"), files)
        self.reactor.advance(60)
        self.assertEqual(len(self.ended), 1)

    def test_a_process_gets_its_end_of_the_control_socket_and_the_parent_keeps_no_copy(
        self,
    ) -> None:
        files = os.listdir("/proc/self/fd")
        self.process.start([7], {})
        [descriptors] = self.reactor.spawned
        self.assertEqual(set(descriptors), {0, 1, 2, CONTROL, 4, 5})
        self.assertEqual(descriptors[5], 7)
        self.assertEqual(os.listdir("/proc/self/fd"), files)

    def test_without_descriptors_for_a_control_socket_it_ends_with_that_reason(self) -> None:
        self.patch(socket, "socketpair", too_many)
        self.assert_it_ends_with_a_reason()

    def test_without_a_descriptor_for_the_standard_input_it_ends_and_leaves_no_files(self) -> None:
        self.patch(os, "open", too_many)
        self.assert_it_ends_with_a_reason()

    def test_if_the_reactor_cannot_take_the_socket_it_ends_and_leaves_no_files(self) -> None:
        self.reactor.adopts = too_many
        self.assert_it_ends_with_a_reason()

    def test_if_the_process_cannot_be_made_it_ends_and_leaves_no_files(self) -> None:
        self.reactor.spawns = too_many
        self.assert_it_ends_with_a_reason()


class EndTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ended: list[tuple[str, bool]] = []
        arguments = WorkerArguments(1, 2, 1, Path("/"), "", RELAY, ())
        self.process = WorkerProcess(
            arguments,
            FakeReactor(),
            lambda _: None,
            lambda *each: self.ended.append(each),
            lambda _: None,
        )
        self.process.start([7], {})

    def end(self, **how: int) -> None:
        self.process.control.connectionLost(Failure(ConnectionDone()))
        self.process.processEnded(Failure(ProcessTerminated(**how)))

    def kill(self, reason: str) -> list[str]:
        """Kill it; return the signals that it gets."""
        signals: list[str] = []

        class Transport:
            pid = 17

            def signalProcess(self, name: str) -> None:
                signals.append(name)

        self.process.transport = Transport()
        self.process.kill(reason)
        return signals

    def test_the_reason_of_a_kill_is_the_reason_of_the_end(self) -> None:
        self.assertEqual((self.kill("not ready within 120 s"), self.ended), (["KILL"], []))
        self.end(signal=9)
        self.assertEqual(self.ended, [("not ready within 120 s", False)])

    def test_a_problem_that_it_tells_is_the_reason_and_it_says_of_what_kind(self) -> None:
        for is_refused in (True, False):
            self.setUp()
            event = encode_event("failed", problems=["a", "b"], is_refused=is_refused)
            self.process.control.dataReceived(event)
            self.end(exitCode=1)
            self.assertEqual(self.ended, [("a; b", is_refused)])

    def test_one_that_is_killed_as_it_hangs_after_its_problem_counts_as_killed(self) -> None:
        event = encode_event("failed", problems=["a"], is_refused=True)
        self.process.control.dataReceived(event)
        self.kill("not ready within 120 s")
        self.end(signal=9)
        self.assertEqual(self.ended, [("not ready within 120 s", False)])
