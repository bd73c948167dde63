"""Application: bytes to one connection, at once where nothing waits, else bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer, ITransport
from zope.interface import implementer

from topicsvc.deadlines import Deadlines

__all__ = ["Outbound"]


@implementer(IPushProducer)
class Outbound:
    """The way out to one peer, in order.

    The transport says when it has enough and when it has run empty (it holds about 64 KiB);
    between the two, bytes wait here.

    Args:
        transport: where the bytes go; this becomes its producer.
        limit: most bytes that may wait here.
        stalls: waits for a transport that takes nothing for too long.
        overflow: what happens when the peer is too slow; called once.
    """

    __slots__ = ("_limit", "_overflow", "_paused", "_queue", "_stalls", "_transport", "_waiting")

    def __init__(
        self,
        transport: ITransport,
        limit: int,
        stalls: Deadlines[Outbound],
        overflow: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._limit = limit
        self._stalls = stalls
        self._overflow: Callable[[], None] | None = overflow
        self._queue: deque[bytes] | None = None
        self._waiting = 0
        self._paused = False
        transport.registerProducer(self, True)  # type: ignore[attr-defined]

    @property
    def waiting(self) -> int:
        """Bytes that wait here."""
        return self._waiting

    def write(self, data: bytes) -> None:
        """Send `data` after all that was written before it.

        Where nothing waits any length is taken, so that a message longer than the limit
        can be delivered to a peer that keeps up.
        """
        if not self._paused:
            self._transport.write(data)
            return
        if self._waiting and self._waiting + len(data) > self._limit:
            self.give_up()
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(data)
        self._waiting += len(data)

    def discard(self) -> None:
        """Forget what waits here; what is written next goes straight to the transport."""
        self._queue = None
        self._waiting = 0
        self._paused = False
        self._overflow = None
        self._stalls.cancel(self)

    def give_up(self) -> None:
        """The peer is too slow: nothing more waits for it."""
        overflow = self._overflow
        if overflow is not None:
            self.discard()
            overflow()

    def pauseProducing(self) -> None:
        """The transport has enough."""
        if self._overflow is not None:
            self._paused = True
            self._stalls.start(self)

    def resumeProducing(self) -> None:
        """The transport has run empty."""
        self._paused = False
        self._stalls.cancel(self)
        while self._queue and not self._paused:
            data = self._queue.popleft()
            self._waiting -= len(data)
            self._transport.write(data)

    def stopProducing(self) -> None:
        """The transport is gone."""
        self.discard()
