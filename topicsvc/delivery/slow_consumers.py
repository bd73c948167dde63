"""Application: all that waits for slow readers, together.

Where nothing waits nobody asks here: it costs nothing while readers keep up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from topicsvc.scheduling.deadlines import Deadlines

__all__ = ["STALL_TIMEOUT", "Reader", "SlowConsumers"]

STALL_TIMEOUT = 10.0
"""Seconds after which a peer that takes nothing is a slow consumer."""


class Reader(Protocol):
    """One way out, as far as something waits for its peer."""

    def drop_slow_consumer(self) -> None:
        """The peer is too slow: drop what waits for it, and it."""
        ...

    def stalled(self) -> None:
        """Something has been held for a while."""
        ...


class SlowConsumers:
    """Knows who is behind and by how much, and past a bound lets the slowest go.

    Args:
        max_bytes: the most bytes that may wait for all readers together.
        on_dropped: called for each reader that is dropped because of `max_bytes`.
        clock: keeps the time.
        stall_timeout: seconds after which a peer that takes nothing is given up.

    Attributes:
        total: bytes that wait, for all readers.
        stalls: readers for whom something is held, each given up when nothing of it leaves.
    """

    def __init__(
        self,
        max_bytes: Callable[[], int],
        on_dropped: Callable[[], None],
        clock: IReactorTime,
        stall_timeout: float = STALL_TIMEOUT,
    ) -> None:
        self.total = 0
        self.stalls = Deadlines[Reader](clock, stall_timeout, lambda reader: reader.stalled())
        self._max_bytes = max_bytes
        self._on_dropped = on_dropped
        self._waiting: dict[Reader, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def update(self, reader: Reader, waiting: int) -> None:
        """So many bytes wait for `reader` now."""
        before = self._waiting.get(reader, 0)
        self.total += waiting - before
        if waiting:
            self._waiting[reader] = waiting
        elif before:
            del self._waiting[reader]
        if waiting > before and self.total > self._max_bytes():
            self._drop_slowest()

    def forget(self, reader: Reader) -> None:
        """Nothing waits for `reader` that would ever count again."""
        self.stalls.cancel(reader)
        self.update(reader, 0)

    def _drop_slowest(self) -> None:
        while self._waiting and self.total > self._max_bytes():
            slowest = max(self._waiting, key=self._waiting.__getitem__)
            self._on_dropped()
            self.forget(slowest)
            slowest.drop_slow_consumer()
