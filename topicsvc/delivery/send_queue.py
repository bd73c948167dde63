"""Sends bytes to one connection: at once if nothing waits, otherwise through a bounded queue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from topicsvc.delivery.slow_consumers import SlowConsumers

__all__ = ["CHUNK", "SendQueue"]

CHUNK = 65536
"""The most bytes that are joined when the queue is sent; a longer write is sent alone."""


def _nothing() -> None:
    """Do nothing."""


def _ignore(messages: int, size: int) -> None:
    """Do nothing."""


class SendQueue(ABC):
    """Sends to one client, in order.

    Bytes that cannot be sent at once are held by the transport. While it holds any, later writes
    wait in this queue. `topicsvc.delivery.transports` has the subclasses.

    Args:
        limit: the most bytes that may wait, here and in the transport.
        slow_consumers: the bytes that wait for all clients, and the checks whether they read.
        on_slow_consumer: called once if the client is too slow, with the bytes that wait.

    Attributes:
        messages: data messages that were delivered, sent or waiting.
        size: their bytes.
        deliver_until: the time, in seconds since the epoch, from which on no data is delivered.
        is_blocked: whether something waits for `drained`.
        on_undelivered: called with the number of messages and bytes that are not delivered.
        on_empty: called when no bytes wait any more.
        address: the client's address, for the log; None: not known.
        broker_lost: see `topicsvc.interfaces.Member`; set by the owner.
    """

    __slots__ = (
        "_buffered",
        "_limit",
        "_on_slow_consumer",
        "_queue",
        "_queued",
        "_replaceable",
        "_slow_consumers",
        "address",
        "broker_lost",
        "deliver_until",
        "is_blocked",
        "messages",
        "on_empty",
        "on_undelivered",
        "size",
    )

    def __init__(
        self, limit: int, slow_consumers: SlowConsumers, on_slow_consumer: Callable[[int], None]
    ) -> None:
        self.messages = 0
        self.size = 0
        self.address: str | None = None
        self.on_undelivered: Callable[[int, int], None] = _ignore
        self.deliver_until = 0.0
        self.is_blocked = False
        self.broker_lost: Callable[[], None] = _nothing
        self.on_empty: Callable[[], None] = _nothing
        self._limit = limit
        self._slow_consumers = slow_consumers
        self._on_slow_consumer: Callable[[int], None] | None = on_slow_consumer
        self._queue: deque[bytes] | None = None
        self._queued = 0
        self._buffered = 0
        self._replaceable: bytes | None = None

    @abstractmethod
    def buffered(self) -> int:
        """Bytes that the transport holds, as far as this is known."""

    @abstractmethod
    def send(self, data: bytes) -> bool:
        """Send `data`; the transport holds the part that cannot be sent at once.

        A subclass calls `blocked` when the transport holds bytes, and `drained` when it no longer
        does.

        Returns:
            False: the transport holds other bytes, and `data` was not taken.
        """

    @abstractmethod
    def end(self, last: bytes) -> None:
        """Give `last` to the transport in any case. Nothing follows, so the transport may close."""

    @abstractmethod
    def release(self) -> None:
        """Detach, and leave the transport to another writer."""

    @property
    def waiting(self) -> int:
        """Bytes that wait, here and in the transport."""
        return self._queued + self.buffered()

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        """See `topicsvc.interfaces.Member`."""
        if now < self.deliver_until:
            self.messages += count
            self.size += len(frames)
            self.write(frames)
        else:
            self.on_undelivered(count, len(frames))

    def write(self, data: bytes) -> None:
        """Send `data` after all that was written before it."""
        if self._queue or not self.send(data):
            self.enqueue(data)

    def write_replaceable(self, data: bytes) -> None:
        """Send `data` after all other writes; while it waits, a later call replaces it."""
        if self._queue or not self.send(data):
            self._replaceable = data
            self.is_blocked = True

    def enqueue(self, data: bytes) -> None:
        """Put `data` into the queue.

        The first write in the queue may have any length, so that a message longer than the limit
        can be delivered to a client that keeps up.
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
        elif self._on_slow_consumer is not None:
            self._slow_consumers.update(self, waiting)

    def discard(self) -> None:
        """Discard the queue. The transport still sends the bytes that it holds."""
        self.deliver_until = 0.0
        self._queue = None
        self._queued = 0
        self._replaceable = None
        self._on_slow_consumer = None
        self._slow_consumers.forget(self)

    def detach(self) -> None:
        """Discard the queue and the references to the owner, which is gone."""
        self.discard()
        self.broker_lost = self.on_empty = _nothing

    def finish(self) -> None:
        """End the queue: the transport sends what waits, and may then close."""
        last = b"".join(self._queue or ())
        self.discard()
        self.end(last)

    def drop_slow_consumer(self) -> None:
        """Discard the queue of a client that is too slow, and tell the owner."""
        on_slow_consumer = self._on_slow_consumer
        if on_slow_consumer is not None:
            waiting = self.waiting
            self.discard()
            on_slow_consumer(waiting)

    def blocked(self) -> None:
        """The transport holds bytes."""
        self.is_blocked = True
        if self._on_slow_consumer is not None:
            if self not in self._slow_consumers.stalls:
                self._buffered = self.buffered()
                self._slow_consumers.stalls.start(self)
            self._slow_consumers.update(self, self.waiting)

    def check_stall(self) -> None:
        """See `topicsvc.delivery.slow_consumers.Consumer`."""
        if self.buffered() < self._buffered:
            self.blocked()
        else:
            self.drop_slow_consumer()

    def drained(self) -> None:
        """The transport holds nothing any more: send the queue."""
        self.is_blocked = False
        self._slow_consumers.stalls.cancel(self)
        while self._queue:
            chunk = self._next_chunk(self._queue)
            if not self.send(chunk):
                self._queue.appendleft(chunk)
                self._queued += len(chunk)
                self.blocked()
                return
        if self._on_slow_consumer is not None:
            self._slow_consumers.update(self, self.waiting)
        if self._replaceable is not None:
            data, self._replaceable = self._replaceable, None
            self.write_replaceable(data)
        self.on_empty()

    def _next_chunk(self, queue: deque[bytes]) -> bytes:
        taken = [queue.popleft()]
        size = len(taken[0])
        while queue and size + len(queue[0]) <= CHUNK:
            taken.append(queue.popleft())
            size += len(taken[-1])
        self._queued -= size
        return b"".join(taken)
