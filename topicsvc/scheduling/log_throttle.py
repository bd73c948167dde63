"""Limits how often a repeated log line is written."""

from __future__ import annotations

from math import inf

__all__ = ["LogThrottle"]


class LogThrottle:
    """Decides whether a log line is written: once per key and interval.

    The caller passes the time and writes the line itself. The memory is bounded by `max_keys`.

    Args:
        interval: seconds between two lines with the same key; without it, a key is allowed once
            until `reset`.
        max_keys: the number of different keys that are allowed in one interval; more keys are
            suppressed.
    """

    def __init__(self, interval: float = inf, max_keys: int = 64) -> None:
        self._interval = interval
        self._max_keys = max_keys
        self._allowed_at: dict[str, float] = {}

    def allow(self, key: str, now: float) -> bool:
        """Whether the line with `key` is written at `now`, in seconds; if so, this is noted."""
        allowed_at = self._allowed_at.get(key)
        if allowed_at is not None and now - allowed_at < self._interval:
            return False
        if allowed_at is None and len(self._allowed_at) >= self._max_keys:
            self._forget_expired(now)
            if len(self._allowed_at) >= self._max_keys:
                return False
        self._allowed_at[key] = now
        return True

    def reset(self) -> None:
        """Allow the next line with any key."""
        self._allowed_at.clear()

    def _forget_expired(self, now: float) -> None:
        self._allowed_at = {
            key: at for key, at in self._allowed_at.items() if now - at < self._interval
        }
