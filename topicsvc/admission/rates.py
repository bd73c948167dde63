"""Limits how often each of many may do something, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.interfaces import IReactorTime

from topicsvc.scheduling.rate_limit import consume, seconds_until

__all__ = ["MAX_KEYS", "RateTable"]

MAX_KEYS = 10_000
"""Keys with an allowance that is not full, in about 2 MB. A new one replaces the oldest."""

_MINUTE = 60.0

K = TypeVar("K", bound=Hashable)


class RateTable(Generic[K]):
    """The allowance of each key: so many uses in a minute.

    An allowance that is full again is forgotten. If more than `max_keys` are used within a
    minute, the one that was used least recently is forgotten early.

    Args:
        clock: the reactor, or a clock in its place.
        per_minute: returns the uses in a minute; 0: any number.
        max_keys: the keys that are kept.
    """

    def __init__(
        self, clock: IReactorTime, per_minute: Callable[[], int], max_keys: int = MAX_KEYS
    ) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._max_keys = max_keys
        self._full_at: dict[K, float] = {}  # in the order of the last uses

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: K, uses: int = 1) -> float:
        """Seconds until `key` may be used `uses` times; 0: now.

        More uses than the limit are never allowed; the result is then more than a minute.
        """
        limit = self._per_minute()
        if not limit:
            return 0.0
        return seconds_until(
            self._full_at.get(key, 0.0), self._clock.seconds(), limit, _MINUTE, uses
        )

    def use(self, key: K, uses: int = 1) -> None:
        """Use `key`, if it may be used now; see `wait`."""
        limit = self._per_minute()
        if not limit:
            return
        now = self._clock.seconds()
        full_at = consume(self._full_at.get(key, 0.0), now, limit, _MINUTE, uses)
        if full_at is not None:
            self._full_at.pop(key, None)
            self._full_at[key] = full_at
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Forget the least recently used keys that are full, or too many."""
        while self._full_at:
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now and len(self._full_at) <= self._max_keys:
                return
            del self._full_at[oldest]
