"""A service with several workers, and the processes that it has."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from tests.support.processes import TWISTD, Deployment, Program, environment, free_port, until
from tests.support.subscriber import Subscriber

__all__ = ["WorkersServer", "children", "is_alive", "open_files", "resident_memory"]

UNLIMITED = "[limits]\nunauthenticated = 0\nunauthenticated_per_address = 0\n"


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(directory.name))
    return sorted(found)


def is_alive(pid: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0] != "Z"
    except OSError:
        return False


def open_files(pid: int) -> int:
    """The number of open files of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Activity:
    """Notices whether a process has something to do.

    Args:
        pid: its id.
    """

    def __init__(self, pid: int) -> None:
        self._directory = Path(f"/proc/{pid}")
        self._seconds = 0.0

    def goes_on(self) -> bool:
        """Whether the process runs, or has used or awaited a processor since the last call.

        Timers take less than 5 ms, which do not count.
        """
        state = (self._directory / "stat").read_text().rpartition(") ")[2].split()[0]
        ran, waited, _ = map(int, (self._directory / "schedstat").read_text().split())
        before, self._seconds = self._seconds, (ran + waited) / 1e9
        return state != "S" or self._seconds - before > 0.005


def resident_memory(pid: int) -> int:
    """The memory that a process uses, in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", text)[0])


class WorkersServer:
    """``twistd topicsvc`` with workers.

    Args:
        deployment: the key and the broker.
        workers: how many.
        drain: seconds over which sessions are closed.
        listen: the endpoint; empty: TCP on a free port.
        more: further lines of the configuration.
        twistd: further options of twistd.
    """

    def __init__(
        self,
        deployment: Deployment,
        workers: int = 2,
        drain: float = 0,
        listen: str = "",
        more: str = UNLIMITED,
        twistd: Sequence[str] = (),
    ) -> None:
        self.deployment = deployment
        self.workers = workers
        self.port, self.admin = free_port(), free_port()
        endpoint = listen or f"tcp:{self.port}:interface=127.0.0.1:backlog=1000"
        self.file = deployment.directory / f"workers-{self.port}.toml"
        self.file.write_text(
            f'listen = ["{endpoint}"]\nadmin = "tcp:{self.admin}:interface=127.0.0.1"\n'
            f'unit_url = "http://localhost/"\nhosts = ["127.0.0.1"]\nworkers = {workers}\n'
            f'[validator]\nkind = "local"\nkey_file = "{deployment.key_file}"\n'
            f"[broker]\n{deployment.broker}\n[stop]\ndrain = {drain}\n{more}"
        )
        self.program = Program(
            [*TWISTD, "-n", "--pidfile=", *twistd, "topicsvc", "--config", str(self.file)],
            deployment.directory / f"workers-{self.port}.log",
            environment(),
            deployment.directory,
        )

    @inlineCallbacks
    def start(self) -> Any:
        """Start it; fires when all workers are ready and have the broker."""
        self.program.start()
        yield until(lambda: "serves 2 ports with" in self.log, "all workers are ready", 180)
        yield until(lambda: all(self.parts().values()), "the broker is up", 180)

    @property
    def log(self) -> str:
        """Its log."""
        assert self.program.runs, self.program.log
        return self.program.log

    @property
    def pid(self) -> int:
        """The parent."""
        assert self.program._process is not None
        return self.program._process.pid

    @property
    def pids(self) -> list[int]:
        """The workers."""
        return children(self.pid)

    def parts(self) -> dict[str, bool]:
        """The parts of ``/health/ready``."""
        return self._admin("/health/ready")["parts"]

    def _admin(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.admin}{path}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as response:
            with response:
                return json.load(response)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the parent."""
        self.program.signal(number)

    def wait_for(self, pattern: str, count: int = 1, seconds: float = 180) -> Deferred[Any]:
        """Wait until the log has `count` matches."""
        return until(
            lambda: len(re.findall(pattern, self.program.log)) >= count,
            f"{pattern} in {self.program.log[-3000:]}",
            seconds,
        )

    def stop(self) -> None:
        """Stop it, and its workers."""
        pids = self.pids if self.program.runs else []
        self.program.stop(30)
        for pid in pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)

    @inlineCallbacks
    def join(self, path: str, subscriber: Subscriber | None = None) -> Any:
        """Start a session; fires with the subscriber after the Success reply.

        Raises:
            AssertionError: the handshake or the token was refused.
        """
        subscriber = subscriber or Subscriber()
        subscriber.path, subscriber.token = path, self.deployment.token()
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port, timeout=60)
        yield connectProtocol(endpoint, subscriber)
        is_subscribed = yield subscriber.subscribed
        assert is_subscribed, f"no Success: {subscriber.status} {subscriber.replies}"
        return subscriber
