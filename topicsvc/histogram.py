"""Pure: what is counted: plain numbers, added to where things happen, read when somebody asks.

Whoever counts knows nothing of who reads: `topicsvc.admin.metrics` gives these to Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf

__all__ = ["Histogram"]


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
