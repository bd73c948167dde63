"""Application: many calls, only some in each turn of the reactor, so that others have theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["CallQueue"]


class CallQueue:
    """Makes calls in the order in which they were given.

    Args:
        clock: has the turns.
        per_iteration: calls in one turn.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, per_iteration: int) -> None:
        self.per_iteration = per_iteration
        self._clock = clock
        self._calls: deque[Callable[[], None]] = deque()
        self._made = 0  # in this turn
        self._next: IDelayedCall | None = None

    def run(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make these now, as far as this turn reaches; the others in the turns that follow."""
        self._calls.extend(calls)
        while self._calls and self._made < self.per_iteration:
            self._made += 1
            try:
                self._calls.popleft()()
            except Exception:
                self._log.failure("a call failed; those behind it are made")
        if self._made:
            self._schedule()

    def defer(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make these from the next turn on, and whatever is given after them."""
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
