"""Valid and invalid headers of the PROXY protocol."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.listening.proxy_header import (
    MAX_LENGTH,
    MAX_LINE,
    InvalidProxyHeader,
    ProxyHeader,
    SocketAddress,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXIED = 0x20, 0x21
STREAM4, STREAM6, DATAGRAM4, PATHS = 0x11, 0x21, 0x12, 0x31
INET = bytes([192, 0, 2, 1, 192, 0, 2, 9, 0, 80, 1, 187])
INET6 = bytes(15) + b"\1" + bytes(15) + b"\2" + b"\0\x50\1\xbb"
UNIX = b"/client".ljust(108, b"\0") + b"/us".ljust(108, b"\0")

CLIENT = SocketAddress(ip_address("192.0.2.1"), 80)
SERVER = SocketAddress(ip_address("192.0.2.9"), 443)
LOOPBACK = SocketAddress(ip_address("::1"), 80)


def line(text: str) -> bytes:
    return f"PROXY {text}\r\n".encode("latin-1")


def binary(command: int, kind: int, content: bytes = b"", length: int | None = None) -> bytes:
    length = len(content) if length is None else length
    return SIGNATURE + bytes([command, kind]) + length.to_bytes(2, "big") + content


VALID = [
    # the header, and the client address in it
    (line("TCP4 192.0.2.1 192.0.2.9 80 443"), CLIENT),
    (line("TCP6 ::1 2001:db8::9 80 443"), LOOPBACK),
    (line("TCP6 0:0:0:0:0:0:0:1 ffff:f:f:f:f:f:f:ffff 80 65535"), LOOPBACK),
    (line("TCP4 192.0.2.1 192.0.2.9 80 0"), CLIENT),
    (line("UNKNOWN"), None),
    (line("UNKNOWN ::1 ::1 1 1"), None),
    (line("UNKNOWN " + "\xff" * (MAX_LINE - 16)), None),
    (binary(PROXIED, STREAM4, INET), CLIENT),
    (binary(PROXIED, STREAM4, INET + b"\4\0\2xx"), CLIENT),
    (binary(PROXIED, DATAGRAM4, INET), CLIENT),
    (binary(PROXIED, STREAM6, INET6), LOOPBACK),
    (binary(PROXIED, STREAM4, INET + bytes(MAX_LENGTH - 28)), CLIENT),
    (binary(PROXIED, PATHS, UNIX), None),
    (binary(PROXIED, 0), None),
    (binary(PROXIED, 0x10), None),
    (binary(PROXIED, 0x01, INET), None),
    (binary(LOCAL, 0), None),
    (binary(LOCAL, STREAM4, INET), None),
    (binary(LOCAL, 0xFF, b"whatever"), None),
]

INVALID = [
    # version 1
    line(""),
    line("TCP4"),
    line("TCP4 "),
    line("TCP9 192.0.2.1 192.0.2.9 80 443"),
    line("tcp4 192.0.2.1 192.0.2.9 80 443"),
    line("UNKNOWNS"),
    line(" TCP4 192.0.2.1 192.0.2.9 80 443"),
    line("TCP4  192.0.2.1 192.0.2.9 80 443"),
    line("TCP4 192.0.2.1 192.0.2.9 80"),
    line("TCP4 192.0.2.1 192.0.2.9 80 443 "),
    line("TCP4 192.0.2.1 192.0.2.9 80 443 x"),
    line("TCP4 192.0.2.1 192.0.2.9 80 443\n"),
    line("TCP4 nonsense 192.0.2.9 80 443"),
    line("TCP4 192.0.2.1 nonsense 80 443"),
    line("TCP4 192.0.2.256 192.0.2.9 80 443"),
    line("TCP4 192.0.2.01 192.0.2.9 80 443"),
    line("TCP4 192.0.2.\xb2 192.0.2.9 80 443"),
    line("TCP4 3221225985 192.0.2.9 80 443"),
    line("TCP4 \xff\xfe 192.0.2.9 80 443"),
    line("TCP4 ::1 ::1 80 443"),
    line("TCP6 192.0.2.1 192.0.2.9 80 443"),
    line("TCP6 fe80::1%eth0 ::1 80 443"),
    line("TCP6 ::1 fe80::1% 80 443"),
    line("TCP6 [::1] ::1 80 443"),
    line("TCP6 ::1 ::\xb2 80 443"),
    line("TCP4 192.0.2.1 192.0.2.9 x 443"),
    line("TCP4 192.0.2.1 192.0.2.9 80 "),
    line("TCP4 192.0.2.1 192.0.2.9 -1 443"),
    line("TCP4 192.0.2.1 192.0.2.9 +80 443"),
    line("TCP4 192.0.2.1 192.0.2.9 080 443"),
    line("TCP4 192.0.2.1 192.0.2.9 8_0 443"),
    line("TCP4 192.0.2.1 192.0.2.9 80 65536"),
    line("TCP4 192.0.2.1 192.0.2.9 80 " + "9" * 60),
    line("TCP4 192.0.2.1 192.0.2.9 \xb2 443"),
    line("UNKNOWN " + "x" * (MAX_LINE - 15)),
    line("x" * (MAX_LINE - 7)),
    b"PROXY " + b"x" * (MAX_LINE - 6),
    b"PROXY TCP4 192.0.2.1 192.0.2.9 80 443\n" + b"x" * MAX_LINE,
    # version 2
    binary(0x11, STREAM4, INET),
    binary(0x22, STREAM4, INET),
    binary(0x31, STREAM4, INET),
    binary(PROXIED, 0x41, UNIX),
    binary(PROXIED, 0x13, INET),
    binary(PROXIED, STREAM4),
    binary(PROXIED, STREAM4, INET[:-1]),
    binary(PROXIED, STREAM6, INET6[:-1]),
    binary(PROXIED, PATHS, UNIX[:-1]),
    binary(PROXIED, STREAM4, b"", MAX_LENGTH - 15),
    binary(LOCAL, 0, b"", 0xFFFF),
    # neither
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"\r\n\r\n\0\r\nQUIT\r",
    b"PROXX TCP4 ",
    b"proxy UNKNOWN\r\n",
    b" PROXY UNKNOWN\r\n",
    b"\n",
    b"\0",
]


def read(*pieces: bytes) -> tuple[SocketAddress | None, SocketAddress | None, bytes]:
    """The client's address, the address that it connected to, and the bytes after the header."""
    header = ProxyHeader()
    pending = list(pieces)
    while pending:
        rest = header.feed(pending.pop(0))
        if rest is not None:
            return header.source, header.destination, rest + b"".join(pending)
    raise AssertionError("not complete")


class ProxyHeaderTests(SynchronousTestCase):
    def test_valid_headers_give_the_client_address(self) -> None:
        for header, client in VALID:
            source, destination, _ = read(header)
            self.assertEqual(source, client, header)
            self.assertEqual(source is None, destination is None)
        for header in (VALID[0][0], binary(PROXIED, STREAM4, INET)):
            self.assertEqual(read(header)[1], SERVER)

    def test_headers_split_at_every_byte(self) -> None:
        for header, client in VALID:
            for at in range(1, min(len(header), 400)):
                source, _, after = read(header[:at], header[at:] + b"GET")
                self.assertEqual((source, after), (client, b"GET"), header)

    def test_headers_that_arrive_byte_by_byte(self) -> None:
        for header, client in VALID:
            pieces = [bytes([byte]) for byte in header + b"G"]
            self.assertEqual((read(*pieces)[0], read(*pieces)[2]), (client, b"G"))

    def test_invalid_headers_split_at_every_byte(self) -> None:
        for header in INVALID:
            self.assertRaises(InvalidProxyHeader, read, header)
            for at in range(1, len(header)):
                self.assertRaises(InvalidProxyHeader, read, header[:at], header[at:])

    def test_an_incomplete_header_is_not_an_error(self) -> None:
        for header, _ in VALID:
            for at in range(min(len(header), 400)):
                self.assertIsNone(ProxyHeader().feed(header[:at]))

    def test_a_header_that_is_too_long_is_an_error(self) -> None:
        for start, most in (
            (b"PROXY UNKNOWN ", MAX_LINE),
            (SIGNATURE + bytes([PROXIED, STREAM4]) + b"\xff\xff", 16),
        ):
            header = ProxyHeader()
            header.feed(start[:-1])
            count = len(start) - 1
            with self.assertRaises(InvalidProxyHeader):
                for byte in start[-1:] + b"\xff" * most:
                    header.feed(bytes([byte]))
                    count += 1
            self.assertEqual(count, most - 1)

    def test_the_bytes_after_the_header_are_returned(self) -> None:
        for header, client in VALID:
            after = b"\r\n" * 5000
            self.assertEqual(read(header + after)[::2], (client, after))


addresses = st.one_of(
    st.tuples(st.just(4), st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.just(6), st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
ports = st.integers(0, 65535)


class TwistedParserTests(SynchronousTestCase):
    """Valid headers give the same addresses as with Twisted's own parsers."""

    @given(addresses, ports, ports, st.binary(max_size=20))
    def test_both_versions(self, pair, source_port: int, port: int, after: bytes) -> None:
        version, source, destination = pair
        expected = (SocketAddress(source, source_port), SocketAddress(destination, port), after)
        text = line(f"TCP{version} {source} {destination} {source_port} {port}")
        packed = source.packed + destination.packed
        packed += source_port.to_bytes(2, "big") + port.to_bytes(2, "big")
        compact = binary(PROXIED, STREAM4 if version == 4 else STREAM6, packed)
        for parser, header in ((V1Parser, text), (V2Parser, compact)):
            self.assertEqual(read(header + after), expected)
            info, rest = parser().feed(header + after)
            theirs = [SocketAddress(ip_address(each.host), each.port)
                      for each in (info.source, info.destination)]  # fmt: skip
            self.assertEqual((*theirs, rest), expected)
