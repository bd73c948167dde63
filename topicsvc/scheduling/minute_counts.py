"""Counts of messages and bytes, in total and over the last minute, in constant memory.

Time is divided into ticks of `TICK` seconds. The totals at the start of the last ticks are kept,
and are written when a count first changes in a tick. No timer is needed.
"""

from __future__ import annotations

from array import array

__all__ = ["TICK", "TICKS", "MinuteCounts"]

TICK = 5.0
"""Seconds of a tick: a count leaves the last minute evenly, over this time."""

TICKS = 12
"""Ticks in a minute."""

_KEPT = TICKS + 1
_NEVER = -_KEPT


class MinuteCounts:
    """Two counts. The owner adds to `messages` and `size` directly.

    Before it adds, the owner compares `tick` with the current tick, and calls `start_tick` if they
    differ. So adding costs one comparison.

    Attributes:
        messages: the total of messages.
        size: the total of bytes.
        tick: the last tick in which a count changed: the time divided by `TICK`, rounded down.
    """

    __slots__ = ("_starts", "messages", "size", "tick")

    def __init__(self) -> None:
        self.messages = 0
        self.size = 0
        self.tick = _NEVER
        self._starts: array[int] | None = None  # two totals for each tick; None: no tick yet

    def start_tick(self, tick: int) -> None:
        """Start a later tick than `tick`: keep the totals at its start."""
        if self._starts is None:
            self._starts = array("Q", bytes(16 * _KEPT))
        for each in range(max(self.tick + 1, tick - TICKS), tick + 1):
            at = 2 * (each % _KEPT)
            self._starts[at] = self.messages
            self._starts[at + 1] = self.size
        self.tick = tick

    def last_minute(self, now: float) -> tuple[int, int]:
        """The messages and the bytes of the minute before `now`.

        `now` is in seconds, by the clock of the ticks. The first tick of the minute is only partly
        within it: its counts are assumed to be evenly distributed.
        """
        tick = max(int(now / TICK), self.tick)
        messages, size = self._totals_at(tick - TICKS)
        next_messages, next_size = self._totals_at(tick - TICKS + 1)
        share = max(0.0, now / TICK - tick)
        return (
            round(self.messages - messages - share * (next_messages - messages)),
            round(self.size - size - share * (next_size - size)),
        )

    def _totals_at(self, tick: int) -> tuple[int, int]:
        """The totals at the start of a tick, not more than `TICKS` before the current one."""
        if tick > self.tick or self._starts is None:
            return self.messages, self.size
        at = 2 * (tick % _KEPT)
        return self._starts[at], self._starts[at + 1]
