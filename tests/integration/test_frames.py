"""Invalid and unusual frames, and the close code of RFC 6455 for each.

Each row is sent to a running service at once and byte by byte, plain and over TLS. The client
must receive a close frame with the code, then the end of the stream, and no reset.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.certificates import Authority
from tests.support.raw_client import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    RawClient,
    close,
    frame,
)
from tests.support.twistd_case import LOOPBACK, WEBSOCKET_PATH, TwistdTestCase

HOST = "cell1.unit1.example"

PROTOCOL_ERROR = 1002
UNSUPPORTED_DATA = 1003
INVALID_PAYLOAD = 1007
POLICY_VIOLATION = 1008
TOO_BIG = 1009

MAX_MESSAGE = 65536
INVALID_MESSAGE = b'"Reason":"Invalid message"'


@dataclass
class Row:
    """The frames of a client, and those of the service.

    Attributes:
        name: description of the frames.
        sent: the bytes of the client.
        code: code of the close frame; None: it has none.
        before: the frames before the close frame: opcode and a part of the payload.
    """

    name: str
    sent: bytes
    code: int | None
    before: tuple[tuple[int, bytes], ...] = ()


ROWS: list[Row] = []


def row(name: str, sent: bytes, code: int | None, *before: tuple[int, bytes]) -> None:
    """Add a row."""
    ROWS.append(Row(name, sent, code, before))


def invalid(name: str, sent: bytes, code: int = POLICY_VIOLATION) -> None:
    """Add a row with valid frames and an invalid message."""
    row(name, sent, code, (TEXT, INVALID_MESSAGE))


def first(payload: bytes = b"", opcode: int = TEXT) -> bytes:
    return frame(opcode, payload, fin=False)


def more(payload: bytes = b"") -> bytes:
    return frame(0, payload, fin=False)


def last(payload: bytes = b"") -> bytes:
    return frame(0, payload)


# Section 5.2: reserved bits and opcodes.
for bits in range(1, 8):
    row(f"reserved bits {bits:03b}", frame(TEXT, b"{}", rsv=bits), PROTOCOL_ERROR)
for opcode in (0, CLOSE, PING, PONG):
    row(f"a reserved bit, opcode {opcode}", frame(opcode, b"", rsv=4), PROTOCOL_ERROR)
row("a reserved bit in a continuation", first() + frame(0, b"", rsv=2), PROTOCOL_ERROR)
for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
    row(f"opcode {opcode}", frame(opcode, b"x"), PROTOCOL_ERROR)
row("an unknown opcode in a message", first(b"{") + frame(3, b"}"), PROTOCOL_ERROR)

# Section 5.4: fragments.
row("a continuation without a start", last(b"x"), PROTOCOL_ERROR)
row("a continuation without a start, not the last", more(b"x"), PROTOCOL_ERROR)
row("a text in a text", first(b"{") + frame(TEXT, b"}"), PROTOCOL_ERROR)
row("a fragmented text in a text", first(b"{") + first(b"}"), PROTOCOL_ERROR)
row("a binary in a text", first(b"{") + frame(BINARY, b"}"), PROTOCOL_ERROR)
row("a text in a binary", first(b"{", BINARY) + frame(TEXT, b"}"), PROTOCOL_ERROR)
row(
    "a message in a message, after 20 fragments",
    first() + more() * 20 + frame(TEXT),
    PROTOCOL_ERROR,
)
row(
    "a ping in a message gets a pong, and the message goes on",
    first(b"{") + frame(PING, b"hello") + last(b"}"),
    POLICY_VIOLATION,
    (PONG, b"hello"),
    (TEXT, INVALID_MESSAGE),
)
row(
    "a close in a message ends it",
    first(b"{") + close(1000),
    1000,
)
invalid("empty fragments of an empty text", first() + more() * 20 + last())

# Section 5.5: control frames.
for opcode in (CLOSE, PING, PONG):
    row(f"fragmented, opcode {opcode}", frame(opcode, b"", fin=False), PROTOCOL_ERROR)
    row(f"126 bytes, opcode {opcode}", frame(opcode, b"x" * 126), PROTOCOL_ERROR)
    row(f"2^16 bytes, opcode {opcode}", frame(opcode, b"x" * 65536), PROTOCOL_ERROR)
row("a long length for a short ping", frame(PING, b"x", width=2), PROTOCOL_ERROR)
row("a ping that announces 2^62", frame(PING, announced=2**62), PROTOCOL_ERROR)
row(
    "a ping of 125 bytes is valid",
    frame(PING, b"x" * 125) + close(1000),
    1000,
    (PONG, b"x" * 125),
)
row("unsolicited pongs are valid", frame(PONG, b"x") * 9 + close(1000), 1000)

# Floods: limits.frames_per_message and limits.messages_per_minute, by default 128 and 60.
row("more fragments than a message may have", first() + more() * 200, POLICY_VIOLATION)
invalid("as many fragments as a message may have", first() + more() * 126 + last())
row("more pings than a minute may have", frame(PING) * 61, 1008, *[(PONG, b"")] * 60)
row("more pongs than a minute may have", frame(PONG) * 61, POLICY_VIOLATION)

# Section 5.2: lengths.
for size in (0, 1, 125):
    payload = b"x" * size
    row(f"{size} in two bytes", frame(TEXT, payload, width=2), PROTOCOL_ERROR)
    row(f"{size} in eight bytes", frame(TEXT, payload, width=8), PROTOCOL_ERROR)
for size in (126, 65535):
    row(f"{size} in eight bytes", frame(TEXT, b"x" * size, width=8), PROTOCOL_ERROR)
row("2^63", frame(TEXT, announced=2**63), PROTOCOL_ERROR)
row("2^64 - 1", frame(TEXT, announced=2**64 - 1), PROTOCOL_ERROR)
for power in (17, 31, 32, 62):
    row(f"2^{power} announced", frame(TEXT, announced=2**power), TOO_BIG)
row("2^62 announced, binary", frame(BINARY, announced=2**62), TOO_BIG)
row("2^63 - 1 announced", frame(TEXT, announced=2**63 - 1), TOO_BIG)
row("2^62 announced in a continuation", first() + frame(0, announced=2**62), TOO_BIG)
row("a byte over the limit", frame(TEXT, b"x" * (MAX_MESSAGE + 1)), TOO_BIG)
row("a byte over the limit in fragments", first(b"x" * MAX_MESSAGE) + last(b"x"), TOO_BIG)
row("far over the limit in fragments", first(b"x" * 40000) + more(b"x" * 40000), TOO_BIG)
row("over the limit, binary", frame(BINARY, b"x" * (MAX_MESSAGE + 1)), TOO_BIG)
invalid("at the limit", frame(TEXT, b"x" * MAX_MESSAGE))
invalid("at the limit in fragments", first(b"x" * 65535) + last(b"x"))

# Section 5.3: masks.
for opcode in (TEXT, BINARY, CLOSE, PING, PONG):
    row(f"no mask, opcode {opcode}", frame(opcode, b"", masked=False), PROTOCOL_ERROR)
row("no mask in a continuation", first() + frame(0, b"x", masked=False), PROTOCOL_ERROR)

# Sections 5.5.1 and 7.4: close payloads.
row("a close of one byte", frame(CLOSE, b"\x03"), PROTOCOL_ERROR)
for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65535):
    row(f"close code {code}", close(code), PROTOCOL_ERROR)
row("a bad close code with a reason", close(1005, b"no status"), PROTOCOL_ERROR)
for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
    row(f"close code {code} is valid", close(code), code)
row("a close without a code is valid", frame(CLOSE), None)
row("a close with a long reason is valid", close(1000, b"x" * 123), 1000)
row("a close with a reason in UTF-8 is valid", close(1000, "\N{SNOWMAN}".encode() * 41), 1000)
for name, reason in (
    ("no UTF-8", b"\xff"),
    ("a surrogate", b"\xed\xa0\x80"),
    ("cut off", b"bye \xe2\x98"),
    ("overlong", b"\xc0\xaf"),
):
    row(f"a close reason: {name}", close(1000, reason), INVALID_PAYLOAD)
row("frames after a close are ignored", close(1000) + frame(TEXT, b"{}") + frame(PING), 1000)
row(
    "invalid frames after a close are ignored",
    close(1000) + frame(3, b"x", rsv=7, masked=False),
    1000,
)
row("two closes", close(1000) + close(1001), 1000)

# Section 8.1: UTF-8.
BAD_UTF8 = {
    "no start byte": b"\x80",
    "an unused byte": b"\xff",
    "overlong slash": b"\xc0\xaf",
    "overlong NUL": b"\xc0\x80",
    "overlong in three": b"\xe0\x80\xaf",
    "overlong in four": b"\xf0\x80\x80\xaf",
    "a high surrogate": b"\xed\xa0\x80",
    "a low surrogate": b"\xed\xbf\xbf",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "past U+10FFFF": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "cut short": b"\xe2\x98",
}
GOOD_TEXT = '{"AccessToken":"ä\N{SNOWMAN}\N{PILE OF POO}"}'.encode()
for name, bad in BAD_UTF8.items():
    row(f"UTF-8, {name}, in the middle", frame(TEXT, b'{"' + bad + b'"}'), INVALID_PAYLOAD)
    row(f"UTF-8, {name}, in a continuation", first(b'{"') + last(bad + b'"}'), INVALID_PAYLOAD)
for at in range(len(GOOD_TEXT) + 1):
    row(f"0xff at {at}", frame(TEXT, GOOD_TEXT[:at] + b"\xff" + GOOD_TEXT[at:]), INVALID_PAYLOAD)
STARTS = [at for at, byte in enumerate(GOOD_TEXT) if byte & 0xC0 == 0x80]
for at in STARTS:
    row(f"a text that ends within a character, at {at}", frame(TEXT, GOOD_TEXT[:at]), 1007)
    row(f"the same in fragments, at {at}", first(GOOD_TEXT[:at]) + last(), INVALID_PAYLOAD)
    row(f"a character cut by another, at {at}", first(GOOD_TEXT[:at]) + last(b"x"), 1007)
    invalid(
        f"a character over two fragments, at {at}", first(GOOD_TEXT[:at]) + last(GOOD_TEXT[at:])
    )
invalid(
    "each byte a fragment",
    first(GOOD_TEXT[:1]) + b"".join(more(bytes([each])) for each in GOOD_TEXT[1:]) + last(),
)
row(
    "invalid UTF-8 is reported before the message ends",
    frame(TEXT, b"\xff" + b"x" * 10, announced=60000),
    INVALID_PAYLOAD,
)

# Valid by RFC 6455, but not by the protocol of topicsvc: docs/protocol.md.
invalid("a binary message", frame(BINARY, b'{"AccessToken":"x"}'), UNSUPPORTED_DATA)
invalid("an empty binary message", frame(BINARY), UNSUPPORTED_DATA)
invalid("a binary message in fragments", first(b"{", BINARY) + last(b"}"), UNSUPPORTED_DATA)
for name, text in (
    ("empty", b""),
    ("not JSON", b"hello"),
    ("an array", b"[]"),
    ("a key twice", b'{"AccessToken":"a","AccessToken":"a"}'),
    ("NaN", b'{"AccessToken":"a","x":NaN}'),
    ("a token that is not a string", b'{"AccessToken":1}'),
    ("an empty token", b'{"AccessToken":""}'),
    ("a blank in a token", b'{"AccessToken":"a b"}'),
    ("a lone surrogate in a token", b'{"AccessToken":"\\ud800"}'),
    ("a token over 32 KiB", b'{"AccessToken":"%s"}' % (b"x" * 32769)),
    ("arrays too deep", b"[" * 60000),
    ("objects too deep", b'{"a":' * 12000),
    (
        "a deep value beside a token",
        b'{"AccessToken":"a","x":' + b"[" * 20000 + b"]" * 20000 + b"}",
    ),
    ("a byte order mark", b'\xef\xbb\xbf{"AccessToken":"a"}'),
    ("two values", b'{"AccessToken":"a"}{}'),
    ("NULs", b"\0" * 1000),
    ("a number of 40000 digits", b'{"x":' + b"9" * 40000 + b"}"),
):
    invalid(f"a message: {name}", frame(TEXT, text))

MAX_BYTE_BY_BYTE = 300
"""Rows up to this size, in bytes, are also sent byte by byte."""


class FrameTests(TwistdTestCase):
    context: ssl.SSLContext | None = None

    def setUp(self) -> None:
        super().setUp()
        self.port = self.start("--config", str(self.configure(self.endpoint()))).ports[0]

    def endpoint(self) -> str:
        return LOOPBACK

    def assert_replies(self, row: Row, write: Callable[[RawClient, bytes], None]) -> None:
        client = RawClient(self.port, self.context, HOST)
        try:
            self.assertEqual(client.upgrade(WEBSOCKET_PATH, HOST), 101)
            write(client, row.sent)
            received = client.read_to_end()
        finally:
            client.close()
        self.assertTrue(received.ended, (row.name, received))
        *before, (opcode, _) = received.frames
        self.assertEqual((opcode, received.code), (CLOSE, row.code), (row.name, received))
        self.assertEqual(len(before), len(row.before), (row.name, received))
        for (opcode, payload), (expected, piece) in zip(before, row.before, strict=True):
            self.assertEqual(opcode, expected, (row.name, received))
            self.assertIn(piece, payload, row.name)

    def test_there_are_enough_rows_with_unique_names(self) -> None:
        self.assertGreaterEqual(len(ROWS), 60)
        self.assertEqual(len({row.name for row in ROWS}), len(ROWS))

    def test_frames_sent_at_once(self) -> None:
        for row in ROWS:
            self.assert_replies(row, RawClient.write)

    def test_frames_sent_byte_by_byte(self) -> None:
        for row in ROWS:
            if len(row.sent) <= MAX_BYTE_BY_BYTE:
                self.assert_replies(row, RawClient.drip)


class FramesOverTlsTests(FrameTests):
    """The same over TLS."""

    def endpoint(self) -> str:
        authority = Authority(self.directory)
        key, certificate = authority.issue(HOST)
        self.context = authority.client_context()
        return f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
