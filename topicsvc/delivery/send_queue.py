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


class _Kept(bytes):
    """Bytes in the queue that are sent although data is dropped: replies, pings, close frames."""

    __slots__ = ()


class SendQueue(ABC):
    """Sends to one client, in order.

    Bytes that cannot be sent at once are held by the transport. While it holds any, later writes
    wait in this queue. `topicsvc.delivery.transports` has the subclasses.

    Data that waits here is dropped when the grant has expired. What the transport has is sent: a
    part of a message, or records that TLS has encrypted.

    Args:
        limit: the most bytes that may wait, here and in the transport.
        slow_consumers: the bytes that wait for all clients, and the checks whether they read.
        on_slow_consumer: called once if the client is too slow, with the bytes that wait.

    Attributes:
        messages: data messages that were delivered: sent, waiting or dropped.
        size: their bytes.
        deliver_until: the time, in seconds since the epoch, from which on no data is delivered.
        is_blocked: whether something waits for `drained`.
        send_until: the time from which on data that waits is dropped; 0: no data was delivered.
        on_undelivered: called with the number of messages and bytes that are not delivered.
        has_dropped: whether data was dropped after it had been delivered. The owner resets it.
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
        "_rest",
        "_slow_consumers",
        "address",
        "broker_lost",
        "deliver_until",
        "has_dropped",
        "is_blocked",
        "messages",
        "on_empty",
        "on_undelivered",
        "send_until",
        "size",
    )

    def __init__(
        self, limit: int, slow_consumers: SlowConsumers, on_slow_consumer: Callable[[int], None]
    ) -> None:
        self.messages = 0
        self.size = 0
        self.address: str | None = None
        self.on_undelivered: Callable[[int, int], None] = _ignore
        self.deliver_until = self.send_until = 0.0
        self.is_blocked = self.has_dropped = False
        self.broker_lost: Callable[[], None] = _nothing
        self.on_empty: Callable[[], None] = _nothing
        self._limit = limit
        self._slow_consumers = slow_consumers
        self._on_slow_consumer: Callable[[int], None] | None = on_slow_consumer
        self._queue: deque[bytes] | None = None
        self._rest = b""  # messages that are sent before those in the queue
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

    def send_data(self, data: bytes) -> bool:
        """As `send`, for whole messages: those of which no byte was sent may go to `keep_rest`."""
        return self.send(data)

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
            if self._queue or not self.send_data(frames):
                self.enqueue(frames)
        else:
            self.on_undelivered(count, len(frames))

    def write(self, data: bytes) -> None:
        """Send `data` after all that was written before it."""
        if self._queue or not self.send(data):
            self.enqueue(_Kept(data))

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

    def keep_rest(self, messages: bytes) -> None:
        """Keep the last messages of a `send_data` until the transport holds nothing.

        They do not count as the first write in the queue, which may have any length.
        """
        if self._on_slow_consumer is not None:  # else discarded meanwhile
            self._rest = messages
            self._queued += len(messages)

    def stop_delivery(self) -> None:
        """Deliver no more data, and answer no more pings: only a reply and a close frame follow."""
        self.deliver_until = 0.0
        self._replaceable = None

    def drop_data(self) -> None:
        """Drop the data that waits."""
        if self._rest or self._queue:
            waiting = self._queue or ()
            kept: deque[bytes] = deque(each for each in waiting if isinstance(each, _Kept))
            if self._rest or len(kept) < len(waiting):
                self.has_dropped = True
            self._rest = b""
            self._queue = kept
            self._queued = sum(map(len, kept))
            if self._on_slow_consumer is not None:
                self._slow_consumers.update(self, self.waiting)

    def discard(self) -> None:
        """Discard the queue. The transport still sends the bytes that it holds."""
        self.deliver_until = 0.0
        self._queue = None
        self._rest = b""
        self._queued = 0
        self._replaceable = None
        self._on_slow_consumer = None
        self._slow_consumers.forget(self)

    def detach(self) -> None:
        """Discard the queue and the references to the owner, which is gone."""
        self.discard()
        self.broker_lost = self.on_empty = _nothing

    def finish(self) -> None:
        """End the queue: drop data; the transport sends the rest, and may then close."""
        self.drop_data()
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
        if (self._rest or self._queue) and not self._send_waiting():
            self.blocked()
            return
        if self._on_slow_consumer is not None:
            self._slow_consumers.update(self, self.waiting)
        if self._replaceable is not None:
            data, self._replaceable = self._replaceable, None
            self.write_replaceable(data)
        self.on_empty()

    def _send_waiting(self) -> bool:
        """Send what waits; False: the transport holds bytes again."""
        if 0.0 < self.send_until <= self._slow_consumers.now():
            self.drop_data()
        while self._rest:
            rest, self._rest = self._rest, b""
            self._queued -= len(rest)
            if not self.send_data(rest):
                self.keep_rest(rest)
                return False
        while self._queue:  # another one, if a call discards the queue
            queue = self._queue
            taken = _next_chunk(queue)
            chunk = b"".join(taken)
            self._queued -= len(chunk)
            send = self.send if isinstance(taken[0], _Kept) else self.send_data
            if self._rest or not send(chunk):
                queue.extendleft(reversed(taken))
                self._queued += len(chunk)
                return False
        return True


def _next_chunk(queue: deque[bytes]) -> list[bytes]:
    """Take writes of one kind from `queue`, at most `CHUNK` bytes or one write."""
    taken = [queue.popleft()]
    kind = type(taken[0])
    size = len(taken[0])
    while queue and type(queue[0]) is kind and size + len(queue[0]) <= CHUNK:
        taken.append(queue.popleft())
        size += len(taken[-1])
    return taken
