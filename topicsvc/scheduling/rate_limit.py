"""Pure: how often something may happen, kept in one number.

A full allowance may be used at once and comes back evenly: so many a minute, and so many in
a burst (the generic cell rate algorithm, ITU-T I.371).
"""

from __future__ import annotations

__all__ = ["consume"]

_ROUNDING = 1e-3


def consume(full_at: float, now: float, most: int, seconds: float) -> float | None:
    """Use a piece of an allowance of `most` in `seconds`.

    Args:
        full_at: when the allowance is whole again; any time in the past, if it is.
        now: the time.
        most: how many in all.
        seconds: the time that all of them take to come back.

    Returns:
        When the allowance is whole again after this one; None: nothing of it is left.
    """
    full_at = max(full_at, now) + seconds / most
    return None if full_at > now + seconds + _ROUNDING else full_at
