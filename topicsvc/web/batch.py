"""Many messages in one request: a body of newline-delimited JSON (``application/x-ndjson``).

All lines are checked before the first is sent. A long batch is checked and sent in several
reactor iterations, so that other clients are served between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from topicsvc.errors import InvalidBody
from topicsvc.interfaces import Broker, Message
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.strict_json import json_text

__all__ = ["MEDIA_TYPE", "Batch", "InvalidLine", "TooManyLines"]

MEDIA_TYPE: Final = b"application/x-ndjson"

LINES_AT_ONCE: Final = 64
"""Lines between two looks at the budget: a fraction of a millisecond for short ones."""

MAX_UNANSWERED: Final = 256
"""Messages of a batch that wait for the broker's answer; the rest is sent after them."""


class InvalidLine(InvalidBody):
    """A line is not one JSON value.

    Attributes:
        number: the line, counted from 1.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"line {number} is not one JSON value")
        self.number = number


class TooManyLines(InvalidBody):
    """There are more lines than may be sent in one request."""


class Batch:
    """Checks the lines of a body, then sends them in their order.

    Args:
        body: the lines; the last may end with a newline.
        max_lines: most lines.
        make: makes the message of a line.
        broker: takes the messages.
        budget: the time that an iteration has for this.
    """

    __slots__ = ("_broker", "_budget", "_done", "_lines", "_make", "_max_lines", "_next",
                 "_unanswered", "_waits")  # fmt: skip

    def __init__(
        self,
        body: bytes,
        max_lines: int,
        make: Callable[[bytes], Message],
        broker: Broker,
        budget: WorkBudget,
    ) -> None:
        self._lines = body.removesuffix(b"\n").split(b"\n")
        self._max_lines = max_lines
        self._make = make
        self._broker = broker
        self._budget = budget
        self._next = 0
        self._unanswered: set[Deferred[None]] = set()
        self._waits = False
        self._done: Deferred[None] = Deferred(lambda _: self._stop())

    def send(self) -> Deferred[None]:
        """Check and send; fires when the broker has accepted all. Cancelling sends no more.

        Fails with:
            InvalidLine, TooManyLines: nothing was sent.
            BrokerUnavailable, TopicNotFound: the broker refused a message. Those before it
                were sent; none behind it were, but for some that waited with it.
        """
        if len(self._lines) > self._max_lines:
            self._done.errback(TooManyLines(f"more than {self._max_lines} lines"))
        else:
            self._check()
        return self._done

    def _check(self) -> None:
        lines = self._lines
        since = self._budget.now()
        while self._next < len(lines) and not self._done.called:
            end = min(self._next + LINES_AT_ONCE, len(lines))
            for number in range(self._next, end):
                try:
                    lines[number] = json_text(lines[number])
                except InvalidBody:
                    self._done.errback(InvalidLine(number + 1))
                    return
            self._next = end
            since = self._budget.spend(since)
            if self._budget.is_spent:
                self._budget.defer(self._check if end < len(lines) else self._begin_to_send)
                return
        self._begin_to_send()

    def _begin_to_send(self) -> None:
        self._next = 0
        self._send_some()

    def _send_some(self) -> None:
        """Send as far as the budget and the answers that are missing allow."""
        self._waits = False
        lines, budget = self._lines, self._budget
        since = budget.now()
        while self._next < len(lines) and not self._done.called:
            for _ in range(min(LINES_AT_ONCE, len(lines) - self._next)):
                if len(self._unanswered) >= MAX_UNANSWERED:
                    self._waits = True
                    return
                message = self._make(lines[self._next])
                self._next += 1
                if not self._broker.accept(message):
                    self._publish(message)
                if self._done.called:
                    return
            since = budget.spend(since)
            if budget.is_spent and self._next < len(lines):
                budget.defer(self._send_some)
                return
        self._look_whether_done()

    def _publish(self, message: Message) -> None:
        answer = maybeDeferred(self._broker.publish, message)
        self._unanswered.add(answer)
        answer.addBoth(self._answered, answer)

    def _answered(self, result: Failure | None, answer: Deferred[None]) -> None:
        self._unanswered.discard(answer)
        if self._done.called:
            return
        if isinstance(result, Failure):
            self._done.errback(result)
        elif self._waits and len(self._unanswered) <= MAX_UNANSWERED // 2:
            self._send_some()
        else:
            self._look_whether_done()

    def _look_whether_done(self) -> None:
        is_sent = self._next == len(self._lines)
        if is_sent and not self._unanswered and not self._waits and not self._done.called:
            self._done.callback(None)

    def _stop(self) -> None:
        """Nobody waits for the answer any more."""
        self._next = len(self._lines)
        unanswered: Any = tuple(self._unanswered)
        for answer in unanswered:
            answer.cancel()
