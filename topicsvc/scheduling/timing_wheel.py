"""A timing wheel: one timer for something that each of many members needs once in an interval.

It has 60 slots. A connection stays in the slot that was current when it opened, so pings are
spread over the interval as the connections were, and 50,000 of them need one timer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["SLOTS", "TimingWheel"]

SLOTS = 60
"""Slots of the wheel: the caller advances it this many times in an interval."""

T = TypeVar("T")


class TimingWheel(Generic[T]):
    """Members in slots. `advance` moves the cursor to the next slot and returns its members."""

    __slots__ = ("_cursor", "_slot_of", "_slots")

    def __init__(self) -> None:
        self._slots: list[dict[T, None]] = [{} for _ in range(SLOTS)]
        self._slot_of: dict[T, int] = {}
        self._cursor = 0

    def __len__(self) -> int:
        return len(self._slot_of)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._slot_of))

    def add(self, member: T, ahead: int = 0) -> None:
        """Put `member` into the slot that is `ahead` of the current one.

        `advance` returns it after `ahead` calls, and then after every `SLOTS` calls. In the
        current slot, 0, it is first returned after `SLOTS` calls.
        """
        slot = (self._cursor + ahead) % SLOTS
        self._slots[slot][member] = None
        self._slot_of[member] = slot

    def discard(self, member: T) -> None:
        """Remove `member`, if it is there."""
        slot = self._slot_of.pop(member, None)
        if slot is not None:
            del self._slots[slot][member]

    def advance(self) -> tuple[T, ...]:
        """Move the cursor to the next slot and return its members."""
        self._cursor = (self._cursor + 1) % SLOTS
        return tuple(self._slots[self._cursor])
