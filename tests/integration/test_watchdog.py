"""Floods of requests from 100 connections: systemd's watchdog is fed throughout each of them.

The watchdog of this test has 2 s, where examples/systemd/topicsvc.service has 30 s.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import Authority
from tests.support.processes import TwistdProcess
from tests.support.raw_client import TEXT, RawClient, frame
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import make_key, sign_token, write_key

HOST = "localhost"
TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
CONNECTIONS = 100
SECONDS = 2.5
"""How long each flood lasts."""

WATCHDOG = 2.0
"""Seconds without a message after which systemd would kill the service."""

PIECE = 65536
PING = 9
PONG = 10
HOST_LINE = f"Host: {HOST}\r\n".encode()
UNIT = Path(__file__).parent.parent.parent / "examples/systemd/topicsvc.service"


@dataclass
class Flood:
    """What each connection sends: `first` once, then `unit` again and again.

    Attributes:
        tls: whether each `unit` is a TLS record of its own.
        reads: whether the responses are read.
    """

    name: str
    unit: bytes
    first: bytes = b""
    tls: bool = False
    reads: bool = True


def floods(token: str) -> list[Flood]:
    send = f"POST {TOPIC.send_path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n".encode()
    send += HOST_LINE
    get = b"GET / HTTP/1.1\r\n" + HOST_LINE
    return [
        Flood("pipelined GETs", get + b"\r\n"),
        Flood("HEADs", b"HEAD /x?access_token=a HTTP/1.1\r\n" + HOST_LINE + b"\r\n"),
        Flood("headers", get + b"X: 1\r\n" * 95 + b"\r\n"),
        Flood("chunks", b"1\r\nx\r\n", send + b"Transfer-Encoding: chunked\r\n\r\n"),
        Flood("empty lines", b"\r\n"),
        Flood("one-byte TLS records", b"x", send + b"Content-Length: 1000000\r\n\r\n", tls=True),
        Flood("unwanted bodies", b"x" * 1000,
              b"POST /nowhere HTTP/1.1\r\n" + HOST_LINE + b"Content-Length: 1000000\r\n\r\n"),
        Flood("unread responses", b"GET /nowhere HTTP/1.1\r\n" + HOST_LINE + b"\r\n", reads=False),
    ]  # fmt: skip


class WatchdogTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        authority = Authority(directory)
        key_file, certificate = authority.issue(HOST)
        self.context = authority.client_context()
        key = make_key()
        write_key(directory / "key", key)
        self.token = sign_token(key, None, ["/*"], ["receive", "send"], int(time.time()) + 3600)
        (directory / "topicsvc.toml").write_text(
            f"""
            listen = [
                "tcp:0:interface=127.0.0.1:backlog=200",
                "ssl:0:privateKey={key_file}:certKey={certificate}:interface=127.0.0.1:backlog=200",
            ]
            unit_url = "http://{HOST}/"
            [validator]
            kind = "local"
            key_file = "{directory / "key"}"
            [limits]
            messages_per_minute = 0
            unauthenticated_per_address = {CONNECTIONS + 10}
            [stop]
            drain = 0
            """
        )
        # The path of a UNIX socket has at most 107 bytes, so an abstract name is used.
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.systemd.close)
        self.systemd.bind("")
        name = self.systemd.getsockname().decode()
        os.environ["NOTIFY_SOCKET"] = "@" + name[1:]
        os.environ["WATCHDOG_USEC"] = str(int(WATCHDOG * 1e6))
        for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            self.addCleanup(os.environ.pop, variable)
        self.service = TwistdProcess(
            "--config", str(directory / "topicsvc.toml"),
            directory=directory,
        )  # fmt: skip
        self.addCleanup(self.service.stop)
        self.plain_port, self.tls_port = self.service.ports

    def test_the_watchdog_is_fed_throughout_each_flood(self) -> None:
        [seconds] = re.findall(r"^WatchdogSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
        self.assertGreater(float(seconds), WATCHDOG, "the example is less strict than this test")
        subscriber = RawClient(self.plain_port)
        self.addCleanup(subscriber.close)
        self.assertEqual(subscriber.upgrade(TOPIC.websocket_path, HOST), 101)
        subscriber.write(frame(TEXT, b'{"AccessToken":"%s"}' % self.token.encode()))
        self.assertIn(b"Success", (subscriber.read_frame() or (0, b""))[1])
        for flood in floods(self.token):
            gap, trips = self.measure(flood, subscriber)
            with self.subTest(flood=flood.name):
                self.assertLess(gap, WATCHDOG, "systemd would kill the service")
                self.assertGreater(len(trips), 3)
                self.assertLess(max(trips), WATCHDOG)
        self.assertNotIn("Traceback", self.service.text)

    def measure(self, flood: Flood, subscriber: RawClient) -> tuple[float, list[float]]:
        """Return the longest time between two feeds, and the round trips of pings, in seconds."""
        end = time.monotonic() + SECONDS
        attacker = threading.Thread(target=self.attack, args=(flood, end))
        feeds = [time.monotonic()]
        watcher = threading.Thread(target=lambda: feeds.extend(self.feeds(end)))
        attacker.start()
        watcher.start()
        trips = []
        while time.monotonic() < end:
            sent = time.monotonic()
            subscriber.write(frame(PING, b"%d" % len(trips)))
            self.assertEqual(subscriber.read_frame(), (PONG, b"%d" % len(trips)))
            trips.append(time.monotonic() - sent)
            time.sleep(0.02)
        attacker.join()
        watcher.join()
        feeds.append(time.monotonic())
        return max(later - earlier for earlier, later in pairwise(feeds)), trips

    def feeds(self, end: float) -> Iterator[float]:
        """The times at which the service feeds the watchdog, until `end`."""
        while (left := end - time.monotonic()) > 0:
            is_ready = select.select([self.systemd], [], [], left)[0]
            if is_ready and b"WATCHDOG=1" in self.systemd.recv(1000):
                yield time.monotonic()

    def attack(self, flood: Flood, end: float) -> None:
        """Keep `CONNECTIONS` connections that send as much as they can, until `end`."""
        data = flood.unit if flood.tls else flood.unit * (PIECE // len(flood.unit))
        clients: dict[socket.socket, bytes] = {}
        while time.monotonic() < end:
            while len(clients) < CONNECTIONS and time.monotonic() < end:
                port = self.tls_port if flood.tls else self.plain_port
                with contextlib.suppress(OSError):
                    client = RawClient(port, self.context if flood.tls else None, HOST).socket
                    client.setblocking(False)
                    clients[client] = flood.first
            for client, first in list(clients.items()):
                try:
                    if first:
                        clients[client] = first[client.send(first) :]
                    else:
                        for _ in range(200 if flood.tls else 1):
                            client.send(data)
                    if flood.reads and not client.recv(PIECE):
                        raise ConnectionError
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    if flood.reads:
                        with contextlib.suppress(OSError):
                            client.recv(PIECE)
                except OSError:
                    client.close()
                    del clients[client]
            time.sleep(0.001)
        for client in clients:
            client.close()
