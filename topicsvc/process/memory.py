"""Application: when many connections have gone, the memory that they had can go too."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

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
