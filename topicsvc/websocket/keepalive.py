"""Pure: who is pinged now, and who has left too many pings unanswered.

One wheel turns for all connections. It has 60 slots; a connection stays in the slot that
was under the needle when it opened, so that pings are spread over the interval as the
connections were, and 50,000 of them need one timer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["SLOTS", "Pulse", "Wheel"]

SLOTS = 60
"""How many beats of the wheel make one ping interval."""

_SEQUENCE_BYTES = 4

T = TypeVar("T")


class Pulse:
    """The pings of one connection.

    Args:
        limit: unanswered pings in a row that end it.
    """

    __slots__ = ("_answered", "_limit", "_sent")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sent = 0
        self._answered = 0

    @property
    def unanswered(self) -> int:
        """Pings in a row that have no pong yet."""
        return self._sent - self._answered

    def beat(self) -> bytes | None:
        """The payload of the ping to send now; None: too many are unanswered."""
        if self.unanswered >= self._limit:
            return None
        self._sent += 1
        return self._sent.to_bytes(_SEQUENCE_BYTES, "big")

    def pong(self, payload: bytes) -> bool:
        """A pong came: whether it answers an outstanding ping. Only such counts."""
        if len(payload) != _SEQUENCE_BYTES:
            return False
        is_answer = self._answered < int.from_bytes(payload, "big") <= self._sent
        if is_answer:
            self._answered = self._sent
        return is_answer


class Wheel(Generic[T]):
    """Members spread over slots; each turn of the needle yields one slot's members."""

    __slots__ = ("_needle", "_slot_of", "_slots")

    def __init__(self) -> None:
        self._slots: list[dict[T, None]] = [{} for _ in range(SLOTS)]
        self._slot_of: dict[T, int] = {}
        self._needle = 0

    def __len__(self) -> int:
        return len(self._slot_of)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._slot_of))

    def add(self, member: T, ahead: int = 0) -> None:
        """Put `member` under the needle: its turn comes after `SLOTS` turns.

        With `ahead` it comes after that many turns, and then every `SLOTS`.
        """
        slot = (self._needle + ahead) % SLOTS
        self._slots[slot][member] = None
        self._slot_of[member] = slot

    def discard(self, member: T) -> None:
        """Take `member` out, if it is in."""
        slot = self._slot_of.pop(member, None)
        if slot is not None:
            del self._slots[slot][member]

    def turn(self) -> tuple[T, ...]:
        """Move the needle to the next slot and return who is in it."""
        self._needle = (self._needle + 1) % SLOTS
        return tuple(self._slots[self._needle])
