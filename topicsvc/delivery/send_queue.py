"""Application: bytes to one connection, at once where nothing waits, else bounded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from topicsvc.delivery.slow_consumers import SlowConsumers

__all__ = ["CHUNK", "SendQueue"]

CHUNK = 65536
"""Bytes that are sent at once when nothing is held any more, or one write if that is more."""


def _nothing() -> None:
    """Do nothing."""


def _not_counted(messages: int, size: int) -> None:
    """Do nothing."""


class SendQueue(ABC):
    """The way out to one peer, in order.

    What cannot be sent at once is held below (in a transport, by a subclass); while anything
    is held, what follows waits here. `topicsvc.delivery.transports` has the subclasses.

    Args:
        limit: most bytes that may wait, here and below.
        slow_consumers: what waits for all peers, and for how long.
        overflow: what happens when the peer is too slow; called once, with the bytes that wait.

    Attributes:
        messages: data messages that were delivered, written or waiting.
        size: their bytes.
        deliver_until: data is written before this time (seconds since the epoch), and from
            it on no more.
        undelivered: told of each delivery that is not written: how many messages and bytes.
        on_empty: called when nothing waits any more.
        broker_lost: see `topicsvc.interfaces.Member`; whoever owns this says what happens.
    """

    __slots__ = (
        "_buffered",
        "_limit",
        "_newest",
        "_overflow",
        "_queue",
        "_queued",
        "_slow_consumers",
        "broker_lost",
        "deliver_until",
        "messages",
        "on_empty",
        "size",
        "undelivered",
    )

    def __init__(
        self, limit: int, slow_consumers: SlowConsumers, overflow: Callable[[int], None]
    ) -> None:
        self.messages = 0
        self.size = 0
        self.undelivered: Callable[[int, int], None] = _not_counted
        self.deliver_until = 0.0
        self.broker_lost: Callable[[], None] = _nothing
        self.on_empty: Callable[[], None] = _nothing
        self._limit = limit
        self._slow_consumers = slow_consumers
        self._overflow: Callable[[int], None] | None = overflow
        self._queue: deque[bytes] | None = None
        self._queued = 0
        self._buffered = 0
        self._newest: bytes | None = None

    @abstractmethod
    def buffered(self) -> int:
        """Bytes that are held below, as far as it can be told."""

    @abstractmethod
    def send(self, data: bytes) -> bool:
        """Send `data`, or hold what cannot be sent at once. False: full, nothing was taken.

        Calls `blocked` where anything is held, and `drained` when nothing is any more.
        """

    @abstractmethod
    def end(self, last: bytes) -> None:
        """Hold `last`, however full; nothing follows, so the transport may close after it."""

    @abstractmethod
    def release(self) -> None:
        """Leave the transport to another; nothing is written any more."""

    @property
    def waiting(self) -> int:
        """Bytes that wait, here and below."""
        return self._queued + self.buffered()

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        """See `topicsvc.interfaces.Member`."""
        if now < self.deliver_until:
            self.messages += count
            self.size += len(frames)
            self.write(frames)
        else:
            self.undelivered(count, len(frames))

    def write(self, data: bytes) -> None:
        """Send `data` after all that was written before it."""
        if self._queue or not self.send(data):
            self.wait(data)

    def write_newest(self, data: bytes) -> None:
        """Send `data`, or let it wait at the end; what comes so later takes its place."""
        if self._queue or not self.send(data):
            self._newest = data

    def wait(self, data: bytes) -> None:
        """Let `data` wait.

        Where nothing waits here any length may, so that a message longer than the limit
        can be delivered to a peer that keeps up.
        """
        waiting = self.waiting + len(data)
        queue = self._queue
        if queue and waiting > self._limit:
            self.drop_slow_consumer()
            return
        was_empty = not queue
        if queue is None:
            queue = self._queue = deque()
        queue.append(data)
        self._queued += len(data)
        if was_empty:
            self.blocked()
        elif self._overflow is not None:
            self._slow_consumers.update(self, waiting)

    def discard(self) -> None:
        """Forget what waits here."""
        self.deliver_until = 0.0
        self._queue = None
        self._queued = 0
        self._newest = None
        self._overflow = None
        self._slow_consumers.forget(self)

    def detach(self) -> None:
        """Know nobody any more: whoever owns this is gone."""
        self.discard()
        self.broker_lost = self.on_empty = _nothing

    def finish(self) -> None:
        """Nothing more will be written: what waits leaves, and then the transport may close."""
        last = b"".join(self._queue or ())
        self.discard()
        self.end(last)

    def drop_slow_consumer(self) -> None:
        """The peer is too slow: nothing more waits for it."""
        overflow = self._overflow
        if overflow is not None:
            waiting = self.waiting
            self.discard()
            overflow(waiting)

    def blocked(self) -> None:
        """Something is held."""
        if self._overflow is not None:
            if self not in self._slow_consumers.stalls:
                self._buffered = self.buffered()
                self._slow_consumers.stalls.start(self)
            self._slow_consumers.update(self, self.waiting)

    def stalled(self) -> None:
        """Something has been held for a while: if nothing of it has left, give up."""
        if self.buffered() < self._buffered:
            self.blocked()
        else:
            self.drop_slow_consumer()

    def drained(self) -> None:
        """Nothing is held any more."""
        self._slow_consumers.stalls.cancel(self)
        while self._queue:
            chunk = self._next_chunk(self._queue)
            if not self.send(chunk):
                self._queue.appendleft(chunk)
                self._queued += len(chunk)
                self.blocked()
                return
        if self._overflow is not None:
            self._slow_consumers.update(self, self.waiting)
        if self._newest is not None:
            newest, self._newest = self._newest, None
            self.write_newest(newest)
        self.on_empty()

    def _next_chunk(self, queue: deque[bytes]) -> bytes:
        taken = [queue.popleft()]
        size = len(taken[0])
        while queue and size + len(queue[0]) <= CHUNK:
            taken.append(queue.popleft())
            size += len(taken[-1])
        self._queued -= size
        return b"".join(taken)
