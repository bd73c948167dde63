"""Adapter: around a validator, one question for all who ask the same at the same time."""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress

__all__ = ["SingleFlight"]

_Question = tuple[str, TopicAddress]


class SingleFlight:
    """Shares what is under way: same token, same topic, one check, every asker answered.

    Args:
        validator: asked.
    """

    def __init__(self, validator: TokenValidator) -> None:
        self._validator = validator
        self._in_flight: dict[_Question, _Check] = {}

    def __len__(self) -> int:
        return len(self._in_flight)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`.

        Cancelling ends the check only when nobody else waits for it.
        """
        key = token, topic

        def leave(asker: Deferred[Grant]) -> None:
            del check.askers[asker]
            if not check.askers and self._in_flight.get(key) is check:
                del self._in_flight[key]
                check.asked.cancel()

        asker: Deferred[Grant] = Deferred(leave)
        known = self._in_flight.get(key)
        if known is not None:
            check = known
            check.askers[asker] = None
            return asker
        check = self._in_flight[key] = _Check()
        check.askers[asker] = None
        check.asked = maybeDeferred(self._validator.validate, token, topic)
        check.asked.addBoth(self._ended, key, check)
        return asker

    def _ended(self, result: Grant | Failure, key: _Question, check: _Check) -> None:
        if self._in_flight.get(key) is check:
            del self._in_flight[key]
        for asker in tuple(check.askers):
            if asker not in check.askers:
                continue  # one before it has acted on the verdict and made it leave
            del check.askers[asker]
            if isinstance(result, Failure):
                asker.errback(result)
            else:
                asker.callback(result)


class _Check:
    """One question under way."""

    __slots__ = ("asked", "askers")

    def __init__(self) -> None:
        self.askers: dict[Deferred[Grant], None] = {}
        self.asked: Deferred[Grant]
