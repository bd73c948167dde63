"""One worker, as the parent sees it: its process and its control socket."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.workers.command import CONTROL, FIRST_SOCKET, LOG, RELAY, WorkerArguments
from topicsvc.workers.control import Members, WorkerControl
from topicsvc.workers.relay import LogReceiver

__all__ = ["WorkerProcess", "worker_environment"]

CLOSED_TIMEOUT = 5.0
"""Seconds in which a worker that has closed its control socket must end."""

_NOT_INHERITED = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
)
"""What systemd tells the parent only."""


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of workers: modules come from where those of the parent come from."""
    kept = {name: value for name, value in environment.items() if name not in _NOT_INHERITED}
    path = [os.path.abspath(each) for each in sys.path]
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


class WorkerProcess(ProcessProtocol):
    """One worker.

    Args:
        arguments: what it is started with.
        reactor: the reactor.
        on_ready: called with a digest of its settings when it serves.
        on_ended: called once when its process has ended: with the reason, and with whether that is
            a problem of its settings or files, which it has told before it was ready.
        on_metrics: called with its last metrics, in Prometheus' text format, when it has stopped.

    Attributes:
        number: its number among the workers.
        control: its control socket.
    """

    _log = Logger()
    transport: Any

    def __init__(
        self,
        arguments: WorkerArguments,
        reactor: Any,
        on_ready: Callable[[str], None],
        on_ended: Callable[[str, bool], None],
        on_metrics: Callable[[str], None],
    ) -> None:
        self.control = WorkerControl(reactor, self._event, self._control_lost)
        self.number = arguments.number
        self._arguments = arguments
        self._reactor = reactor
        self._on_ready = on_ready
        self._on_ended = on_ended
        self._on_metrics = on_metrics
        self._problems: list[str] = []
        self._is_refused = False
        self._exit: str | None = None
        self._has_control = False
        self._receiver = LogReceiver(arguments.number)

    def start(self, sockets: Sequence[int], environment: Mapping[str, str]) -> None:
        """Start the process.

        Args:
            sockets: the sockets of the endpoints.
            environment: its environment.
        """
        try:
            with ExitStack() as opened:
                self._spawn(sockets, environment, opened)
        except OSError as error:
            self._exit = f"it cannot be started: {error.strerror}"
            self.control.close()
            if not self._has_control:
                self._reactor.callLater(0, self._end_if_over)

    def _spawn(
        self, sockets: Sequence[int], environment: Mapping[str, str], opened: ExitStack
    ) -> None:
        """Start the process.

        Args:
            sockets: the sockets of the endpoints.
            environment: its environment.
            opened: closes what only the new process needs.

        Raises:
            OSError: it cannot be started.
        """
        own, other = socket.socketpair()
        opened.callback(own.close)
        opened.callback(other.close)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, null)
        descriptors: dict[int, int | str] = {0: null, 1: 1, 2: 2, CONTROL: other.fileno()}
        if self._arguments.logger == RELAY:
            descriptors[LOG] = "r"
        descriptors |= dict(enumerate(sockets, FIRST_SOCKET))
        command = self._arguments.command()
        own.setblocking(False)
        self._reactor.adoptStreamConnection(own.fileno(), socket.AF_UNIX, _One(self.control))
        self._has_control = True
        self._reactor.spawnProcess(self, command[0], command, environment, childFDs=descriptors)

    @property
    def pid(self) -> int | None:
        """The number of the process; None: it has ended, or was not started."""
        pid: int | None = getattr(self.transport, "pid", None)
        return pid

    def kill(self, reason: str = "") -> None:
        """Send SIGKILL, if the process has not ended.

        Args:
            reason: why, for `on_ended`; empty: what the worker has told, or the signal.
        """
        if self.pid is not None:
            if reason:
                self._problems, self._is_refused = [reason], False
            self.transport.signalProcess("KILL")

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Take bytes of the log."""
        self._receiver.receive(data)

    def _event(self, event: str, members: Members) -> None:
        if event == "ready":
            self._on_ready(members["digest"])
        elif event == "failed":
            self._problems, self._is_refused = members["problems"], members["is_refused"]
        elif event == "metrics":
            self._on_metrics(members["text"])

    def _control_lost(self) -> None:
        self._has_control = False
        if self._exit is None:
            self._reactor.callLater(CLOSED_TIMEOUT, self.kill)
        self._end_if_over()

    def processEnded(self, reason: Failure) -> None:
        """The process has ended, and its pipe is closed."""
        self._exit = _exit(reason.value)
        self._end_if_over()

    def _end_if_over(self) -> None:
        """Report the end once; the control socket may hold the reason until it is closed."""
        if self._exit is not None and not self._has_control:
            self._on_ended("; ".join(self._problems) or self._exit, self._is_refused)


def _exit(error: BaseException | None) -> str:
    if isinstance(error, ProcessTerminated) and error.signal is not None:
        return f"signal {error.signal}"
    if isinstance(error, (ProcessTerminated, ProcessDone)):
        return f"exit code {error.exitCode}"
    return str(error)


class _One(Factory):
    """A factory of one protocol."""

    noisy = False

    def __init__(self, protocol: WorkerControl) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> WorkerControl:
        """See `twisted.internet.interfaces.IProtocolFactory`."""
        return self._protocol
