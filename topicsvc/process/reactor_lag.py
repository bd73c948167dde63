"""Application: how late the loop is: everything in this process waits as long."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from topicsvc.histogram import Histogram

__all__ = ["INTERVAL", "ReactorLag"]

INTERVAL = 0.5
"""Seconds between two looks."""

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds; an idle loop is late by less than a millisecond or two."""


class ReactorLag(Service):
    """Asks to be called again and again, and notes how much later it is.

    Args:
        clock: tells and keeps the time.

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
        self._wait()

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _wait(self) -> None:
        due = self._clock.seconds() + INTERVAL
        self._call = self._clock.callLater(INTERVAL, self._look, due)

    def _look(self, due: float) -> None:
        self.seconds.observe(self._clock.seconds() - due)
        self._wait()
