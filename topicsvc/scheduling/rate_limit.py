"""Limits how often something may happen, with one number as its state.

The generic cell rate algorithm (GCRA, ITU-T I.371): the whole allowance may be used at once, and
comes back evenly.
"""

from __future__ import annotations

__all__ = ["consume", "seconds_until"]

_ROUNDING = 1e-3


def consume(full_at: float, now: float, limit: int, seconds: float, units: int = 1) -> float | None:
    """Use some units of an allowance of `limit` in `seconds`.

    Args:
        full_at: when the allowance is full again; any time in the past, if it is full.
        now: the time.
        limit: the size of the allowance.
        seconds: the time in which an empty allowance becomes full.
        units: the units to use.

    Returns:
        When the allowance is full again after this use; None: less than `units` are left.
    """
    full_at = max(full_at, now) + units * seconds / limit
    return None if full_at > now + seconds + _ROUNDING else full_at


def seconds_until(full_at: float, now: float, limit: int, seconds: float, units: int = 1) -> float:
    """Seconds until `consume` would succeed with the same arguments; 0: it would succeed now."""
    missing = max(full_at, now) + units * seconds / limit - now - seconds
    return missing if missing > _ROUNDING else 0.0
