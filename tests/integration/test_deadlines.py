"""Unauthenticated clients on each kind of endpoint: deadlines, and the limit of connections."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.raw_client import RawClient
from tests.support.twistd_case import (
    LOOPBACK,
    SEND_PATH,
    WEBSOCKET_PATH,
    TwistdTestCase,
)
from topicsvc.web import site

HOST = "cell1.unit1.example"
MAX_DELAY = 4.0
"""Seconds by which a busy machine may exceed a deadline."""


class EndpointTestCase(TwistdTestCase):
    def setUp(self) -> None:
        super().setUp()
        authority = Authority(self.directory)
        key, cert = authority.issue(HOST)
        certificates = self.directory / "certificates"
        certificates.mkdir()
        (certificates / "server.pem").write_bytes(cert.read_bytes() + key.read_bytes())
        self.context = authority.client_context()
        self.endpoints = (
            LOOPBACK,
            f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1",
            f"tls:{certificates}:port=0:interface=127.0.0.1",
            f"haproxy:{LOOPBACK}",
        )

    def serve(self, more: str = "") -> list[int]:
        file: Path = self.configure(*self.endpoints, more=more)
        service = self.start("--config", str(file))
        self.assertEqual(len(service.ports), len(self.endpoints))
        return service.ports


class DeadlineTests(EndpointTestCase):
    def test_each_kind_of_endpoint_has_the_same_deadlines(self) -> None:
        tcp, over_ssl, over_tls, haproxy = self.serve()
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)
        proxy = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
        head = f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nX: ".encode() + b"x" * 100
        waits = {
            "tcp, silent": (tcp, b"", b""),
            "tcp, slow": (tcp, b"", head),
            "ssl, silent": (over_ssl, b"", b""),
            "ssl, slow": (over_ssl, b"", hello),
            "tls, silent": (over_tls, b"", b""),
            "tls, slow": (over_tls, b"", hello),
            "haproxy, silent": (haproxy, b"", b""),
            "haproxy, slow after the header": (haproxy, proxy, head),
            "haproxy, slow": (haproxy, proxy[:10], b"1" * 60),
        }
        lasted: dict[str, float] = {}
        threads = [
            threading.Thread(target=self.measure, args=(lasted, name, *wait))
            for name, wait in waits.items()
        ]
        threads.append(threading.Thread(target=self.measure_without_close, args=(lasted, over_ssl)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after_response = lasted.pop("ssl, after the response")
        self.assertEqual(set(lasted), set(waits))
        for name, seconds in lasted.items():
            with self.subTest(name=name):
                self.assertGreater(seconds, site.HEAD_TIMEOUT - 0.5)
                self.assertLess(seconds, site.HEAD_TIMEOUT + MAX_DELAY)
        self.assertGreater(after_response, site.CLOSE_TIMEOUT - 0.5)
        self.assertLess(after_response, site.CLOSE_TIMEOUT + MAX_DELAY)

    def measure(
        self, lasted: dict[str, float], name: str, port: int, first: bytes, slow: bytes
    ) -> None:
        """Note how long a connection lasts; it sends `first`, then a byte of `slow` each 0.25 s."""
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(first)
            client.settimeout(0.25)
            while time.monotonic() - began < 30:
                try:
                    client.sendall(slow[:1])
                    slow = slow[1:]
                    if not client.recv(4096):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
        lasted[name] = time.monotonic() - began

    def measure_without_close(self, lasted: dict[str, float], port: int) -> None:
        """Note how long the service waits for a client that does not close after the response."""
        client = RawClient(port, self.context, HOST)
        client.write(
            f"OPTIONS {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
        )
        status, _ = client.read_head()
        began = time.monotonic()
        bare = socket.socket(fileno=client.socket.detach())
        bare.settimeout(30)
        try:
            while bare.recv(4096):  # the close_notify alert, then the end of the stream
                pass
        except ConnectionResetError:
            pass
        bare.close()
        lasted["ssl, after the response"] = time.monotonic() - began if status == 200 else -1


class ConnectionLimitTests(EndpointTestCase):
    def test_a_connection_over_the_limit_gets_503_on_each_kind_of_endpoint(self) -> None:
        tcp, over_ssl, over_tls, haproxy = self.serve("[limits]\nconnections = 1")
        first = RawClient(tcp)
        self.addCleanup(first.close)
        self.assertEqual(first.upgrade(WEBSOCKET_PATH, HOST), 101)
        for port, context, before in (
            (tcp, None, b""),
            (over_ssl, self.context, b""),
            (over_tls, self.context, b""),
            (haproxy, None, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        ):
            for request in (self.request_websocket, self.send_much):
                with self.subTest(port=port, request=request.__name__):
                    client = RawClient(port, context, HOST)
                    client.write(before)
                    request(client)
                    status, head = client.read_head()
                    self.assertEqual(status, 503)
                    self.assertIn(b"\r\nRetry-After: 1\r\n", head + b"\r\n")
                    client.close()
        first.close()
        end = time.monotonic() + MAX_DELAY
        while (status := self.status(tcp)) != 101:
            self.assertEqual(status, 503)
            self.assertLess(time.monotonic(), end, "it has noticed the end of the first one")

    def status(self, port: int) -> int:
        """The status of an opening handshake."""
        client = RawClient(port)
        try:
            return client.upgrade(WEBSOCKET_PATH, HOST)
        finally:
            client.close()

    def request_websocket(self, client: RawClient) -> None:
        client.write(
            f"GET {WEBSOCKET_PATH} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\n\r\n".encode()
        )

    def send_much(self, client: RawClient) -> None:
        head = f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500000\r\n\r\n"
        client.write(head.encode() + b"x" * 500_000)
