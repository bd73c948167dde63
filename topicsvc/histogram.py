"""Pure: what is counted: plain numbers, added to where things happen, read when somebody asks.

Whoever counts knows nothing of who reads: `topicsvc.admin.metrics` gives these to Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

__all__ = ["OUTCOMES", "CheckTally", "Histogram"]

CHECK_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds; a local check takes less than the first, the default deadline is the last but one."""


OUTCOMES = ("granted", "refused", "unavailable", "cancelled", "failed")
"""All that a check can come to; "failed" is a fault of ours. Each is counted from 0."""


class Histogram:
    """How often values fell where.

    Args:
        bounds: the upper bounds of the buckets, in order; one more, without bound, is added.

    Attributes:
        counts: values in each bucket alone.
        sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value`; one below 0 counts as 0."""
        if value < 0:
            value = 0.0
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[float, int]]:
        """Each bound, and how many values were at most that; the last bound is infinite."""
        total, found = 0, []
        for bound, count in zip((*self.bounds, inf), self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found


@dataclass(slots=True)
class CheckTally:
    """Checks of tokens, whoever judges them and whoever judged before a reload.

    Attributes:
        cache_hits: questions that the memory for grants could answer.
        cache_misses: those that it could not; where there is none, neither is counted.
        under_way: checks that have no outcome yet, those that wait for their turn too.
        outcomes: how they ended.
        seconds: how long those took that were answered.
    """

    cache_hits: int = 0
    cache_misses: int = 0
    under_way: int = 0
    outcomes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(OUTCOMES, 0)))
    seconds: Histogram = field(default_factory=lambda: Histogram(CHECK_BOUNDS))
