"""Calls each of many members when its own time has come, with one timer.

The time of a member may move into the future as often as it likes: it is read again only when the
old time has come. So moving it costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from math import ceil
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from topicsvc.scheduling.call_queue import CallQueue

__all__ = ["PRECISION", "DueTimes"]

PRECISION = 0.25
"""Seconds that a call may be late."""

PER_ITERATION = 200
"""The most members that are called in one reactor iteration."""

T = TypeVar("T")


class DueTimes(Generic[T]):
    """Calls `on_due` with each member whose time has come, again and again.

    Args:
        clock: the reactor, or a clock in its place.
        due: returns the time of a member, in seconds by `clock`.
        on_due: called with a member whose time has come; it should move the time. An exception is
            logged, and the other members are not affected.
    """

    def __init__(
        self, clock: IReactorTime, due: Callable[[T], float], on_due: Callable[[T], None]
    ) -> None:
        self._clock = clock
        self._due = due
        self._on_due = on_due
        self._slots: dict[int, dict[T, None]] = {}
        self._order: list[int] = []  # a heap of the keys of `_slots`
        self._slot_of: dict[T, int] = {}
        self._queue = CallQueue(clock, PER_ITERATION)
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._slot_of)

    def add(self, member: T) -> None:
        """Call `on_due` with `member` from now on."""
        slot = ceil(self._due(member) / PRECISION)
        members = self._slots.get(slot)
        if members is None:
            members = self._slots[slot] = {}
            heappush(self._order, slot)
        members[member] = None
        self._slot_of[member] = slot
        self._start_timer()

    def discard(self, member: T) -> None:
        """Call `on_due` with `member` no more."""
        slot = self._slot_of.pop(member, None)
        if slot in self._slots:
            self._slots[slot].pop(member, None)
        if not self._slot_of and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._slots.clear()
            self._order.clear()

    def _start_timer(self) -> None:
        if not self._order:
            return
        at = self._order[0] * PRECISION
        if self._timer is not None and self._timer.getTime() > at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._clock.callLater(max(0.0, at - self._clock.seconds()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._order and self._order[0] * PRECISION <= now:
            slot = heappop(self._order)
            self._queue.run(
                [partial(self._check, member, slot) for member in self._slots.pop(slot)]
            )
        self._start_timer()

    def _check(self, member: T, slot: int) -> None:
        if self._slot_of.get(member) != slot:
            return  # discarded meanwhile
        try:
            if self._due(member) <= self._clock.seconds():
                self._on_due(member)
        finally:
            if self._slot_of.get(member) == slot:
                self.add(member)
