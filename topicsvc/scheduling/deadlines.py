"""Keeps many deadlines of the same length with one timer.

All of them last equally long, so they pass in the order in which they started. A dictionary
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
    """Calls `expired` with each member that was not cancelled in time.

    Args:
        clock: the reactor, or a clock in its place.
        seconds: the length of each deadline.
        expired: called with a member whose deadline has passed. An exception is logged, and the
            other members are not affected.
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

    def set_length(self, seconds: float) -> None:
        """Set the length of deadlines that start from now on.

        A deadline never passes before one that started earlier.
        """
        self._seconds = seconds

    def start(self, member: T) -> None:
        """Start the deadline of `member`, unless it has started already."""
        self._due.setdefault(member, self._clock.seconds() + self._seconds)
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._tick)

    def restart(self, member: T) -> None:
        """Start the deadline of `member` again, even if it has started already."""
        self._due.pop(member, None)
        self.start(member)

    def cancel(self, member: T) -> None:
        """Cancel the deadline of `member`, if it has one."""
        self._due.pop(member, None)
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        passed = []
        for member, due in self._due.items():
            if due > now:
                self._timer = self._clock.callLater(due - now, self._tick)
                break
            passed.append(member)
        for member in passed:
            # An earlier call of `expired` may have cancelled this deadline, or restarted it.
            if self._due.get(member, now + 1) > now:
                continue
            self.cancel(member)
            try:
                self._expired(member)
            except Exception:
                self._log.failure("a deadline's action failed")
