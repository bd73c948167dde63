"""The functions that take bytes from the network. Each target takes any bytes, and raises on a bug.

The bytes come from clients, and also from a unit, from a token server and from a broker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from random import Random

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from tests.fuzz.framing import compare
from tests.support.fakes import FakeCheck
from tests.support.harness import (
    EPOCH,
    HANDSHAKE,
    HOST,
    MAX_BODY,
    WEBSOCKET_PATH,
    Client,
    ServiceTestCase,
)
from tests.support.jwt_issuer import AUDIENCE, ISSUER, private_key
from tests.support.jwt_issuer import encode as encode_token
from tests.support.jwt_issuer import jwk as public
from tests.support.jwt_issuer import jwks as published
from tests.support.request_corpus import ROWS, Ending
from tests.support.stomp_server import ScriptedBroker
from topicsvc.brokers.activemq.broker import ActiveMQBroker
from topicsvc.brokers.activemq.stomp_frames import Decoder, encode
from topicsvc.brokers.message_text import json_body
from topicsvc.errors import (
    AddressError,
    InvalidBody,
    InvalidMessage,
    StompError,
    TokenInactive,
    ValidatorUnavailable,
)
from topicsvc.interfaces import Grant, Message
from topicsvc.listening.proxy_header import MAX_LENGTH, MAX_LINE, InvalidProxyHeader, ProxyHeader
from topicsvc.listening.proxy_protocol import ProxiedFactory
from topicsvc.settings import IssuerSettings, JwtSettings, Rule
from topicsvc.strict_json import json_text
from topicsvc.topics import MAX_NAME, SubjectPattern, TopicAddress, TopicPattern, Unit
from topicsvc.validators.introspection_response import read_claims
from topicsvc.validators.jwt.key_source import FixedKeys
from topicsvc.validators.jwt.keys import read_keys, verify
from topicsvc.validators.jwt.validator import JwtValidator
from topicsvc.validators.jwt.walk import walk
from topicsvc.validators.personium import methods
from topicsvc.validators.propfind import TopicReader
from topicsvc.websocket.messages import parse_request

__all__ = ["CUT", "SEEDS", "TARGETS"]

MAX_ROW = 2000
"""Bytes of the longest row of `tests.support.request_corpus` that is a seed."""

CUT = b"~|~"
"""In the bytes of a stream, this separates two pieces that arrive one after the other."""

UNIT = Unit("https://unit1.example/", ["unit1.example", "127.0.0.1", "[::1]"])
LONG_PAUSE = 100.0
"""Seconds: longer than every deadline except those of open sessions."""


@contextlib.contextmanager
def nothing_logged() -> Iterator[None]:
    """Raise if a failure is logged in this context."""
    failures: list[Failure] = []

    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            failures.append(event["log_failure"])

    globalLogPublisher.addObserver(observe)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observe)
    for failure in failures:
        raise AssertionError(f"logged: {failure.getTraceback()}") from failure.value


# Pure functions.


JWT_ISSUER = IssuerSettings(ISSUER, (AUDIENCE, "x"), details_type="t")
JWT_KEYS = read_keys(published(public(private_key("Ed25519"))))
JWT_RULES = (
    Rule("news", (TopicPattern.parse("/cell1/*"),), frozenset({"receive"})),
    Rule(None, (SubjectPattern.parse("/cell1/box1/{sub}/*"),), frozenset({"send"}), ("a", "b"), ""),
)


def address(data: bytes) -> None:
    """Host headers, one a line, an empty line, and a path; the path also as a setting."""
    hosts, _, path = data.partition(b"\n\n")
    for read in (UNIT.websocket_topic, UNIT.send_topic):
        with contextlib.suppress(AddressError):
            _check_topic(read(hosts.split(b"\n"), path))
    UNIT.is_websocket_path(path)
    text = path.decode("utf-8", "surrogateescape")
    with contextlib.suppress(AddressError):
        _check_topic(TopicAddress.from_path(text))
    with contextlib.suppress(AddressError):
        TopicPattern.parse(text)


def framing(data: bytes) -> None:
    """Requests, which h11 and twisted.web find as well if they accept them."""
    compare(data)


def host(data: bytes) -> None:
    """One Host header with a valid path: it names the unit, one of its cells, or nothing."""
    below = b"/__topic/box1/col.topic.name"
    for path in (below, b"/cell1" + below):
        try:
            topic = UNIT.websocket_topic([data], path)
        except AddressError:
            continue
        name = data.lower().decode("ascii")
        if path is below:
            assert name.startswith(topic.cell + "."), name
        else:
            assert topic.cell == "cell1", name
            assert name.partition(":")[0] in ("unit1.example", "127.0.0.1", "["), name


def _check_topic(topic: TopicAddress) -> None:
    assert TopicAddress.from_path(topic.path) == topic
    assert len(topic.broker_name) <= MAX_NAME
    assert topic.broker_name.count(".") == len(topic.parts) - 1
    assert not set(topic.broker_name) & set(" ,*>?:/\\#%;\0\r\n"), topic


def message(data: bytes) -> None:
    """The content of a WebSocket message or of an HTTP body."""
    with contextlib.suppress(InvalidMessage):
        token = parse_request(data).token
        assert token.isascii()
        assert token.isprintable()
    with contextlib.suppress(InvalidBody):
        assert json_text(data) in data


def propfind(data: bytes) -> None:
    """A response of a unit: a content type, a line end, and XML; also an Allow header."""
    content_type, _, body = data.partition(b"\n")
    with contextlib.suppress(ValidatorUnavailable):
        reader = TopicReader("name", content_type.decode("latin-1"))
        reader.feed(body)
        reader.close()
    methods(content_type.decode("latin-1"))


def introspection(data: bytes) -> None:
    """The response to a token introspection request."""
    with contextlib.suppress(TokenInactive, ValidatorUnavailable):
        claims = read_claims(data, EPOCH)
        assert claims.expires_at > EPOCH


def jwt(data: bytes) -> None:
    """A token; and a header, a line end and claims, which are then signed."""
    header, _, claims = data.partition(b"\n")
    signed = encode_token(header, claims, private_key("Ed25519"), "EdDSA")
    settings = JwtSettings((JWT_ISSUER,), JWT_RULES)
    validator = JwtValidator(settings, {ISSUER: FixedKeys(JWT_KEYS)}, lambda: EPOCH)
    topic = TopicAddress("cell1", "box1", ("col",), "name")
    for token in (data.decode("latin-1"), signed):
        outcome: list[Grant | Failure] = []
        validator.validate(token, topic).addBoth(outcome.append)
        [result] = outcome
        if isinstance(result, Failure):
            result.trap(TokenInactive)
            assert len(token) < 100 or token not in str(result.value)
        else:
            assert token is signed, "a token without a valid signature"
            assert result.expires_at > EPOCH
        steps = list(walk(token, settings, {ISSUER: JWT_KEYS}, EPOCH, topic))
        is_refused = isinstance(result, Failure) or not (result.may_receive or result.may_send)
        assert is_refused != all(step.is_met for step in steps), steps


def jwks(data: bytes) -> None:
    """A key set. Each key that is read can be used, and accepts no arbitrary signature."""
    with contextlib.suppress(ValueError):
        keys = read_keys(data)
        for key in keys.keys:
            assert key.algorithms
            for algorithm in key.algorithms:
                assert not verify(key, algorithm, b"signed", data[:64])
        assert keys.replaced_by(read_keys(data)).keys == keys.keys


def stomp(data: bytes) -> None:
    """Frames of a broker, in pieces. A frame that was read can be encoded and read again."""
    decoder = Decoder(max_head=1000, max_body=1000)
    with contextlib.suppress(StompError):
        for piece in data.split(CUT):
            decoder.feed(piece)
            while (frame := decoder.next_frame()) is not None:
                with contextlib.suppress(StompError):
                    again = Decoder()
                    again.feed(encode(frame))
                    assert again.next_frame() == frame
    with contextlib.suppress(InvalidBody):
        json_text(json_body(data))


# Streams, in memory and in virtual time.


def broker(data: bytes) -> None:
    """A broker that completes its greeting and then sends `data` on both connections."""
    with nothing_logged():
        clock = Clock()
        clock.rightNow = EPOCH
        server = ScriptedBroker(clock)
        inbox: list[Message] = []
        activemq = ActiveMQBroker(server, clock, clock.seconds, random=Random(1))
        activemq.startService()
        _iterate(clock)
        topic = TopicAddress("cell1", "box1", ("col",), "name")
        for pending in (
            activemq.subscribe(topic, inbox.append),
            activemq.publish(Message(topic, None, b"1")),
        ):
            pending.addErrback(lambda _: None)
        _iterate(clock)
        for connection in list(server.connected):
            for piece in data.split(CUT):
                connection.send_bytes(piece)
                _iterate(clock)
        for received in inbox:
            assert received.topic == topic
            json_text(received.body)
        stopping: Deferred[None] = activemq.stopService()
        for _ in range(10):
            clock.advance(1)
            _iterate(clock)
        assert stopping.called
        assert clock.getDelayedCalls() == []


def _iterate(clock: Clock) -> None:
    for _ in range(4):
        clock.advance(0)


class _Service(ServiceTestCase):
    """A service in memory, outside of a test run."""

    def runTest(self) -> None:
        raise NotImplementedError

    @classmethod
    def started(cls) -> _Service:
        service = cls("runTest")
        service.setUp()
        service.broker.confirms_at_once = True
        return service


_RESULTS: list[Callable[[FakeCheck], None]] = [
    lambda check: check.grant(EPOCH + 50),
    FakeCheck.refuse,
    FakeCheck.be_unavailable,
    lambda check: None,
    lambda check: check.grant(EPOCH + 50, may_send=False, may_receive=False),
]


def request(data: bytes) -> None:
    """Any bytes of a client, in pieces. The first byte selects the result of token checks."""
    _converse(data[:1], data[1:])


def frames(data: bytes) -> None:
    """Any bytes of a client after a valid handshake."""
    lines = [f"GET {WEBSOCKET_PATH} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in HANDSHAKE.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    _converse(data[:1], head + CUT + data[1:])


def proxy(data: bytes) -> None:
    """Any bytes on an endpoint behind a proxy, such as a PROXY header and a request."""
    whole = data.replace(CUT, b"")
    at_once = _proxy_header([whole])
    assert at_once == _proxy_header([bytes([each]) for each in whole])
    if isinstance(at_once, tuple):
        limit = MAX_LENGTH if whole.startswith(b"\r") else MAX_LINE
        assert len(whole) - len(at_once[-1]) <= limit
    _converse(data[:1], data, is_proxied=True)


def _proxy_header(pieces: list[bytes]) -> object:
    """The result of `ProxyHeader`: the addresses in the header, and the bytes behind it."""
    header = ProxyHeader()
    for number, piece in enumerate(pieces):
        try:
            rest = header.feed(piece)
        except InvalidProxyHeader:
            return "none"
        if rest is not None:
            behind = rest + b"".join(pieces[number + 1 :])
            return header.source, header.destination, behind
    return "not complete"


def _converse(choice: bytes, data: bytes, is_proxied: bool = False) -> None:
    set_result = _RESULTS[(choice or b"\0")[0] % len(_RESULTS)]
    with nothing_logged():
        service = _Service.started()
        client = Client(service, site=ProxiedFactory(service.site) if is_proxied else None)
        for piece in data.split(CUT):
            client.send_raw(piece)
            for check in service.validator.checks:
                if not check.result.called:
                    set_result(check)
            service.iterate()
        service.advance(LONG_PAUSE)
        for published in service.broker.published:
            assert json_text(published.body) == published.body
            assert len(published.body) <= MAX_BODY
        assert b"TwistedWeb" not in client.transport.written
        client.transport.drain()
        client.disconnect()
        service.iterate()
        service.assert_nothing_left()


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        address, framing, host, message, propfind, introspection, jwt, jwks, stomp, broker,
        request, frames, proxy,
    )
}  # fmt: skip
"""All targets, by name."""


def _http(*lines: str, body: bytes = b"") -> bytes:
    return b"\0" + "\r\n".join([*lines, "", ""]).encode() + body


_UPGRADE = [f"{name}: {value}" for name, value in HANDSHAKE.items()]
_UPGRADING = _http(f"GET {WEBSOCKET_PATH} HTTP/1.1", f"Host: {HOST}", *_UPGRADE)[1:]
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_PROPFIND = (
    b'application/xml; charset="utf-8"\n<?xml version="1.0"?><multistatus xmlns="DAV:"><response>'
    b'<propstat><prop><resourcetype><p:stream xmlns:p="urn:x-personium:xmlns"/></resourcetype>'
    b'<p:topics xmlns:p="urn:x-personium:xmlns"><p:topic>name</p:topic></p:topics></prop>'
    b"<status>HTTP/1.1 200 OK</status></propstat></response></multistatus>"
)

SEEDS: dict[str, list[bytes]] = {
    "address": [
        b"cell1.unit1.example\n\n/__topic/box1/col.topic.name",
        b"unit1.example:443\n\n/cell1/box1/dir/col/topic/n%61me",
        b"127.0.0.1\nunit1.example\n\n/cell1/__topic/__/%E3%81%82.topic.name?x",
        b"\n\n/cell1/box1/*",
        b"",
    ],
    # Accepted rows are in it five times, so that most inputs begin with a good request.
    "framing": [
        row.data
        for row in ROWS
        for _ in range(5 if row.ending is Ending.OPEN else 1)
        if len(row.data) <= MAX_ROW
    ],
    "host": [b"cell1.unit1.example", b"[::1]:80", b"127.0.0.1", b"unit1.example.", b"\xff", b""],
    "message": [
        b'{"AccessToken":"AA~91"}',
        b'{"AccessToken":"\\ud800","x":[1.5e400,NaN]}',
        b"[" * 2000,
        b" 1 ",
        b"",
    ],
    "propfind": [
        _PROPFIND,
        b"text/xml; charset=klingon\n<?xml version='1.0' encoding='utf-16'?><a/>",
        b'OPTIONS, GET\n<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b"",
    ],
    "introspection": [
        b'{"active":true,"exp":1544059820000,"scope":"a b","aud":["x",1],"nbf":1}',
        b'{"active":true,"exp":2518612600,"sub":"https://cell1.unit1.example/#me"}',
        b'{"active":false}',
        b'{"active":true,"exp":1e999}',
        b"",
    ],
    "jwt": [
        b'{"alg":"EdDSA","typ":"at+jwt","kid":"a"}\n{"iss":"'
        + ISSUER.encode()
        + b'","aud":["https://push.example/"],"exp":1e10,"sub":"alice","scope":"news"}',
        b'{"alg":"EdDSA","typ":"at+jwt"}\n{"iss":"'
        + ISSUER.encode()
        + b'","aud":"x","exp":1.5,"nbf":-1,"scp":["a"],"authorization_details":[{"type":"t",'
        b'"actions":["receive","send"],"topics":["/cell1/*"]}]}',
        b"eyJhbGciOiJub25lIn0.e30.",
        b"a.b.c.d.e",
        b'{"alg":"HS256","crit":["b64"],"jku":"x"}\n{"exp":NaN,"exp":[[[[]]]]}',
        b"",
    ],
    "jwks": [
        published(public(private_key("RSA2048")), public(private_key("ES256"), "b")),
        published(public(private_key("Ed25519"), alg="Ed25519"), {"kty": "AKP", "pub": "AA"}),
        published({"kty": "RSA", "n": "AQ", "e": "AQAB", "d": "AQ"}, {"kty": "oct", "k": "AA"}),
        published({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "key_ops": ["verify"]}),
        b'{"keys":[1,[],null,{}]}',
        b"",
    ],
    "stomp": [
        b"CONNECTED\nversion:1.2\nheart-beat:5000,5000\n\n\0",
        b'MESSAGE\nsubscription:1\ncontent-length:3\n\n{"a' + CUT + b'":1}\0\n\n',
        b"ERROR\nmessage:a\\cb\n\nwhy\0",
        b'{"a":"\xed\xa0\xbd\xed\xb8\x80\xc0\x80"}',
        b"",
    ],
    "broker": [
        b"MESSAGE\nsubscription:1\ndestination:/topic/cell1.box1.col.topic.name\n\n{}\0",
        b"MESSAGE\nsubscription:x\n\n\xff\0" + CUT + b"ERROR\nmessage:no\n\n\0",
        b"RECEIPT\nreceipt-id:1\n\n\0" + CUT + b"ERROR\nreceipt-id:2\n\n\0",
        b"CONNECTED\n\n\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
    ],
    "request": [
        _http(f"GET {WEBSOCKET_PATH} HTTP/1.1", f"Host: {HOST}", *_UPGRADE),
        _http(
            "POST /box1/col/topic/name HTTP/1.1",
            f"Host: {HOST}",
            "Authorization: Bearer a",
            "Content-Length: 2",
            body=b"{" + CUT + b"}",
        ),
        _http(
            "PUT /box1/col/topic/name HTTP/1.1",
            f"Host: {HOST}",
            "Authorization: Bearer a",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            body=b"3\r\n[1]\r\n0\r\n\r\n",
        )
        + b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\1" + _http("OPTIONS / HTTP/1.0", "Authorization: Bearer a")[1:],
        b"\0PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
    ],
    "frames": [
        b"\0\x81\x97\0\0\0\0" + b'{"AccessToken":"AA~91"}' + CUT + b"\x88\x82\0\0\0\0\x03\xe8",
        b"\1\x81\x97\0\0\0\0" + b'{"AccessToken":"AA~91"}' + CUT + b"\x89\x80\0\0\0\0",
        b"\0\x01\x81\0\0\0\0\xe2" + CUT + b"\x80\x82\0\0\0\0\x98\x83",
        b"\0\x82\xfe\xff\xff\0\0\0\0" + b"x" * 100,
        b"\0\x81\xff\x40\0\0\0\0\0\0\0\0\0\0\0",
        b"",
    ],
    "proxy": [
        b"PROXY TCP4 192.0.2.1 192.0.2.9 5000 443\r\n" + _UPGRADING,
        b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.9 5000" + CUT + b" 443\r\n" + _UPGRADING,
        b"PROXY UNKNOWN\r\n" + _UPGRADING,
        b"PROXY UNKNOWN ::1 ::1 1 1\r" + CUT + b"\n",
        _V2 + b"\x21\x11\0\x0c" + bytes(range(12)) + _UPGRADING,
        _V2 + b"\x21\x21\0\x27" + bytes(36) + b"\x04\0\0" + CUT + _UPGRADING,
        _V2 + b"\x21\x31\0\xd8/client" + bytes(209) + _UPGRADING,
        _V2 + b"\x20\0\0\0" + _UPGRADING,
        _V2 + b"\x21\x11\0\x02xx",
        _UPGRADING,
        b"",
    ],
}
"""What a fuzzer starts from, for each target."""
