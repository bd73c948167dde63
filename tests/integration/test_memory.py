"""The resident memory of connections without a valid token, for each way to fill it.

The validator does not respond, so no token is ever valid. Each way has a process of its own:
memory that an earlier way has freed would be used again. TLS clients end with a record that is
not complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from tests.integration.support.requirements import need
from tests.integration.support.workers import Activity, resident_memory
from tests.support.certificates import Authority
from tests.support.processes import TwistdProcess, environment
from tests.support.raw_client import TEXT, frame, handshake
from topicsvc.client.rules.messages import token_message
from topicsvc.listening.paced_tls import MAX_OUTPUT

HOST = "127.0.0.1"
CONNECTIONS = 100
WARM_UP = 30
"""Connections that are opened before the memory is measured first."""

CHAIN = 4
"""Certificates of authorities that TLS sends: about 2 KB."""

LIMIT = 100
"""KiB for each connection: docs/security.md."""

LIMIT_IN_SINGLE_BYTES = 130
"""The same if each byte of a TLS record comes in a segment of its own."""

STEADY = 1.0
"""Seconds in which clients send nothing and the service does nothing: it reads no more."""

LAST = 16_384
"""Bytes of the record that is not complete."""

TOKEN = "x" * 32_000
MESSAGE = 65_536
HEADER = f"Host: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\n"
POST = f"POST /cell1/box1/col/topic/name HTTP/1.1\r\n{HEADER}"
UPGRADE = handshake("/cell1/__topic/box1/col.topic.name", HOST)
PRESENT = frame(TEXT, token_message(TOKEN, None, recover=False).encode())
FRAGMENTS = frame(TEXT, b"y" * 500, fin=False) + frame(0, b"y" * 500, fin=False) * 126


class _Client:
    """A connection that never reads, except responses to its handshakes."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(20)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((HOST, port))
        self._tls: ssl.SSLObject | None = None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._waiting = memoryview(b"")
        if context is not None:
            tls = self._tls = context.wrap_bio(self._in, self._out, server_hostname=HOST)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self.socket.sendall(self._out.read())
                    self._in.write(self.socket.recv(65536))
            self.socket.sendall(self._out.read())

    def open_websocket(self) -> None:
        self.socket.sendall(self._encrypted(UPGRADE))
        response = b""
        while b"\r\n\r\n" not in response:
            received = self.socket.recv(4096)
            assert received, response
            if self._tls is not None:
                self._in.write(received)
                try:
                    received = self._tls.read(4096)
                except ssl.SSLWantReadError:
                    continue
            response += received
        assert b" 101 " in response, response

    def start(self, flood: bytes, in_single_bytes: bool) -> None:
        """Send `flood`, and over TLS all but the last byte of another record.

        Args:
            flood: the bytes.
            in_single_bytes: whether each byte of that record has a segment of its own. Such
                segments fill the receive buffer, and the kernel reports them early.
        """
        data = self._encrypted(flood)
        if self._tls is not None:
            data += self._encrypted(b"z" * LAST)[:-1]
        self._waiting = memoryview(data)
        self._single = LAST if in_single_bytes and self._tls is not None else 0
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def send_on(self) -> bool:
        """Send as much as the network takes; return whether that was anything."""
        has_sent = False
        with contextlib.suppress(BlockingIOError):
            while len(self._waiting) > self._single:
                piece = self._waiting[: len(self._waiting) - self._single]
                self._waiting = self._waiting[self.socket.send(piece) :]
                has_sent = True
            for _ in range(min(300, len(self._waiting))):
                self._waiting = self._waiting[self.socket.send(self._waiting[:1]) :]
                has_sent = True
        return has_sent

    def _encrypted(self, data: bytes) -> bytes:
        if self._tls is None:
            return data
        for at in range(0, len(data), 16_384):
            self._tls.write(data[at : at + 16_384])
        return self._out.read()


class MemoryTests(TestCase):
    timeout = 300

    @contextlib.contextmanager
    def service(self) -> Iterator[TwistdProcess]:
        """A service with a plain and a TLS port, whose validator does not respond."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        self.authority = Authority(directory)
        for number in range(CHAIN):
            self.authority = Authority(directory, f"intermediate {number}", self.authority)
        key, certificate = self.authority.issue(HOST)
        secret = directory / "secret"
        secret.write_text("secret")
        secret.chmod(0o600)
        with socket.create_server((HOST, 0), backlog=1024) as silent:
            file = directory / "topicsvc.toml"
            file.write_text(
                f"""
                listen = [
                    "tcp:0:interface=127.0.0.1:backlog=1024",
                    "ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1",
                ]
                admin = "tcp:0:interface=127.0.0.1"
                unit_url = "https://{HOST}/"
                [validator]
                kind = "introspection"
                url = "http://127.0.0.1:{silent.getsockname()[1]}/introspect"
                client_id = "topicsvc"
                client_secret_file = "{secret}"
                timeout = 60
                [[validator.rules]]
                topics = ["/*"]
                may = ["receive", "send"]
                everybody = true
                [stop]
                drain = 0
                [send]
                max_body = 1000000
                [limits]
                unauthenticated = 0
                unauthenticated_per_address = 0
                """
            )
            service = TwistdProcess("--config", str(file), directory=directory)
            try:
                yield service
            finally:
                service.stop()

    def memory_of_a_client(
        self, flood: bytes, over_websocket: bool, tls: bool, in_single_bytes: bool
    ) -> float:
        """KiB of resident memory for each client that has sent as much of `flood` as is read."""
        with self.service() as service, contextlib.ExitStack() as stack:
            port = service.ports[1 if tls else 0]
            context = self.authority.client_context() if tls else None

            def clients(count: int) -> list[_Client]:
                made = []
                for _ in range(count):
                    made.append(_Client(port, context))
                    stack.callback(made[-1].socket.close)
                    if over_websocket:
                        made[-1].open_websocket()
                return made

            clients(WARM_UP)
            before = resident_memory(service.child.pid)
            flooding = clients(CONNECTIONS)
            for client in flooding:
                client.start(flood, in_single_bytes)
            self.wait_until_steady(service, flooding)
            size = (resident_memory(service.child.pid) - before) / CONNECTIONS
            for client in flooding:
                self.assertEqual(self.sent_by_service(client), b"", "the connection is open")
        self.report(f"{self.id().rpartition('.')[2]}: {size:.1f} KiB, tls: {tls}")
        return size

    def wait_until_steady(self, service: TwistdProcess, clients: list[_Client]) -> None:
        """Let the clients send, until the service reads no more."""
        activity = Activity(service.child.pid)
        last = time.monotonic()
        while time.monotonic() - last < STEADY:
            if sum(client.send_on() for client in clients) or activity.goes_on():
                last = time.monotonic()
            time.sleep(0.02)

    def sent_by_service(self, client: _Client) -> bytes:
        """What the service has sent; raises an exception if it has closed the connection."""
        try:
            received = client.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return b""
        self.assertTrue(received, "the service has closed the connection")
        return b""

    def test_before_the_end_of_a_tls_handshake(self) -> None:
        """Less than 100 KiB, whether the client has sent nothing or as much as it may."""
        hello = b"\x16\x03\x01" + (16_384).to_bytes(2) + b"\x01\x01\xff\x00" + b"x" * 16_380
        for sent in (b"", hello[:-1], hello):
            with self.service() as service, contextlib.ExitStack() as stack:
                for count in (WARM_UP, CONNECTIONS):
                    before = resident_memory(service.child.pid)
                    sockets = []
                    for _ in range(count):
                        each = socket.create_connection((HOST, service.ports[1]))
                        stack.callback(each.close)
                        each.sendall(sent)
                        sockets.append(each)
                    self.wait_until_steady(service, [])
                size = (resident_memory(service.child.pid) - before) / CONNECTIONS
                for each in sockets:
                    each.setblocking(False)
                    with self.assertRaises(BlockingIOError):
                        each.recv(1)
            self.report(f"{len(sent)} bytes of a handshake: {size:.1f} KiB")
            self.assertTrue(0 < size < LIMIT, f"{len(sent)} bytes: {size:.1f} KiB")

    def report(self, text: str) -> None:
        if os.environ.get("TOPICSVC_FIGURES"):
            print(f"\n{text}")

    def test_a_client_that_asks_for_many_key_updates_is_closed(self) -> None:
        """OpenSSL responds to each, and a client that does not read would fill the memory."""
        need(shutil.which("openssl"), "openssl (tests/integration/install.sh)")
        with self.service() as service:
            client = subprocess.Popen(
                ["openssl", "s_client", "-tls1_3", "-connect", f"{HOST}:{service.ports[1]}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
            assert client.stdin is not None and client.stdout is not None
            try:
                while not client.stdout.readline().startswith(b"SSL handshake has read"):
                    self.assertIsNone(client.poll(), "it is connected")
                with contextlib.suppress(BrokenPipeError):
                    while client.poll() is None:
                        client.stdin.write(b"K\n")  # a command, if it is read alone
                        client.stdin.flush()
                        time.sleep(0.02)
                output = client.stdout.read()
            finally:
                client.kill()
                client.communicate()
        self.assertGreater(output.count(b"KEYUPDATE"), MAX_OUTPUT // 27)

    def check(
        self,
        flood: bytes,
        over_websocket: bool = False,
        least: int = 0,
        in_single_bytes: bool = False,
    ) -> None:
        """Assert the memory of a client, plain and over TLS.

        Args:
            flood: what the client sends.
            over_websocket: whether it opens a WebSocket first.
            least: KiB that the service must have read; else the test has no meaning.
            in_single_bytes: how the last record is sent; only over TLS.
        """
        for tls in (True,) if in_single_bytes else (False, True):
            with self.subTest(tls=tls):
                size = self.memory_of_a_client(flood, over_websocket, tls, in_single_bytes)
                limit = LIMIT_IN_SINGLE_BYTES if in_single_bytes else LIMIT
                self.assertTrue(least < size < limit, f"{size:.1f} KiB, tls: {tls}")


def _ways() -> Iterator[tuple[str, dict[str, Any]]]:
    """The ways to fill the memory of a connection: the test's name, and arguments of `check`."""
    for name, flood, least in (
        ("nothing", b"", 0),
        ("messages_behind_a_token", PRESENT + frame(TEXT, b"y" * 5_000) * 50, 32),
        ("long_messages_behind_a_token", PRESENT + frame(TEXT, b"y" * MESSAGE) * 5, 32),
        ("an_incomplete_message", frame(TEXT, b"y" * MESSAGE)[:-1], 58),
        ("an_incomplete_message_behind_a_token", PRESENT + frame(TEXT, b"y" * MESSAGE)[:-1], 32),
        ("fragments", FRAGMENTS, 58),
        ("fragments_behind_a_token", PRESENT + FRAGMENTS, 32),
    ):
        arguments = {"flood": flood, "over_websocket": True, "least": least}
        yield f"websocket_{name}", arguments
        if least > 32:
            yield f"websocket_{name}_and_single_bytes", {**arguments, "in_single_bytes": True}
    fields = ("X: " + "y" * 200 + "\r\n") * 70
    for name, request, least in (
        ("nothing", b"", 0),
        ("an_incomplete_head", f"{POST}{fields}".encode(), 40),
        ("a_body", f"{POST}Content-Length: 900000\r\n\r\n".encode() + b"x" * 300_000, 32),
        (
            "chunks",
            f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\nx\r\n" * 50_000,
            32,
        ),
        ("pipelined_sends", f"{POST}Content-Length: 1\r\n\r\n1".encode() * 10, 32),
        (
            "a_body_that_is_not_needed",
            f"POST /nowhere HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 90000000\r\n\r\n".encode()
            + b"x" * 1_000_000,
            0,
        ),
        ("unread_responses", f"GET /nowhere HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * 5_000, 0),
    ):
        yield f"http_{name}", {"flood": request, "least": least}
        if name in ("an_incomplete_head", "pipelined_sends"):
            arguments = {"flood": request, "least": least, "in_single_bytes": True}
            yield f"http_{name}_and_single_bytes", arguments


def _test(name: str, arguments: dict[str, Any]) -> Any:
    def test(self: MemoryTests) -> None:
        self.check(**arguments)

    test.__name__ = f"test_{name}_needs_less_than_the_limit"
    test.__doc__ = f"{name.replace('_', ' ')}: as docs/security.md says, plain and over TLS."
    return test


for _name, _arguments in _ways():
    _made = _test(_name, _arguments)
    setattr(MemoryTests, _made.__name__, _made)
