"""No file descriptor is left: who is in stays, and who comes later is served once some are back."""

from __future__ import annotations

import json
import os
import resource
import socket
import time

from tests.support.raw_client import PONG, TEXT, RawClient, close, frame
from tests.support.twistd_case import (
    LOOPBACK,
    SEND_PATH,
    WEBSOCKET_PATH,
    TwistdTestCase,
)

HOST = "cell1.unit1.example"
SESSIONS = 20
FILES = 200
CROWD = 300
RECOVERY = 1.0
"""Seconds in which new connections work once descriptors are back."""


class DescriptorTests(TwistdTestCase):
    def setUp(self) -> None:
        super().setUp()
        file = self.configure(
            LOOPBACK,
            more="""
            [session]
            ping_interval = 1
            [limits]  # more than there are descriptors for
            connections = 100000
            unauthenticated = 0
            unauthenticated_per_address = 0
            """,
        )
        self.service = self.start("--config", str(file))
        [self.port] = self.service.ports

    def connect(self) -> RawClient:  # type: ignore[override]
        client = RawClient(self.port)
        self.addCleanup(client.close)
        return client

    def join(self) -> RawClient:
        """A client whose session is live."""
        client = self.connect()
        self.assertEqual(client.upgrade(WEBSOCKET_PATH, HOST), 101)
        client.write(frame(TEXT, json.dumps({"AccessToken": self.token()}).encode()))
        self.assertIn(b'"Success"', self.text(client))
        return client

    def text(self, client: RawClient) -> bytes:
        """The next text; pings on the way are answered."""
        while True:
            told = client.read_frame()
            assert told is not None, "the session has ended"
            if told[0] == TEXT:
                return told[1]
            client.write(frame(PONG, told[1]))

    def publish(self, sender: RawClient, body: bytes) -> None:
        """Send over a connection that is there already."""
        sender.write(
            f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {self.token()}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self.assertEqual(sender.read_head()[0], 200)

    def allow(self, files: int) -> None:
        """From now on the service may have so many open."""
        _, most = resource.prlimit(self.service.child.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.service.child.pid, resource.RLIMIT_NOFILE, (files, most))

    @property
    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.service.child.pid}/fd"))

    def is_served(self, patience: float = 0.3) -> bool:
        """Whether somebody who comes now gets an answer."""
        client = RawClient(self.port)
        try:
            client.socket.settimeout(patience)
            return client.upgrade(WEBSOCKET_PATH, HOST) == 101
        except OSError:
            return False
        finally:
            client.close()

    def assert_recovers(self) -> None:
        began = time.monotonic()
        while not self.is_served():
            self.assertLess(time.monotonic() - began, RECOVERY, "not served again")
        self.assertLess(time.monotonic() - began, RECOVERY)

    def assert_alive(self, sessions: list[RawClient], sender: RawClient, body: bytes) -> None:
        """Each session gets what is sent now."""
        self.publish(sender, body)
        for session in sessions:
            self.assertTrue(self.text(session).endswith(b'"Body":%s}' % body))

    def test_none_is_left_for_a_while(self) -> None:
        sessions = [self.join() for _ in range(SESSIONS)]
        sender = self.connect()
        self.publish(sender, b'"before"')
        for session in sessions:
            self.text(session)
        self.allow(self.files)
        end = time.monotonic() + 3  # pings, and turns of the heart
        while time.monotonic() < end:
            self.assertFalse(self.is_served())
            self.assert_alive(sessions, sender, b'"meanwhile"')
        self.allow(20000)
        self.assert_recovers()
        self.assert_alive(sessions, sender, b'"after"')
        self.assertNotIn("Traceback", self.service.text)

    def test_a_crowd_takes_all_of_them(self) -> None:
        sessions = [self.join() for _ in range(SESSIONS)]
        sender = self.connect()
        self.allow(FILES)
        crowd = []
        for _ in range(CROWD):
            stranger = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            self.addCleanup(stranger.close)
            crowd.append(stranger)
        deadline = time.monotonic() + 5
        while self.files < FILES - 2:
            self.assertLess(time.monotonic(), deadline, self.files)
            time.sleep(0.05)
        self.assertFalse(self.is_served())
        self.assert_alive(sessions, sender, b'"in the crowd"')
        for stranger in crowd:
            stranger.close()
        self.assert_recovers()
        self.assert_alive(sessions, sender, b'"after"')
        for session in sessions:
            session.write(close(1000))
            self.assertEqual(session.read_to_end().code, 1000)
        self.assertNotIn("Traceback", self.service.text)
