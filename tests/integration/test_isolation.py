"""No request reaches the topic of another cell, or a host other than the unit's.

In these tests each token is valid for all topics, so that only the parsing of addresses keeps
topics apart. Each row is sent unchanged, as a WebSocket handshake and as a send request. It
reaches the topic that it names, or no topic. Token checks go to the unit alone, and concern
that topic alone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks

from tests.integration.support.validated_service import (
    REPLY_TIMEOUT,
    ValidatedServiceTestCase,
    sleep,
)
from tests.integration.test_faults import LoopbackResolver
from tests.support.fake_unit import FakeUnit, Token
from tests.support.harness import HANDSHAKE, Client
from topicsvc.interfaces import Message
from topicsvc.settings import (
    Config,
)
from topicsvc.topics import CellUrlStyle, TopicAddress, Unit

Test = Generator[Deferred[Any], Any, None]

UNIT = "unit1.example"
REFUSED = (400, 401, 403, 404, 405)


def topic(path: str) -> TopicAddress:
    return TopicAddress.from_path(path)


NAMED = topic("/cell1/box1/col/topic/name")
CELL2 = topic("/cell2/box1/col/topic/name")
MAIN_BOX = topic("/cell1/__/col/topic/name")
OTHER_CASE = topic("/cell1/box1/Col/topic/name")
FULL_WIDTH = topic("/cell1/box1/\uff43\uff4f\uff4c/topic/name")
COMPOSED = topic("/cell1/box1/\u00e9/topic/name")
DEEP = topic("/cell1/box1/dir/col/topic/name")
TOPIC_IN_TOPIC = topic("/cell1/box1/col/topic/name/topic/name")
NAMES_OF_CELLS = topic("/cell1/box1/cell2/box1/topic/name")
ALL = [
    NAMED,
    CELL2,
    MAIN_BOX,
    OTHER_CASE,
    FULL_WIDTH,
    COMPOSED,
    DEEP,
    TOPIC_IN_TOPIC,
    NAMES_OF_CELLS,
    topic("/cell2/__/col/topic/name"),
    topic("/cell1/box2/col/topic/name"),
    topic("/cell1/box1/col/topic/name2"),
    topic("/cell1/box1/col/topic/Name"),
    topic("/cell10/box1/col/topic/name"),
    topic("/box1/col/dir/topic/name"),
]

HOSTS: list[tuple[list[bytes], TopicAddress | None]] = [
    # Host headers, and the topic of ``col.topic.name`` in ``box1`` with them.
    ([b"cell1.unit1.example"], NAMED),
    ([b"CELL1.Unit1.Example"], NAMED),
    ([b"cell1.unit1.example:443"], NAMED),
    ([b"cell1.unit1.example:80"], NAMED),
    ([b"  cell1.unit1.example  "], NAMED),
    ([b"cell2.unit1.example"], CELL2),
    ([], None),
    ([b""], None),
    ([b"cell1.unit1.example", b"cell1.unit1.example"], None),
    ([b"cell1.unit1.example", b"cell2.unit1.example"], None),
    ([b"cell1.unit1.example", b"trap.example"], None),
    ([b"cell1.unit1.example, cell2.unit1.example"], None),
    ([b"cell1.unit1.example,cell2.unit1.example"], None),
    ([b"cell1.unit1.example cell2.unit1.example"], None),
    ([b"cell1.unit1.example;cell2.unit1.example"], None),
    ([b"cell1.unit1.example\tcell2.unit1.example"], None),
    ([b"cell1.unit1.example\r\n cell2.unit1.example"], None),
    ([b"cell1.unit1.example\0"], None),
    ([b"cell1\0.unit1.example"], None),
    ([b"cell1.unit1.example."], None),
    ([b".cell1.unit1.example"], None),
    ([b"cell1..unit1.example"], None),
    ([b"cell2.cell1.unit1.example"], None),
    ([b"*.unit1.example"], None),
    ([b">.unit1.example"], None),
    ([b"cell*.unit1.example"], None),
    ([b"cell_1.unit1.example"], None),
    ([b"-cell1.unit1.example"], None),
    ([b"cell1%2eunit1.example"], None),
    ([b"%63ell1.unit1.example"], None),
    ([b"cell1%00.unit1.example"], None),
    ([b"cell1,cell2.unit1.example"], None),
    ([b"cell1/cell2.unit1.example"], None),
    ([b"cell1\\cell2.unit1.example"], None),
    ([b"cell1#.unit1.example"], None),
    ([b"cell1?.unit1.example"], None),
    ([b"cell1@unit1.example"], None),
    ([b"cell1.unit1.example@trap.example"], None),
    ([b"trap.example@cell1.unit1.example"], None),
    ([b"trap.example:80@cell1.unit1.example"], None),
    ([b"cell1.unit1.example:80:80"], None),
    ([b"cell1.unit1.example:"], None),
    ([b"cell1.unit1.example:-1"], None),
    ([b"cell1.unit1.example:65536"], None),
    ([b"cell1.unit1.example:0x50"], None),
    ([b"cell1.unit1.example/"], None),
    ([b"cell1.unit1.example#"], None),
    ([b"cell1.unit1.example?"], None),
    ([b"http://cell1.unit1.example"], None),
    ([b"//cell1.unit1.example"], None),
    ([b"cell1.trap.example"], None),
    ([b"cell1.unit1.example.trap.example"], None),
    ([b"trap.example"], None),
    ([b"trap.example#.unit1.example"], None),
    ([b"trap.example/.unit1.example"], None),
    ([b"trap.example\\.unit1.example"], None),
    ([b"127.0.0.1"], None),
    ([b"[::1]"], None),
    ([b"localhost"], None),
    ([b"2130706433.unit1.example"], topic("/2130706433/box1/col/topic/name")),
    (["\u216dell1.unit1.example".encode()], None),
    (["cell1\u3002unit1.example".encode()], None),
    (["cell\u0661.unit1.example".encode()], None),
    ([b"xn--cell1.unit1.example"], topic("/xn--cell1/box1/col/topic/name")),
    ([b"cell1-.unit1.example"], topic("/cell1-/box1/col/topic/name")),
    ([b"c" * 64 + b".unit1.example"], topic(f"/{'c' * 64}/box1/col/topic/name")),
    ([b"c" * 129 + b".unit1.example"], None),
]

BELOW: list[tuple[bytes, TopicAddress | None]] = [
    # Values of ``{Path}``, and their topics in ``box1`` of ``cell1``. A ``|`` stands for the
    # separator of parts: ``.`` in a WebSocket URL, ``/`` in a send URL.
    (b"col|topic|name", NAMED),
    (b"Col|topic|name", OTHER_CASE),
    (b"dir|col|topic|name", DEEP),
    (b"col|topic|name|topic|name", TOPIC_IN_TOPIC),
    (b"cell2|box1|topic|name", NAMES_OF_CELLS),
    (b"%63ol|topic|name", NAMED),
    (b"%63%6f%6C|topic|%6eame", NAMED),
    (b"col|%74opic|name", NAMED),
    (b"%EF%BD%83%EF%BD%8F%EF%BD%8C|topic|name", FULL_WIDTH),
    (b"%c3%a9|topic|name", COMPOSED),
    (b"col|topic|name?col2|topic|name", NAMED),
    (b"col|topic|name?/cell2/__topic/box1/col.topic.name", NAMED),
    (b"col|topic|unknown", topic("/cell1/box1/col/topic/unknown")),
    (b"e%cc%81|topic|name", topic("/cell1/box1/e\u0301/topic/name")),  # not the composed one
    (b"%2563ol|topic|name", None),
    (b"%25252563ol|topic|name", None),
    (b"col%2Ctopic|topic|name", None),
    (b"col,cell2.box1.col|topic|name", None),
    (b"col|topic|name,cell2.box1.col.topic.name", None),
    (b"col|topic|name%2Ccell2.box1.col.topic.name", None),
    (b"col|topic|name%252Ccell2.box1.col.topic.name", None),
    (b"*|topic|name", None),
    (b">|topic|name", None),
    (b"%2a|topic|name", None),
    (b"%3e|topic|name", None),
    (b"col|topic|*", None),
    (b"col|topic|>", None),
    (b"col|>", None),
    (b"col|*|name", None),
    (b"col|topic|name?consumer.exclusive=true", NAMED),
    (b"col|topic|name%3Fconsumer.exclusive=true", None),
    (b"..|topic|name", None),
    (b".|topic|name", None),
    (b"%2e%2e|topic|name", None),
    (b"%2e|topic|name", None),
    (b"%252e%252e|topic|name", None),
    (b"../box2/col|topic|name", None),
    (b"..%2fbox2%2fcol|topic|name", None),
    (b"..%5cbox2%5ccol|topic|name", None),
    (b"..\\box2\\col|topic|name", None),
    (b"%2e%2e%2fbox2%2fcol|topic|name", None),
    (b"%c0%ae%c0%ae%c0%afbox2|topic|name", None),
    (b"%e0%80%ae%e0%80%ae|topic|name", None),
    (b"%f0%80%80%ae|topic|name", None),
    (b"%c0%80|topic|name", None),
    (b"%ff|topic|name", None),
    (b"%ed%a0%80|topic|name", None),
    (b"%u0063ol|topic|name", None),
    (b"col%00|topic|name", None),
    (b"col|topic|name%00", None),
    (b"col|topic|name%00.cell2", None),
    (b"col\0|topic|name", None),
    (b"col|topic|name%0d%0aHost:%20cell2.unit1.example", None),
    (b"col|topic|name%0a", None),
    (b"col|topic|name%20", None),
    (b"col|topic|name+", None),
    (b"col%3btopic|topic|name", None),
    (b"col;x=y|topic|name", None),
    (b"col:x|topic|name", None),
    (b"col%23|topic|name", None),
    (b"col|topic|name#", None),
    (b"col%25|topic|name", None),
    (b"col%|topic|name", None),
    (b"col%6|topic|name", None),
    (b"col%zz|topic|name", None),
    (b"col|topic|name@trap.example", None),
    (b"@trap.example|topic|name", None),
    (b"|topic|name", None),
    (b"||topic|name", None),
    (b"col||topic|name", None),
    (b"col|topic||name", None),
    (b"col|topic|", None),
    (b"col|topic", None),
    (b"col|TOPIC|name", None),
    (b"col|%54opic|name", None),
    (b"col|topics|name", None),
    (b"topic|name", None),
    (b"", None),
    (b"name", None),
    (b"__topic|topic|name", topic("/cell1/box1/__topic/topic/name")),
    (b"ActiveMQ|Advisory|topic|name", topic("/cell1/box1/ActiveMQ/Advisory/topic/name")),
    (b"c\xc3\xb3l|topic|name", None),
    (b"col|topic|" + b"n" * 129, None),
    (b"a|" * 15 + b"topic|name", None),
    (b"x" * 128 + b"|" + b"x" * 128 + b"|topic|name", None),
    (b"http:%2f%2ftrap.example%2f|topic|name", None),
    (b"%e2%80%8bcol|topic|name", None),  # U+200B, zero width space
    (b"%e2%80%aecol|topic|name", None),  # U+202E, right-to-left override
]

TARGETS: list[tuple[str, bytes, TopicAddress | None]] = [
    # Whole request targets and the interface for them, with Host cell1.unit1.example.
    # One in absolute form replaces the Host header (RFC 9112, section 3.2.2).
    ("ws", b"http://cell1.unit1.example/__topic/box1/col.topic.name", NAMED),
    ("ws", b"http://cell2.unit1.example/__topic/box1/col.topic.name", CELL2),
    ("ws", b"wss://trap.example/__topic/box1/col.topic.name", None),
    ("ws", b"//trap.example/__topic/box1/col.topic.name", None),
    ("ws", b"///__topic/box1/col.topic.name", None),
    ("ws", b"/cell2/__topic/box1/col.topic.name", None),
    ("ws", b"/__topic/__topic/box1/col.topic.name", None),
    ("ws", b"/__topic/../cell2/__topic/box1/col.topic.name", None),
    ("ws", b"/__topic/box1/../../cell2/__topic/box1/col.topic.name", None),
    ("ws", b"/__topic/./box1/col.topic.name", None),
    ("ws", b"/__topic//box1/col.topic.name", None),
    ("ws", b"/__topic/box1//col.topic.name", None),
    ("ws", b"/__topic/box1/col.topic.name/", NAMED),
    ("ws", b"/__topic/box1/col.topic.name//", None),
    ("ws", b"/__topic/box1/col.topic.name.", None),
    ("ws", b"/__topic/box1/col/topic/name", None),
    ("ws", b"/__topic/%5f%5f/col.topic.name", MAIN_BOX),
    ("ws", b"/__topic/BOX1/col.topic.name", topic("/cell1/BOX1/col/topic/name")),
    ("ws", b"/__topic/box1.col/col.topic.name", None),
    ("ws", b"/__topic/box1%2ecol/topic.name", None),
    ("ws", b"/__topic/___/col.topic.name", None),
    ("ws", b"/__topic/*/col.topic.name", None),
    ("ws", b"/__topic/box1,box2/col.topic.name", None),
    ("ws", b"/%5f%5ftopic/box1/col.topic.name", None),
    ("ws", b"*", None),
    ("ws", b"__topic/box1/col.topic.name", None),
    ("ws", b"\\__topic\\box1\\col.topic.name", None),
    ("ws", b"/__topic\\box1\\col.topic.name", None),
    ("send", b"http://cell1.unit1.example/box1/col/topic/name", NAMED),
    ("send", b"http://cell2.unit1.example/box1/col/topic/name", CELL2),
    ("send", b"http://trap.example/box1/col/topic/name", None),
    ("send", b"//trap.example/box1/col/topic/name", None),
    # In this URL `cell2` is a box of `cell1`; the topic does not exist.
    ("send", b"/cell2/box1/col/topic/name", topic("/cell1/cell2/box1/col/topic/name")),
    ("send", b"/__/col/topic/name", MAIN_BOX),
    ("send", b"/box1/col/../../../cell2/box1/col/topic/name", None),
    ("send", b"/box1/./col/topic/name", None),
    ("send", b"/box1//col/topic/name", None),
    ("send", b"/box1/col/topic/name/", NAMED),
    ("send", b"/box1/col/topic/name//", None),
    ("send", b"/box1/col/topic/name('cell2')", None),  # only PUT has a key
    ("send", b"/box1/col.topic.name", None),
    ("send", b"/box1/col%2ftopic%2fname", None),
    ("send", b"/box1%2fcol/topic/name", None),
    ("send", b"/box1.col/topic/topic/name", None),
    ("send", b"\\box1\\col\\topic\\name", None),
    ("send", b"*", None),
]
BY_PATH: list[tuple[bytes, TopicAddress | None]] = [
    # Values of ``{Cell}`` with the unit's own host.
    (b"cell1", NAMED),
    (b"%63ell1", NAMED),
    (b"cell2", CELL2),
    (b"Cell1", None),
    (b"cell1.", None),
    (b".cell1", None),
    (b"cell1%2e", None),
    (b"cell1,cell2", None),
    (b"*", None),
    (b"..", None),
    (b"cell2/..", None),
    (b"cell1%2f..%2fcell2", None),
    (b"trap.example", None),
    (b"cell1@trap.example", None),
    (b"cell1%40trap.example", None),
    (b"cell1:80", None),
    (b"cell1%00", None),
    (b"cell1%23", None),
    (b"%2563ell1", None),
    (b"", None),
    (b"c%c3%a9ll1", None),
    (b"%ef%bd%83ell1", None),
]

OVERRIDE_HEADERS: list[bytes] = [
    # Headers with which some servers replace the host or the path.
    b"X-Forwarded-Host: cell2.unit1.example",
    b"X-Host: cell2.unit1.example",
    b"X-Original-Host: cell2.unit1.example",
    b"X-HTTP-Host-Override: cell2.unit1.example",
    b"Forwarded: host=cell2.unit1.example",
    b"X-Original-URL: /cell2/__topic/box1/col.topic.name",
    b"X-Rewrite-URL: /cell2/box1/col/topic/name",
    b"X-Forwarded-Prefix: /cell2",
    b"X-Forwarded-Server: trap.example",
    b"X-Personium-Via: https://cell2.unit1.example/",
    b"X-Personium-RequestKey: ../cell2",
    b"X-Baseurl: https://trap.example/",
    b"X-Forwarded-Uri: /cell2/box1/col/topic/name",
    b"Origin: https://cell2.unit1.example",
    b"Referer: https://cell2.unit1.example/",
]


def rows() -> list[tuple[str, bytes, list[bytes], TopicAddress | None]]:
    """Interface, request target, header lines, and the topic that may be reached, if any."""
    here = [b"Host: cell1.unit1.example"]
    unit = [b"Host: unit1.example"]
    paths = {"ws": b"/__topic/box1/%s", "send": b"/box1/%s"}
    separators = {"ws": b".", "send": b"/"}
    table = [(side, target, here, expected) for side, target, expected in TARGETS]
    for side, path in paths.items():
        separator = separators[side]
        valid = path % b"col|topic|name".replace(b"|", separator)
        for hosts, expected in HOSTS:
            table.append((side, valid, [b"Host: " + host for host in hosts], expected))
        for below, expected in BELOW:
            table.append((side, path % below.replace(b"|", separator), here, expected))
        for cell, expected in BY_PATH:
            table.append((side, b"/" + cell + valid, unit, expected))
        for header in OVERRIDE_HEADERS:
            table.append((side, valid, [*here, header], NAMED))
    return table


class IsolationTests(ValidatedServiceTestCase):
    style: CellUrlStyle = "path"

    @inlineCallbacks
    def setUp(self) -> Test:
        yield super().setUp()
        self.resolver = LoopbackResolver()
        before = reactor.installNameResolver(self.resolver)
        self.addCleanup(reactor.installNameResolver, before)
        self.connected: list[tuple[str, int]] = []
        connect = reactor.connectTCP

        def recording_connect(host: str, port: int, *rest: Any, **named: Any) -> Any:
            self.connected.append((host, port))
            return connect(host, port, *rest, **named)

        self.patch(reactor, "connectTCP", recording_connect)
        self.unit = FakeUnit(reactor, ALL, UNIT if self.style == "host" else None)
        self.unit.tokens["valid-token"] = Token(int(reactor.seconds()) + 3600)
        self.unit_port = yield self.serve(self.unit.site())
        self.start(self.settings())
        self.arrived: list[Message] = []
        for each in ALL:
            yield self.service.broker.subscribe(each, self.arrived.append, lambda: None)

    def settings(self, more: str = "") -> Config:
        settings = super().settings(more)
        url = f"http://{UNIT}:{self.unit_port.getHost().port}/"
        unit = Unit(url, cell_urls=self.style)
        return replace(settings, validator=replace(settings.validator, unit=unit))

    def test_there_are_enough_rows(self) -> None:
        table = rows()
        self.assertGreaterEqual(len({(side, path) for side, path, *_ in table}), 200)
        self.assertGreaterEqual(sum(expected is None for *_, expected in table), 200)

    @inlineCallbacks
    def test_each_row_reaches_its_topic_or_none(self) -> Test:
        for side, target, lines, expected in rows():
            what = f"{side} {target!r} {lines!r}"
            self.unit.requests.clear()
            self.arrived.clear()
            client = self.connect_http()
            if side == "ws":
                yield self.subscribe(client, target, lines, expected, what)
            else:
                yield self.send_data(client, target, lines, expected, what)
            client.disconnect()
            self.assert_requests_only_about(expected, what)
        port = self.unit_port.getHost().port
        self.assertEqual({each[1] for each in self.connected}, {port})
        self.assertEqual({each[0] for each in self.connected}, {"127.0.0.1"})

    @inlineCallbacks
    def subscribe(
        self,
        client: Client,
        target: bytes,
        lines: list[bytes],
        expected: TopicAddress | None,
        what: str,
    ) -> Test:
        handshake = [f"{name}: {value}".encode() for name, value in HANDSHAKE.items()]
        client.send_raw(b"\r\n".join([b"GET %s HTTP/1.1" % target, *lines, *handshake, b"", b""]))
        client.read_answer()
        if expected is None:
            self.assertIn(client.status, REFUSED, what)
            return
        self.assertEqual(client.status, 101, what)
        client.present("valid-token")
        text, code = yield self.reply(client)
        if expected not in ALL:
            self.assertIn("Token inactive", text, what)
            self.assertEqual(code, 1008)
            return
        self.assertIn("Success", text, what)
        # The message of the topic is the last one, so that none of the others can come later.
        for each in sorted(ALL, key=expected.__eq__):
            yield self.service.broker.publish(Message(each, None, b'"%s"' % each.path.encode()))
        end = reactor.seconds() + REPLY_TIMEOUT
        while not (texts := client.texts()):
            self.assertLess(reactor.seconds(), end, what)
            yield sleep(0)
        golden = b'{"From":null,"Body":"%s"}' % expected.path.encode()
        self.assertEqual(texts, [golden], what)

    @inlineCallbacks
    def send_data(
        self,
        client: Client,
        target: bytes,
        lines: list[bytes],
        expected: TopicAddress | None,
        what: str,
    ) -> Test:
        head = [b"POST %s HTTP/1.1" % target, *lines]
        head += [b"Authorization: Bearer valid-token", b"Content-Length: 1", b"", b"1"]
        client.send_raw(b"\r\n".join(head))
        end = reactor.seconds() + REPLY_TIMEOUT
        while not client.status and client.transport.lost is None:
            self.assertLess(reactor.seconds(), end, what)
            client.read_answer()
            yield sleep(0.001)
        yield sleep(0)
        if expected in ALL:
            self.assertEqual(client.status, 200, what)
            self.assertEqual([each.topic for each in self.arrived], [expected], what)
            self.assertEqual(self.arrived[0].sender, "https://cell2.unit1.example/", what)
        else:
            self.assertIn(client.status, REFUSED, what)
            self.assertEqual(self.arrived, [], what)

    def assert_requests_only_about(self, expected: TopicAddress | None, what: str) -> None:
        """All requests went to the unit and concerned this topic."""
        allowed: set[tuple[str, str, str]] = set()
        names: set[str] = set()
        if expected is not None:
            cell, below = expected.cell, "/".join(("", expected.box, *expected.collection))
            host, prefix = (f"{cell}.{UNIT}", "") if self.style == "host" else (UNIT, f"/{cell}")
            allowed = {
                ("PROPFIND", host, prefix + below),
                ("OPTIONS", host, f"{prefix}{below}/topic/{expected.topic}"),
                ("POST", host, f"{prefix}/__introspect"),
            }
            names = {host}
        requests = {
            (method, headers["host"].partition(":")[0], path)
            for method, path, headers in self.unit.requests
        }
        self.assertLessEqual(requests, allowed, what)
        self.assertLessEqual(self.resolver.names, names, what)
        self.resolver.names.clear()


class IsolationOfCellsByHostTests(IsolationTests):
    """The same with a host name for each cell."""

    style: CellUrlStyle = "host"
