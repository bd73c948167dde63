"""Spreads many calls over reactor iterations, so that other events are handled in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["CallQueue"]


class CallQueue:
    """Makes calls in the order in which they were given, a limited number in each iteration.

    Twisted's `Cooperator` makes its first call in a later iteration only, and an exception in one
    call ends its iterator. Here the first calls are made at once, and an exception is logged.

    Args:
        clock: the reactor, or a clock in its place.
        per_iteration: the most calls in one reactor iteration.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, per_iteration: int) -> None:
        self.per_iteration = per_iteration
        self._clock = clock
        self._calls: deque[Callable[[], None]] = deque()
        self._made = 0  # in this iteration
        self._next: IDelayedCall | None = None

    def run(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make these calls now; those over `per_iteration` follow in the next iterations."""
        self._calls.extend(calls)
        while self._calls and self._made < self.per_iteration:
            self._made += 1
            try:
                self._calls.popleft()()
            except Exception:
                self._log.failure("a queued call failed; the calls behind it are made")
        if self._made:
            self._schedule()

    def defer(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make these calls, and all that are given later, from the next iteration on."""
        self._calls.extend(calls)
        self._made = self.per_iteration
        self._schedule()

    def _schedule(self) -> None:
        if self._next is None:
            self._next = self._clock.callLater(0, self._begin)

    def _begin(self) -> None:
        self._next = None
        self._made = 0
        self.run(())
