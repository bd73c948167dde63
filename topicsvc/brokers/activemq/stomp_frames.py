"""Pure: STOMP 1.2, frames to bytes and bytes to frames.

Nothing is read or written here: bytes are fed in as they come, whole frames are taken out.
Where the specification leaves room (https://stomp.github.io/stomp-specification-1.2.html),
this is strict about what it cannot understand and mild about what it can: a NUL within a
header is taken, because ActiveMQ passes one on when a JMS correlation id or type holds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from topicsvc.errors import StompError

__all__ = ["HEART_BEAT", "MAX_BODY", "MAX_HEAD", "Decoder", "Frame", "encode", "parse_heart_beat"]

MAX_HEAD = 65536
"""Most bytes of a command and its headers."""

MAX_BODY = 67108864
"""Most bytes of a body."""

HEART_BEAT = b"\n"
"""What is sent where there is nothing to send."""

_CLIENT_COMMANDS = "CONNECT STOMP SEND SUBSCRIBE UNSUBSCRIBE ACK NACK BEGIN COMMIT ABORT DISCONNECT"
_SERVER_COMMANDS = "CONNECTED MESSAGE RECEIPT ERROR"
_COMMANDS = frozenset((_CLIENT_COMMANDS + " " + _SERVER_COMMANDS).split())

# "C style string literal escapes are used [...] in all frames except the CONNECT and
# CONNECTED frames", so that these can be read by STOMP 1.0 peers (section "Value Encoding").
_NEVER_ESCAPED = ("CONNECT", "CONNECTED")

_ESCAPES = {"\r": "\\r", "\n": "\\n", ":": "\\c", "\\": "\\\\"}
_UNESCAPES = {escape[1]: char for char, escape in _ESCAPES.items()}
_SPECIAL = re.compile(r"[\r\n:\\]")
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_UNWRITABLE = re.compile(r"[\r\n\0]")

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_LONGEST_END = 3
_LINE_ENDS = re.compile(rb"[\r\n]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
_HEART_BEAT_HEADER = re.compile(r"([0-9]{1,9}),([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        command: as in the specification, ``MESSAGE``.
        headers: unescaped; of a repeated one the first, as the specification has it.
        body: whatever it holds.
    """

    command: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def encode(frame: Frame) -> bytes:
    """The bytes of `frame`.

    No ``content-length`` is added: to ActiveMQ its presence says that a body is no text.

    Raises:
        StompError: the frame cannot be written so that a peer reads the same.
    """
    if frame.command not in _COMMANDS:
        raise StompError("no command of STOMP 1.2")
    length = frame.headers.get("content-length")
    if length is None and b"\0" in frame.body:
        raise StompError("a body without a length cannot hold a NUL")
    if length is not None and length != str(len(frame.body)):
        raise StompError("the length is not that of the body")
    escape = _as_it_is if frame.command in _NEVER_ESCAPED else _escape
    lines = [frame.command]
    for name, value in frame.headers.items():
        if not name:
            raise StompError("a header without a name")
        lines.append(f"{escape(name)}:{escape(value)}")
        if ":" in name and escape is _as_it_is:
            raise StompError("a colon in the name of a header that is not escaped")
    try:
        head = "\n".join(lines).encode("utf-8")
    except UnicodeEncodeError:
        raise StompError("a header with half a character") from None
    return b"%s\n\n%s\0" % (head, frame.body)


def _escape(text: str) -> str:
    if "\0" in text:
        raise StompError("a NUL in a header")
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], text)


def _as_it_is(text: str) -> str:
    if _UNWRITABLE.search(text):
        raise StompError("a line break or a NUL in a header that is not escaped")
    return text


def parse_heart_beat(value: str) -> tuple[int, int]:
    """Read a ``heart-beat`` header: milliseconds between what a peer sends, and wants.

    Raises:
        StompError: it is none.
    """
    match = _HEART_BEAT_HEADER.fullmatch(value)
    if match is None:
        raise StompError("not a heart-beat header")
    return int(match[1]), int(match[2])


class Decoder:
    """Cuts a stream into frames: ``feed`` it, then take ``next_frame`` until there is none.

    Args:
        max_head: most bytes of a command and its headers.
        max_body: most bytes of a body.
    """

    __slots__ = ("_at", "_broken", "_buffer", "_head", "_max_body", "_max_head", "_searched")

    def __init__(self, max_head: int = MAX_HEAD, max_body: int = MAX_BODY) -> None:
        self._max_head = max_head
        self._max_body = max_body
        self._buffer = bytearray()
        self._at = 0  # what stands before is done with
        self._searched = 0  # what stands before holds no end of the part that is looked for
        self._head: tuple[str, dict[str, str], int | None] | None = None
        self._broken: StompError | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes as they come."""
        del self._buffer[: self._at]
        self._searched = max(0, self._searched - self._at)
        self._at = 0
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame; None: more bytes are needed.

        Raises:
            StompError: the bytes are no frame, now and ever after.
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
        # A match holds on to the buffer, which then cannot shrink.
        del blanks
        end = _END_OF_HEAD.search(self._buffer, max(self._at, self._searched))
        if end is None:
            self._searched = len(self._buffer) - _LONGEST_END + 1
            if len(self._buffer) - self._at >= self._max_head + _LONGEST_END:
                raise StompError(f"more than {self._max_head} bytes of headers")
            return None
        if end.start() - self._at > self._max_head:
            raise StompError(f"more than {self._max_head} bytes of headers")
        return self._take(end.start(), end.end())

    def _take_text(self) -> bytes | None:
        """A body that ends with the first NUL."""
        end = self._buffer.find(0, max(self._at, self._searched))
        size = (len(self._buffer) if end < 0 else end) - self._at
        if size > self._max_body:
            raise StompError(f"more than {self._max_body} bytes in a body")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        return self._take(end, end + 1)

    def _take_bytes(self, length: int) -> bytes | None:
        """A body of known length, and the NUL after it."""
        end = self._at + length
        if len(self._buffer) <= end:
            return None
        if self._buffer[end]:
            raise StompError("no NUL where the length says that a body ends")
        return self._take(end, end + 1)

    def _take(self, end: int, after: int) -> bytes:
        taken = bytes(self._buffer[self._at : end])
        self._at = self._searched = after
        return taken


def _parse_head(head: bytes, max_body: int) -> tuple[str, dict[str, str], int | None]:
    """Command, headers, and the length of the body where it is told.

    Raises:
        StompError: it is no head.
    """
    try:
        first, *lines = head.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise StompError("headers that are not UTF-8") from None
    command = first.removesuffix("\r")
    if command not in _COMMANDS:
        raise StompError("no command of STOMP 1.2")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.removesuffix("\r").partition(":")
        if not name or not colon or "\r" in name + value:
            raise StompError("a line that is no header")
        if "\\" in line and command not in _NEVER_ESCAPED:
            name, value = _unescape(name), _unescape(value)
        headers.setdefault(name, value)
    length = headers.get("content-length")
    if length is None:
        return command, headers, None
    if not _LENGTH.fullmatch(length):
        raise StompError("a length that is no number")
    if int(length) > max_body:
        raise StompError(f"more than {max_body} bytes in a body")
    return command, headers, int(length)


def _unescape(text: str) -> str:
    try:
        return _ESCAPED.sub(lambda match: _UNESCAPES[match[1]], text)
    except KeyError:
        raise StompError("an escape that is not defined") from None
