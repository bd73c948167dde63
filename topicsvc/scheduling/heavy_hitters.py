"""Finds the most frequent keys of the last minute in bounded memory.

Time is divided into ticks, as in `topicsvc.scheduling.minute_counts`. Each tick has a table of its
own. A full table drops its rare keys (the algorithm of Misra and Gries, 1982).
"""

from __future__ import annotations

from collections import Counter, deque
from heapq import nlargest
from typing import Generic, TypeVar

from topicsvc.scheduling.minute_counts import TICK, TICKS

__all__ = ["MAX_KEYS", "HeavyHitters"]

K = TypeVar("K")

MAX_KEYS = 1000
"""The most keys of one tick."""


class HeavyHitters(Generic[K]):
    """Counts keys. The counts of frequent keys are exact, unless there are very many keys.

    If a tick has more than `max_keys` keys, a count of this tick may be too low, by at most
    2 / `max_keys` of all counts of the tick together. A key that is rarer than that may be missing.

    Args:
        max_keys: the most keys of one tick.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._tick = -1
        self._counts: dict[K, int] = {}  # of the current tick
        self._ticks: deque[tuple[int, dict[K, int]]] = deque(maxlen=TICKS + 1)

    def add(self, key: K, count: int, now: float) -> None:
        """Count `key` `count` times, at `now` in seconds."""
        tick = int(now / TICK)
        if tick != self._tick:
            self._tick = tick
            self._counts = {}
            self._ticks.append((tick, self._counts))
        counts = self._counts
        if key not in counts and len(counts) >= self._max_keys:
            self._drop_rare_keys()
        counts[key] = counts.get(key, 0) + count

    def top(self, limit: int, now: float) -> list[tuple[K, int]]:
        """The most frequent keys of the minute before `now`, each with its count, at most `limit`.

        The first tick of the minute is only partly within it: its counts are assumed to be evenly
        distributed.
        """
        tick = int(now / TICK)
        first = tick - TICKS
        sums: Counter[K] = Counter()
        shared: dict[K, int] = {}
        for each, counts in self._ticks:
            if each == first:
                shared = counts
            elif each > first:
                sums.update(counts)
        for key, count in shared.items():
            sums[key] += round(count * (1 - (now / TICK - tick)))
        found = ((key, count) for key, count in sums.items() if count)
        return nlargest(limit, found, key=lambda item: item[1])

    def clear(self) -> None:
        """Forget all keys."""
        self._tick = -1
        self._counts = {}
        self._ticks.clear()

    def _drop_rare_keys(self) -> None:
        """Subtract the median count from all counts, and drop the keys that have none left."""
        counts = self._counts
        median = sorted(counts.values())[len(counts) // 2]
        kept = {key: count - median for key, count in counts.items() if count > median}
        counts.clear()
        counts.update(kept)
