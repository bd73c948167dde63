"""Application: all that waits for slow readers, together.

Where nothing waits nobody asks here: it costs nothing while readers keep up.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from topicsvc.admission.limits import Limits
from topicsvc.scheduling.deadlines import Deadlines

__all__ = ["STALL_TIMEOUT", "Backlog", "Reader"]

STALL_TIMEOUT = 10.0
"""Seconds after which a peer that takes nothing is a slow consumer."""


class Reader(Protocol):
    """One way out, as far as something waits for its peer."""

    def give_up(self) -> None:
        """The peer is too slow: drop what waits for it, and it."""
        ...

    def stalled(self) -> None:
        """Something has been held for a while."""
        ...


class Backlog:
    """Knows who is behind and by how much, and past a bound lets the slowest go.

    Args:
        limits: has the bound, and counts.
        clock: keeps the time.
        stall_timeout: seconds after which a peer that takes nothing is given up.

    Attributes:
        total: bytes that wait, for all readers.
        stalls: readers for whom something is held, each given up when nothing of it leaves.
    """

    def __init__(
        self, limits: Limits, clock: IReactorTime, stall_timeout: float = STALL_TIMEOUT
    ) -> None:
        self.total = 0
        self.stalls = Deadlines[Reader](clock, stall_timeout, lambda reader: reader.stalled())
        self._limits = limits
        self._waiting: dict[Reader, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, reader: Reader, waiting: int) -> None:
        """So many bytes wait for `reader` now."""
        before = self._waiting.get(reader, 0)
        self.total += waiting - before
        if waiting:
            self._waiting[reader] = waiting
        elif before:
            del self._waiting[reader]
        if waiting > before and self.total > self._limits.settings.queued_bytes:
            self._shed()

    def forget(self, reader: Reader) -> None:
        """Nothing waits for `reader` that would ever count again."""
        self.stalls.cancel(reader)
        self.note(reader, 0)

    def _shed(self) -> None:
        while self._waiting and self.total > self._limits.settings.queued_bytes:
            slowest = max(self._waiting, key=self._waiting.__getitem__)
            self._limits.hit("queued_bytes")
            self.forget(slowest)
            slowest.give_up()
