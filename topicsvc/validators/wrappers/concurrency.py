"""Limits the number of token checks that a validator has in progress at once."""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.scheduling.concurrency import ConcurrencyQueue
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.topics import TopicAddress

__all__ = ["MAX_WAITING", "QUEUE_TIMEOUT", "ConcurrencyLimit"]

MAX_WAITING = 4096
"""Checks that may wait: 14 seconds' worth for a validator that does 300 checks a second."""

QUEUE_TIMEOUT = 60
"""Seconds that a check may wait: as long as a client has to present its token."""


class ConcurrencyLimit(TokenValidator):
    """Passes a limited number of checks on at once. The others wait in order of arrival.

    Args:
        validator: validates the tokens.
        clock: the reactor, or a clock in its place.
        concurrency: the most checks in progress at once.
        max_waiting: the most checks that may wait; one more fails with `ValidatorUnavailable`.
    """

    def __init__(
        self,
        validator: TokenValidator,
        clock: IReactorTime,
        concurrency: int,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._validator = validator
        self._queue = ConcurrencyQueue[_Check](
            self._start, lambda _: len(self._queue.in_progress) < concurrency, max_waiting
        )
        self._queue_timeout = Deadlines[_Check](clock, QUEUE_TIMEOUT, self._time_out)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        return self.run(self._validator, token, topic)

    def beside(self, validator: TokenValidator) -> TokenValidator:
        """Limit another validator too; the checks of both together count."""
        return _Beside(self, validator)

    def run(self, validator: TokenValidator, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """Check with `validator`, now or later."""
        check = _Check(validator, token, topic, self)
        if self._queue.add(check):
            self._queue.fill()
            if check in self._queue.waiting:
                self._queue_timeout.start(check)
        else:
            check.result.errback(ValidatorUnavailable("too many checks are waiting"))
        return check.result

    def cancel(self, check: _Check) -> None:
        """The caller no longer needs the result of `check`."""
        if check.pending is not None:
            check.pending.cancel()
        else:
            self._queue.discard(check)
            self._queue_timeout.cancel(check)

    def _start(self, check: _Check) -> bool:
        self._queue_timeout.cancel(check)
        check.pending = maybeDeferred(check.validator.validate, check.token, check.topic)
        check.pending.addBoth(self._done, check)
        return True

    def _done(self, result: Grant | Failure, check: _Check) -> None:
        self._queue.done(check)
        self._queue.fill()
        if check.result.called:
            return
        if isinstance(result, Failure):
            check.result.errback(result)
        else:
            check.result.callback(result)

    def _time_out(self, check: _Check) -> None:
        self._queue.discard(check)
        check.result.errback(ValidatorUnavailable(f"not checked within {QUEUE_TIMEOUT} s"))


class _Check:
    """One check: its arguments, and its result for the caller."""

    __slots__ = ("pending", "result", "token", "topic", "validator")

    def __init__(
        self, validator: TokenValidator, token: str, topic: TopicAddress, limit: ConcurrencyLimit
    ) -> None:
        self.validator = validator
        self.token = token
        self.topic = topic
        self.result: Deferred[Grant] = Deferred(lambda _: limit.cancel(self))
        self.pending: Deferred[Grant] | None = None


class _Beside(TokenValidator):
    """Another validator under the same limit."""

    def __init__(self, limit: ConcurrencyLimit, validator: TokenValidator) -> None:
        self._limit = limit
        self._validator = validator

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        return self._limit.run(self._validator, token, topic)
