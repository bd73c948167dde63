"""Limits the time of each reactor iteration that is spent on input."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

__all__ = ["WorkBudget"]


class WorkBudget:
    """Spreads work over reactor iterations, so that no iteration is long and each client is served.

    A worker checks `is_spent` before each piece of work, and calls `spend` after some of them. If
    the budget of the iteration is spent, it calls `defer`. Deferred workers are called in the next
    iterations, in order, until the budget is spent again.

    A worker may call another one, and both may call `spend`: no time is counted twice.

    Args:
        clock: the reactor, or a clock in its place.
        seconds: the budget of one iteration.

    Attributes:
        is_spent: whether the budget of this iteration is spent.
    """

    __slots__ = (
        "_clock",
        "_counted_until",
        "_is_scheduled",
        "_queue",
        "_seconds",
        "_spent",
        "is_spent",
    )  # fmt: skip

    _log = Logger()

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._spent = 0.0
        self._counted_until = 0.0
        self._queue: deque[Callable[[], None]] = deque()
        self._is_scheduled = False
        self.is_spent = False

    def __len__(self) -> int:
        return len(self._queue)

    def now(self) -> float:
        """The time, for `spend`."""
        return self._clock.seconds()

    def spend(self, since: float) -> float:
        """Count the time since `since` as spent; return the time."""
        now = self._clock.seconds()
        self.charge(now - max(since, self._counted_until))
        self._counted_until = now
        return now

    def charge(self, seconds: float) -> None:
        """Count work that took or will take so long."""
        self._spent += seconds
        if self._spent >= self._seconds:
            self.is_spent = True
            self._schedule()

    def defer(self, work: Callable[[], None]) -> None:
        """Call `work` in a later iteration, after all work that was deferred before."""
        self._queue.append(work)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._clock.callLater(0, self._next_iteration)

    def _next_iteration(self) -> None:
        self._is_scheduled = False
        self._spent = 0.0
        self.is_spent = False
        # Work that is deferred meanwhile waits for the next iteration.
        for _ in range(len(self._queue)):
            if self.is_spent:
                break
            try:
                self._queue.popleft()()
            except Exception:
                self._log.failure("deferred work failed; the work behind it continues")
        if self._queue:
            self._schedule()
