"""Adapter: around a validator, a bound on what is asked at once."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.topics import TopicAddress

__all__ = ["MAX_WAITING", "QUEUE_TIMEOUT", "ConcurrencyLimit"]

MAX_WAITING = 4096
"""Checks that wait for their turn: with a validators that does 300 a second, 14 seconds' worth."""

QUEUE_TIMEOUT = 60
"""Seconds that a check waits for its turn: as long as a client has to show its token."""


class ConcurrencyLimit:
    """At most some checks under way, a bounded number behind them, in order.

    Args:
        validator: asked.
        clock: keeps the time.
        concurrency: checks under way at once.
        most: checks that may wait; one more cannot be decided.
    """

    def __init__(
        self,
        validator: TokenValidator,
        clock: IReactorTime,
        concurrency: int,
        most: int = MAX_WAITING,
    ) -> None:
        self._validator = validator
        self._free = concurrency
        self._most = most
        self._waiting: dict[_Check, None] = {}
        self._queue_timeout = Deadlines[_Check](clock, QUEUE_TIMEOUT, self._time_out)
        self._filling = False

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        check = _Check(token, topic, self)
        if self._free:
            self._start(check)
        elif len(self._waiting) < self._most:
            self._waiting[check] = None
            self._queue_timeout.start(check)
        else:
            check.answer.errback(ValidatorUnavailable("too many checks wait for their turn"))
        return check.answer

    def withdraw(self, check: _Check) -> None:
        """Whoever asked has gone."""
        if check.asked is not None:
            check.asked.cancel()
        else:
            del self._waiting[check]
            self._queue_timeout.cancel(check)

    def _start(self, check: _Check) -> None:
        self._free -= 1
        check.asked = maybeDeferred(self._validator.validate, check.token, check.topic)
        check.asked.addBoth(self._ended, check)

    def _ended(self, result: Any, check: _Check) -> None:
        self._free += 1
        self._fill()
        if check.answer.called:
            return
        if isinstance(result, Failure):
            check.answer.errback(result)
        else:
            check.answer.callback(result)

    def _fill(self) -> None:
        """Start those whose turn it is; verdicts that come at once do not nest."""
        if self._filling:
            return
        self._filling = True
        while self._free and self._waiting:
            check = next(iter(self._waiting))
            del self._waiting[check]
            self._queue_timeout.cancel(check)
            self._start(check)
        self._filling = False

    def _time_out(self, check: _Check) -> None:
        del self._waiting[check]
        check.answer.errback(ValidatorUnavailable(f"no turn within {QUEUE_TIMEOUT} s"))


class _Check:
    """One question and who waits for its answer."""

    __slots__ = ("answer", "asked", "token", "topic")

    def __init__(self, token: str, topic: TopicAddress, limited: ConcurrencyLimit) -> None:
        self.token = token
        self.topic = topic
        self.answer: Deferred[Grant] = Deferred(lambda _: limited.withdraw(self))
        self.asked: Deferred[Grant] | None = None
