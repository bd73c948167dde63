"""Measures how late the reactor calls a timer: everything in the process waits as long."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from topicsvc.histogram import Histogram

__all__ = ["INTERVAL", "ReactorLag"]

INTERVAL = 0.5
"""Seconds between two measurements."""

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds. The timers of an idle reactor are less than 1 or 2 ms late."""


class ReactorLag(Service):
    """Schedules a call again and again, and records how late each one is.

    Twisted's `TimerService` does not fit: it does not tell its callable when the call was due,
    and after a late call it keeps to the old schedule, so that the next interval is shorter.

    Args:
        clock: schedules the calls and measures the time.

    Attributes:
        seconds: how late each call was.
    """

    name = "reactor lag"

    def __init__(self, clock: IReactorTime) -> None:
        self.seconds = Histogram(BOUNDS)
        self._clock = clock
        self._call: IDelayedCall | None = None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._schedule()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self) -> None:
        due = self._clock.seconds() + INTERVAL
        self._call = self._clock.callLater(INTERVAL, self._measure, due)

    def _measure(self, due: float) -> None:
        self.seconds.observe(self._clock.seconds() - due)
        self._schedule()
