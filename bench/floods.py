"""A subscriber's times during floods of requests and frames: ``python -m bench.floods``.

While a flood runs, a subscriber sends pings, and a sender sends messages to it by HTTP. The
command prints the times of pings and deliveries, and the processor time of the reactor's
iterations. Each row has a new server.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing.connection
import os
import select
import socket
import ssl
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.servers import HOST, ROOT, TOPIC, Topicsvc, checkout, running
from bench.sessions import Target, fail, masked, open_session, pin
from tests.support.certificates import Authority
from tests.support.input_floods import InputFlood, attack, input_floods
from tests.support.raw_client import PING, PONG, TEXT, RawClient

PAUSE = 0.01
"""Seconds between a response and the next ping or message."""

SETTLE = 0.5
"""Seconds from the start of a flood to the first ping."""

TIMEOUT = 10.0
"""Seconds without a response after which a measurement ends."""

NICE = 5
"""Niceness of a flood relative to the subscriber, which uses the same core."""


@dataclass
class Times:
    """Times in seconds.

    Attributes:
        failure: why a ping or message had no answer; empty: each had one.
    """

    values: list[float] = field(default_factory=list)
    failure: str = ""

    def __str__(self) -> str:
        """The median, the 99th percentile and the maximum in milliseconds."""
        if self.failure or not self.values:
            return self.failure
        ordered = sorted(self.values)
        parts = [ordered[int(part * len(ordered))] for part in (0.5, 0.99)]
        return " / ".join(f"{1000 * value:.1f}" for value in (*parts, ordered[-1]))


class _Samples:
    """Pings and deliveries, one of each at a time."""

    def __init__(self, target: Target) -> None:
        self._session = open_session(target, 1)
        self._sender = target.connect()
        self._ping = masked(PING, b"?")
        self._request = target.request(1)
        self._frames = {0x80 | PONG: ("ping", 3), 0x80 | TEXT: ("delivery", target.frame)}
        self._received = b""
        self._is_answered = True
        self._sent_at: dict[str, float] = {}
        self._due = dict.fromkeys(("ping", "delivery"), 0.0)
        self.times = {name: Times() for name in self._due}

    def take(self, seconds: float) -> None:
        """Take samples for so long, and wait for the last responses."""
        end = time.perf_counter() + seconds
        while True:
            now = time.perf_counter()
            if now < end:
                self._send(now)
            elif not self._sent_at:
                break
            due = [at for name, at in self._due.items() if name not in self._sent_at]
            late = [at + TIMEOUT for at in self._sent_at.values()]
            wait = min([*(due if now < end else []), *late]) - now
            sockets = [self._session, self._sender]
            ready = select.select(sockets, [], [], max(0.0, wait))[0]
            now = time.perf_counter()
            failure = ""
            if self._sender in ready:
                if self._sender.recv(4096).startswith(b"HTTP/1.1 200 "):
                    self._is_answered = True
                else:
                    failure = "no message accepted"
            if self._session in ready and not self._receive(now):
                failure = "closed"
            if not ready and late and now >= min(late):
                failure = f"none in {TIMEOUT:.0f} s"
            if failure:
                for name in self._sent_at:
                    self.times[name].failure = failure
                break
        self._session.close()
        self._sender.close()

    def _send(self, now: float) -> None:
        for name, due in self._due.items():
            if now < due or name in self._sent_at:
                continue
            if name == "ping":
                self._session.sendall(self._ping)
            elif self._is_answered:
                self._is_answered = False
                self._sender.sendall(self._request)
            else:  # the message has arrived before the response to its sender
                self._due[name] = now + PAUSE
                continue
            self._sent_at[name] = time.perf_counter()

    def _receive(self, now: float) -> bool:
        """Read from the subscriber's connection. False: it was closed."""
        data = self._session.recv(65536)
        self._received += data
        while self._received:
            name, size = self._frames[self._received[0]]
            if len(self._received) < size:
                break
            self._received = self._received[size:]
            self.times[name].values.append(now - self._sent_at.pop(name))
            self._due[name] = now + PAUSE
        return bool(data)


@dataclass
class _Attack:
    """An attack of another process, as values that it can receive."""

    flood: InputFlood
    port: int
    ca_file: str
    connections: int
    seconds: float

    def run(self, pipe: multiprocessing.connection.Connection) -> None:
        """Report the start to `pipe`, and then the number of bytes that were sent."""
        pin(1)
        os.nice(NICE)
        tls = self.flood.tls
        context = ssl.create_default_context(cafile=self.ca_file) if tls else None

        def connect() -> socket.socket:
            return RawClient(self.port, context, HOST).socket

        pipe.send("ready")
        pipe.send(attack(self.flood, connect, self.connections, time.monotonic() + self.seconds))


@contextlib.contextmanager
def _attacked(attack: _Attack) -> Iterator[None]:
    spawn = multiprocessing.get_context("spawn")
    pipe, their_end = spawn.Pipe()
    process = spawn.Process(target=attack.run, args=(their_end,), daemon=True)
    process.start()
    try:
        pipe.recv()
        time.sleep(SETTLE)
        yield
        # Its last connection may still wait for the server.
        if pipe.poll(TIMEOUT) and not pipe.recv():
            fail("the flood could send nothing")
    finally:
        process.kill()
        process.join()


class Floods:
    """All measurements of one checkout.

    Args:
        directory: for the server's files.
        root: the checkout of topicsvc.
        seconds: duration of each measurement, in seconds.
    """

    def __init__(self, directory: Path, root: Path, seconds: float) -> None:
        self.directory = directory
        self.root = root
        self.seconds = seconds
        self.authority = Authority(directory)

    def print(self, connections: Collection[int], words: Collection[str]) -> None:
        """Print the table. Each flood has one of `words` in its name; no words: all floods."""
        print("| flood | connections | ping | delivery | iteration |\n|---|---|---|---|---|")
        names = [flood.name for flood in input_floods(HOST, "", "", "")]
        self._print_row("none", 0)
        for name in names:
            if not words or any(word in name for word in words):
                for count in connections:
                    self._print_row(name, count)

    def _print_row(self, name: str, connections: int) -> None:
        with running(lambda: Topicsvc(self.directory, self.authority, self.root)) as server:
            target = server.target()
            samples = _Samples(target)
            with contextlib.ExitStack() as stack:
                if connections:
                    floods = input_floods(HOST, TOPIC % 2, target.path % 2, target.tokens[0])
                    [flood] = [each for each in floods if each.name == name]
                    port = server.tls_port if flood.tls else server.plain_port
                    seconds = 2 * SETTLE + self.seconds
                    ca_file = str(self.authority.ca_file)
                    stack.enter_context(
                        _attacked(_Attack(flood, port, ca_file, connections, seconds))
                    )
                server.iterations()
                samples.take(self.seconds)
                iterations = Times(server.iterations())
            cells = (name, connections or "", *samples.times.values(), iterations)
            print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.floods")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each row (3)")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=(1, 100), help="connections (1 and 100)"
    )
    parser.add_argument(
        "--floods", nargs="+", default=(), metavar="WORD", help="floods with a word in their name"
    )
    parser.add_argument(
        "--checkout", type=checkout, default=ROOT, metavar="DIRECTORY", help="topicsvc to measure"
    )
    options = parser.parse_args()
    pin(1)
    # Without the permission, times may be too long.
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    with tempfile.TemporaryDirectory(prefix="topicsvc-bench-") as name:
        floods = Floods(Path(name), options.checkout, options.seconds)
        floods.print(options.connections, options.floods)


if __name__ == "__main__":
    main()
