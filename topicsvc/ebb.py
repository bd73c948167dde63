"""Application: when many connections have gone, the memory that they had can go too."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["INTERVAL", "MANY", "Ebb"]

INTERVAL = 5.0
"""Seconds between two looks, so between two times that it can happen."""

MANY = 250
"""Connections: 2 MB or so, and with TLS 10, are worth the time that it takes."""


class Ebb(Service):
    """Looks now and then how many there are, and calls `gone` when it has become many less.

    Args:
        clock: keeps the time.
        count: how many there are.
        gone: what is to be done.
    """

    name = "ebb"

    def __init__(
        self, clock: IReactorTime, count: Callable[[], int], gone: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._count = count
        self._gone = gone
        self._most = 0  # since it was called, or ever
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
        self._call = self._clock.callLater(INTERVAL, self._look)

    def _look(self) -> None:
        self._wait()
        count = self._count()
        if count <= self._most - MANY:
            self._most = count
            self._gone()
        else:
            self._most = max(self._most, count)
