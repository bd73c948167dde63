"""Returns freed memory to the operating system after many connections have closed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from twisted.application.internet import TimerService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

__all__ = ["INTERVAL", "MIN_CLOSED", "MemoryTrimmer", "malloc_trim"]

INTERVAL = 5.0
"""Seconds between two checks, and so the least time between two trims."""

MIN_CLOSED = 250
"""Connections that must have closed before a trim: they free about 2 MB, or 10 MB with TLS."""


class MemoryTrimmer(TimerService):
    """Calls `trim` when the number of connections has fallen by `MIN_CLOSED` or more.

    The fall is measured from the highest number seen since the last trim.

    Args:
        clock: schedules the checks.
        count: returns the number of connections.
        trim: returns memory to the operating system.
    """

    name = "memory trimmer"
    _log = Logger()

    def __init__(
        self, clock: IReactorTime, count: Callable[[], int], trim: Callable[[], None]
    ) -> None:
        super().__init__(INTERVAL, self._check)  # type: ignore[no-untyped-call]
        self.clock = clock
        self._count = count
        self._trim = trim
        self._highest = 0

    def stopService(self) -> Deferred[None] | None:
        """Stop the checks; does nothing if they were never started."""
        if not self.running:
            return None
        stopped: Deferred[None] = super().stopService()  # type: ignore[no-untyped-call]
        return stopped

    def _check(self) -> None:
        count = self._count()
        if count > self._highest - MIN_CLOSED:
            self._highest = max(self._highest, count)
            return
        self._highest = count
        try:
            self._trim()
        except Exception:  # TimerService stops at the first exception
            self._log.failure("freed memory could not be returned to the operating system")


def _find_malloc_trim() -> Callable[[int], int] | None:
    """Find malloc_trim(3); None: the C library has no such function (musl, macOS)."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    return found


_MALLOC_TRIM = _find_malloc_trim()


def malloc_trim() -> None:
    """Return free pages of the heap to the operating system, if the C library can.

    Takes about 25 ms for 50 MB.
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)
