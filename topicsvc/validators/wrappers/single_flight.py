"""Makes one check for all concurrent requests about the same token and topic."""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress

__all__ = ["SingleFlight"]

_Key = tuple[str, TopicAddress]


class SingleFlight(TokenValidator):
    """Shares the result of a check in progress with later requests for the same.

    Args:
        validator: makes the checks.
    """

    def __init__(self, validator: TokenValidator) -> None:
        self._validator = validator
        self._in_flight: dict[_Key, _Check] = {}

    def __len__(self) -> int:
        return len(self._in_flight)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`.

        Cancelling cancels the check only if nothing else waits for its result.
        """
        key = token, topic

        def cancel(waiter: Deferred[Grant]) -> None:
            del check.waiters[waiter]
            if not check.waiters and self._in_flight.get(key) is check:
                del self._in_flight[key]
                check.result.cancel()

        waiter: Deferred[Grant] = Deferred(cancel)
        current = self._in_flight.get(key)
        if current is not None:
            check = current
            check.waiters[waiter] = None
            return waiter
        check = self._in_flight[key] = _Check()
        check.waiters[waiter] = None
        check.result = maybeDeferred(self._validator.validate, token, topic)
        check.result.addBoth(self._ended, key, check)
        return waiter

    def _ended(self, result: Grant | Failure, key: _Key, check: _Check) -> None:
        if self._in_flight.get(key) is check:
            del self._in_flight[key]
        for waiter in tuple(check.waiters):
            if waiter not in check.waiters:
                continue  # a callback of an earlier one has cancelled it
            del check.waiters[waiter]
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)


class _Check:
    """A check in progress, and the Deferreds that wait for its result."""

    __slots__ = ("result", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[Deferred[Grant], None] = {}
        self.result: Deferred[Grant]
