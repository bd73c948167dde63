"""Adapter: around a validator, what an operator wants to know about it."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.topics import TopicAddress

__all__ = ["SILENCE", "OutageLog"]

SILENCE = 10
"""Seconds at least between two lines that say that tokens cannot be judged."""


class OutageLog:
    """Logs when tokens cannot be judged, and when they can again; not once for each.

    Args:
        validator: asked.
        clock: tells the time.
    """

    _log = Logger()

    def __init__(self, validator: TokenValidator, clock: IReactorTime) -> None:
        self._validator = validator
        self._clock = clock
        self._throttle = LogThrottle(SILENCE)
        self._is_unavailable = False

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        return self._validator.validate(token, topic).addCallbacks(self._granted, self._failed)

    def _granted(self, grant: Grant) -> Grant:
        self._well()
        return grant

    def _failed(self, failure: Failure) -> Failure:
        if failure.check(TokenInactive):
            self._well()
        elif failure.check(ValidatorUnavailable):
            self._is_unavailable = True
            if self._throttle.allow("unavailable", self._clock.seconds()):
                self._log.warn("tokens cannot be judged: {reason}", reason=str(failure.value))
        return failure

    def _well(self) -> None:
        if self._is_unavailable and self._throttle.allow("unavailable", self._clock.seconds()):
            self._is_unavailable = False
            self._throttle.reset()
            self._log.info("tokens can be judged again")
