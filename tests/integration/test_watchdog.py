"""Floods of requests and frames, from 1 and 100 connections: the watchdog is fed throughout each.

The watchdog of this test has 2 s, where examples/systemd/topicsvc.service has 30 s.
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import Authority
from tests.support.input_floods import InputFlood, attack, input_floods
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

PING = 9
PONG = 10
UNIT = Path(__file__).parent.parent.parent / "examples/systemd/topicsvc.service"


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
            [session]
            ping_interval = 3600  # the test's own pings are measured
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

    def test_the_watchdog_is_fed_throughout_each_flood_from_1_connection(self) -> None:
        self.check_floods(1)

    def test_the_watchdog_is_fed_throughout_each_flood_from_100_connections(self) -> None:
        self.check_floods(CONNECTIONS)

    def check_floods(self, connections: int) -> None:
        [seconds] = re.findall(r"^WatchdogSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
        self.assertGreater(float(seconds), WATCHDOG, "the example is less strict than this test")
        subscriber = RawClient(self.plain_port)
        self.addCleanup(subscriber.close)
        self.assertEqual(subscriber.upgrade(TOPIC.websocket_path, HOST), 101)
        subscriber.write(frame(TEXT, b'{"AccessToken":"%s"}' % self.token.encode()))
        self.assertIn(b"Success", (subscriber.read_frame() or (0, b""))[1])
        for flood in input_floods(HOST, TOPIC.send_path, TOPIC.websocket_path, self.token):
            gap, trips = self.measure(flood, connections, subscriber)
            with self.subTest(flood=flood.name):
                self.assertLess(gap, WATCHDOG, "systemd would kill the service")
                self.assertGreater(len(trips), 3)
                self.assertLess(max(trips), WATCHDOG)
        self.assertNotIn("Traceback", self.service.text)

    def measure(
        self, flood: InputFlood, connections: int, subscriber: RawClient
    ) -> tuple[float, list[float]]:
        """Return the longest time between two feeds, and the round trips of pings, in seconds."""
        end = time.monotonic() + SECONDS
        port, context = (self.tls_port, self.context) if flood.tls else (self.plain_port, None)
        attacker = threading.Thread(
            target=attack,
            args=(flood, lambda: RawClient(port, context, HOST).socket, connections, end),
        )
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
        feeds.append(end)  # the watcher has looked until then
        return max(later - earlier for earlier, later in pairwise(feeds)), trips

    def feeds(self, end: float) -> Iterator[float]:
        """The times at which the service feeds the watchdog, until `end`."""
        while (left := end - time.monotonic()) > 0:
            is_ready = select.select([self.systemd], [], [], left)[0]
            if is_ready and b"WATCHDOG=1" in self.systemd.recv(1000):
                yield time.monotonic()
