"""Encodes and decodes STOMP 1.2 frames.

This module does no I/O: `Decoder` is fed with received bytes and returns complete frames.
Where the specification (https://stomp.github.io/stomp-specification-1.2.html) leaves room, the
decoder refuses only bytes that it cannot interpret. For example, it accepts a NUL in a header,
because ActiveMQ sends one if a JMS correlation id or type contains it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from topicsvc.errors import StompError

__all__ = ["HEARTBEAT", "MAX_BODY", "MAX_HEAD", "Decoder", "Frame", "encode", "parse_heartbeat"]

MAX_HEAD = 65536
"""Bytes that a command and its headers may have."""

MAX_BODY = 67108864
"""Bytes that a body may have."""

HEARTBEAT = b"\n"
"""The bytes of a heartbeat."""

_CLIENT_COMMANDS = "CONNECT STOMP SEND SUBSCRIBE UNSUBSCRIBE ACK NACK BEGIN COMMIT ABORT DISCONNECT"
_SERVER_COMMANDS = "CONNECTED MESSAGE RECEIPT ERROR"
_COMMANDS = frozenset((_CLIENT_COMMANDS + " " + _SERVER_COMMANDS).split())

# "C style string literal escapes are used [...] in all frames except the CONNECT and
# CONNECTED frames", so that these can be read by STOMP 1.0 peers (section "Value Encoding").
_UNESCAPED_COMMANDS = ("CONNECT", "CONNECTED")

_ESCAPES = {"\r": "\\r", "\n": "\\n", ":": "\\c", "\\": "\\\\"}
_UNESCAPES = {escape[1]: char for char, escape in _ESCAPES.items()}
_SPECIAL = re.compile(r"[\r\n:\\]")
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_FORBIDDEN_UNESCAPED = re.compile(r"[\r\n\0]")

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_MAX_END_OF_HEAD = 3
_LINE_ENDS = re.compile(rb"[\r\n]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
_HEARTBEAT_HEADER = re.compile(r"([0-9]{1,9}),([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        command: as in the specification, for example ``MESSAGE``.
        headers: unescaped. If a header is repeated, its first value, as in the specification.
        body: any bytes.
    """

    command: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def encode(frame: Frame) -> bytes:
    """Encode `frame`.

    No ``content-length`` is added: ActiveMQ makes a BytesMessage of a frame with this header,
    and a TextMessage of a frame without it.

    Raises:
        StompError: a peer could not decode the same frame.
    """
    if frame.command not in _COMMANDS:
        raise StompError("not a STOMP 1.2 command")
    length = frame.headers.get("content-length")
    if length is None and b"\0" in frame.body:
        raise StompError("a body without content-length cannot contain a NUL")
    if length is not None and length != str(len(frame.body)):
        raise StompError("content-length is not the length of the body")
    escape = _check_unescaped if frame.command in _UNESCAPED_COMMANDS else _escape
    lines = [frame.command]
    for name, value in frame.headers.items():
        if not name:
            raise StompError("a header without a name")
        lines.append(f"{escape(name)}:{escape(value)}")
        if ":" in name and escape is _check_unescaped:
            raise StompError("a colon in the name of an unescaped header")
    try:
        head = "\n".join(lines).encode("utf-8")
    except UnicodeEncodeError:
        raise StompError("a header with a lone surrogate") from None
    return b"%s\n\n%s\0" % (head, frame.body)


def _escape(text: str) -> str:
    if "\0" in text:
        raise StompError("a NUL in a header")
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], text)


def _check_unescaped(text: str) -> str:
    if _FORBIDDEN_UNESCAPED.search(text):
        raise StompError("a line break or a NUL in an unescaped header")
    return text


def parse_heartbeat(value: str) -> tuple[int, int]:
    """Parse a ``heart-beat`` header.

    Returns:
        The milliseconds between two heartbeats that the peer sends, and between two heartbeats
        that it expects.

    Raises:
        StompError: the value is invalid.
    """
    match = _HEARTBEAT_HEADER.fullmatch(value)
    if match is None:
        raise StompError("not a heart-beat header")
    return int(match[1]), int(match[2])


class Decoder:
    """Decodes a stream: call ``feed``, then ``next_frame`` until it returns None.

    Args:
        max_head: bytes that a command and its headers may have.
        max_body: bytes that a body may have.
    """

    __slots__ = ("_at", "_broken", "_buffer", "_head", "_max_body", "_max_head", "_searched")

    def __init__(self, max_head: int = MAX_HEAD, max_body: int = MAX_BODY) -> None:
        self._max_head = max_head
        self._max_body = max_body
        self._buffer = bytearray()
        self._at = 0  # the bytes before are decoded
        self._searched = 0  # the bytes before do not contain the end of the current part
        self._head: tuple[str, dict[str, str], int | None] | None = None
        self._broken: StompError | None = None

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        del self._buffer[: self._at]
        self._searched = max(0, self._searched - self._at)
        self._at = 0
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """Return the next complete frame; None: more bytes are needed.

        Raises:
            StompError: the bytes are not a frame. Each later call raises the same error.
        """
        if self._broken is not None:
            raise self._broken
        try:
            return self._next()
        except StompError as error:
            self._broken = error
            raise

    def _next(self) -> Frame | None:
        if self._head is None:
            text = self._take_head()
            if text is None:
                return None
            self._head = _parse_head(text, self._max_body)
        command, headers, length = self._head
        body = self._take_text() if length is None else self._take_bytes(length)
        if body is None:
            return None
        self._head = None
        return Frame(command, headers, body)

    def _take_head(self) -> bytes | None:
        blanks = _LINE_ENDS.match(self._buffer, self._at)
        if blanks is not None:
            self._at = blanks.end()
        # While the match exists, the buffer cannot be resized.
        del blanks
        end = _END_OF_HEAD.search(self._buffer, max(self._at, self._searched))
        if end is None:
            self._searched = len(self._buffer) - _MAX_END_OF_HEAD + 1
            if len(self._buffer) - self._at >= self._max_head + _MAX_END_OF_HEAD:
                raise StompError(f"more than {self._max_head} bytes of headers")
            return None
        if end.start() - self._at > self._max_head:
            raise StompError(f"more than {self._max_head} bytes of headers")
        return self._take(end.start(), end.end())

    def _take_text(self) -> bytes | None:
        """Take a body that ends with the first NUL."""
        end = self._buffer.find(0, max(self._at, self._searched))
        size = (len(self._buffer) if end < 0 else end) - self._at
        if size > self._max_body:
            raise StompError(f"more than {self._max_body} bytes in a body")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        return self._take(end, end + 1)

    def _take_bytes(self, length: int) -> bytes | None:
        """Take a body of known length, and the NUL after it."""
        end = self._at + length
        if len(self._buffer) <= end:
            return None
        if self._buffer[end]:
            raise StompError("no NUL after a body of content-length bytes")
        return self._take(end, end + 1)

    def _take(self, end: int, after: int) -> bytes:
        taken = bytes(self._buffer[self._at : end])
        self._at = self._searched = after
        return taken


def _parse_head(head: bytes, max_body: int) -> tuple[str, dict[str, str], int | None]:
    """Return the command, the headers, and the length of the body if the headers contain it.

    Raises:
        StompError: the head is invalid.
    """
    try:
        first, *lines = head.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise StompError("the headers are not UTF-8") from None
    command = first.removesuffix("\r")
    if command not in _COMMANDS:
        raise StompError("not a STOMP 1.2 command")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.removesuffix("\r").partition(":")
        if not name or not colon or "\r" in name + value:
            raise StompError("a line is not a header")
        if "\\" in line and command not in _UNESCAPED_COMMANDS:
            name, value = _unescape(name), _unescape(value)
        headers.setdefault(name, value)
    length = headers.get("content-length")
    if length is None:
        return command, headers, None
    if not _LENGTH.fullmatch(length):
        raise StompError("content-length is not a number")
    if int(length) > max_body:
        raise StompError(f"more than {max_body} bytes in a body")
    return command, headers, int(length)


def _unescape(text: str) -> str:
    try:
        return _ESCAPED.sub(lambda match: _UNESCAPES[match[1]], text)
    except KeyError:
        raise StompError("an undefined escape sequence") from None
