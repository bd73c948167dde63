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

__all__ = ["MEDIA_TYPE", "Batch", "InvalidLine", "count_lines"]

MEDIA_TYPE: Final = b"application/x-ndjson"

LINES_AT_ONCE: Final = 64
"""Lines between two checks of the budget; short ones take a fraction of 1 ms."""

MAX_UNCONFIRMED: Final = 256
"""Most messages of a batch that wait for the broker's confirmation at the same time."""


class InvalidLine(InvalidBody):
    """A line is not one JSON value.

    Attributes:
        number: the line, counted from 1.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"line {number} is not one JSON value")
        self.number = number


def count_lines(body: bytes) -> int:
    """The number of lines of a body; the last one may end with a newline."""
    return body.count(b"\n") + (not body.endswith(b"\n"))


class Batch:
    """Checks the lines of a body, then sends them in their order.

    Args:
        body: the lines; the last one may end with a newline.
        make: makes the message of a line.
        broker: accepts the messages.
        budget: the time for work on requests in one reactor iteration.
    """

    __slots__ = (
        "_broker",
        "_budget",
        "_done",
        "_is_waiting",
        "_lines",
        "_make",
        "_next",
        "_unconfirmed",
    )  # fmt: skip

    def __init__(
        self,
        body: bytes,
        make: Callable[[bytes], Message],
        broker: Broker,
        budget: WorkBudget,
    ) -> None:
        self._lines = body.removesuffix(b"\n").split(b"\n")
        self._make = make
        self._broker = broker
        self._budget = budget
        self._next = 0
        self._unconfirmed: set[Deferred[None]] = set()
        self._is_waiting = False
        self._done: Deferred[None] = Deferred(lambda _: self._stop())

    def send(self) -> Deferred[None]:
        """Check and send all lines; fires when the broker has accepted all messages.

        Cancelling stops it.

        Fails with:
            InvalidLine: nothing was sent.
            BrokerUnavailable, TopicNotFound: the broker refused a message. The earlier messages
                were sent. Of the later ones, only those were sent that waited for their
                confirmation at the same time.
        """
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
                self._budget.defer(self._check if end < len(lines) else self._start_sending)
                return
        self._start_sending()

    def _start_sending(self) -> None:
        self._next = 0
        self._send_some()

    def _send_some(self) -> None:
        """Send until the budget is spent or too many confirmations are missing."""
        self._is_waiting = False
        lines, budget = self._lines, self._budget
        since = budget.now()
        while self._next < len(lines) and not self._done.called:
            for _ in range(min(LINES_AT_ONCE, len(lines) - self._next)):
                if len(self._unconfirmed) >= MAX_UNCONFIRMED:
                    self._is_waiting = True
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
        self._finish_if_done()

    def _publish(self, message: Message) -> None:
        confirmation = maybeDeferred(self._broker.publish, message)
        self._unconfirmed.add(confirmation)
        confirmation.addBoth(self._on_published, confirmation)

    def _on_published(self, result: Failure | None, confirmation: Deferred[None]) -> None:
        self._unconfirmed.discard(confirmation)
        if self._done.called:
            return
        if isinstance(result, Failure):
            self._done.errback(result)
        elif self._is_waiting and len(self._unconfirmed) <= MAX_UNCONFIRMED // 2:
            self._send_some()
        else:
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        is_sent = self._next == len(self._lines)
        if is_sent and not self._unconfirmed and not self._is_waiting and not self._done.called:
            self._done.callback(None)

    def _stop(self) -> None:
        """Send no more, and cancel the messages that wait for their confirmation."""
        self._next = len(self._lines)
        unconfirmed: Any = tuple(self._unconfirmed)
        for confirmation in unconfirmed:
            confirmation.cancel()
