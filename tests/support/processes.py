"""Child processes of tests: twistd, the topicsvc commands, brokers, proxies.

There are two ways to run a child:

* `Process` starts it at once and reads its output while it runs; its methods block.
* `Program` writes the output to a file and can be paused and restarted; use it with Deferreds.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import deferLater

from tests.support.subscriber import Subscriber
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import RIGHTS, make_key, sign_token, write_key

__all__ = [
    "TIMEOUT",
    "TOPICSVC",
    "TWISTD",
    "Deployment",
    "Process",
    "Program",
    "Server",
    "Shared",
    "TopicsvcServer",
    "TwistdProcess",
    "environment",
    "free_port",
    "listens",
    "until",
]

TIMEOUT = 60.0
"""Seconds for one step of a child: a line of output, or its end. A loaded machine needs less."""

POLL_INTERVAL = 0.05
"""Seconds between two looks at a condition."""

SEND_TIMEOUT = 60.0
"""Seconds for a response to a message. The loss of a broker may be noticed after 30 s."""

PORTS = (20000, 32000)
"""Ports for servers. Linux gives clients ports from 32768 on, so clients do not take these."""

CELL_URL = "http://cell1.localhost/"

_RUN_TWISTD = "from twisted.scripts.twistd import run; run()"
TWISTD = [sys.executable, "-c", _RUN_TWISTD]
TOPICSVC = [
    sys.executable,
    "-c",
    "import sys; from topicsvc.cli.main import main; sys.exit(main())",
]

_PORT = re.compile(r"(?:TopicSite|AdminSite)(?: \((?:TLS|PROXY)\))* starting on (\d+)")
_used_ports: set[int] = set()

T = TypeVar("T", bound="Server")


def environment() -> dict[str, str]:
    """The environment of a child: this process's import path, and no output buffering."""
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)
    # A child uses libraries that warn; those warnings must not end it.
    inherited = {name: each for name, each in os.environ.items() if name != "PYTHONWARNINGS"}
    return {**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """Return a loopback port without a listener; each port is returned once."""
    while True:
        port = random.randrange(*PORTS)
        if port not in _used_ports and not listens(port):
            _used_ports.add(port)
            return port


def listens(port: int) -> bool:
    """Whether this loopback port accepts connections."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@inlineCallbacks
def until(condition: Callable[[], object], description: str, seconds: float = 60) -> Any:
    """Wait for `condition()`; fires with the seconds that this took.

    Raises:
        AssertionError: the condition is still false after `seconds`.
    """
    began = reactor.seconds()
    while not condition():
        if reactor.seconds() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {description}")
        yield deferLater(reactor, POLL_INTERVAL)
    return reactor.seconds() - began


class Process:
    """A child whose output is read line by line while it runs."""

    def __init__(self, arguments: Iterable[str], **options: Any) -> None:
        self.output: list[str] = []
        self._has_output = threading.Condition()
        self._has_ended = False  # the output
        self.child = subprocess.Popen(
            list(arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            **options,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "".join(self.output)

    def wait_for(self, pattern: str, timeout: float = TIMEOUT, after: int = 0) -> re.Match[str]:
        """Wait until the output after line `after` matches `pattern`."""
        match = None

        def search() -> bool:
            nonlocal match
            match = re.search(pattern, "".join(self.output[after:]))
            return match is not None or self._has_ended

        with self._has_output:
            self._has_output.wait_for(search, timeout)
        if match is None:
            raise AssertionError(f"{pattern!r} is not in the output:\n{self.text}")
        return match

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait until the process has ended; return the exit code."""
        self.child.wait(timeout)
        self._reader.join(timeout)
        return self.child.returncode

    def stop(self, timeout: float = TIMEOUT) -> int:
        """Send SIGTERM, and SIGKILL after `timeout` seconds; return the exit code.

        Raises:
            AssertionError: SIGTERM has not ended the process.
        """
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.wait(timeout)
            raise AssertionError(f"did not stop:\n{self.text}") from None

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout:
            for line in self.child.stdout:
                with self._has_output:
                    self.output.append(line)
                    self._has_output.notify_all()
        with self._has_output:
            self._has_ended = True
            self._has_output.notify_all()


class TwistdProcess(Process):
    """``twistd topicsvc``; the constructor returns when it listens.

    Args:
        arguments: options of topicsvc.
        directory: working directory of the process.
        twistd: options of twistd.
        watched_by: a module whose `watch` is called first in the process; empty: none.

    Attributes:
        ports: the port numbers, in the order of the settings.
    """

    def __init__(
        self,
        *arguments: str,
        directory: Path,
        twistd: Iterable[str] = (),
        watched_by: str = "",
        **options: Any,
    ) -> None:
        foreground = ["--nodaemon", "--pidfile=", "--rundir", str(directory)]
        command = TWISTD
        if watched_by:
            command = [
                sys.executable,
                "-c",
                f"import {watched_by} as it; it.watch(); {_RUN_TWISTD}",
            ]
        super().__init__([*command, *foreground, *twistd, "topicsvc", *arguments], **options)
        try:
            self.wait_for(r"topicsvc \S+ serves \d+ ports?\b")
        except AssertionError:
            self.stop()
            raise
        self.ports = [int(port) for port in _PORT.findall(self.text)]

    def demo_text(self) -> str:
        """Return all that ``--demo`` prints."""
        self.wait_for(r"curl .*\n.*\n\n")
        return self.text


class Program:
    """A child that can be paused, killed and restarted; its output goes to a file.

    Args:
        command: the program and its arguments.
        log: the file for its output.
        environment: its whole environment; None: that of this process.
        directory: its working directory.
        pass_fds: file descriptors that it inherits.
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
        """Start the program, also again after it has ended."""
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
    def pid(self) -> int:
        """The id of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def pause(self) -> None:
        """Send SIGSTOP; return when the process is stopped."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL, which has the effect of a power failure."""
        if self.runs:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def stop(self, seconds: float = 30) -> None:
        """Send SIGTERM, and SIGKILL after `seconds`."""
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
    """A server that the first test starts and all later tests use."""

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


class Deployment:
    """What several topicsvc processes have in common: a token key and a broker.

    Args:
        directory: where files may be written.
        broker: the table ``[broker]`` of the configuration.
    """

    def __init__(self, directory: Path, broker: str) -> None:
        self.directory = directory
        self.broker = broker
        self.key = make_key()
        self.key_file = directory / "key"
        write_key(self.key_file, self.key)

    def token(self, lifetime: int = 3600) -> str:
        expires_at = int(reactor.seconds()) + lifetime
        return sign_token(self.key, CELL_URL, ["/*"], RIGHTS, expires_at)


class TopicsvcServer:
    """One ``twistd topicsvc`` process of a deployment, which can be restarted.

    Args:
        deployment: the key and the broker.
        drain: seconds over which it closes its sessions when it stops.
        endpoint: its endpoint description; empty: TCP on a free port.
    """

    def __init__(self, deployment: Deployment, drain: float = 0, endpoint: str = "") -> None:
        self._deployment = deployment
        self.port, self.admin = free_port(), free_port()
        endpoint = endpoint or f"tcp:{self.port}:interface=127.0.0.1:backlog=1000"
        configuration = deployment.directory / f"topicsvc-{self.port}.toml"
        configuration.write_text(
            f'listen = ["{endpoint}"]\n'
            f'admin = "tcp:{self.admin}:interface=127.0.0.1"\n'
            'unit_url = "http://localhost/"\n'
            'hosts = ["127.0.0.1"]\n'
            f'[validator]\nkind = "local"\nkey_file = "{deployment.key_file}"\n'
            f"[broker]\n{deployment.broker}\n"
            f"[stop]\ndrain = {drain}\n"
        )
        self.program = Program(
            [*TWISTD, "-n", "--pidfile=", "topicsvc", "--config", str(configuration)],
            deployment.directory / f"topicsvc-{self.port}.log",
            {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            deployment.directory,
        )

    def start(self) -> Deferred[float]:
        """Start the process; fires when it is ready, with the seconds that this took."""
        self.program.start()
        return self.until_ready()

    def until_ready(self, seconds: float = 60) -> Deferred[float]:
        return until(lambda: self.parts.get("broker"), "topicsvc is ready", seconds)

    def until_not_ready(self, seconds: float = 30) -> Deferred[float]:
        return until(
            lambda: self.parts.get("broker") is False, "topicsvc notices the loss", seconds
        )

    @property
    def parts(self) -> dict[str, bool]:
        """The parts of ``/health/ready``; empty: the process does not answer."""
        assert self.program.runs, self.program.log
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.admin}/health/ready", timeout=5
            ) as response:
                return json.load(response)["parts"]
        except urllib.error.HTTPError as response:
            return json.load(response)["parts"]
        except (OSError, http.client.HTTPException):  # it starts, it ends, or it is late
            return {}

    def send(self, path: str, body: bytes) -> int:
        """Send a message over HTTP; return the status."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            body,
            {"Authorization": f"Bearer {self._deployment.token()}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=SEND_TIMEOUT) as response:
                return response.status
        except urllib.error.HTTPError as response:
            with response:
                return response.code

    @inlineCallbacks
    def connect(self, path: str, subscriber: Subscriber | None = None) -> Any:
        """Open a WebSocket; fires with the subscriber after the opening handshake."""
        subscriber = subscriber or Subscriber()
        subscriber.path, subscriber.token = path, self._deployment.token()
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        yield connectProtocol(endpoint, subscriber)
        yield subscriber.handshake_done
        return subscriber

    @inlineCallbacks
    def join(self, topic: TopicAddress, subscriber: Subscriber | None = None) -> Any:
        """Start a session; fires with the subscriber after the Success reply."""
        subscriber = yield self.connect(topic.websocket_path, subscriber)
        is_subscribed = yield subscriber.subscribed
        assert is_subscribed, f"no Success: {subscriber.replies}"
        return subscriber
