"""Programs that a test runs beside itself: started, watched, and ended by their process id."""

from __future__ import annotations

import atexit
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater

POLL = 0.05
PORTS = (20000, 32000)
_given: set[int] = set()

T = TypeVar("T", bound="Server")


def free_port() -> int:
    """A loopback port that nobody listens on.

    It is below those that the system gives to clients, so that none of them takes it before
    the program that it is for does; and it is handed out once.
    """
    while True:
        port = random.randrange(*PORTS)
        if port not in _given and not listens(port):
            _given.add(port)
            return port


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@inlineCallbacks
def until(is_so: Callable[[], object], what: str, seconds: float = 30) -> Any:
    """Wait until `is_so()`; fires with how many seconds that took."""
    began = reactor.seconds()
    while not is_so():
        if reactor.seconds() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {what}")
        yield deferLater(reactor, POLL)
    return reactor.seconds() - began


class Program:
    """One program; its output goes to a file.

    Args:
        command: the program and its arguments.
        log: where its output goes.
        environment: its whole environment; None: ours.
        directory: where it runs.
        pass_fds: descriptors that it inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.command = list(command)
        self._log = log
        self.environment = environment
        self._directory = directory
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.kill)

    def start(self) -> None:
        """Start it, anew if it has ended."""
        assert self._process is None or self._process.poll() is not None
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self._directory,
                pass_fds=self._pass_fds,
            )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.runs:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def stop(self, seconds: float = 10) -> None:
        """End it in order; by force if it does not."""
        if self.runs:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Server(Protocol):
    """A program with ports of its own."""

    program: Program

    def start(self) -> Any: ...


class Shared(Generic[T]):
    """A server that is started by the first test that needs it, and serves all after."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: T | None = None

    @inlineCallbacks
    def get(self) -> Any:
        if self._made is None:
            self._made = self._make()
        if not self._made.program.runs:
            yield self._made.start()
        return self._made
