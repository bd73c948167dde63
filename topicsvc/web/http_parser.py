"""An HTTP/1.1 request parser without I/O: llhttp parses, this module limits and delimits.

The parser finds the end of a request's head, its empty line, and gives the whole head to llhttp
(through httptools). If llhttp does not find the end at the same place, the request is refused.
So requests are parsed one at a time, and the bytes after a request are not parsed with it.

The same holds for a chunked body: this module finds each chunk, and llhttp must agree. A body
with a known length is not parsed.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Any, Final

import httptools

from topicsvc.pieces import keep_piece

__all__ = [
    "MAX_CHUNK_LINE",
    "MAX_HEAD",
    "MAX_HEADERS",
    "MAX_TOKEN_LINE",
    "MAX_TRAILERS",
    "BadRequest",
    "BodyTooBig",
    "Problem",
    "RequestHead",
    "RequestParser",
]

MAX_HEAD: Final = 16384
"""Most bytes of a request head without the value of ``Authorization``."""

MAX_TOKEN_LINE: Final = 32768 + 64
"""Most bytes of ``Authorization``: a bearer token of 32 KiB, its scheme and whitespace."""

MAX_HEADERS: Final = 100
"""Most header fields of a request."""

MAX_EMPTY_LINES: Final = 4
"""Most empty lines that are ignored before a request (RFC 9112, section 2.2)."""

MAX_CHUNK_LINE: Final = 256
"""Most bytes of the line before a chunk: the size, and extensions, which are ignored."""

MAX_TRAILERS: Final = 4096
"""Most bytes of the trailer section of a chunked body, which is ignored."""

CHUNKS_AT_ONCE: Final = 256
"""Most chunks that one call of `RequestParser.read_body` reads; they take less than 1 ms."""

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ \r\n]+) HTTP/1\.([01])")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n]*)?")
_WHITESPACE = b" \t"
_END_OF_HEAD = b"\r\n\r\n"
_CHUNKED_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class Problem(Enum):
    """What is wrong with an invalid request."""

    SYNTAX = auto()
    METHOD = auto()
    """A method that llhttp does not know; it has not parsed the rest of the head."""
    TARGET = auto()
    """A request target with bytes that are not allowed in a URL."""


class BadRequest(Exception):
    """The bytes are not a valid request; the bytes after them cannot be parsed either.

    Attributes:
        problem: the kind of error.
        method: the method, if the request line is valid; else empty.
    """

    def __init__(self, problem: Problem = Problem.SYNTAX, method: bytes = b"") -> None:
        super().__init__(problem.name)
        self.problem = problem
        self.method = method


class BodyTooBig(Exception):
    """A body is larger than its limit."""


class RequestHead:
    """The request line and the header fields of a request.

    Attributes:
        method: the method, in the case in which it was sent: methods are case-sensitive.
        path: the target's path, without the query. For ``*`` and CONNECT the target itself.
        authority: the authority of a target in absolute form (RFC 9112, section 3.2.2); None:
            the target has another form.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
        headers: values by name in lower case, in their order, without surrounding whitespace.
        length: bytes of the body; None: it is chunked.
        expects_continue: whether the client may wait for 100 before it sends the body.
    """

    __slots__ = ("authority", "expects_continue", "headers", "length", "method", "minor", "path")

    def __init__(self, method: bytes, target: bytes, minor: int) -> None:
        self.method = method
        self.minor = minor
        self.authority: bytes | None = None
        if not target.startswith(b"/"):
            absolute = _ABSOLUTE.fullmatch(target)
            if absolute is not None:
                self.authority, target = absolute[1], absolute[2]
                if not target.startswith(b"/"):
                    target = b"/" + target
        self.path = target.partition(b"?")[0]
        self.headers: dict[bytes, list[bytes]] = {}
        self.length: int | None = 0
        self.expects_continue = False

    def get_all(self, name: bytes) -> list[bytes]:
        """Return all values of a header field; empty: it is missing."""
        return self.headers.get(name) or []

    def tokens(self, name: bytes) -> list[bytes]:
        """Return the members of a comma-separated header field, in lower case."""
        values = self.headers.get(name)
        if values is None:
            return []
        return [each.strip().lower() for value in values for each in value.split(b",")]

    @property
    def has_body(self) -> bool:
        """Whether a body follows."""
        return self.length != 0

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow: not with HTTP/1.0 or ``Connection: close``.

        Nor after CONNECT: a client may send bytes for the tunnel before it has the response.
        """
        if self.minor == 0 or self.method == b"CONNECT":
            return False
        return b"connection" not in self.headers or b"close" not in self.tokens(b"connection")


class _HeadEvents:
    """Receives llhttp's callbacks for a request."""

    __slots__ = ("body", "count", "headers", "is_complete", "is_head_complete", "size")

    def __init__(self) -> None:
        self.headers: dict[bytes, list[bytes]] = {}
        self.count = 0
        self.is_head_complete = False
        self.is_complete = False
        self.body: list[bytes | bytearray] = []
        self.size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count += 1
        if self.count > MAX_HEADERS:
            raise BadRequest
        name = name.lower()
        value = value.rstrip(_WHITESPACE)  # llhttp keeps trailing whitespace
        values = self.headers.get(name)
        if values is None:
            self.headers[name] = [value]
        else:
            values.append(value)

    def on_headers_complete(self) -> None:
        self.is_head_complete = True

    def on_body(self, body: bytes) -> None:
        keep_piece(self.body, body)
        self.size += len(body)

    def on_message_complete(self) -> None:
        self.is_complete = True


class _ChunkState(Enum):
    SIZE = auto()
    DATA = auto()
    TRAILERS = auto()


class RequestParser:
    """Parses requests from bytes, one after the other.

    After `receive`, call `read_head` until it returns a head, then `read_body` or `skip_body`
    until the body is complete, then `read_head` again.
    """

    __slots__ = (
        "_body",
        "_chunk_left",
        "_data",
        "_empty_lines",
        "_events",
        "_has_request_line",
        "_is_chunked",
        "_left",
        "_llhttp",
        "_position",
        "_scanned",
        "_size",
        "_state",
        "_trailers",
        "may_have_more",
    )

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._position = 0
        self._scanned = 0
        self._empty_lines = 0
        self._has_request_line = False
        self.may_have_more = False
        self._reset_body()

    def _reset_body(self) -> None:
        self._llhttp: Any = None
        self._events: _HeadEvents | None = None
        self._is_chunked = False
        self._left = 0
        self._body: list[bytes | bytearray] = []
        self._size = 0
        self._state = _ChunkState.SIZE
        self._chunk_left = 0
        self._trailers = 0

    @property
    def buffered(self) -> int:
        """Bytes that were received and not yet parsed."""
        return len(self._data) - self._position

    @property
    def missing(self) -> int:
        """Bytes of a body of known length that are not parsed yet; 0: unknown, or no body."""
        return self._left

    def receive(self, data: bytes) -> None:
        """Add bytes from the network."""
        if self._position == len(self._data):
            self._data, self._position, self._scanned = data, 0, 0
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        if self._position:
            del self._data[: self._position]
            self._scanned = max(0, self._scanned - self._position)
            self._position = 0
        self._data += data

    def take_rest(self) -> bytes:
        """Return and forget all bytes after the request."""
        rest = bytes(self._data[self._position :])
        self._data, self._position = b"", 0
        return rest

    def read_head(self) -> RequestHead | None:
        """Return the next request's head; None: it has not arrived in full.

        Raises:
            BadRequest: the head is invalid or too long.
        """
        data = self._data
        position = self._position
        while data.startswith(b"\r\n", position):
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES:
                raise BadRequest
            position = self._position = position + 2
        end = data.find(_END_OF_HEAD, max(position, self._scanned - 3))
        if end < 0:
            self._check_partial_head(position)
            self._scanned = len(data)
            return None
        match = self._request_line(position, position)
        if match is None:  # cannot happen: a head that has ended has a first line
            raise BadRequest
        end += len(_END_OF_HEAD)
        if end - position > MAX_HEAD + MAX_TOKEN_LINE:
            raise BadRequest(method=bytes(match[1]))
        head = self._parse_head(match, bytes(data[position:end]))
        if end > MAX_HEAD:  # release the memory of a long head
            self._data, end = data[end:], 0
        self._position = end
        self._scanned = 0
        self._empty_lines = 0
        self._has_request_line = False
        return head

    def _check_partial_head(self, position: int) -> None:
        if len(self._data) - position > MAX_HEAD + MAX_TOKEN_LINE:
            raise BadRequest
        # An invalid request line is refused before the rest of the head arrives.
        if not self._has_request_line:
            start = max(position, self._scanned - 1)
            self._has_request_line = self._request_line(position, start) is not None

    def _request_line(self, position: int, start: int) -> re.Match[bytes] | None:
        """Return the request line; None: it has not arrived in full.

        Args:
            position: where the line starts.
            start: where the search for its end starts.

        Raises:
            BadRequest: the request line is invalid or too long.
        """
        end = self._data.find(b"\r\n", start, position + MAX_HEAD)
        if end < 0:
            if len(self._data) - position >= MAX_HEAD:
                raise BadRequest
            return None
        match = _REQUEST_LINE.fullmatch(self._data, position, end)
        if match is None:
            raise BadRequest
        return match

    def _parse_head(self, match: re.Match[bytes], data: bytes) -> RequestHead:
        method = bytes(match[1])
        self._reset_body()
        events = _HeadEvents()
        llhttp = httptools.HttpRequestParser(events)
        try:
            llhttp.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if upgrade.args[0] != len(data):
                raise BadRequest(method=method) from None
        except httptools.HttpParserInvalidMethodError:
            raise BadRequest(Problem.METHOD, method) from None
        except httptools.HttpParserInvalidURLError:
            raise BadRequest(Problem.TARGET, method) from None
        except httptools.HttpParserError:
            raise BadRequest(method=method) from None
        if not events.is_head_complete or events.size:
            raise BadRequest(method=method)
        head = RequestHead(method, bytes(match[2]), 1 if match[3] == b"1" else 0)
        head.headers = headers = events.headers
        tokens = sum(map(len, headers.get(b"authorization", ())))
        if len(data) - tokens > MAX_HEAD:
            raise BadRequest(method=method)
        self._begin_body(head)
        if b"expect" in headers and head.minor == 1:
            head.expects_continue = head.tokens(b"expect") == [b"100-continue"]
        return head

    def _begin_body(self, head: RequestHead) -> None:
        headers = head.headers
        if b"transfer-encoding" in headers:
            codings = headers[b"transfer-encoding"]
            # llhttp accepts others, which are ambiguous (RFC 9112, section 6.1).
            if head.minor != 1 or len(codings) != 1 or codings[0].lower() != b"chunked":
                raise BadRequest(method=head.method)
            head.length = None
            self._is_chunked = True
            # A new parser: the head's stops after the head of an upgrade request.
            self._events = _HeadEvents()
            self._llhttp = httptools.HttpRequestParser(self._events)
            self._llhttp.feed_data(_CHUNKED_HEAD)
        elif b"content-length" in headers:
            # llhttp has checked that it occurs once, has only digits and fits in 64 bits.
            head.length = self._left = int(headers[b"content-length"][0])

    def read_body(self, limit: int) -> bytes | None:
        """Return the body that follows the last head; None: it has not arrived in full.

        A body of many chunks is read in several calls. If `may_have_more` is set, call again,
        even if no more bytes have arrived.

        Args:
            limit: most bytes.

        Raises:
            BodyTooBig: the body is longer.
            BadRequest: the chunks are invalid.
        """
        self.may_have_more = False
        if not self._is_chunked:
            if self._size + self._left > limit:
                raise BodyTooBig
            return self._read_known(keep=True)
        is_complete = self._read_chunks(limit)
        events = self._events
        assert events is not None  # noqa: S101 - set for a chunked body
        return b"".join(events.body) if is_complete else None

    def skip_body(self) -> tuple[bool, int]:
        """Discard the bytes of the body that have arrived.

        Returns:
            Whether the body is complete, and its length so far in bytes.

        Raises:
            BadRequest: the chunks are invalid.
        """
        self.may_have_more = False
        if not self._is_chunked:
            done = self._read_known(keep=False) is not None
            return done, self._size
        done = self._read_chunks()
        events = self._events
        assert events is not None  # noqa: S101 - as above
        events.body.clear()
        return done, events.size

    def _read_known(self, keep: bool) -> bytes | None:
        position = self._position
        available = len(self._data) - position
        if available >= self._left:
            if keep:
                last = bytes(self._data[position : position + self._left])
                body = b"".join((*self._body, last)) if self._body else last
            else:
                body = b""
            self._position = position + self._left
            self._size += self._left
            self._left = 0
            self._body = []
            return body
        if available:
            if keep:
                keep_piece(self._body, bytes(self._data[position:]))
            self._position = len(self._data)
            self._left -= available
            self._size += available
        return None

    def _read_chunks(self, limit: int | None = None) -> bool:
        """Give the chunks that have arrived to llhttp; return whether the body is complete."""
        events = self._events
        assert events is not None  # noqa: S101 - as above
        for _ in range(CHUNKS_AT_ONCE):
            if self._state is _ChunkState.SIZE:
                size = self._chunk_size()
                if size is None:
                    return False
                if limit is not None and events.size + size > limit:
                    raise BodyTooBig
                self._chunk_left = size + 2
                self._state = _ChunkState.DATA if size else _ChunkState.TRAILERS
            if self._state is _ChunkState.DATA:
                take = min(self._chunk_left, len(self._data) - self._position)
                if not take:
                    return False
                self._feed(take)
                self._chunk_left -= take
                if self._chunk_left:
                    return False
                self._state = _ChunkState.SIZE
            if self._state is _ChunkState.TRAILERS:
                return self._read_trailers()
        self.may_have_more = True
        return False

    def _chunk_size(self) -> int | None:
        end = self._data.find(b"\r\n", self._position, self._position + MAX_CHUNK_LINE)
        if end < 0:
            if len(self._data) - self._position >= MAX_CHUNK_LINE:
                raise BadRequest
            if self._data.find(b"\n", self._position) >= 0:
                raise BadRequest
            return None
        match = _CHUNK_SIZE.fullmatch(self._data, self._position, end)
        if match is None:
            raise BadRequest
        size = int(match[1], 16)
        self._feed(end + 2 - self._position)
        return size

    def _read_trailers(self) -> bool:
        while True:
            end = self._data.find(b"\r\n", self._position)
            if end < 0:
                if self.buffered + self._trailers > MAX_TRAILERS:
                    raise BadRequest
                return False
            is_last = end == self._position
            self._trailers += end + 2 - self._position
            if self._trailers > MAX_TRAILERS:
                raise BadRequest
            self._feed(end + 2 - self._position)
            if is_last:
                events = self._events
                if events is None or not events.is_complete:
                    raise BadRequest
                return True

    def _feed(self, size: int) -> None:
        events = self._events
        if events is None or events.is_complete:
            raise BadRequest
        piece = self._data[self._position : self._position + size]
        self._position += size
        try:
            self._llhttp.feed_data(piece)
        except httptools.HttpParserError:
            raise BadRequest from None
