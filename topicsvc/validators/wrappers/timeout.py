"""Limits the duration of a check."""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress

__all__ = ["TimeoutValidator"]


class TimeoutValidator(TokenValidator):
    """Cancels a check that takes too long, and fails even if it cannot be cancelled.

    Args:
        validator: makes the checks.
        clock: measures them.
        seconds: most time of a check, from its start to its result.
    """

    def __init__(self, validator: TokenValidator, clock: IReactorTime, seconds: float) -> None:
        self._validator = validator
        self._clock = clock
        self._seconds = seconds

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""

        def cancel(_: object) -> None:
            timer.cancel()
            check.cancel()

        def time_out() -> None:
            result.errback(ValidatorUnavailable(f"no result within {self._seconds} s"))
            check.cancel()

        def granted(grant: Grant) -> None:
            if timer.active():
                timer.cancel()
                result.callback(grant)

        def failed(failure: Failure) -> None:
            if timer.active():
                timer.cancel()
                result.errback(failure)

        result: Deferred[Grant] = Deferred(cancel)
        timer = self._clock.callLater(self._seconds, time_out)
        check = maybeDeferred(self._validator.validate, token, topic)
        check.addCallbacks(granted, failed)
        return result
