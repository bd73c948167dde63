"""All file descriptors are in use: sessions go on, and new clients are served afterwards."""

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
CONNECTIONS = 300
RECOVERY_TIME = 5.0
"""Seconds in which new connections work after descriptors are free again. If the listen queue was
full, the system tries a connection again after 1 s, and after 3 s."""


class DescriptorTests(TwistdTestCase):
    def setUp(self) -> None:
        super().setUp()
        file = self.configure(
            LOOPBACK,
            more="""
            [session]
            ping_interval = 1
            [limits]  # above the limit of descriptors
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
        """Return a client with an active session."""
        client = self.connect()
        self.assertEqual(client.upgrade(WEBSOCKET_PATH, HOST), 101)
        client.write(frame(TEXT, json.dumps({"AccessToken": self.token()}).encode()))
        self.assertIn(b'"Success"', self.text(client))
        return client

    def text(self, client: RawClient) -> bytes:
        """Return the next text message; reply to pings before it."""
        while True:
            received = client.read_frame()
            assert received is not None, "the session has ended"
            opcode, payload = received
            if opcode == TEXT:
                return payload
            client.write(frame(PONG, payload))

    def publish(self, sender: RawClient, body: bytes) -> None:
        """Send a message over an open connection."""
        sender.write(
            f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {self.token()}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self.assertEqual(sender.read_head()[0], 200)

    def allow(self, files: int) -> None:
        """Set the service's limit of open files."""
        _, most = resource.prlimit(self.service.child.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.service.child.pid, resource.RLIMIT_NOFILE, (files, most))

    @property
    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.service.child.pid}/fd"))

    def is_served(self, timeout: float = 0.3) -> bool:
        """Whether a new client gets a response."""
        client = RawClient(self.port)
        try:
            client.socket.settimeout(timeout)
            return client.upgrade(WEBSOCKET_PATH, HOST) == 101
        except OSError:
            return False
        finally:
            client.close()

    def assert_recovers(self) -> None:
        began = time.monotonic()
        while not self.is_served(1):
            self.assertLess(time.monotonic() - began, RECOVERY_TIME, "not served again")
        self.assertLess(time.monotonic() - began, RECOVERY_TIME)

    def assert_delivered(self, sessions: list[RawClient], sender: RawClient, body: bytes) -> None:
        """Each session receives a message that is sent now."""
        self.publish(sender, body)
        for session in sessions:
            self.assertTrue(self.text(session).endswith(b'"Body":%s}' % body))

    def test_no_descriptor_is_free_for_three_seconds(self) -> None:
        sessions = [self.join() for _ in range(SESSIONS)]
        sender = self.connect()
        self.publish(sender, b'"before"')
        for session in sessions:
            self.text(session)
        self.allow(self.files)
        end = time.monotonic() + 3  # with pings
        while time.monotonic() < end:
            self.assertFalse(self.is_served())
            self.assert_delivered(sessions, sender, b'"meanwhile"')
        self.allow(20000)
        self.assert_recovers()
        self.assert_delivered(sessions, sender, b'"after"')
        self.assertNotIn("Traceback", self.service.text)

    def test_other_connections_use_all_descriptors(self) -> None:
        sessions = [self.join() for _ in range(SESSIONS)]
        sender = self.connect()
        self.allow(FILES)
        connections = []
        for _ in range(CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
            self.addCleanup(connection.close)
            connections.append(connection)
        deadline = time.monotonic() + 60
        while self.files < FILES - 2:
            self.assertLess(time.monotonic(), deadline, self.files)
            time.sleep(0.05)
        self.assertFalse(self.is_served())
        self.assert_delivered(sessions, sender, b'"meanwhile"')
        for connection in connections:
            connection.close()
        self.assert_recovers()
        self.assert_delivered(sessions, sender, b'"after"')
        for session in sessions:
            session.write(close(1000))
            self.assertEqual(session.read_to_end().code, 1000)
        self.assertNotIn("Traceback", self.service.text)
