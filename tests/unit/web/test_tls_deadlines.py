"""Absolute deadlines over TLS, in memory and in virtual time."""

from __future__ import annotations

import ssl
from pathlib import Path

from twisted.internet.error import ConnectionAborted
from twisted.internet.ssl import PrivateCertificate
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial import util

from tests.support.certificates import Authority
from tests.support.harness import (
    HANDSHAKE,
    HOST,
    SEND_PATH,
    WEBSOCKET_PATH,
    MemoryTransport,
    ServiceTestCase,
)
from tests.support.raw_client import TEXT, frame, token_request
from topicsvc.admission.limits import MAX_POLITE_REFUSALS
from topicsvc.settings import LimitSettings
from topicsvc.web import site
from topicsvc.websocket.server import CLOSE_TIMEOUT, FAILURE_TIMEOUT


class TlsClient:
    """A TLS client that sends its handshake only when the test calls for it, and never closes.

    Attributes:
        read: the bytes that it has received.
        has_ended: whether the server has sent its close alert.
    """

    def __init__(self, test: TlsTests) -> None:
        self.transport = MemoryTransport(test.clock, test.next_port())
        server = test.factory.buildProtocol(self.transport.getPeer())
        self.transport.protocol = server
        server.makeConnection(self.transport)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = test.context.wrap_bio(self._in, self._out, server_hostname=HOST)
        self.read = b""
        self.has_ended = False

    def hello(self) -> bytes:
        """The first bytes of a handshake."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._out.read()
        raise AssertionError("the handshake ended without an answer")

    def handshake(self) -> None:
        self._give(self.hello())
        self._tls.do_handshake()
        self._give(self._out.read())

    def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._give(self._out.read())

    def _give(self, data: bytes) -> None:
        if self.transport.lost is None:
            self.transport.protocol.dataReceived(data)
        self.take()

    def take(self) -> None:
        """Decrypt the bytes that have arrived."""
        self._in.write(bytes(self.transport.written))
        self.transport.written.clear()
        if not self._tls.version():
            return
        try:
            while True:
                data = self._tls.read(65536)
                self.read += data
                if not data:
                    self.has_ended = True
                    return
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            self.has_ended = True


def head(first: str, *headers: str) -> bytes:
    return "\r\n".join([first, f"Host: {HOST}", *headers, "", ""]).encode()


UPGRADE = head(
    f"GET {WEBSOCKET_PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in HANDSHAKE.items())
)


class TlsTests(ServiceTestCase):
    suppress = (  # warnings inside Twisted
        util.suppress(message="Passing pyOpenSSL", category=DeprecationWarning),
        util.suppress(message="X509.* is deprecated", category=DeprecationWarning),
    )

    def setUp(self) -> None:
        super().setUp()
        directory = Path(self.mktemp())
        directory.mkdir()
        authority = Authority(directory)
        key, cert = authority.issue(HOST)
        self.context = authority.client_context()
        options = PrivateCertificate.loadPEM(cert.read_bytes() + key.read_bytes()).options()
        self.factory = TLSMemoryBIOFactory(options, False, self.site, self.clock)

    def assert_closed_after(self, client: TlsClient, seconds: float, trickle: bytes = b"") -> None:
        """Closed `seconds` from now, although a byte of `trickle` arrives each second."""
        for at in range(int(seconds)):
            self.assertIsNone(client.transport.lost, f"after {at} s")
            if trickle:
                client.transport.protocol.dataReceived(trickle[at : at + 1])
            self.clock.advance(1)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)

    def test_a_handshake_that_does_not_start(self) -> None:
        self.assert_closed_after(TlsClient(self), site.HEAD_TIMEOUT)
        self.assert_nothing_left()

    def test_a_handshake_that_trickles_in(self) -> None:
        client = TlsClient(self)
        self.assert_closed_after(client, site.HEAD_TIMEOUT, client.hello())
        self.assert_nothing_left()

    def test_a_handshake_that_stalls(self) -> None:
        client = TlsClient(self)
        self.advance(5)
        client.transport.protocol.dataReceived(client.hello())
        self.assertTrue(client.transport.written)
        self.assert_closed_after(client, site.HEAD_TIMEOUT - 5)

    def test_handshake_and_request_head_share_one_deadline(self) -> None:
        client = TlsClient(self)
        self.advance(6)
        client.handshake()
        client.write(b"GET / HTTP/1.1\r\n")
        self.advance(3)
        client.write(b"X: ")
        self.assertIsNone(client.transport.lost)
        self.advance(1)
        client.take()
        self.assertTrue(client.has_ended, "a close alert")
        self.assert_closed_after(client, site.CLOSE_TIMEOUT)
        self.assertTrue(client.transport.lost.check(ConnectionAborted))
        self.assert_nothing_left()

    def test_a_client_that_does_not_close_after_a_response_is_aborted(self) -> None:
        for data in (
            head(f"OPTIONS {SEND_PATH} HTTP/1.1", "Connection: close"),
            head(f"OPTIONS {SEND_PATH} HTTP/1.0"),
            head("GET / HTTP/1.1", "X : 1"),
            head(f"POST {SEND_PATH} HTTP/1.1", "Content-Length: 99999"),
        ):
            client = TlsClient(self)
            client.handshake()
            client.write(data)
            client.take()
            self.assertIn(b"HTTP/1.", client.read)
            self.assertTrue(client.has_ended, data)
            self.assert_closed_after(client, site.CLOSE_TIMEOUT)
            self.assertTrue(client.transport.lost.check(ConnectionAborted))
        self.assert_nothing_left()

    def test_a_websocket_client_that_does_not_close_is_aborted(self) -> None:
        client = TlsClient(self)
        client.handshake()
        client.write(UPGRADE)
        self.iterate()
        client.take()
        self.assertIn(b"101", client.read)
        client.write(b"\x88\x80\0\0\0\0")
        client.take()
        self.assertTrue(client.has_ended)
        self.assert_closed_after(client, CLOSE_TIMEOUT)
        self.assertTrue(client.transport.lost.check(ConnectionAborted))
        self.assert_nothing_left()

    def test_a_protocol_error_of_a_client_that_does_not_close(self) -> None:
        client = TlsClient(self)
        client.handshake()
        client.write(UPGRADE + b"\x81\x01x")
        self.iterate()
        client.take()
        self.assertIn(b"\x03\xea", client.read)
        self.advance(FAILURE_TIMEOUT)
        client.take()
        self.assertTrue(client.has_ended)
        self.assert_closed_after(client, CLOSE_TIMEOUT - FAILURE_TIMEOUT)
        self.assert_nothing_left()

    def test_tls_does_not_end_right_behind_a_close_frame(self) -> None:
        """Aiohttp reports 1006 if a close alert comes with the close frame."""
        client = TlsClient(self)
        client.handshake()
        client.write(UPGRADE + b"\x81\x01x")
        self.iterate()
        client.take()
        self.assertIn(b"\x03\xea", client.read)
        self.assertFalse(client.has_ended)
        client.write(b"\x81\x85some other frame that was under way")
        client.take()
        self.assertFalse(client.has_ended)
        client.write(b"more\x88\x82\1\2\3\4" + bytes([0x03 ^ 1, 0xEA ^ 2]))
        client.take()
        self.assertTrue(client.has_ended)

    def test_reading_pauses_while_too_many_bytes_of_messages_wait(self) -> None:
        client = TlsClient(self)
        client.handshake()
        client.write(UPGRADE)
        for letter in b"abc":
            client.write(frame(TEXT, token_request(chr(letter) * 30_000)))
        self.assertFalse(client.transport.is_reading)
        self.validator.last.refuse()
        self.assertTrue(client.transport.is_reading)

    def test_a_connection_over_the_limit_gets_503_over_tls(self) -> None:
        self.limits.settings = LimitSettings(connections=1)
        self.connect()
        client = TlsClient(self)
        client.handshake()
        client.write(UPGRADE)
        client.take()
        self.assertIn(b"HTTP/1.1 503 ", client.read)
        self.assertIn(b"Retry-After: 1\r\n", client.read)
        self.assertTrue(client.has_ended)

    def test_far_over_the_limit_there_is_no_tls_handshake(self) -> None:
        self.limits.settings = LimitSettings(connections=1)
        self.connect()
        for _ in range(MAX_POLITE_REFUSALS):
            TlsClient(self)
        client = TlsClient(self)
        hello = client.hello()
        client.transport.protocol.dataReceived(hello)
        self.assertEqual(bytes(client.transport.written), b"")
        self.iterate()
        self.assertTrue(client.transport.lost.check(ConnectionAborted))
