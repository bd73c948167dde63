"""Reads times in claims: NumericDate of RFC 7519, section 2."""

from __future__ import annotations

from typing import Any

__all__ = ["MAX_TIME", "read_time"]

MAX_TIME = 253402300799
"""The last second of the year 9999. A later time is invalid; mostly it is in milliseconds."""


def read_time(value: Any) -> float | None:
    """Return a time in seconds since the epoch, also with a fraction; None: `value` is no time."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value < MAX_TIME + 1 else None
