"""Counts and times the checks of a validator."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import CollectionUnreadable, TokenInactive, Unavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress
from topicsvc.validators.stats import TokenCheckStats

__all__ = ["MeasuredValidator"]


class MeasuredValidator(TokenValidator):
    """Counts checks by outcome, and measures those that are not cancelled.

    Args:
        validator: makes the checks.
        clock: measures them.
        stats: keeps the counts.
    """

    def __init__(
        self, validator: TokenValidator, clock: IReactorTime, stats: TokenCheckStats
    ) -> None:
        self._validator = validator
        self._clock = clock
        self._stats = stats

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        started_at = self._clock.seconds()
        self._stats.in_flight += 1
        check = maybeDeferred(self._validator.validate, token, topic)
        return check.addBoth(self._ended, started_at)

    def remembered(self, token: str, topic: TopicAddress) -> Grant | None:
        """See `topicsvc.interfaces.TokenValidator`."""
        grant = self._validator.remembered(token, topic)
        if grant is not None:
            self._stats.outcomes["granted"] += 1
            self._stats.seconds.observe(0.0)  # microseconds, less than the smallest bucket
        return grant

    def _ended(self, result: Any, started_at: float) -> Any:
        outcome = _outcome(result)
        self._stats.in_flight -= 1
        self._stats.outcomes[outcome] += 1
        if outcome != "cancelled":
            self._stats.seconds.observe(self._clock.seconds() - started_at)
        return result


def _outcome(result: Grant | Failure) -> str:
    """Return one of `topicsvc.validators.stats.OUTCOMES`."""
    if not isinstance(result, Failure):
        return "granted"
    for kind, outcome in (
        (TokenInactive, "refused"),
        (CollectionUnreadable, "unreadable"),
        (Unavailable, "unavailable"),
        (CancelledError, "cancelled"),
    ):
        if result.check(kind):
            return outcome
    return "failed"
