"""Measures one process beside several workers, over Redis.

    python -m bench.workers [--workers N] [--seconds S] [--runs N] [--centrifugo PROGRAM]

Server and load share the cores of the machine. What can be compared is the processor time of all
processes of the server for one delivery or one session: capacity is the number of cores divided by
it. Redis is counted for itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import message
from bench.message import BODY, SENDER, frame_size, payload_size
from bench.servers import HOST, ROOT, TOKENS, TOPIC
from bench.sessions import Target, fail, masked, open_sessions, pin, start_sessions
from topicsvc.validators.local import make_key, sign_token, write_key

SUBSCRIBERS = 1000
STARTS = 2000
AT_ONCE = 50
RATES = (20, 60)
"""Messages a second."""

_CORES = os.sched_getaffinity(0)
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """One measurement; times in microseconds of processor time."""

    name: str
    rate: float
    server: float
    redis: float
    idle: float


def processor_time(*pids: int) -> float:
    """The seconds of processor time of processes and of their children."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            fields = stat.read_text().rpartition(") ")[2].split()
            if {int(stat.parent.name), int(fields[1])} & set(pids):
                ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


@contextlib.contextmanager
def running(command: list[str], ready: Callable[[], bool], **options: object) -> Iterator[int]:
    """A program that runs during a ``with`` block; its process."""
    os.sched_setaffinity(0, _CORES)  # the load has one core, its servers have all
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    pin(0)
    try:
        for _ in range(600):
            if ready():
                break
            if process.poll() is not None:
                raise SystemExit(f"bench: {command[0]} did not start")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def listens(port: int) -> bool:
    """Whether a loopback port accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A loopback port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Bench:
    """All measurements.

    Args:
        directory: for the servers' files.
        seconds: duration of each measurement.
    """

    def __init__(self, directory: Path, seconds: float) -> None:
        self.directory = directory
        self.seconds = seconds
        self.rows: list[Row] = []
        self.redis_port = free_port()
        self._key = make_key()
        write_key(directory / "token.key", self._key)
        self._tokens = [
            sign_token(self._key, SENDER, ["/cell1/*"], ["receive", "send"], 2**31 + number)
            for number in range(TOKENS)
        ]

    def run(self, workers: int) -> None:
        """Measure one process, and several workers."""
        redis = [
            *("redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--logfile", str(self.directory / "redis.log")),
        ]
        with running(redis, lambda: listens(self.redis_port)) as redis_pid:
            for count in (1, workers):
                with self.topicsvc(count) as (pid, target):
                    self.measure(f"topicsvc, {count}", target, pid, redis_pid, count)

    @contextlib.contextmanager
    def topicsvc(self, workers: int) -> Iterator[tuple[int, Target]]:
        """A service; its first process and its target."""
        port = free_port()
        (self.directory / "topicsvc.toml").write_text(
            f"""
            listen = ["tcp:{port}:interface=127.0.0.1:backlog=1024"]
            unit_url = "https://{HOST}/"
            workers = {workers}
            [validator]
            kind = "local"
            key_file = "{self.directory}/token.key"
            [broker]
            kind = "redis"
            url = "redis://127.0.0.1:{self.redis_port}"
            [limits]
            unauthenticated = 0
            unauthenticated_per_address = 0
            messages_per_minute = 0
            [stop]
            drain = 0
            """
        )
        log = self.directory / f"log-{workers}"
        command = [sys.executable, "-m", "topicsvc", "serve", "--config"]
        with (
            log.open("w") as output,
            running(
                [*command, str(self.directory / "topicsvc.toml")],
                lambda: log.read_text().count("the reader is connected") == workers,
                cwd=ROOT,
                stdout=output,
            ) as pid,
        ):
            head = (
                f"POST {TOPIC % 0} HTTP/1.1\r\nHost: {HOST}\r\n"
                f"Authorization: Bearer {self._tokens[0]}\r\nContent-Length: {BODY}\r\n\r\n"
            )
            request = head.encode() + message.body()
            yield (
                pid,
                Target(
                    port=port,
                    path="/cell1/__topic/box1/col.topic.t%d",
                    tokens=self._tokens,
                    request=lambda _: request,
                    frame=frame_size(payload_size(BODY)),
                    host=HOST,
                ),
            )

    def measure(self, name: str, target: Target, pid: int, redis: int, workers: int) -> None:
        """Measure a fan-out and the starts of sessions.

        Each worker has as many subscribers, and as many starts at once, as one process has.
        """
        subscribers = open_sessions(target, SUBSCRIBERS * workers)
        for per_second in RATES:
            before = processor_time(pid), processor_time(redis)
            paced = Paced(target, subscribers, b'"Body"')
            idle = paced.run(per_second, self.seconds)
            used = processor_time(pid) - before[0], processor_time(redis) - before[1]
            self.rows.append(
                Row(
                    f"{name}: {per_second} messages/s to {len(subscribers)}",
                    paced.deliveries / self.seconds,
                    1e6 * used[0] / paced.deliveries,
                    1e6 * used[1] / paced.deliveries,
                    idle,
                )
            )
        for each in subscribers:
            each.close()
        time.sleep(1)
        before = processor_time(pid), processor_time(redis)
        count = STARTS * workers
        figures, sessions = start_sessions(target, count, AT_ONCE * workers)
        used = processor_time(pid) - before[0], processor_time(redis) - before[1]
        self.rows.append(
            Row(
                f"{name}: session starts",
                count / figures.seconds,
                1e6 * used[0] / count,
                1e6 * used[1] / count,
                figures.idle,
            )
        )
        for each in sessions:
            each.close()
        time.sleep(1)

    def centrifugo(self, program: str, processors: int) -> None:
        """Measure Centrifugo, with its memory engine: one channel, JSON, the same payload."""
        port = free_port()
        settings = {
            "http_server": {"address": "127.0.0.1", "port": str(port)},
            "http_api": {"key": "key"},
            "client": {"insecure": True, "allowed_origins": ["*"], "connection_limit": 0},
            "channel": {"without_namespace": {"allow_subscribe_for_client": True}},
            "log": {"level": "error"},
        }
        file = self.directory / "centrifugo.json"
        file.write_text(json.dumps(settings))
        data = payload_size(BODY)
        body = json.dumps({"channel": "t0", "data": {"x": "y" * (data - 8)}}).encode()
        request = (
            f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nX-API-Key: key\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        with running(
            [program, "--config", str(file)],
            lambda: listens(port),
            env={**os.environ, "GOMAXPROCS": str(processors)},
        ) as pid:
            target = _Centrifugo(
                port=port,
                path="/connection/websocket",
                request=lambda _: request,
                frame=0,
                host="localhost",
            )
            subscribers = [target.subscribe() for _ in range(SUBSCRIBERS * processors)]
            for per_second in RATES:
                before = processor_time(pid)
                paced = Paced(target, subscribers, b'"push"')
                idle = paced.run(per_second, self.seconds)
                used = processor_time(pid) - before
                name = f"Centrifugo, GOMAXPROCS={processors}"
                self.rows.append(
                    Row(
                        f"{name}: {per_second} messages/s to {len(subscribers)}",
                        paced.deliveries / self.seconds,
                        1e6 * used / paced.deliveries,
                        0,
                        idle,
                    )
                )
            for each in subscribers:
                each.close()


class Paced:
    """Sends messages at a fixed rate, and reads them on all subscribers.

    Args:
        target: the server.
        subscribers: the sockets of the subscribers.
        marker: occurs once in each message. Centrifugo joins messages into one frame.

    Attributes:
        deliveries: messages that subscribers have received.
    """

    def __init__(self, target: Target, subscribers: list[socket.socket], marker: bytes) -> None:
        self.deliveries = 0
        self._marker = marker
        self._target = target
        self._sockets = {each.fileno(): each for each in subscribers}

    def run(self, per_second: float, seconds: float) -> float:
        """Send and read; return the share of time in which the load was idle.

        Fails if a subscriber does not get each message once.
        """
        target = self._target
        poll = select.epoll()
        sender = target.connect()
        for fd, each in self._sockets.items():
            each.setblocking(False)
            poll.register(fd, select.EPOLLIN)
        poll.register(sender.fileno(), select.EPOLLIN)
        request = target.request(0)
        wanted = int(per_second * seconds)
        expected = wanted * len(self._sockets)
        received = sent = 0
        waited = 0.0
        self._rests = dict.fromkeys(self._sockets, b"")
        began = time.perf_counter()
        while received < expected:
            now = time.perf_counter()
            if now - began > seconds + 30:
                fail(f"{received} of {expected} messages have arrived")
            due = began + sent / per_second
            if sent < wanted and now >= due:
                sender.sendall(request)
                sent += 1
                continue
            events = poll.poll(max(due - now, 0) if sent < wanted else 1.0)
            waited += time.perf_counter() - now
            for fd, _ in events:
                if fd == sender.fileno():
                    sender.recv(65536)
                else:
                    received += self._read(fd)
        poll.close()
        sender.close()
        self.deliveries = received
        return waited / (time.perf_counter() - began)

    def _read(self, fd: int) -> int:
        """Read from a subscriber; return how many messages have begun."""
        data = self._rests[fd] + self._sockets[fd].recv(1 << 18)
        self._rests[fd] = data[1 - len(self._marker) :]
        return data.count(self._marker)


class _Centrifugo(Target):
    """Opens sessions of Centrifugo's bidirectional protocol in JSON."""

    def subscribe(self) -> socket.socket:
        """Open a session that has subscribed to the channel."""
        sock = self.connect()
        sock.sendall(self.handshake(0))
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096) or fail(f"no handshake: {head!r}")
        commands = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"t0"}}'
        sock.sendall(masked(1, commands))
        reply = b""
        while b'"id":2' not in reply or b'"subscribe"' not in reply:
            reply += sock.recv(4096) or fail(f"no session: {reply!r}")
        return sock


def table(runs: list[list[Row]]) -> str:
    """The medians of all runs, as a table."""
    lines = [
        "| measurement | a second | server, us | Redis, us | load idle |",
        "|---|---|---|---|---|",
    ]
    for rows in zip(*runs, strict=True):
        values = [
            statistics.median(getattr(row, name) for row in rows)
            for name in ("rate", "server", "redis", "idle")
        ]
        rate, server, redis, idle = values
        lines.append(f"| {rows[0].name} | {rate:,.0f} | {server:.2f} | {redis:.2f} | {idle:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--centrifugo", metavar="PROGRAM")
    options = parser.parse_args()
    runs = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as directory:
            bench = Bench(Path(directory), options.seconds)
            bench.run(options.workers)
            if options.centrifugo:
                for processors in (1, options.workers):
                    bench.centrifugo(options.centrifugo, processors)
            runs.append(bench.rows)
    print(table(runs))


if __name__ == "__main__":
    main()
