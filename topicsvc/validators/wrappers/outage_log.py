"""Logs when a validator is unavailable, and when it is available again."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.errors import CollectionUnreadable, TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.topics import TopicAddress

__all__ = ["LOG_INTERVAL", "OutageLog"]

LOG_INTERVAL = 10
"""Least seconds between two log lines."""


class OutageLog(TokenValidator):
    """Logs an outage of the validator: its start, a line now and then, and its end.

    An answer about one collection that cannot be read is no outage. It has a line of its own.

    Args:
        validator: makes the checks.
        clock: measures the time between two lines.
        beside: the log of another validator with the same server: both share their lines.

    Attributes:
        outage: the state that both share.
    """

    _log = Logger()

    def __init__(
        self, validator: TokenValidator, clock: IReactorTime, beside: OutageLog | None = None
    ) -> None:
        self._validator = validator
        self._clock = clock
        self.outage: _Outage = _Outage() if beside is None else beside.outage

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        check = self._validator.validate(token, topic)
        return check.addCallbacks(self._granted, self._failed, errbackArgs=(topic,))

    def _granted(self, grant: Grant) -> Grant:
        self._available()
        return grant

    def _failed(self, failure: Failure, topic: TopicAddress) -> Failure:
        outage, now = self.outage, self._clock.seconds()
        if failure.check(TokenInactive):
            self._available()
        elif failure.check(CollectionUnreadable):
            if outage.throttle.allow("unreadable", now):
                self._log.warn(
                    "the response about the collection of {topic} cannot be used: {reason}",
                    topic=topic.path,
                    reason=str(failure.value),
                )
        elif failure.check(ValidatorUnavailable):
            outage.is_unavailable = True
            if outage.throttle.allow("unavailable", now):
                self._log.warn("tokens cannot be validated: {reason}", reason=str(failure.value))
        return failure

    def _available(self) -> None:
        outage = self.outage
        if outage.is_unavailable and outage.throttle.allow("unavailable", self._clock.seconds()):
            outage.is_unavailable = False
            outage.throttle.reset()
            self._log.info("tokens can be validated again")


class _Outage:
    """Whether there is an outage, and which lines were written."""

    __slots__ = ("is_unavailable", "throttle")

    def __init__(self) -> None:
        self.is_unavailable = False
        self.throttle = LogThrottle(LOG_INTERVAL)
