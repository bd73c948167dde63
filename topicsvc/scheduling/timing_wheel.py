"""A timing wheel: one timer for the pings of all connections.

It has 60 slots. A connection stays in the slot that was current when it opened, so pings are
spread over the interval as the connections were, and 50,000 of them need one timer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["SLOTS", "TimingWheel"]


SLOTS = 60
"""How many beats of the wheel make one ping interval."""


T = TypeVar("T")


class TimingWheel(Generic[T]):
    """Members spread over slots; each turn of the needle yields one slot's members."""

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
        """Put `member` under the needle: its turn comes after `SLOTS` turns.

        With `ahead` it comes after that many turns, and then every `SLOTS`.
        """
        slot = (self._cursor + ahead) % SLOTS
        self._slots[slot][member] = None
        self._slot_of[member] = slot

    def discard(self, member: T) -> None:
        """Take `member` out, if it is in."""
        slot = self._slot_of.pop(member, None)
        if slot is not None:
            del self._slots[slot][member]

    def advance(self) -> tuple[T, ...]:
        """Move the needle to the next slot and return who is in it."""
        self._cursor = (self._cursor + 1) % SLOTS
        return tuple(self._slots[self._cursor])
