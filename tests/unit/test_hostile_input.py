"""Hostile bytes: only topicsvc's own exceptions, and no failure in the log.

Hypothesis generates the input for the targets of the fuzzer, `tests.fuzz`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz import framing, mutation, targets
from tests.fuzz.__main__ import parser
from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import CUT, SEEDS, TARGETS
from tests.support.fakes import FakeCheck
from tests.support.harness import HANDSHAKE, SEND_PATH, WEBSOCKET_PATH
from tests.support.jwt_issuer import AUDIENCE, ISSUER
from tests.support.strategies import topics
from topicsvc.listening.proxy_header import InvalidProxyHeader, ProxyHeader
from topicsvc.topics import TopicAddress
from topicsvc.websocket.connection import TopicConnection

UPGRADE = [f"{name}: {value}".encode() for name, value in HANDSHAKE.items()]
MANY = settings(max_examples=300, deadline=None)


def one_of(*choices: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(choices)


anything = st.binary(max_size=40)
verdict = st.binary(min_size=1, max_size=1)

hosts = st.one_of(
    one_of(b"cell1.unit1.example", b"unit1.example", b"[::1]", b"127.0.0.1:80", b"", b"."),
    st.lists(
        one_of(b"cell1", b"unit1", b"example", b".", b":", b"80", b"@", b"[", b"]", b"%2e", b"\0",
               b",", b" ", b"/", b"\\", b"\xff", b"-", b"_", b"A", b"xn--", b"65536"),
        max_size=8,
    ).map(b"".join),
    anything,
)  # fmt: skip

path_segments = one_of(
    b"/", b"//", b"__topic", b"cell1", b"box1", b"__", b"col", b"topic", b"name", b".", b"..",
    b"%2e", b"%2F", b"%", b"%00", b"%c3%a9", b"%c0%af", b"%252e", b"\\", b"*", b">", b",", b"?",
    b"#", b";", b":", b"http:", b"@", b"\xc3\xa9", b"\0", b" ", b"a" * 130,
)  # fmt: skip


def urls_of(topic: TopicAddress) -> st.SearchStrategy[bytes]:
    return one_of(topic.websocket_path.encode(), topic.send_path.encode())


paths = st.one_of(
    one_of(WEBSOCKET_PATH.encode(), SEND_PATH.encode(), b"/", b"*", b""),
    topics.flatmap(urls_of),
    st.lists(path_segments, max_size=14).map(b"".join),
    anything,
)

headers = st.one_of(
    hosts.map(lambda host: b"Host: " + host),
    one_of(*UPGRADE),
    one_of(
        b"Authorization: Bearer a-token", b"Authorization: Bearer", b"Authorization: \xff",
        b"Authorization: Basic Og==", b"Content-Length: 2", b"Content-Length: 0",
        b"Content-Length: 99999999999999999999", b"Content-Length: -1", b"Content-Length: 2_0",
        b"Content-Length: 2,2", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
        b"Expect: 100-continue", b"Connection: close", b"Connection: keep-alive, Upgrade",
        b"Upgrade: h2c", b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 8",
        b"Sec-WebSocket-Extensions: permessage-deflate", b"Sec-WebSocket-Protocol: a, b",
        b"Origin: null", b"Origin: https://evil.example", b"X-Personium-Via: https://a/, b",
        b"Content-Type: multipart/form-data; boundary=x",
        b"Content-Type: application/x-www-form-urlencoded", b"Cookie: a=b", b"Range: bytes=0-",
        b"If-Modified-Since: x", b"X: " + b"x" * 17000, b"no colon", b": no name", b" folded",
    ),
    anything,
)  # fmt: skip

bodies = st.one_of(
    one_of(b"", b"{}", b"1", b"2\r\n{}\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n", b"-1\r\n",
           b"0\r\nX: y\r\n\r\n", b"2;x=y\r\n{}\r\n0\r\n\r\n", b"[" * 600, b"x" * 1200),
    anything,
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(one_of(b"GET", b"GET", b"POST", b"PUT", b"OPTIONS", b"HEAD", b"get", b"\xff"))
    version = draw(one_of(b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 ", b""))
    end = draw(one_of(b"\r\n", b"\r\n", b"\r\n", b"\n"))
    lines = [b" ".join((method, draw(paths), version)), *draw(st.lists(headers, max_size=12))]
    if draw(st.booleans()):
        lines.append(b"Host: cell1.unit1.example")
    if draw(st.booleans()):
        lines += UPGRADE
    return end.join([*lines, b"", b""]) + draw(bodies)


@st.composite
def nearly_valid_requests(draw: st.DrawFn) -> bytes:
    """A handshake or a send, with at most one extra header."""
    host = b"Host: cell1.unit1.example"
    if draw(st.booleans()):
        lines = [b"GET %s HTTP/1.1" % draw(one_of(WEBSOCKET_PATH.encode()) | paths), host, *UPGRADE]
        body = draw(st.lists(frames(), max_size=3).map(b"".join))
    else:
        body = draw(one_of(b"{}", b"1", b"x") | bodies)
        method = draw(one_of(b"POST", b"PUT", b"OPTIONS"))
        lines = [b"%s %s HTTP/1.1" % (method, draw(one_of(SEND_PATH.encode()) | paths)), host]
        lines += [b"Authorization: Bearer a-token", b"Content-Length: %d" % len(body)]
    lines += draw(st.just([]) | st.lists(headers, max_size=1))
    return b"\r\n".join([*lines, b"", b""]) + body


def valid_frame(payload: bytes, opcode: int = 1) -> bytes:
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


nearly_valid_frames = one_of(
    valid_frame(b'{"AccessToken":"a"}'),
    valid_frame(b'{"AccessToken":"b"}'),
    valid_frame(b"ping", 9),
    valid_frame(b"pong", 10),
    valid_frame(b'{"AccessToken":""}'),
    valid_frame(b"\x03\xe8", 8),
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    payload = draw(
        st.one_of(
            one_of(b"", b'{"AccessToken":"a"}', b"\x03\xe8", b"\x03\xedx", b"\x03", b"x" * 126),
            anything,
        )
    )
    first = draw(one_of(b"\x81", b"\x81", b"\x01", b"\x80", b"\0", b"\x82", b"\x88", b"\x89")
                 | st.binary(min_size=1, max_size=1))  # fmt: skip
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    length = draw(st.just(length) | anything.map(lambda some: some[:9]))
    return first + length + bytes(4) + payload


def streams(part: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A verdict of the validator, and a sequence of parts with cuts between packets."""
    parts = st.lists(st.one_of(part, part, one_of(CUT)), max_size=8)
    return st.tuples(verdict, parts.map(b"".join)).map(b"".join)


answers = st.one_of(
    anything,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["active", "exp", "nbf", "scope", "sub", "iss", "aud", "x"]),
                inner,
                max_size=6,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
)

xml = st.lists(
    one_of(
        b"application/xml\n", b"text/xml; charset=utf-16\n", b'<multistatus xmlns="DAV:">',
        b"<response>", b"</response>", b"<propstat>", b"</propstat>", b"<prop>", b"</prop>",
        b"<status>HTTP/1.1 200 OK</status>", b"<resourcetype>", b"</resourcetype>",
        b"</multistatus>", b'<p:topic xmlns:p="urn:x-personium:xmlns">name</p:topic>', b"&#0;",
        b'<?xml version="1.0" encoding="klingon"?>', b"<!DOCTYPE a>", b"&lt;", b"<![CDATA[x]]>",
        b"\xff\xfe<\0a\0/\0>\0", b"<a:b/>", b"<!--", b"-->", b"<?x y?>",
    )
    | anything,
    max_size=12,
).map(b"".join)  # fmt: skip

stomp = st.lists(
    one_of(
        CUT, b"MESSAGE\n", b"RECEIPT\n", b"ERROR\n", b"CONNECTED\n", b"version:1.2\n", b"\n",
        b"heart-beat:5000,5000\n", b"receipt-id:1\n", b"receipt-id:2\n", b"subscription:1\n",
        b"destination:/topic/cell1.box1.col.topic.name\n", b"content-length:2\n", b"{}", b"\0",
        b"content-length:99999999999\n", b"\\x", b":", b"\r\n", b"message:no\n", b"\n\n{}\0",
        b"__PERSONIUM_CELL:https\\c//x/\n", b"MESSAGE\nsubscription:1\n\n\xed\xa0\x80\0",
    )
    | anything,
    max_size=12,
).map(b"".join)  # fmt: skip


proxy_headers = st.lists(
    one_of(
        CUT, b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"UNIX ", b" ", b"192.0.2.1 ", b"::1 ",
        b"80", b"65536 ", b"1_0 ", b"\xd9\xa1 ", b"x" * 107, b"\r\n", b"\n", b"\xff", b"9" * 60,
        b"\r\n\r\n\0\r\nQUIT\n", b"\x20", b"\x21", b"\x22", b"\0", b"\x11", b"\x12", b"\x31",
        b"\x41", b"\0\x0c", b"\0\x24", b"\0\xd8", b"\x40\0", bytes(12), bytes(36), bytes(216),
    )
    | anything,
    max_size=8,
).map(b"".join)  # fmt: skip


@st.composite
def proxied(draw: st.DrawFn) -> bytes:
    """A PROXY header, often a valid one, and perhaps a request."""
    request = SEEDS["proxy"][-2]
    good = st.sampled_from(SEEDS["proxy"][:-2]).map(lambda seed: seed.partition(request)[0])
    header = draw(good | proxy_headers)
    at = draw(st.integers(0, len(header)))
    between = draw(one_of(b"", b"", CUT) | anything)
    return header[:at] + between + header[at:] + draw(one_of(request, b"") | anything)


json_parts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["a", "news", "alice", "at+jwt", "EdDSA", ISSUER, AUDIENCE, "t", "/*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "actions", "topics", "a", "b", "roles"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def jwts(draw: st.DrawFn) -> bytes:
    """A header and claims, most of them nearly valid; `tests.fuzz.targets.jwt` signs them."""
    header: dict[str, object] = {"alg": "EdDSA", "typ": "at+jwt", "kid": "a"}
    claims: dict[str, object] = {
        "iss": ISSUER, "aud": AUDIENCE, "exp": 10**10, "sub": "alice", "scope": "news",
        "authorization_details": [{"type": "t", "actions": ["send"], "topics": ["/*"]}],
    }  # fmt: skip
    for members, names in (
        (header, [*header, "crit", "jku", "x5u", "jwk", "b64"]),
        (claims, [*claims, "nbf", "iat", "scp", "a"]),
    ):
        for name in draw(st.lists(st.sampled_from(names), max_size=2)):
            members[name] = draw(json_parts)
    text = "\n".join(json.dumps(members) for members in (header, claims))
    return draw(st.sampled_from([b"", b" ", b"\n", b"."])) + text.encode()


@st.composite
def key_sets(draw: st.DrawFn) -> bytes:
    """A key set, most of whose keys are nearly valid."""
    keys = [json.loads(seed) for seed in SEEDS["jwks"][:4]]
    entries = [dict(draw(st.sampled_from(each["keys"]))) for each in keys]
    for entry in entries:
        for name in draw(st.lists(st.sampled_from(
            ["kty", "n", "e", "x", "y", "crv", "kid", "alg", "use", "key_ops", "d", "k"]
        ), max_size=2)):  # fmt: skip
            entry[name] = draw(
                json_parts | st.text("AQ_-=", max_size=90)
                | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "RS256", "sig", "AQAB"])
            )  # fmt: skip
    return json.dumps({"keys": entries}).encode()


class HostileInputTests(SynchronousTestCase):
    @MANY
    @given(st.lists(hosts, max_size=2), paths)
    def test_urls(self, names: list[bytes], path: bytes) -> None:
        TARGETS["address"](b"\n".join(names) + b"\n\n" + path)

    @MANY
    @given(hosts)
    def test_hosts(self, host: bytes) -> None:
        TARGETS["host"](host)

    @MANY
    @given(streams(nearly_valid_requests() | requests() | anything))
    def test_requests(self, stream: bytes) -> None:
        TARGETS["request"](stream)

    @MANY
    @given(st.lists(nearly_valid_requests() | requests() | anything, max_size=4).map(b"".join))
    def test_framing(self, stream: bytes) -> None:
        TARGETS["framing"](stream)

    @MANY
    @given(streams(nearly_valid_frames | frames() | anything))
    def test_frames(self, stream: bytes) -> None:
        TARGETS["frames"](stream)

    @MANY
    @given(proxied())
    def test_proxy_headers(self, stream: bytes) -> None:
        TARGETS["proxy"](stream)

    @MANY
    @given(stomp)
    def test_stomp(self, stream: bytes) -> None:
        TARGETS["stomp"](stream)
        TARGETS["broker"](stream)

    @MANY
    @given(xml)
    def test_propfind(self, answer: bytes) -> None:
        TARGETS["propfind"](answer)

    @MANY
    @given(jwts())
    def test_jwts(self, token: bytes) -> None:
        TARGETS["jwt"](token)

    @MANY
    @given(key_sets())
    def test_key_sets(self, body: bytes) -> None:
        TARGETS["jwks"](body)

    @MANY
    @given(answers)
    def test_introspection_and_messages(self, answer: bytes) -> None:
        TARGETS["introspection"](answer)
        TARGETS["message"](answer)


class MutationTests(SynchronousTestCase):
    """Random mutations, for machines without atheris."""

    def test_the_same_choices_make_the_same_inputs(self) -> None:
        inputs = []
        for _ in range(2):
            mutator = Mutator([b"GET / HTTP/1.1\r\n", b"", b"x" * 101], Random(1), 100)
            inputs.append([mutator.next() for _ in range(500)])
        self.assertEqual(inputs[0], inputs[1])
        self.assertGreater(len(set(inputs[0])), 300)
        self.assertLessEqual(max(map(len, inputs[0])), 100)

    def test_it_ends_in_time_or_with_an_error(self) -> None:
        seen: list[bytes] = []
        mutator = Mutator([b"a"], Random(1), 100)
        self.assertEqual(mutation.run("x", seen.append, mutator, 0.01, slow=10), len(seen))
        self.assertGreater(len(seen), 1)

        def fail(_: bytes) -> None:
            raise ZeroDivisionError("said the test")

        self.assertRaises(ZeroDivisionError, mutation.run, "x", fail, mutator, 10, 10)
        self.assertTrue(Path("fuzz-x-input").exists())
        self.assertRaises(AssertionError, mutation.run, "x", seen.append, mutator, 10, 0)


class TargetTests(SynchronousTestCase):
    """The fuzzer's targets run, and detect errors."""

    def test_every_seed_passes(self) -> None:
        self.assertEqual(set(SEEDS), set(TARGETS))
        for name, seeds in SEEDS.items():
            for seed in seeds:
                TARGETS[name](seed)

    def test_a_logged_failure_is_detected(self) -> None:
        def fail(check: FakeCheck) -> None:
            check.result.errback(ZeroDivisionError("injected by the test"))

        self.patch(targets, "_RESULTS", [fail])
        self.assertRaises(AssertionError, targets.frames, SEEDS["frames"][0])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_leak_is_detected(self) -> None:
        self.patch(TopicConnection, "onClose", lambda *_: None)
        self.assertRaises(AssertionError, targets.frames, SEEDS["frames"][0])

    def test_a_proxy_header_that_depends_on_packets_is_detected(self) -> None:
        feed = ProxyHeader.feed

        def needs_8_bytes_at_once(header: ProxyHeader, data: bytes) -> bytes | None:
            if len(data) < 8:
                raise InvalidProxyHeader
            return feed(header, data)

        self.patch(ProxyHeader, "feed", needs_8_bytes_at_once)
        self.assertRaises(AssertionError, targets.proxy, b"PROXY UNKNOWN\r\n")

    def test_parsers_that_disagree_are_detected(self) -> None:
        two = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1" * 2
        TARGETS["framing"](two)
        ours = framing.read_ours

        def other_body(pieces: Iterable[bytes]) -> framing.Reading:
            messages, goes_on = ours(pieces)
            return framing.Reading([each._replace(body=b"2") for each in messages], goes_on)

        def one_less(pieces: Iterable[bytes]) -> framing.Reading:
            messages, goes_on = ours(pieces)
            return framing.Reading(messages[:-1], goes_on)

        def none_byte_by_byte(pieces: Iterable[bytes]) -> framing.Reading:
            pieces = list(pieces)
            return ours(pieces if len(pieces) == 1 else [])

        for change in (other_body, one_less, none_byte_by_byte):
            self.patch(framing, "read_ours", change)
            self.assertRaises(AssertionError, TARGETS["framing"], two)

    def test_another_exception_is_detected(self) -> None:
        def fails(*_: object) -> None:
            raise ZeroDivisionError("injected by the test")

        for name, function in (("introspection", "read_claims"), ("propfind", "TopicReader"),
                               ("message", "parse_request"), ("stomp", "json_body")):  # fmt: skip
            self.patch(targets, function, fails)
            self.assertRaises(ZeroDivisionError, TARGETS[name], SEEDS[name][0])


class PageTests(SynchronousTestCase):
    def test_the_fuzzer_s_commands_are_those_of_the_security_page(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
        commands = re.findall(r"^ {4}python -m tests\.fuzz *(\w*)(.*?) *#", page, re.MULTILINE)
        self.assertEqual(len(commands), 2)
        for target, options in commands:
            self.assertIn(target, ["", *TARGETS])
            parsed = parser().parse_args([*target.split(), *options.split()])
            self.assertEqual(parsed.seconds, 600 if target else 60)
