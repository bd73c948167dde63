"""Application: many waits of the same length on one timer.

All waits last equally long, so they end in the order in which they began: a dictionary
keeps that order, and only its first entry needs a timer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Deadlines"]

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls `expired` with each member that was not taken out in time.

    Args:
        clock: tells and keeps the time.
        seconds: how long each waits.
        expired: what happens then; one that raises does not keep others from their turn.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, seconds: float, expired: Callable[[T], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._expired = expired
        self._due: dict[T, float] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, member: object) -> bool:
        return member in self._due

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._due))

    def last(self, seconds: float) -> None:
        """What begins from now on lasts so long, though it never ends before what began earlier."""
        self._seconds = seconds

    def start(self, member: T) -> None:
        """Begin to wait for `member`; one that is already waited for keeps its time."""
        self._due.setdefault(member, self._clock.seconds() + self._seconds)
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._tick)

    def cancel(self, member: T) -> None:
        """Wait for `member` no more."""
        self._due.pop(member, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        over = []
        for member, due in self._due.items():
            if due > now:
                self._timer = self._clock.callLater(due - now, self._tick)
                break
            over.append(member)
        for member in over:
            # What one does may have ended the wait of another, or begun it anew.
            if self._due.get(member, now + 1) > now:
                continue
            self.cancel(member)
            try:
                self._expired(member)
            except Exception:
                self._log.failure("a deadline's action failed")
