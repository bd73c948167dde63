"""Counts values in buckets. `topicsvc.admin.metrics` gives the counts to Prometheus.

prometheus_client's Histogram takes a lock for each value; this one needs none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf

__all__ = ["Histogram"]


class Histogram:
    """Counts of values in buckets.

    Args:
        bounds: upper bounds of the buckets, ascending. A bucket without a bound is added.

    Attributes:
        counts: number of values in each bucket; not cumulative.
        sum: sum of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value`. A negative value counts as 0."""
        if value < 0:
            value = 0.0
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[float, int]]:
        """Return each bound with the number of values up to it; the last bound is infinite."""
        total, found = 0, []
        for bound, count in zip((*self.bounds, inf), self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found
