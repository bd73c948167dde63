"""Adapter: around a validator, the numbers of its checks."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import TokenInactive, Unavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress
from topicsvc.validators.stats import TokenCheckStats

__all__ = ["MeasuredValidator"]


class MeasuredValidator:
    """Counts how checks end, and how long those take that are answered.

    Args:
        validator: asked.
        clock: tells the time.
        stats: where the numbers are kept.
    """

    def __init__(
        self, validator: TokenValidator, clock: IReactorTime, stats: TokenCheckStats
    ) -> None:
        self._validator = validator
        self._clock = clock
        self._stats = stats

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        since = self._clock.seconds()
        self._stats.in_flight += 1
        asked = maybeDeferred(self._validator.validate, token, topic)
        return asked.addBoth(self._ended, since)

    def _ended(self, result: Any, since: float) -> Any:
        outcome = _outcome(result)
        self._stats.in_flight -= 1
        self._stats.outcomes[outcome] += 1
        if outcome != "cancelled":
            self._stats.seconds.observe(self._clock.seconds() - since)
        return result


def _outcome(result: Grant | Failure) -> str:
    """One of `topicsvc.stats.OUTCOMES`."""
    if not isinstance(result, Failure):
        return "granted"
    for kind, outcome in (
        (TokenInactive, "refused"),
        (Unavailable, "unavailable"),
        (CancelledError, "cancelled"),
    ):
        if result.check(kind):
            return outcome
    return "failed"
