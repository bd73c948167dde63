"""Adapter: around a validator, one deadline for a whole check."""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress

__all__ = ["TimeoutValidator"]


class TimeoutValidator:
    """Ends a check that takes too long, whether or not what it waits for can be cancelled.

    Args:
        validator: asked.
        clock: keeps the time.
        seconds: how long a check may take, from its first byte to its verdict.
    """

    def __init__(self, validator: TokenValidator, clock: IReactorTime, seconds: float) -> None:
        self._validator = validator
        self._clock = clock
        self._seconds = seconds

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""

        def leave(_: object) -> None:
            timer.cancel()
            asked.cancel()

        def too_late() -> None:
            answer.errback(ValidatorUnavailable(f"no verdict within {self._seconds} s"))
            asked.cancel()

        def granted(grant: Grant) -> None:
            if timer.active():
                timer.cancel()
                answer.callback(grant)

        def failed(failure: Failure) -> None:
            if timer.active():
                timer.cancel()
                answer.errback(failure)

        answer: Deferred[Grant] = Deferred(leave)
        timer = self._clock.callLater(self._seconds, too_late)
        asked = maybeDeferred(self._validator.validate, token, topic)
        asked.addCallbacks(granted, failed)
        return answer
