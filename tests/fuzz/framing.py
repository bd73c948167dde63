"""Requests as three parsers delimit them: `RequestParser`, h11 and `twisted.web`.

`compare` fails if two of them accept a stream and find other messages in it. A parser that
refuses a stream, or closes the connection, is compared up to there.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any, NamedTuple

import h11
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web import http

from topicsvc.web.http_parser import BadRequest, BodyTooBig, RequestHead, RequestParser

__all__ = ["Message", "Reading", "compare", "read_h11", "read_ours", "read_twisted"]

END = b"GET /end HTTP/1.1\r\nHost: end\r\n\r\n"
"""Is put behind each stream, so that no parser waits for the end of a line."""

MAX_BODY = 10**6
MAX_EVENT = 65_536


class Message(NamedTuple):
    """A request.

    Attributes:
        method: as sent.
        path: of the target, without the query, as `RequestHead` has it.
        authority: of the target, as `RequestHead` has it.
        headers: names in lower case with values, in their order.
        body: without chunks.
    """

    method: bytes
    path: bytes
    authority: bytes | None
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Reading(NamedTuple):
    """What a parser finds in a stream.

    Attributes:
        messages: the requests that are complete.
        goes_on: it has refused nothing and would read on.
    """

    messages: list[Message]
    goes_on: bool


def compare(data: bytes) -> None:
    """Fail if two parsers that accept `data` find other messages in it."""
    data += END
    ours = read_ours([data])
    in_pieces = read_ours(data[at : at + 1] for at in range(len(data)))
    assert in_pieces == ours, f"in one piece {ours}, byte by byte {in_pieces}"
    for name, theirs in (("h11", read_h11(data)), ("twisted.web", read_twisted(data))):
        pairs = zip(ours.messages, theirs.messages, strict=False)
        for number, (our_message, their_message) in enumerate(pairs):
            assert our_message == their_message, (
                f"message {number}: {our_message}, {name} has {their_message}"
            )
        if ours.goes_on and theirs.goes_on:
            assert len(ours.messages) == len(theirs.messages), (
                f"{ours.messages}, {name} has {theirs.messages}"
            )


def _message(
    method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> Message:
    head = RequestHead(method, target, 1)
    # Parsers keep headers of one name together, or write the coding in lower case.
    fields = []
    for name, value in headers:
        fields.append((name, value.lower() if name == b"transfer-encoding" else value))
    fields.sort(key=lambda field: field[0])
    return Message(method, head.path, head.authority, tuple(fields), body)


def read_ours(pieces: Iterable[bytes]) -> Reading:
    """The requests that `RequestParser` finds, until one closes the connection."""
    parser, messages = RequestParser(), []
    head: RequestHead | None = None
    for piece in pieces:
        parser.receive(piece)
        try:
            while True:
                if head is None:
                    head = parser.read_head()
                    if head is None:
                        break
                body = parser.read_body(MAX_BODY)
                if body is None:
                    if parser.may_have_more:
                        continue
                    break
                headers = [(name, value) for name, values in head.headers.items()
                           for value in values]  # fmt: skip
                message = _message(head.method, b"/", headers, body)
                messages.append(message._replace(path=head.path, authority=head.authority))
                if not head.keeps_alive:
                    return Reading(messages, goes_on=False)
                head = None
        except (BadRequest, BodyTooBig):
            return Reading(messages, goes_on=False)
    return Reading(messages, goes_on=True)


def read_h11(data: bytes) -> Reading:
    """The requests that h11 finds; each is answered, and each upgrade is refused."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_EVENT)
    messages: list[Message] = []
    request: h11.Request | None = None
    body = b""
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                messages.append(_message(request.method, request.target, request.headers, body))
                connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return Reading(messages, goes_on=False)
                connection.start_next_cycle()
            else:
                return Reading(messages, goes_on=event is h11.NEED_DATA)
    except h11.ProtocolError:
        return Reading(messages, goes_on=False)


class _Factory:
    """What a channel has for its factory."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def log(self, request: http.Request) -> None: ...


class _Request(http.Request):
    """Is kept, and answered."""

    def gotLength(self, length: int | None) -> None:
        # By itself it would keep a body in a file, and leave the file open at its end.
        self.content = BytesIO()

    def process(self) -> None:
        headers = [(name.lower(), value) for name, values in self.requestHeaders.getAllRawHeaders()
                   for value in values]  # fmt: skip
        message = _message(self.method, self.uri, headers, self.content.read())
        self.channel.factory.messages.append(message)
        self.setResponseCode(404)
        self.setHeader(b"content-length", b"0")
        self.finish()


class _Transport(StringTransport):
    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.7", 50000)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 80)


def read_twisted(data: bytes) -> Reading:
    """The requests that `twisted.web` finds."""
    factory = _Factory()
    channel: Any = http.HTTPChannel()
    channel.requestFactory = _Request
    channel.factory = factory
    channel.timeOut = None
    channel.callLater = Clock().callLater
    transport = _Transport()
    channel.makeConnection(transport)
    try:
        channel.dataReceived(data)
    except ValueError:  # a length of more digits than an int may have
        return Reading(factory.messages, goes_on=False)
    return Reading(factory.messages, goes_on=not transport.disconnecting)
