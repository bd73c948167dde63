"""Schedules the recheck of each session's token, once in an interval.

Members are spread at random over a timing wheel that goes round once in the interval, so that
sessions that started together after a restart are not checked together. The number of checks
in progress is limited; members that are due wait here, not in the validator's queue.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from topicsvc.scheduling.concurrency import ConcurrencyQueue
from topicsvc.scheduling.timing_wheel import SLOTS, TimingWheel

__all__ = ["Revalidation"]

T = TypeVar("T")


class Revalidation(Generic[T]):
    """Rechecks each member once in an interval.

    Args:
        clock: the reactor, or a clock in its place.
        interval: seconds between two checks of a member.
        at_once: most checks in progress.
        recheck: starts the check of a member; returns whether one is in progress. The caller
            reports its end with `done`.
        random: spreads members over the interval.
    """

    def __init__(
        self,
        clock: IReactorTime,
        interval: float,
        at_once: int,
        recheck: Callable[[T], bool],
        random: Random,
    ) -> None:
        self._interval = interval
        self._random = random
        self._wheel: TimingWheel[T] = TimingWheel()
        self._due = ConcurrencyQueue[T](recheck, lambda _: len(self._due.in_progress) < at_once)
        self._ticks = LoopingCall.withCount(self._tick)
        self._ticks.clock = clock

    def start(self) -> None:
        """Start the rounds."""
        self._ticks.start(self._interval / SLOTS, now=False)

    def stop(self) -> None:
        """Stop the rounds. Checks in progress continue."""
        if self._ticks.running:
            self._ticks.stop()
        self._due.waiting.clear()

    def add(self, member: T) -> None:
        """Check `member` within one interval, and then once in each."""
        self._wheel.add(member, self._random.randrange(SLOTS))

    def discard(self, member: T) -> None:
        """Remove `member`, if it is there."""
        self._wheel.discard(member)
        self._due.discard(member)
        self.done(member)

    def done(self, member: T) -> None:
        """The check of `member` has ended, with or without a result."""
        if member in self._due.in_progress:
            self._due.done(member)
            self._due.fill()

    def _tick(self, slots: int) -> None:
        """Make the members of the next slots due; after a pause, each member once."""
        for _ in range(min(slots, SLOTS)):
            for member in self._wheel.advance():
                if member not in self._due.in_progress:
                    self._due.add(member)
        self._due.fill()
