"""Floods of all kinds at the same time: other sessions are not slowed down, and no memory stays.

One test uses the default limits, which allow 1,000 unauthenticated connections at a time. The
other one uses no limits: then all 10,500 hostile connections are open. Memory is compared with
the service before the first flood.

Latency is measured at 100 other sessions, as long as the flood lasts, without the time in which
the service or this process waits for a processor. The process of the hostile clients has a low
priority (nice 19), because real clients do not use the service's processor.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.integration.support import live_memory
from tests.integration.support.cpu_steal import OtherLoad
from tests.integration.support.floods import FloodSettings
from tests.integration.support.requirements import allow_files, need_files
from tests.integration.support.run_delay import RunningClock
from tests.support.certificates import Authority
from tests.support.processes import TwistdProcess, environment, until
from tests.support.subscriber import Subscriber
from topicsvc.process import memory
from topicsvc.settings import LimitSettings
from topicsvc.validators.local import make_key, sign_token, write_key
from topicsvc.web.site import HEAD_TIMEOUT

Test = Generator[Deferred[Any], Any, None]

HOST = "127.0.0.1"
SUBSCRIBERS = 100
INTERVAL = 0.05
"""Seconds between two measured messages."""

BULK = b'"%s"' % (b"x" * 65536)
BULK_INTERVAL = 0.1
BASELINE = 10.0
"""Seconds of the measurement before a flood: 20,000 latencies."""

TOKEN_TIMEOUT = 15
FILES = 12_000
MAX_GROWTH = 5_000_000
"""Bytes of memory."""

BACKLOG = 4096
"""Connections in the listen queue: open for clients, before the service has accepted them."""

MOST_CONNECTIONS = 1200
"""Connections that the service may have with the default limits. Without limits it has 10,500."""

SAMPLE_INTERVAL = 0.5
"""Seconds between two counts of the service's connections."""

MAX_KEPT = 25_000_000
"""Bytes that Python's allocator may keep after more than 10,000 connections: docs/security.md."""

ATTEMPTS = 5
BUSY = 0.1
"""Cores. If other processes use more, the latency is measured again."""

FLOOD = FloodSettings(
    port=0,
    tls_port=0,
    host=HOST,
    websocket_path="/cell1/__topic/box1/bulk.topic.name",
    send_path="/cell1/box1/bulk/topic/name",
    token="",
    per_second=1000,
    silent=10_000,
    slow={
        "slow request head": 200,
        "slow request body": 200,
        "slow chunks": 100,
        "slow token": 50,
        "slow TLS handshake": 50,
    },
    fragments=3_000_000,
    pings=400_000,
    stopped=10,
)

LIFETIMES = {
    # Seconds from the start of a connection to its end, at least and at most: docs/security.md.
    "silent connection": (10, 10),
    "slow request head": (10, 10),
    "slow TLS handshake": (10, 10),
    "slow request body": (30, 30),
    "slow chunks": (30, 30),
    "slow token": (TOKEN_TIMEOUT, TOKEN_TIMEOUT + 5),
    # Its queue is full, or no byte was sent for 10 s; then 5 s for the close handshake.
    "stopped reader": (5, 25),
    # A close frame at once; 5 s for the close handshake.
    "fragments": (5, 5),
    "pings with a token": (5, 5),
    "pings without a token": (5, 5),
}
MAX_DELAY = 4.0
"""Seconds that a connection may last longer, because floods keep the machine busy."""

CLOCK_ERROR = 0.1
"""Seconds between the clocks of two processes, and errors of rounding."""


class LatencyMeter(Subscriber):
    """A subscriber that notes the latency of each message.

    Args:
        clock: tells the time.
        latencies: the list for the latencies of all subscribers, in seconds.
    """

    def __init__(self, clock: RunningClock, latencies: list[float]) -> None:
        super().__init__()
        self._clock = clock
        self._latencies = latencies

    def frame_received(self, opcode: int, payload: bytes) -> None:
        if opcode == 1 and b'"Body":' in payload:
            sent = float(payload.rpartition(b":")[2][:-1])
            self._latencies.append(self._clock.seconds() - sent)
        else:
            super().frame_received(opcode, payload)


@dataclass
class Flood:
    """The results of one flood.

    Attributes:
        before: 99th percentile of the latencies before the flood, in seconds.
        during: 99th percentile of the latencies during the flood, in seconds.
        busy: cores that other processes used.
        most: largest resident memory of the service, in bytes.
        most_files: largest number of files that the service had open more than before the flood.
        kept: growth of its resident memory since before the first flood, in bytes.
        in_use: growth of its memory in use since before the first flood, in bytes.
        ends: sessions that ended, by the reason in the metrics.
        closed: for each kind, the seconds after which the connections were closed.
        counts: other results; see `Floods`.
    """

    before: float
    during: float
    busy: float
    most: int
    most_files: int
    kept: int
    in_use: int
    ends: dict[str, int]
    closed: dict[str, list[float]]
    counts: dict[str, Any]

    def __str__(self) -> str:
        lines = [
            f"p99 before {self.before * 1000:.1f} ms, during {self.during * 1000:.1f} ms, "
            f"{self.busy:.2f} cores used by other processes",
            f"at most {self.most_files} connections",
            f"at most {self.most / 1e6:.1f} MB, after it {self.kept / 1e6:+.1f} MB, "
            f"in use {self.in_use / 1e6:+.1f} MB",
            *(
                f"{kind}: {len(each)} closed after {min(each)} to {max(each)} s"
                for kind, each in self.closed.items()
            ),
            str(self.counts),
        ]
        return "\n    ".join(lines)


class Sender(Protocol):
    """Sends messages over one persistent HTTP connection.

    Attributes:
        requests: number of messages that were sent.
        responses: number of responses.
        accepted: number of responses with status 200.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._rest = b""
        self.requests = self.responses = self.accepted = 0

    def send(self, path: str, body: bytes) -> None:
        self.requests += 1
        self.transport.write(
            f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def dataReceived(self, data: bytes) -> None:
        # A status line may be torn.
        data = self._rest + data
        _, *heads = data.split(b"HTTP/1.1 ")
        is_torn = bool(heads) and len(heads[-1]) < 3
        self._rest = b"HTTP/1.1 " + heads.pop() if is_torn else data[-8:]
        self.responses += len(heads)
        self.accepted += sum(head.startswith(b"200") for head in heads)


class FloodTests(TestCase):
    timeout = 1500

    @inlineCallbacks
    def serve(self, unauthenticated: int) -> Test:
        """Start a service with this limit of unauthenticated connections, and its subscribers."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        key = make_key()
        write_key(self.directory / "key", key)
        self.token = sign_token(key, "x", ["/*"], ("receive", "send"), int(time.time()) + 3600)
        server_key, certificate = Authority(self.directory).issue(HOST)
        file = self.directory / "topicsvc.toml"
        file.write_text(
            f"""
            listen = [
                "tcp:0:interface=127.0.0.1:backlog={BACKLOG}",
                "ssl:0:privateKey={server_key}:certKey={certificate}:interface=127.0.0.1",
            ]
            admin = "tcp:0:interface=127.0.0.1"
            unit_url = "http://localhost/"
            hosts = ["{HOST}"]
            [session]
            token_timeout = {TOKEN_TIMEOUT}
            [validator]
            kind = "local"
            key_file = "{self.directory / "key"}"
            [stop]
            drain = 0
            [limits]
            unauthenticated_per_address = 0  # all clients have one address
            unauthenticated = {unauthenticated}
            """
        )
        need_files(FILES)
        self.service = TwistdProcess(
            *("--config", str(file)),
            directory=self.directory,
            watched_by=live_memory.__name__,
            preexec_fn=allow_files,
        )
        self.addCleanup(self.service.stop)
        self.port, tls_port, self.admin = self.service.ports
        self.settings = replace(FLOOD, port=self.port, tls_port=tls_port, token=self.token)
        self.latencies: list[float] = []
        self.clock = RunningClock(self.service.child.pid)
        self.meters = [LatencyMeter(self.clock, self.latencies) for _ in range(SUBSCRIBERS)]
        for meter in self.meters:
            meter.path, meter.token = "/cell1/__topic/box1/col.topic.name", self.token
            yield self.connect(meter)
            yield meter.subscribed
            self.addCleanup(meter.leave)
        self.sender = yield self.connect(Sender(self.token))
        self.addCleanup(self.sender.transport.abortConnection)

    def connect(self, protocol: Protocol) -> Deferred[Any]:
        endpoint = TCP4ClientEndpoint(reactor, HOST, self.port)
        return connectProtocol(endpoint, protocol)

    def send(self) -> None:
        self.sender.send("/cell1/box1/col/topic/name", b"%.6f" % self.clock.seconds())

    @property
    def status(self) -> dict[str, int]:
        """Memory of the service in bytes, by the names of proc(5)."""
        lines = Path(f"/proc/{self.service.child.pid}/status").read_text().splitlines()
        pairs = [line.split() for line in lines if line.endswith(" kB")]
        return {name.rstrip(":"): int(size) * 1024 for name, size, _ in pairs}

    @property
    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.service.child.pid}/fd"))

    @property
    def ended(self) -> Counter[str]:
        """Sessions that have ended so far, by the reason in the metrics."""
        url = f"http://127.0.0.1:{self.admin}/metrics"
        with urllib.request.urlopen(url, timeout=60) as response:
            text = response.read().decode()
        found = re.findall(r'^topicsvc_sessions_ended_total\{reason="(\w+)"\} (\S+)$', text, re.M)
        return Counter({reason: int(float(number)) for reason, number in found})

    @inlineCallbacks
    def measured(self, meanwhile: Deferred[Any]) -> Generator[Deferred[Any], Any, Any]:
        """The 99th percentile of latencies until `meanwhile` fires, in seconds; and its result."""
        self.latencies.clear()
        before = self.sender.accepted
        sending = LoopingCall(self.send)
        sending.start(INTERVAL)
        try:
            result = yield meanwhile
        finally:
            sending.stop()
        yield until(
            lambda: self.sender.responses == self.sender.requests, "all sends have a response", 60
        )
        sent = self.sender.accepted - before
        yield until(lambda: len(self.latencies) >= sent * SUBSCRIBERS, "all messages arrive", 60)
        self.assertEqual(len(self.latencies), sent * SUBSCRIBERS)
        return sorted(self.latencies)[len(self.latencies) * 99 // 100], result

    def lower_priority(self) -> None:
        """In the process of the hostile clients: give way to the service."""
        os.nice(19)
        allow_files()

    @inlineCallbacks
    def run_clients(self) -> Generator[Deferred[Any], Any, Any]:
        """Run the hostile clients; fires with their results."""
        sender = yield self.connect(Sender(self.token))
        bulk = LoopingCall(sender.send, "/cell1/box1/bulk/topic/name", BULK)
        bulk.start(BULK_INTERVAL)
        try:
            done = yield deferToThread(
                subprocess.run,
                [sys.executable, "-m", "tests.integration.support.floods"],
                input=json.dumps(asdict(self.settings)),
                capture_output=True,
                text=True,
                env=environment(),
                preexec_fn=self.lower_priority,
                timeout=300,
            )
        finally:
            bulk.stop()
            sender.transport.abortConnection()
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    @inlineCallbacks
    def flood(self) -> Generator[Deferred[Any], Any, Flood]:
        """Measure without a flood, then with a flood, then the memory after it."""
        other_load, ended = OtherLoad(self.service.child.pid), self.ended
        before, _ = yield self.measured(deferLater(reactor, BASELINE))
        files = most_files = self.files

        def count_files() -> None:
            nonlocal most_files
            most_files = max(most_files, self.files)

        counting = LoopingCall(count_files)
        counting.start(SAMPLE_INTERVAL)
        try:
            during, results = yield self.measured(self.run_clients())
        finally:
            counting.stop()
        busy = other_load.cores
        yield until(lambda: self.files == files, "all hostile connections are closed", 120)
        yield deferLater(reactor, 2 * memory.INTERVAL + 1)
        yield until(
            lambda: self.status["VmRSS"] - self.resident < self.max_kept, "memory is returned", 60
        )
        return Flood(
            before=before,
            during=during,
            busy=busy,
            most=self.status["VmHWM"],
            most_files=most_files - files,
            kept=self.status["VmRSS"] - self.resident,
            in_use=live_memory.of(self.service) - self.in_use,
            ends=dict(self.ended - ended),
            **results,
        )

    @inlineCallbacks
    def check(self, rules: Callable[[Flood], None]) -> Test:
        """Run a flood and check the rules; repeat it if other processes were busy."""
        self.resident, self.in_use = self.status["VmRSS"], live_memory.of(self.service)
        for attempts_left in reversed(range(ATTEMPTS)):
            flood = yield self.flood()
            if os.environ.get("TOPICSVC_FIGURES"):
                print(f"\nbefore: {self.resident / 1e6:.1f} MB, {self.in_use / 1e6:.1f} MB in use")
                print(flood)
            try:
                self.assert_others_unaffected(flood)
                rules(flood)
                self.assert_closed_in_time(flood)
            except self.failureException:
                if flood.busy < BUSY or not attempts_left:
                    raise
            else:
                return

    @inlineCallbacks
    def test_with_the_default_limits(self) -> Test:
        def rules(flood: Flood) -> None:
            self.assertLess(flood.kept, self.max_kept, flood)
            self.assertLess(flood.most_files, MOST_CONNECTIONS)
            self.assertLess(flood.counts["most connections"], MOST_CONNECTIONS + BACKLOG)
            silent = flood.closed["silent connection"]
            stayed = [seconds for seconds in silent if seconds > MAX_DELAY]
            self.assertLess(len(stayed), len(silent) / 2, "most are closed at once")
            self.assertEqual(len(silent), self.settings.silent)
            flood.closed["silent connection"] = stayed

        self.max_kept = MAX_GROWTH
        yield self.serve(unauthenticated=LimitSettings().unauthenticated)
        yield self.check(rules)

    @inlineCallbacks
    def test_without_limits(self) -> Test:
        def rules(flood: Flood) -> None:
            self.assertLess(flood.kept, self.max_kept, flood)
            # On a busy machine, the first ones are closed before the last ones are opened.
            seconds = max(flood.counts["seconds of silent connections"], HEAD_TIMEOUT)
            most = flood.counts["most connections"]
            self.assertGreater(most, 10_000 * HEAD_TIMEOUT / seconds)
            self.assertEqual(len(flood.closed["silent connection"]), self.settings.silent)

        self.max_kept = MAX_KEPT
        yield self.serve(unauthenticated=0)
        yield self.check(rules)

    def assert_others_unaffected(self, flood: Flood) -> None:
        self.assertLess(flood.during, 2 * flood.before, flood)
        self.assertLess(flood.in_use, MAX_GROWTH, flood)
        self.assertEqual([meter.close_code for meter in self.meters], [None] * SUBSCRIBERS)
        self.assertNotIn("Traceback", self.service.text)

    def assert_closed_in_time(self, flood: Flood) -> None:
        closed, counts, settings = flood.closed, flood.counts, self.settings
        self.assertEqual(set(closed), set(LIFETIMES))
        for kind, count in settings.slow.items():
            self.assertEqual(len(closed[kind]), count)
        for kind, (first, last) in LIFETIMES.items():
            self.assertGreaterEqual(min(closed[kind]), first - CLOCK_ERROR, kind)
            self.assertLess(max(closed[kind]), last + MAX_DELAY, kind)
        self.assertEqual(counts["close of the fragments"], [1008, "Too many frames"])
        for kind, number in (
            ("fragments", settings.fragments),
            ("pings with a token", settings.pings),
            ("pings without a token", settings.pings),
        ):
            # The client sends on after the close frame, until the service closes the connection.
            self.assertTrue(counts[kind]["sent"] >= number or counts[kind]["was closed"], counts)
        # The log has 10 lines a second of connections without a valid token.
        self.assertEqual(flood.ends, {
            "too_many_frames": 1,
            "too_many_messages": 2,
            "slow_consumer": settings.stopped,
            "token_timeout": settings.slow["slow token"],
        })  # fmt: skip
