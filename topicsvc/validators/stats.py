"""What is counted of token checks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from topicsvc.histogram import Histogram

__all__ = ["OUTCOMES", "TokenCheckStats"]


CHECK_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds; a local check takes less than the first, the default deadline is the last but one."""


OUTCOMES = ("granted", "refused", "unavailable", "cancelled", "failed")
"""All that a check can come to; "failed" is a fault of ours. Each is counted from 0."""


@dataclass(slots=True)
class TokenCheckStats:
    """Checks of tokens, whoever judges them and whoever judged before a reload.

    Attributes:
        cache_hits: questions that the memory for grants could answer.
        cache_misses: those that it could not; where there is none, neither is counted.
        in_flight: checks that have no outcome yet, those that wait for their turn too.
        outcomes: how they ended.
        seconds: how long those took that were answered.
    """

    cache_hits: int = 0
    cache_misses: int = 0
    in_flight: int = 0
    outcomes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(OUTCOMES, 0)))
    seconds: Histogram = field(default_factory=lambda: Histogram(CHECK_BOUNDS))
