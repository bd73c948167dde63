"""A service that is stopped for 11 s (SIGSTOP): no client that kept its deadlines is harmed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.raw_client import CLOSE, PING, PONG, TEXT, RawClient, close, frame
from tests.support.twistd_case import LOOPBACK, SEND_PATH, WEBSOCKET_PATH, TwistdTestCase

HOST = "cell1.unit1.example"
STOP = 11.0
"""Seconds: longer than the deadlines of a head, of a slow reader and of a close."""

PING_INTERVAL = 10
TOKEN_TIMEOUT = 9
MESSAGES = 8
LONG = b'"' + b"x" * 1_000_000 + b'"'

HEAD = f"OPTIONS {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
PROXY = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"


class PauseTests(TwistdTestCase):
    def websocket(self, port: int, context: object = None, receive_buffer: int = 0) -> RawClient:
        client = RawClient(port, context, HOST, receive_buffer)  # type: ignore[arg-type]
        self.addCleanup(client.close)
        self.assertEqual(client.upgrade(WEBSOCKET_PATH, HOST), 101)
        return client

    def wait_until_stopped(self, pid: int) -> None:
        end = time.monotonic() + 60
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "T":
            self.assertLess(time.monotonic(), end, "it is not stopped")
            time.sleep(0.01)

    def present_token(self, client: RawClient) -> None:
        client.write(frame(TEXT, json.dumps({"AccessToken": self.token()}).encode()))

    def assert_text(self, client: RawClient, part: bytes) -> None:
        received = client.read_frame()
        while received is not None and received[0] == PING:
            received = client.read_frame()
        assert received is not None
        self.assertEqual(received[0], TEXT, received)
        self.assertIn(part, received[1])

    def test_clients_whose_bytes_arrive_during_the_stop_are_served(self) -> None:
        authority = Authority(self.directory)
        key, cert = authority.issue(HOST)
        context = authority.client_context()
        file = self.configure(
            LOOPBACK,
            f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1",
            f"haproxy:{LOOPBACK}",
            more=f"""
            [session]
            ping_interval = {PING_INTERVAL}
            ping_limit = 1
            token_timeout = {TOKEN_TIMEOUT}
            send_queue = 67108864
            """,
        )
        service = self.start("--config", str(file))
        tcp, tls, proxied = service.ports

        # A ping is outstanding, and one is too many.
        pinged = self.websocket(tcp)
        self.present_token(pinged)
        self.assert_text(pinged, b'"Success"')
        pinged.socket.settimeout(2 * PING_INTERVAL)
        ping = pinged.read_frame()
        assert ping is not None
        self.assertEqual(ping[0], PING)

        heads = [RawClient(tcp), RawClient(tls, context, HOST)]
        for client in heads:
            client.write(HEAD[:20])
        through_proxy = RawClient(proxied)
        through_proxy.write(PROXY[:20])
        waiting = [self.websocket(tcp), self.websocket(tls, context)]
        readers = [self.websocket(tcp, None, 4096), self.websocket(tls, context, 4096)]
        for client in readers:
            self.present_token(client)
            self.assert_text(client, b'"Success"')
        for _ in range(MESSAGES):
            self.assertEqual(self.send(tcp, HOST, SEND_PATH, LONG), 200)
        # Its deadline is the shortest one, so it is the last one.
        closing = self.websocket(tcp)
        closing.write(frame(TEXT, b"nonsense"))
        self.assert_text(closing, b"Invalid message")
        closed = closing.read_frame()
        assert closed is not None
        self.assertEqual(closed[0], CLOSE)

        service.child.send_signal(signal.SIGSTOP)
        try:
            self.wait_until_stopped(service.child.pid)
            stopped_at = time.monotonic()
            pinged.write(frame(PONG, ping[1]))
            for client in heads:
                client.write(HEAD[20:])
            through_proxy.write(PROXY[20:] + HEAD)
            for client in waiting:
                self.present_token(client)
            closing.write(close(1008))
            for client in readers:
                self.assert_text(client, LONG)
            time.sleep(STOP)
        finally:
            service.child.send_signal(signal.SIGCONT)
        stop = time.monotonic() - stopped_at

        for client in [*heads, through_proxy]:
            self.assertEqual(client.read_head()[0], 200)
            client.close()
        for client in waiting:
            self.assert_text(client, b'"Success"')
        self.assertIsNone(closing.read_frame(), "the stream ends, it is not reset")
        for client in readers:
            for _ in range(MESSAGES - 1):
                self.assert_text(client, LONG)
        for _ in range(MESSAGES):
            self.assert_text(pinged, LONG)
        pinged.write(frame(TEXT, b"nonsense"))
        self.assert_text(pinged, b"Invalid message")
        # A busy machine can cause shorter stops before.
        log = service.wait_for(r"the process did not run for (\d{2,}\.\d) s: deadlines are put off")
        self.assertLess(abs(float(log[1]) - stop), 2)
        for reason in ("No pong", "Slow consumer", "Token timeout"):
            self.assertNotIn(reason, service.text)
