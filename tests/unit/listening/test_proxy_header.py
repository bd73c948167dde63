"""The header of the PROXY protocol: who is believed to be there, and what is none."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.listening.proxy_header import MAX_LENGTH, MAX_LINE, NotProxied, Place, ProxyHeader

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXIED = 0x20, 0x21
STREAM4, STREAM6, DATAGRAM4, PATHS = 0x11, 0x21, 0x12, 0x31
INET = bytes([192, 0, 2, 1, 192, 0, 2, 9, 0, 80, 1, 187])
INET6 = bytes(15) + b"\1" + bytes(15) + b"\2" + b"\0\x50\1\xbb"
UNIX = b"/client".ljust(108, b"\0") + b"/us".ljust(108, b"\0")

CLIENT = Place(ip_address("192.0.2.1"), 80)
US = Place(ip_address("192.0.2.9"), 443)
LOOPBACK = Place(ip_address("::1"), 80)


def line(text: str) -> bytes:
    return f"PROXY {text}\r\n".encode("latin-1")


def binary(command: int, kind: int, content: bytes = b"", length: int | None = None) -> bytes:
    length = len(content) if length is None else length
    return SIGNATURE + bytes([command, kind]) + length.to_bytes(2, "big") + content


GOOD = [
    # the header, the client that it names, whether it names where that has connected to
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

BAD = [
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


def read(*pieces: bytes) -> tuple[Place | None, Place | None, bytes]:
    """Who it is, where it has connected to, and what came behind."""
    header = ProxyHeader()
    behind = b""
    pending = list(pieces)
    while pending:
        rest = header.feed(pending.pop(0))
        if rest is not None:
            behind = rest + b"".join(pending)
            return header.source, header.destination, behind
    raise AssertionError("not complete")


class ProxyHeaderTests(SynchronousTestCase):
    def test_good_ones_name_the_client(self) -> None:
        for header, client in GOOD:
            source, destination, _ = read(header)
            self.assertEqual(source, client, header)
            self.assertEqual(source is None, destination is None)
        for header in (GOOD[0][0], binary(PROXIED, STREAM4, INET)):
            self.assertEqual(read(header)[1], US)

    def test_cut_at_every_byte(self) -> None:
        for header, client in GOOD:
            for at in range(1, min(len(header), 400)):
                source, _, behind = read(header[:at], header[at:] + b"GET")
                self.assertEqual((source, behind), (client, b"GET"), header)

    def test_byte_by_byte(self) -> None:
        for header, client in GOOD:
            pieces = [bytes([byte]) for byte in header + b"G"]
            self.assertEqual((read(*pieces)[0], read(*pieces)[2]), (client, b"G"))

    def test_nonsense_however_it_comes(self) -> None:
        for header in BAD:
            self.assertRaises(NotProxied, read, header)
            for at in range(1, len(header)):
                self.assertRaises(NotProxied, read, header[:at], header[at:])

    def test_a_prefix_of_a_good_one_is_waited_for(self) -> None:
        for header, _ in GOOD:
            for at in range(min(len(header), 400)):
                self.assertIsNone(ProxyHeader().feed(header[:at]))

    def test_what_does_not_end_is_not_waited_for(self) -> None:
        for begins, most in (
            (b"PROXY UNKNOWN ", MAX_LINE),
            (SIGNATURE + bytes([PROXIED, STREAM4]) + b"\xff\xff", 16),
        ):
            header = ProxyHeader()
            header.feed(begins[:-1])
            taken = len(begins) - 1
            with self.assertRaises(NotProxied):
                for byte in begins[-1:] + b"\xff" * most:
                    header.feed(bytes([byte]))
                    taken += 1
            self.assertEqual(taken, most - 1)

    def test_what_follows_is_not_looked_at(self) -> None:
        for header, client in GOOD:
            behind = b"\r\n" * 5000
            self.assertEqual(read(header + behind)[::2], (client, behind))


addresses = st.one_of(
    st.tuples(st.just(4), st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.just(6), st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
ports = st.integers(0, 65535)


class PeerTests(SynchronousTestCase):
    """What is good is read as Twisted reads it."""

    @given(addresses, ports, ports, st.binary(max_size=20))
    def test_both_versions(self, pair, source_port: int, port: int, behind: bytes) -> None:
        version, source, destination = pair
        expected = (Place(source, source_port), Place(destination, port), behind)
        text = line(f"TCP{version} {source} {destination} {source_port} {port}")
        packed = source.packed + destination.packed
        packed += source_port.to_bytes(2, "big") + port.to_bytes(2, "big")
        compact = binary(PROXIED, STREAM4 if version == 4 else STREAM6, packed)
        for parser, header in ((V1Parser, text), (V2Parser, compact)):
            self.assertEqual(read(header + behind), expected)
            info, rest = parser().feed(header + behind)
            theirs = [Place(ip_address(each.host), each.port)
                      for each in (info.source, info.destination)]  # fmt: skip
            self.assertEqual((*theirs, rest), expected)
