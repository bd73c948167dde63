"""A fake Personium unit with named faults, and a server that must not get a request.

The unit answers the three requests of a check: PROPFIND on a collection, OPTIONS on a topic,
introspection on a cell. Both record the requests.
"""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_plus

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from topicsvc.topics import TopicAddress

USERNAME = "topicsvc:\N{SNOWMAN}"
PASSWORD = "pass word+%"

TEBIBYTE = 2**40

_MULTISTATUS = """\
<multistatus xmlns="DAV:">
    <response>
        <href>{href}</href>
        <propstat>
            <prop>
                <creationdate>2019-01-01T00:00:00+0000</creationdate>
                <getlastmodified>Tue, 01 Jan 2019 00:00:00 GMT</getlastmodified>
                <resourcetype>
                    <collection/>{stream}
                </resourcetype>{acl}
                <p:topics xmlns:p="urn:x-personium:xmlns" xmlns:D="DAV:">{topics}
                </p:topics>{more}
            </prop>
            <status>HTTP/1.1 200 OK</status>
        </propstat>
    </response>
</multistatus>
"""

STREAM = '<p:stream xmlns:p="urn:x-personium:xmlns"/>'

_ACL = """
                <acl xml:base="https://unit1.example/cell1/__role/__/">
                    <ace>
                        <principal>
                            <href>owner</href>
                        </principal>
                        <grant>
                            <privilege>
                                <all/>
                            </privilege>
                        </grant>
                    </ace>
                </acl>"""


def multistatus(
    topics: list[str],
    href: str = "x",
    stream: str = STREAM,
    reads_acl: bool = False,
    more: str = "",
) -> bytes:
    """The body of a unit's PROPFIND response about a stream collection.

    It has no XML declaration, and is indented.

    Args:
        topics: the registered topics.
        href: the URL of the collection.
        stream: its type.
        reads_acl: whether the token may read the privileges, as a token with `all` may.
        more: further properties.
    """
    listed = "".join(f"\n{' ' * 20}<p:topic>{topic}</p:topic>" for topic in topics)
    acl = _ACL if reads_acl else ""
    return _MULTISTATUS.format(href=href, stream=stream, acl=acl, topics=listed, more=more).encode()


@dataclass
class Token:
    """What the unit knows about a token.

    Attributes:
        expires_at: `exp`.
        subject: `sub`.
        may: the methods that OPTIONS lists.
        reads_properties: it has `read-properties`.
        has_all: it has `all`, and so reads the privileges too.
        reads_box: it has `read` on the whole box.
        scope: its scopes; a unit has none, an OAuth 2.0 server has.
    """

    expires_at: Any
    subject: str = "https://cell2.unit1.example/#me"
    may: str = "OPTIONS, POST, PUT, GET"
    reads_properties: bool = True
    has_all: bool = False
    reads_box: bool = False
    scope: str = ""


@dataclass
class Reply:
    """The response of the unit, before a fault changes it."""

    status: int
    body: bytes = b""
    headers: dict[str, str | list[str]] = field(default_factory=dict)


Fault = Callable[[Any, Reply], Any]


class FakeUnit(Resource):
    """A unit, which answers as personium-core 1.8.4 does.

    Args:
        clock: delays responses.
        topics: the registered topics.
        host: the unit's host, below which each cell has a host; None: cells are in the path.

    Attributes:
        tokens: the valid tokens.
        cells: the cells that exist.
        accounts: the names of accounts, in every cell.
        plain: paths of WebDAV files and collections, which are no stream collections.
        requests: method, path and headers of each request.
        max_requests: the most requests that were in progress at once.
        max_tokens: the most tokens that were checked at once.
    """

    isLeaf = True

    def __init__(
        self, clock: IReactorTime, topics: list[TopicAddress], host: str | None = None
    ) -> None:
        super().__init__()
        self._clock = clock
        self._host = host
        self._topics = topics
        self._faults: dict[str, Fault] = {}
        self._in_flight: Counter[str] = Counter()
        self.tokens: dict[str, Token] = {}
        self.cells = {topic.cell for topic in topics}
        self.accounts = {"me"}
        self.plain: set[str] = set()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.max_requests = 0
        self.max_tokens = 0

    def site(self) -> Site:
        site = Site(self)
        site.log = lambda request: None
        return site

    def inject(self, fault: Fault, method: str = "*") -> None:
        """Apply `fault` to requests with `method`, until `recover`."""
        self._faults[method] = fault

    def recover(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    @property
    def in_flight(self) -> int:
        return self._in_flight.total()

    def render(self, request: Any) -> Any:
        method = request.method.decode()
        headers = {
            name.decode().lower(): ", ".join(value.decode("latin-1") for value in values)
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        path = unquote(request.path.decode("ascii"))
        self.requests.append((method, path, headers))
        token = self._token(request, headers)
        self._in_flight[token] += 1
        self.max_requests = max(self.max_requests, self.in_flight)
        self.max_tokens = max(self.max_tokens, len(self._in_flight))
        request.notifyFinish().addBoth(self._left, token)
        reply = self._answer(method, self._unified(path, headers), headers, token)
        fault = self._faults.get(method) or self._faults.get("*") or answers_at_once
        return fault(request, reply)

    def _left(self, _: Any, token: str) -> None:
        self._in_flight[token] -= 1
        if not self._in_flight[token]:
            del self._in_flight[token]

    def _token(self, request: Any, headers: dict[str, str]) -> str:
        if request.method == b"POST":
            return request.args.get(b"token", [b""])[0].decode()
        return headers.get("authorization", "").removeprefix("Bearer ")

    def _unified(self, path: str, headers: dict[str, str]) -> str:
        """The path with the cell in it, in either style of cell URLs."""
        if self._host is None:
            return path
        cell, _, unit = headers["host"].partition(":")[0].partition(".")
        return f"/{cell}{path}" if unit == self._host else "/?"

    def _answer(self, method: str, path: str, headers: dict[str, str], token: str) -> Reply:
        cell, _, below = path[1:].partition("/")
        if cell not in self.cells | {topic.cell for topic in self._topics}:
            return _error(404, "PR404-OD-0000")
        if method == "POST" and below == "__introspect":
            return self._introspect(cell, headers, self.tokens.get(token))
        if method not in ("PROPFIND", "OPTIONS"):
            return _error(405, "PR405-MC-0001")
        if "authorization" not in headers:
            if method == "OPTIONS":
                return Reply(200, headers={"Allow": "OPTIONS, GET, POST, PUT, DELETE, PROPFIND"})
            return _unauthorized(cell, "PR401-AU-0001")
        if f"{cell}/{below.partition('/')[0]}" not in {
            f"{topic.cell}/{topic.box}" for topic in self._topics
        }:
            return _error(404, "PR404-DV-0003")
        facts = self.tokens.get(token)
        collection = path.rpartition("/topic/")[0] if method == "OPTIONS" else path
        names = [topic.topic for topic in self._topics if _collection(topic) == collection]
        if not names:
            return self._no_stream_collection(method, cell, path, facts)
        if method == "OPTIONS":
            if path.rpartition("/")[2] not in names:
                return _error(404, "PR404-DV-0001")
            return Reply(200, headers={"Allow": facts.may if facts else "OPTIONS"})
        if facts is None:
            return _unauthorized(cell, "PR401-AU-0006")
        if not facts.reads_properties:
            return _error(403, "PR403-AU-0002")
        if headers.get("depth") != "0":
            return _error(400, "PR400-DV-0003")
        body = multistatus(names, path, reads_acl=facts.has_all)
        return Reply(207, body, {"Content-Type": "application/xml"})

    def _no_stream_collection(
        self, method: str, cell: str, path: str, facts: Token | None
    ) -> Reply:
        """The answer about a path that is missing, or of another kind."""
        if facts is None:
            return _unauthorized(cell, "PR401-AU-0006")
        if not facts.reads_box:
            return _error(403, "PR403-AU-0002")
        if method == "OPTIONS" and path in self.plain:
            return Reply(
                200, headers={"Allow": "OPTIONS, GET, PUT, DELETE, MKCOL, PROPFIND, PROPPATCH, ACL"}
            )
        return _error(404, "PR404-DV-0001")

    def _introspect(self, cell: str, headers: dict[str, str], facts: Token | None) -> Reply:
        if "authorization" not in headers:
            return _unauthorized(cell, "PR401-AU-0001")
        scheme, _, credentials = headers["authorization"].partition(" ")
        name, _, password = b64decode(credentials).decode().partition(":")
        if (scheme, unquote_plus(name), unquote_plus(password)) != ("Basic", USERNAME, PASSWORD):
            if unquote_plus(name) in self.accounts:
                return _error(403, "PR403-AU-0002")
            error = {
                "error": "invalid_client",
                "error_description": "[PR400-AN-0016] - Failed to parse client secret.",
            }
            return Reply(400, json.dumps(error).encode(), {"Content-Type": "application/json"})
        claims: dict[str, Any] = {"active": False}
        if facts is not None:
            claims = {
                "active": True,
                "client_id": "",
                "exp": facts.expires_at,
                "iat": 1544056220,
                "sub": facts.subject,
                "aud": None,
                "iss": "https://cell1.unit1.example/",
                "p_roles": [],
            }
            if facts.scope:
                claims["scope"] = facts.scope
        return Reply(200, json.dumps(claims).encode(), {"Content-Type": "application/json"})


def _collection(topic: TopicAddress) -> str:
    return f"/{topic.cell}/{topic.box}/{'/'.join(topic.collection)}"


def _error(status: int, code: str, headers: dict[str, str | list[str]] | None = None) -> Reply:
    body = json.dumps({"code": code, "message": {"lang": "en", "value": "text"}}).encode()
    return Reply(status, body, {"Content-Type": "application/json", **(headers or {})})


def _unauthorized(cell: str, code: str) -> Reply:
    realm = f'realm="https://{cell}.unit1.example/"'
    return _error(401, code, {"WWW-Authenticate": [f"Bearer {realm}", f"Basic {realm}"]})


class Trap(Resource):
    """A server that must not get a request."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []

    def render(self, request: Any) -> bytes:
        self.requests.append((request.method, request.uri, request.requestHeaders))
        return b""


# Faults. Each takes a request and its correct response.


def answers_at_once(request: Any, reply: Reply) -> Any:
    request.setResponseCode(reply.status)
    for name, value in reply.headers.items():
        values = [value] if isinstance(value, str) else value
        request.responseHeaders.setRawHeaders(name, values)
    return reply.body


def answers(
    status: int, body: bytes = b"", content_type: str = "text/plain", **headers: str
) -> Fault:
    """This response to any request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = Reply(status, body, {"Content-Type": content_type, **named})
    return lambda request, _: answers_at_once(request, reply)


def adds_header(name: str, value: bytes) -> Fault:
    """The correct response, with one header added or replaced."""

    def fault(request: Any, reply: Reply) -> Any:
        body = answers_at_once(request, reply)
        request.responseHeaders.setRawHeaders(name.encode(), [value])
        return body

    return fault


def claims(**members: Any) -> Fault:
    """An introspection response with these members."""
    return answers(200, json.dumps(members).encode(), "application/json")


def describes_collection(body: bytes, content_type: str = "application/xml") -> Fault:
    """A PROPFIND response with this body."""
    return answers(207, body, content_type)


def answers_after(clock: IReactorTime, seconds: float) -> Fault:
    """The correct response, after a delay."""

    def fault(request: Any, reply: Reply) -> Any:
        def answer() -> None:
            request.write(answers_at_once(request, reply))
            request.finish()

        late = clock.callLater(seconds, answer)
        request.notifyFinish().addErrback(lambda _: late.cancel())
        return NOT_DONE_YET

    return fault


def never_answers(request: Any, _: Reply) -> Any:
    """Reads the request, and never responds."""
    return NOT_DONE_YET


def sends_slowly(clock: IReactorTime, seconds: float = 1) -> Fault:
    """The correct response, one byte at a time; it never ends."""

    def fault(request: Any, reply: Reply) -> Any:
        body = answers_at_once(request, reply) or b"?"
        request.setHeader(b"content-length", b"%d" % (len(body) + 1000))
        state: dict[str, Any] = {"place": 0}

        def drip() -> None:
            place = state["place"] % len(body)
            request.write(body[place : place + 1])
            state["place"] += 1
            state["next"] = clock.callLater(seconds, drip)

        request.notifyFinish().addErrback(lambda _: state["next"].cancel())
        drip()
        return NOT_DONE_YET

    return fault


def closes_kept_connections(request: Any, reply: Reply) -> Any:
    """Closes each connection at its second request, before the first byte of the response."""
    if getattr(request.channel, "has_served", False):
        request.channel.transport.abortConnection()
        return NOT_DONE_YET
    request.channel.has_served = True
    return answers_at_once(request, reply)


def echoes_request(request: Any, _: Reply) -> Any:
    """An invalid HTTP response with the token and the form in the status line and a header."""
    secrets = b" ".join(
        value for value in request.requestHeaders.getRawHeaders(b"authorization", [])
    )
    secrets += b" ".join(value for values in request.args.values() for value in values)
    request.channel.transport.write(b"HTTP/1.1 %s %s\r\n%s: %s\r\n\r\n" % ((secrets,) * 4))
    request.channel.transport.loseConnection()
    return NOT_DONE_YET


def drops_every_connection(request: Any, _: Reply) -> Any:
    """Reads the request and closes the connection."""
    request.channel.transport.abortConnection()
    return NOT_DONE_YET


class _Flood:
    """Writes chunks as long as the peer reads them, up to a length."""

    def __init__(self, request: Any, piece: bytes, length: int) -> None:
        self._request = request
        self._piece = piece
        self._left = length

    def resumeProducing(self) -> None:
        if self._left <= 0:
            self._request.unregisterProducer()
            self._request.finish()
            return
        self._request.write(self._piece)
        self._left -= len(self._piece)

    def stopProducing(self) -> None:
        self._left = 0


def floods(length: int = TEBIBYTE, chunked: bool = False) -> Fault:
    """A body of `length` bytes."""

    def fault(request: Any, reply: Reply) -> Any:
        answers_at_once(request, reply)
        if not chunked:
            request.setHeader(b"content-length", b"%d" % length)
        request.registerProducer(_Flood(request, b" " * 65536, length), False)
        return NOT_DONE_YET

    return fault


def floods_with_headers(request: Any, _: Reply) -> Any:
    """Endless headers."""
    transport = request.channel.transport
    transport.write(b"HTTP/1.1 200 OK\r\n")
    line = b"X-%d: " % 1 + b"x" * 1000 + b"\r\n"

    class Headers:
        def resumeProducing(self) -> None:
            transport.write(line * 64)

        def stopProducing(self) -> None:
            pass

        def pauseProducing(self) -> None:
            pass

    transport.unregisterProducer()
    transport.registerProducer(Headers(), False)
    return NOT_DONE_YET


_BOMB = gzip.compress(b" " * 67108864)


def sends_gzip_bomb(request: Any, reply: Reply) -> Any:
    """64 KiB that decompress to 64 MiB, even if the client does not accept gzip."""
    reply.headers["Content-Encoding"] = "gzip"
    return answers_at_once(request, Reply(reply.status, _BOMB, reply.headers))


def redirects_to(url: str, status: int = 307) -> Fault:
    """A redirect to another server."""
    return answers(status, b"", Location=url)


ENTITY_BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE m [<!ENTITY a "'
    + b"a" * 1000
    + b'">'
    + b"".join(
        b'<!ENTITY %c "%s">' % (98 + level, b"&%c;" % (97 + level) * 10) for level in range(9)
    )
    + b"]><multistatus xmlns='DAV:'>&j;</multistatus>"
)
"""A "billion laughs" document: 10^9 times a thousand characters."""

NAMESPACE_BOMB = (
    b"<m xmlns='DAV:' xmlns:p='%s' " % (b"u" * 70000)
    + b" ".join(b"p:a%d=''" % number for number in range(6000))
    + b"/>"
)
"""6,000 attributes that a parser writes out with a namespace of 70,000 characters each."""

PREFIX_BOMB = b"<p:m xmlns:p='%s'>%s</p:m>" % (b"u" * 70000, b"<p:a/>" * 10000)
"""The same with elements."""

EXTERNAL_ENTITY = (
    b'<?xml version="1.0"?><!DOCTYPE m SYSTEM "file:///etc/passwd" '
    b'[<!ENTITY x SYSTEM "file:///etc/passwd">]><multistatus xmlns="DAV:">&x;</multistatus>'
)
