"""Application: many calls, only some in each turn of the reactor, so that others have theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Turns"]


class Turns:
    """Makes calls in the order in which they were given.

    Args:
        clock: has the turns.
        most: calls in one turn.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, most: int) -> None:
        self.most = most
        self._clock = clock
        self._calls: deque[Callable[[], None]] = deque()
        self._made = 0  # in this turn
        self._next: IDelayedCall | None = None

    def now(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make these now, as far as this turn reaches; the others in the turns that follow."""
        self._calls.extend(calls)
        while self._calls and self._made < self.most:
            self._made += 1
            try:
                self._calls.popleft()()
            except Exception:
                self._log.failure("a call failed; those behind it are made")
        if self._made:
            self._await_the_next()

    def later(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make these from the next turn on, and whatever is given after them."""
        self._calls.extend(calls)
        self._made = self.most
        self._await_the_next()

    def _await_the_next(self) -> None:
        if self._next is None:
            self._next = self._clock.callLater(0, self._begin)

    def _begin(self) -> None:
        self._next = None
        self._made = 0
        self.now(())
