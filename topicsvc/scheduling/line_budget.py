"""Limits the log lines that untrusted clients can cause, and counts the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from topicsvc.scheduling.rate_limit import consume

__all__ = ["LineBudget"]


class LineBudget:
    """Allows a number of lines in a second, and reports how many others there were.

    Args:
        clock: the reactor, or a clock in its place.
        per_second: the most lines in a second.
        interval: seconds from the first line that is left out to the report.
        report: called with the lines that were left out, by their key, and with the seconds since
            the first of them. The caller uses few different keys.

    Attributes:
        per_second: the most lines in a second; may be changed.
    """

    def __init__(
        self,
        clock: IReactorTime,
        per_second: int,
        interval: float,
        report: Callable[[Counter[str], float], None],
    ) -> None:
        self._clock = clock
        self.per_second = per_second
        self._interval = interval
        self._report = report
        self._full_at = 0.0
        self._left_out: Counter[str] = Counter()
        self._since = 0.0
        self._timer: IDelayedCall | None = None

    def allow(self, key: str) -> bool:
        """Whether a line may be written now; otherwise it is counted under `key`."""
        now = self._clock.seconds()
        full_at = consume(self._full_at, now, self.per_second, 1)
        if full_at is not None:
            self._full_at = full_at
            return True
        if self._timer is None:
            self._since = now
            self._timer = self._clock.callLater(self._interval, self._end_interval)
        self._left_out[key] += 1
        return False

    def flush(self) -> None:
        """Report now what was left out, if anything was."""
        if self._timer is not None:
            self._timer.cancel()
            self._end_interval()

    def _end_interval(self) -> None:
        self._timer = None
        left_out, self._left_out = self._left_out, Counter()
        self._report(left_out, self._clock.seconds() - self._since)
