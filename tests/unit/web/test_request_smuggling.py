"""The corpus of `tests.support.request_corpus`, sent in different pieces and at different times.

Whatever the pieces and the order of decisions are, the outcome must be the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure

from tests.support.fakes import INJECTED
from tests.support.harness import Client, ServiceTestCase
from tests.support.request_corpus import MARKER, ROWS, Ending, Row
from topicsvc.errors import TokenInactive
from topicsvc.interfaces import Grant, Message
from topicsvc.settings import LimitSettings
from topicsvc.topics import TopicAddress
from topicsvc.web import site

MAX_SPLIT = 400
"""Rows of at most so many bytes are split at each position."""

MAX_SAME_SPLITS = 10
"""Rows that are split behind the same first piece; most rows begin alike."""

OPEN, CLOSES, WAITS = Ending
LONGEST = {
    OPEN: site.IDLE_TIMEOUT + site.CLOSE_TIMEOUT,
    CLOSES: site.CLOSE_TIMEOUT,
    WAITS: site.BODY_TIMEOUT + site.CLOSE_TIMEOUT,
}
"""Seconds after which the connection is lost."""


class Outcome(NamedTuple):
    """What a client has seen, and what the broker has got."""

    statuses: list[int]
    ending: Ending
    bodies: tuple[bytes, ...]


_HEAD = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]+\r\n(?:[^\r\n]+\r\n)*\r\n")
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")


def statuses_of(written: bytes) -> list[int]:
    """The statuses of final responses. Behind 101, the rest is no response."""
    found: list[int] = []
    position = 0
    while position < len(written):
        match = _HEAD.match(written, position)
        assert match is not None, written[position:]
        status, position = int(match[1]), match.end()
        if status != 100:
            found.append(status)
        if status == 101:
            break
        length = _LENGTH.search(match[0])
        if length is not None and not written.startswith(b"HTTP/", position):  # not to HEAD
            position = min(position + int(length[1]), len(written))
    return found


class SmugglingTestCase(ServiceTestCase):
    """Sends rows; decides on tokens and messages at once, or only when all has arrived."""

    limits_settings = LimitSettings(failed_tokens_per_minute=0)

    def setUp(self) -> None:
        super().setUp()
        self.decides_late = False
        self.tokens: list[str] = []
        self.bodies: list[bytes] = []
        self.undecided: list[tuple[Deferred[Any], Any]] = []
        for target, name, function in (
            (self.validator, "remembered", self.remembered),
            (self.validator, "validate", self.validate),
            (self.broker, "accept", self.accept),
            (self.broker, "publish", self.publish),
        ):
            self.patch(target, name, function)

    def remembered(self, token: str, _: TopicAddress) -> Grant | None:
        if self.decides_late or token == "bad":
            return None
        self.tokens.append(token)
        return Grant(None, self.now + 1000, True, True)

    def validate(self, token: str, _: TopicAddress) -> Deferred[Any]:
        self.tokens.append(token)
        if token == "bad":
            return self.decide(Failure(TokenInactive(INJECTED)))
        return self.decide(Grant(None, self.now + 1000, True, True))

    def accept(self, message: Message) -> bool:
        if not self.decides_late:
            self.bodies.append(message.body)
        return not self.decides_late

    def publish(self, message: Message) -> Deferred[Any]:
        self.bodies.append(message.body)
        return self.decide(None)

    def decide(self, result: object) -> Deferred[Any]:
        decision: Deferred[Any] = Deferred()
        self.undecided.append((decision, result))
        if not self.decides_late:
            self.decide_all()
        return decision

    def decide_all(self) -> None:
        while self.undecided:
            decision, result = self.undecided.pop(0)
            decision.callback(result)
            self.iterate()

    def is_closed(self, client: Client) -> bool:
        return client.transport.lost is not None or client.transport.has_ended

    def converse(self, pieces: Iterable[bytes], ends: bool = False) -> tuple[Client, Outcome]:
        """Send these pieces; `ends`: the client closes its half of the connection then."""
        self.tokens.clear()
        self.bodies.clear()
        client = self.client()
        for piece in pieces:
            client.send_raw(piece)
        if ends and client.transport.lost is None:
            self.end(client)
        self.iterate()
        while self.undecided:
            self.decide_all()
            self.iterate()
        self.advance(1)
        statuses = statuses_of(bytes(client.transport.written))
        if 101 in statuses:
            self.advance(10)  # for the WebSocket's closing handshake
        ending = OPEN if "marker" in self.tokens else WAITS
        if self.is_closed(client):
            ending = CLOSES
        return client, Outcome(statuses, ending, tuple(self.bodies))

    def end(self, client: Client) -> None:
        """The client closes its half of the connection."""
        protocol = IHalfCloseableProtocol(client.transport.protocol, None)
        if protocol is None:  # a WebSocket
            client.transport.lose(ConnectionDone())
        else:
            protocol.readConnectionLost()

    def assert_outcome(self, row: Row, outcome: Outcome, way: str) -> None:
        statuses, bodies = row.statuses, row.bodies
        if row.ending is OPEN:
            statuses, bodies = [*statuses, 200], (*bodies, b'"M"')
        self.assertEqual(outcome, Outcome(statuses, row.ending, bodies), way)
        allowed = {"good", "bad", "g" * 32_768} | ({"marker"} if row.ending is OPEN else set())
        self.assertLessEqual(set(self.tokens), allowed, way)

    def check(self, row: Row, pieces: Iterable[bytes], way: str) -> None:
        client, outcome = self.converse(pieces)
        self.leave(client)
        self.assert_outcome(row, outcome, way)

    def leave(self, client: Client) -> None:
        client.transport.lose(ConnectionDone())
        self.iterate()


class CorpusTests(SmugglingTestCase):
    def for_each(self, rows: Iterable[Row], check: Callable[[Row], None]) -> None:
        """Call `check` with each row; fail with all that have failed."""
        failures = []
        for row in rows:
            try:
                check(row)
            except AssertionError as error:
                failures.append(f"{row.name}: {error}")
        self.assertEqual(failures, [], "\n\n".join(failures))

    def test_the_corpus_is_large_and_each_row_has_its_name(self) -> None:
        names = [row.name for row in ROWS]
        self.assertGreaterEqual(len(ROWS), 780)
        self.assertEqual(sorted(names), sorted(set(names)))

    def test_in_one_piece(self) -> None:
        def check(row: Row) -> None:
            client, outcome = self.converse([row.data + MARKER])
            self.assert_outcome(row, outcome, "in one piece")
            seen = list(self.tokens)
            if row.ending is CLOSES:
                client.send_raw(MARKER)
            self.advance(LONGEST[row.ending])
            self.iterate()
            self.assertEqual(self.tokens, seen)
            self.assertIsNotNone(client.transport.lost)

        self.for_each(ROWS, check)
        self.assert_nothing_left()

    def test_the_marker_in_a_later_iteration(self) -> None:
        def pieces(row: Row) -> Iterator[bytes]:
            yield row.data
            self.iterate()
            yield MARKER

        self.for_each(ROWS, lambda row: self.check(row, pieces(row), "the marker later"))

    def test_byte_by_byte(self) -> None:
        self.for_each(ROWS, lambda row: self.check(row, bytes_of(row), "byte by byte"))

    def test_in_two_pieces(self) -> None:
        splits: Counter[bytes] = Counter()

        def check(row: Row) -> None:
            data = row.data + MARKER
            for at in range(1, len(row.data)):
                splits[data[:at]] += 1
                if splits[data[:at]] <= MAX_SAME_SPLITS:
                    self.check(row, [data[:at], data[at:]], f"split at {at}")

        self.for_each([row for row in ROWS if len(row.data) <= MAX_SPLIT], check)

    def test_decisions_that_are_late(self) -> None:
        self.decides_late = True
        self.for_each(ROWS, lambda row: self.check(row, [row.data + MARKER], "decided late"))

    def test_byte_by_byte_with_decisions_that_are_late(self) -> None:
        self.decides_late = True
        self.for_each(ROWS, lambda row: self.check(row, bytes_of(row), "bytes, decided late"))

    def test_clients_that_close_their_half(self) -> None:
        def check(row: Row) -> None:
            client, outcome = self.converse([row.data], ends=True)
            expected = row.statuses
            if row.ending is CLOSES:  # some rows are bad only with the marker
                expected = expected[: len(outcome.statuses)]
            self.assertEqual((outcome.statuses, outcome.ending), (expected, CLOSES))
            self.assertNotIn("smuggled", self.tokens)
            self.leave(client)

        for self.decides_late in (False, True):
            self.for_each(ROWS, check)

    def test_one_step_in_each_iteration(self) -> None:
        self.site.budget._seconds = 0.0
        for self.decides_late in (False, True):
            self.for_each(ROWS, lambda row: self.check(row, [row.data + MARKER], "step by step"))


def bytes_of(row: Row) -> list[bytes]:
    """The row and the marker, byte by byte, as far as a head may reach."""
    data = row.data + MARKER
    return [*(data[at : at + 1] for at in range(min(len(data), 70_000))), data[70_000:]]
