"""Application: when the token of a live session is looked at again.

One wheel turns once in the interval. A member stands in a slot of its own luck, so that
those who came together after a restart are not asked about together. Only some are asked
about at the same time; the rest wait for their turn here, where they are in nobody's way.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from topicsvc.scheduling.timing_wheel import SLOTS, TimingWheel

__all__ = ["Revalidation"]

T = TypeVar("T")


class Revalidation(Generic[T]):
    """Has each member looked at again, once in an interval.

    Args:
        clock: tells and keeps the time.
        interval: seconds.
        at_once: most members that are being looked at.
        recheck: looks at a member; says whether that takes a while, to be ended by `done`.
        random: spreads members over the interval.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        interval: float,
        at_once: int,
        recheck: Callable[[T], bool],
        random: Random,
    ) -> None:
        self._interval = interval
        self._at_once = at_once
        self._recheck = recheck
        self._random = random
        self._wheel: TimingWheel[T] = TimingWheel()
        self._due: dict[T, None] = {}
        self._in_flight: set[T] = set()
        self._filling = False
        self._turning = LoopingCall.withCount(self._turn)
        self._turning.clock = clock

    def start(self) -> None:
        """Begin to turn."""
        self._turning.start(self._interval / SLOTS, now=False)

    def stop(self) -> None:
        """Turn no more; what is under way goes on."""
        if self._turning.running:
            self._turning.stop()
        self._due.clear()

    def add(self, member: T) -> None:
        """Look at `member` within an interval, and then once in each."""
        self._wheel.add(member, self._random.randrange(SLOTS))

    def discard(self, member: T) -> None:
        """Forget `member`, if it is known."""
        self._wheel.discard(member)
        self._due.pop(member, None)
        self.done(member)

    def done(self, member: T) -> None:
        """The verdict on `member` is there, or will never be."""
        if member in self._in_flight:
            self._in_flight.remove(member)
            self._fill()

    def _turn(self, turns: int) -> None:
        """Turn the wheel; after a pause at most once around."""
        for _ in range(min(turns, SLOTS)):
            for member in self._wheel.advance():
                if member not in self._in_flight:
                    self._due[member] = None
        self._fill()

    def _fill(self) -> None:
        """Look at those whose turn it is; verdicts that come at once do not nest."""
        if self._filling:
            return
        self._filling = True
        while self._due and len(self._in_flight) < self._at_once:
            member = next(iter(self._due))
            del self._due[member]
            self._in_flight.add(member)
            try:
                takes_a_while = self._recheck(member)
            except Exception:
                self._log.failure("a live session could not be looked at again")
                takes_a_while = False
            if not takes_a_while:
                self._in_flight.discard(member)
        self._filling = False
