"""Logs when a validator is unavailable, and when it is available again."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.topics import TopicAddress

__all__ = ["LOG_INTERVAL", "OutageLog"]

LOG_INTERVAL = 10
"""Least seconds between two log lines."""


class OutageLog(TokenValidator):
    """Logs an outage of the validator: its start, a line now and then, and its end.

    Args:
        validator: makes the checks.
        clock: measures the time between two lines.
    """

    _log = Logger()

    def __init__(self, validator: TokenValidator, clock: IReactorTime) -> None:
        self._validator = validator
        self._clock = clock
        self._throttle = LogThrottle(LOG_INTERVAL)
        self._is_unavailable = False

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        return self._validator.validate(token, topic).addCallbacks(self._granted, self._failed)

    def _granted(self, grant: Grant) -> Grant:
        self._available()
        return grant

    def _failed(self, failure: Failure) -> Failure:
        if failure.check(TokenInactive):
            self._available()
        elif failure.check(ValidatorUnavailable):
            self._is_unavailable = True
            if self._throttle.allow("unavailable", self._clock.seconds()):
                self._log.warn("tokens cannot be validated: {reason}", reason=str(failure.value))
        return failure

    def _available(self) -> None:
        if self._is_unavailable and self._throttle.allow("unavailable", self._clock.seconds()):
            self._is_unavailable = False
            self._throttle.reset()
            self._log.info("tokens can be validated again")
