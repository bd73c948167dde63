"""Application: bytes to one connection, at once where nothing waits, else bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from topicsvc.deadlines import Deadlines

__all__ = ["CHUNK", "Outbound", "Pipe"]

CHUNK = 65536
"""Bytes that are handed to a pipe at once when it has run empty, or one write if that is more."""


class Pipe(Protocol):
    """What leads from an `Outbound` to its peer; see `topicsvc.pipes`.

    It tells its `Outbound` when it cannot send all at once (``blocked``) and when it
    has run empty (``ran_empty``).
    """

    @property
    def waiting(self) -> int:
        """Bytes that the pipe holds, as far as it can tell."""
        ...

    def take(self, data: bytes) -> bool:
        """Send `data`, or hold what cannot be sent at once. False: full, nothing was taken."""
        ...

    def finish(self, last: bytes) -> None:
        """Hold `last`, however full; nothing comes after it, so the transport may then close."""
        ...


class _NoPipe:
    """Leads nowhere."""

    waiting = 0

    def take(self, data: bytes) -> bool:
        return True

    def finish(self, last: bytes) -> None:
        pass


_NO_PIPE = _NoPipe()


class Outbound:
    """The way out to one peer, in order.

    Args:
        open_pipe: makes the pipe.
        limit: most bytes that may wait, here and in the pipe.
        stalls: waits for a pipe from which nothing leaves for too long.
        overflow: what happens when the peer is too slow; called once.
    """

    __slots__ = ("_held", "_limit", "_overflow", "_pipe", "_queue", "_queued", "_stalls", "_take")

    def __init__(
        self,
        open_pipe: Callable[[Outbound], Pipe],
        limit: int,
        stalls: Deadlines[Outbound],
        overflow: Callable[[], None],
    ) -> None:
        self._limit = limit
        self._stalls = stalls
        self._overflow: Callable[[], None] | None = overflow
        self._queue: deque[bytes] | None = None
        self._queued = 0
        self._held = 0
        self._pipe: Pipe = open_pipe(self)
        self._take = self._pipe.take

    @property
    def waiting(self) -> int:
        """Bytes that wait, here and in the pipe."""
        return self._queued + self._pipe.waiting

    def write(self, data: bytes) -> None:
        """Send `data` after all that was written before it.

        Where nothing waits here any length is taken, so that a message longer than the
        limit can be delivered to a peer that keeps up.
        """
        queue = self._queue
        if not queue:
            if self._take(data):
                return
            if queue is None:
                queue = self._queue = deque()
            self.blocked()
        elif self.waiting + len(data) > self._limit:
            self.give_up()
            return
        queue.append(data)
        self._queued += len(data)

    def discard(self) -> None:
        """Forget what waits here."""
        self._queue = None
        self._queued = 0
        self._overflow = None
        self._stalls.cancel(self)

    def finish(self) -> None:
        """Nothing more will be written: what waits leaves through the transport alone."""
        last = b"".join(self._queue or ())
        self.discard()
        self._pipe.finish(last)

    def lost(self) -> None:
        """The peer is gone: whatever is written goes nowhere."""
        self.discard()
        self._pipe = _NO_PIPE
        self._take = _NO_PIPE.take

    def give_up(self) -> None:
        """The peer is too slow: nothing more waits for it."""
        overflow = self._overflow
        if overflow is not None:
            self.discard()
            overflow()

    def stalled(self) -> None:
        """Nothing has run empty for a while: if nothing has left at all, give up."""
        if self._pipe.waiting < self._held:
            self.blocked()
        else:
            self.give_up()

    def blocked(self) -> None:
        """Something waits."""
        if self._overflow is not None:
            self._held = self._pipe.waiting
            self._stalls.start(self)

    def ran_empty(self) -> None:
        """Nothing waits in the pipe."""
        self._stalls.cancel(self)
        while self._queue:
            chunk = self._next_chunk(self._queue)
            if not self._take(chunk):
                self._queue.appendleft(chunk)
                self._queued += len(chunk)
                self.blocked()
                return

    def _next_chunk(self, queue: deque[bytes]) -> bytes:
        taken = [queue.popleft()]
        size = len(taken[0])
        while queue and size + len(queue[0]) <= CHUNK:
            taken.append(queue.popleft())
            size += len(taken[-1])
        self._queued -= size
        return b"".join(taken)
