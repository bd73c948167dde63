"""Floods of every kind, all at once: nobody else notices, and nothing is left of them.

Memory that was free once is not all given back to the system, so a first flood shows how much
one takes, and a second one, a little smaller, finds room in what the first has left: where it
takes more, something was not freed. That none of 5,120 sessions leaves anything is shown by
test_leaks. Latency is measured at sessions that have nothing to do with the floods, before
and after them, and for as long as they last. The strangers yield the processor: what it costs
to be one is not the service's matter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.integration.certificates import Authority
from tests.integration.floods import Orders
from tests.integration.process import Service, environment
from tests.integration.processes import until
from tests.integration.requirements import allow_files, need_files
from tests.integration.topicsvc_process import Subscriber
from topicsvc.validators.local import make_key, sign_token, write_key

Test = Generator[Deferred[Any], Any, None]

HOST = "127.0.0.1"
SUBSCRIBERS = 400
INTERVAL = 0.1
"""Seconds between two messages that are measured."""

BULK = b'"%s"' % (b"x" * 65536)
BASE_LINE = 12.0
"""Seconds."""

TOKEN_TIMEOUT = 15
FILES = 12_000
MOST_GROWTH = 5_000_000
"""Bytes."""

FLOOD = Orders(
    port=0,
    tls_port=0,
    host=HOST,
    websocket_path="/cell1/__topic/box1/bulk.topic.name",
    send_path="/cell1/box1/bulk/topic/name",
    token="",
    silent=10_000,
    per_second=1000,
    dripping=100,
    fragments=3_000_000,
    pings=400_000,
    stopped=10,
)

WHEN = {
    # Seconds from a connection to its end, at least and at most: docs/security.md.
    "says nothing": (10, 10),
    "a head that drips": (10, 10),
    "a TLS handshake that drips": (10, 10),
    "a body that drips": (30, 30),
    "chunks that drip": (30, 30),
    "a token that drips": (TOKEN_TIMEOUT, TOKEN_TIMEOUT + 5),
    "a reader that stops": (5, 25),  # its queue is full, or nothing has left for 10 s; then 5
    "fragments": (0, 10),
    "pings of a session": (0, 10),
    "pings without a token": (0, 10),
}
LATE = 4.0
"""Seconds that an end may come late on a machine that is busy with floods."""

EARLY = 0.1
"""Seconds between the clocks of two processes, and what rounding takes off."""


class Watcher(Subscriber):
    """A subscriber that notes how long each message took.

    Attributes:
        took: seconds, one list for all.
    """

    def __init__(self, took: list[float]) -> None:
        super().__init__()
        self.took = took

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == 1 and b'"Body":' in payload:
            sent = float(payload.rpartition(b":")[2][:-1])
            self.took.append(time.monotonic() - sent)
        else:
            super()._frame(opcode, payload)


class Sender(Protocol):
    """Sends over one HTTP connection that is kept."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.answers = 0

    def send(self, path: str, body: bytes) -> None:
        self.transport.write(
            f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def dataReceived(self, data: bytes) -> None:
        self.answers += data.count(b"HTTP/1.1 200 ")


class FloodTests(TestCase):
    timeout = 400

    @inlineCallbacks
    def setUp(self) -> Test:
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
                "tcp:0:interface=127.0.0.1:backlog=4096",
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
            [limits]  # the strangers have one address, and shall come in: that is worse
            waiting = 0
            waiting_per_address = 0
            """
        )
        need_files(FILES)
        self.service = Service(
            "--config", str(file), directory=self.directory, preexec_fn=allow_files
        )
        self.addCleanup(self.service.stop)
        self.port, tls_port, self.admin = self.service.ports
        self.flood = replace(FLOOD, port=self.port, tls_port=tls_port, token=self.token)
        self.took: list[float] = []
        self.watchers = [Watcher(self.took) for _ in range(SUBSCRIBERS)]
        for watcher in self.watchers:
            watcher.path, watcher.token = "/cell1/__topic/box1/col.topic.name", self.token
            yield self.connect(watcher)
            yield watcher.welcomed
            self.addCleanup(watcher.leave)
        self.sender = yield self.connect(Sender(self.token))
        self.addCleanup(self.sender.transport.abortConnection)

    def connect(self, protocol: Protocol) -> Deferred[Any]:
        endpoint = TCP4ClientEndpoint(reactor, HOST, self.port)
        return connectProtocol(endpoint, protocol)

    def send(self) -> None:
        self.sender.send("/cell1/box1/col/topic/name", b"%.6f" % time.monotonic())

    @property
    def resident(self) -> int:
        """Bytes of memory that the service has."""
        status = Path(f"/proc/{self.service.child.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.service.child.pid}/fd"))

    @inlineCallbacks
    def measured(self, meanwhile: Deferred[Any]) -> Generator[Deferred[Any], Any, Any]:
        """The 99th percentile of latencies until then, in seconds; and what came then."""
        self.took.clear()
        answered = self.sender.answers
        sending = LoopingCall(self.send)
        sending.start(INTERVAL)
        try:
            came = yield meanwhile
        finally:
            sending.stop()
        yield deferLater(reactor, 0.5)
        sent = self.sender.answers - answered
        self.assertEqual(len(self.took), sent * SUBSCRIBERS, "messages are missing")
        return sorted(self.took)[len(self.took) * 99 // 100], came

    def be_elsewhere(self) -> None:
        """In the strangers' process: they have machines of their own."""
        os.nice(19)
        allow_files()

    @inlineCallbacks
    def strangers(self, flood: Orders) -> Generator[Deferred[Any], Any, Any]:
        """Let them in; fires with what became of them."""
        sender = yield self.connect(Sender(self.token))
        bulk = LoopingCall(sender.send, "/cell1/box1/bulk/topic/name", BULK)
        bulk.start(INTERVAL)
        peak = LoopingCall(lambda: self.peaks.append((self.resident, self.files)))
        self.peaks: list[tuple[int, int]] = []
        peak.start(0.5)
        done = yield deferToThread(
            subprocess.run,
            [sys.executable, "-m", "tests.integration.floods"],
            input=json.dumps(asdict(flood)),
            capture_output=True,
            text=True,
            env=environment(),
            preexec_fn=self.be_elsewhere,
            timeout=120,
        )
        bulk.stop()
        peak.stop()
        sender.transport.abortConnection()
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    @inlineCallbacks
    def test_floods(self) -> Test:
        before, _ = yield self.measured(deferLater(reactor, BASE_LINE))
        quiet = self.files
        figures = [f"before: p99 {before * 1000:.1f} ms, {self.resident / 1e6:.1f} MB"]
        latencies, memory, fates = [], [], []
        floods = [replace(self.flood, silent=self.flood.silent * 21 // 20), self.flood]
        for flood in floods:
            p99, became = yield self.measured(self.strangers(flood))
            yield until(lambda: self.files == quiet, "all strangers are gone")
            most, files = (max(each) for each in zip(*self.peaks, strict=True))
            latencies.append(p99)
            memory.append(most)
            fates.append(became)
            figures += [
                f"flood: p99 {p99 * 1000:.1f} ms, {files} files and {most / 1e6:.1f} MB at most, "
                f"{self.resident / 1e6:.1f} MB after it",
                *(
                    f"    {kind}: {len(each)} closed after {min(each)} to {max(each)} s"
                    for kind, each in became["closed"].items()
                ),
                f"    {became['told']}",
            ]
        after, _ = yield self.measured(deferLater(reactor, BASE_LINE))
        figures.append(f"after: p99 {after * 1000:.1f} ms, {self.resident / 1e6:.1f} MB")
        self.show(figures)
        for flood, became in zip(floods, fates, strict=True):
            self.assert_closed_when_they_should_be(flood, became)
        self.assertLess(max(latencies), 2 * max(before, after), figures)
        self.assertLess(max(memory[1], self.resident) - memory[0], MOST_GROWTH, figures)
        self.assertEqual([watcher.close_code for watcher in self.watchers], [None] * SUBSCRIBERS)
        self.assertNotIn("Traceback", self.service.text)

    def show(self, figures: list[str]) -> None:
        if os.environ.get("TOPICSVC_FIGURES"):
            print("\n" + "\n".join(figures))

    def assert_closed_when_they_should_be(self, flood: Orders, became: Any) -> None:
        closed = became["closed"]
        self.assertEqual(set(closed), set(WHEN))
        self.assertEqual(len(closed["says nothing"]), flood.silent)
        self.assertEqual(sum(len(each) for kind, each in closed.items() if "drip" in kind),
                         5 * flood.dripping)  # fmt: skip
        for kind, (first, last) in WHEN.items():
            self.assertGreaterEqual(min(closed[kind]), first - EARLY, kind)
            self.assertLess(max(closed[kind]), last + LATE, kind)
