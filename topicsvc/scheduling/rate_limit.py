"""Limits how often something may happen, with one number as its state.

The generic cell rate algorithm (GCRA, ITU-T I.371): the whole allowance may be used at once, and
comes back evenly.
"""

from __future__ import annotations

__all__ = ["consume"]

_ROUNDING = 1e-3


def consume(full_at: float, now: float, limit: int, seconds: float) -> float | None:
    """Use one unit of an allowance of `limit` in `seconds`.

    Args:
        full_at: when the allowance is full again; any time in the past, if it is full.
        now: the time.
        limit: the size of the allowance.
        seconds: the time in which an empty allowance becomes full.

    Returns:
        When the allowance is full again after this use; None: nothing of it is left.
    """
    full_at = max(full_at, now) + seconds / limit
    return None if full_at > now + seconds + _ROUNDING else full_at
