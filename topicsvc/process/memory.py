"""Application: when many connections have gone, the memory that they had can go too."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

__all__ = ["INTERVAL", "MANY", "MemoryTrimmer", "malloc_trim"]

INTERVAL = 5.0
"""Seconds between two looks, so between two times that it can happen."""

MANY = 250
"""WebSocketServer: 2 MB or so, and with TLS 10, are worth the time that it takes."""


class MemoryTrimmer(Service):
    """Looks now and then how many there are, and calls `gone` when it has become many less.

    Args:
        clock: keeps the time.
        count: how many there are.
        gone: what is to be done.
    """

    name = "ebb"
    _log = Logger()

    def __init__(
        self, clock: IReactorTime, count: Callable[[], int], gone: Callable[[], None]
    ) -> None:
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock
        self._count = count
        self._gone = gone
        self._most = 0  # since it was called, or ever

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._loop.start(INTERVAL)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        count = self._count()
        if count > self._most - MANY:
            self._most = max(self._most, count)
            return
        self._most = count
        try:
            self._gone()
        except Exception:  # else that would have been the last look
            self._log.failure("what many connections have left could not be seen to")


def _find_malloc_trim() -> Callable[[int], int] | None:
    """See malloc_trim(3); None: this C library has none, as musl or macOS."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    return found


_MALLOC_TRIM = _find_malloc_trim()


def malloc_trim() -> None:
    """Give back to the system whatever pages are free; where that cannot be done, nothing happens.

    Takes some 25 ms for 50 MB.
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)
