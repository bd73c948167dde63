"""A FIFO queue in front of tasks of which only some may be in progress at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.logger import Logger

__all__ = ["ConcurrencyQueue"]

T = TypeVar("T")


class ConcurrencyQueue(Generic[T]):
    """Starts members in the order in which they were added, as long as the next one may start.

    A member that ends while it is being started does not recurse. With Twisted's
    `DeferredSemaphore`, 3,000 waiters with instant results end in a `RecursionError`.

    Args:
        start: starts a member; returns whether it is in progress. If it is, the caller reports
            its end with `done`, which is allowed before `start` returns.
        may_start: whether the first waiting member may start now, for example because
            `in_progress` is short enough.
        max_waiting: the most members that may wait, at least 1; None: any number.

    Attributes:
        waiting: the members that wait, in their order.
        in_progress: the members that were started and have not ended.
    """

    __slots__ = ("_is_filling", "_max_waiting", "_may_start", "_start", "in_progress", "waiting")

    _log = Logger()

    def __init__(
        self,
        start: Callable[[T], bool],
        may_start: Callable[[T], bool],
        max_waiting: int | None = None,
    ) -> None:
        self.waiting: dict[T, None] = {}
        self.in_progress: set[T] = set()
        self._start = start
        self._may_start = may_start
        self._max_waiting = max_waiting
        self._is_filling = False

    @property
    def is_idle(self) -> bool:
        """Whether no member waits, starts or is in progress."""
        return not (self.waiting or self.in_progress or self._is_filling)

    def add(self, member: T) -> bool:
        """Put `member` at the end of the queue; `fill` starts it.

        Returns:
            False: the queue is full, and `member` was not added.
        """
        if self._max_waiting is not None and len(self.waiting) >= self._max_waiting:
            return False
        self.waiting[member] = None
        return True

    def discard(self, member: T) -> None:
        """Remove `member`, if it waits."""
        self.waiting.pop(member, None)

    def done(self, member: T) -> None:
        """End `member`, if it is in progress. Call `fill` to start the next one."""
        self.in_progress.discard(member)

    def fill(self) -> None:
        """Start waiting members until the next one may not start. A nested call does nothing."""
        if self._is_filling:
            return
        self._is_filling = True
        try:
            while self.waiting:
                member = next(iter(self.waiting))
                if not self._may_start(member):
                    break
                del self.waiting[member]
                self._start_now(member)
        finally:
            self._is_filling = False

    def _start_now(self, member: T) -> None:
        self.in_progress.add(member)
        try:
            is_in_progress = self._start(member)
        except Exception:
            self._log.failure("a queued task failed to start; the tasks behind it are started")
            is_in_progress = False
        if not is_in_progress:
            self.in_progress.discard(member)
