"""Statistics of token checks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from topicsvc.histogram import Histogram

__all__ = ["KEY_FETCH_OUTCOMES", "OUTCOMES", "TokenCheckStats"]

CHECK_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds. A local check takes less than the first; the default timeout is the last but one."""

OUTCOMES = ("granted", "refused", "unreadable", "unavailable", "cancelled", "failed")
"""The outcomes of a check. Each is counted from 0.

"unreadable" is about one collection, whose owner may have caused it; "failed" is an internal error.
"""

KEY_FETCH_OUTCOMES = ("fetched", "failed")
"""The outcomes of a fetch of keys. Each is counted from 0."""


@dataclass(slots=True)
class TokenCheckStats:
    """Counts token checks, of every validator since the start of the process.

    Attributes:
        cache_hits: requests that the cache could answer.
        cache_misses: requests that it could not; without a cache neither is counted.
        in_flight: checks without an outcome, those in a queue included.
        outcomes: ended checks by outcome.
        seconds: the duration of checks that were not cancelled.
        key_fetches: fetches of the keys of JWTs, by outcome.
    """

    cache_hits: int = 0
    cache_misses: int = 0
    in_flight: int = 0
    outcomes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(OUTCOMES, 0)))
    key_fetches: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(KEY_FETCH_OUTCOMES, 0))
    )
    seconds: Histogram = field(default_factory=lambda: Histogram(CHECK_BOUNDS))
