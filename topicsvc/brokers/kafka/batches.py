"""Puts requests for several topics together, so that many topics need few requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Batches"]


class Batches:
    """A queue of subscription ids.

    All ids that are added in one reactor iteration, or while a request is running, are requested
    together. One request runs at a time.

    Args:
        clock: the time and timers.
        request: requests some of the ids, which are no longer in the queue; fires when the next
            request may begin.
        limit: the most ids of one request.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        request: Callable[[list[str]], Deferred[None]],
        limit: int,
    ) -> None:
        self._clock = clock
        self._request = request
        self._limit = limit
        self._queued: dict[str, None] = {}
        self._is_requesting = False
        self._next: IDelayedCall | None = None

    def add(self, id_: str) -> None:
        """Request `id_`. An id that is in the queue already is requested once."""
        self._queued[id_] = None
        if not self._is_requesting:
            self._is_requesting = True
            self._schedule()

    def stop(self) -> None:
        """Make no more requests."""
        self._queued.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _schedule(self) -> None:
        self._next = self._clock.callLater(0, self._run)

    def _run(self) -> None:
        self._next = None
        ids = list(self._queued)[: self._limit]
        for id_ in ids:
            del self._queued[id_]
        running = self._request(ids)
        running.addErrback(
            lambda failure: self._log.failure(
                "internal error: a request for topics failed", failure
            )
        )
        running.addCallback(self._continue)

    def _continue(self, _: None) -> None:
        self._is_requesting = bool(self._queued)
        if self._is_requesting:
            self._schedule()
