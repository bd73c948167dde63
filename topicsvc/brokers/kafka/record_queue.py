"""Passes records from the thread that polls Kafka to the reactor, with limits.

One thread adds records. The reactor takes a limited number in each iteration, so that it can do
other work even if many records arrive. Neither side waits for the other: each counts its own
bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any, ClassVar, NamedTuple

from twisted.logger import Logger

__all__ = ["Record", "RecordQueue"]

MAX_BYTES = 16777216
MAX_RECORDS = 20000
"""Above either limit the queue is full, until both values have fallen to half of their limits."""

BYTES_PER_ITERATION = 65536
RECORDS_PER_ITERATION = 500
"""Taken in one reactor iteration: 64 KiB is what Twisted reads from a socket in one iteration."""

RECORD_OVERHEAD = 200
"""Bytes of memory for a record besides its value."""


class Record(NamedTuple):
    """A record for a subscription.

    Attributes:
        id: of the subscription.
        value: as it was sent; None: the record has no value.
        cell: the header with the sender; None: the record has no such header.
        partition: its partition.
        offset: its offset.
        epoch: its leader epoch; None: the broker does not tell it.
    """

    id: str
    value: bytes | None
    cell: bytes | None
    partition: int
    offset: int
    epoch: int | None


class RecordQueue:
    """A queue with one thread at each end.

    Args:
        reactor: takes the records.
        on_record: called in the reactor's thread with each record.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, reactor: Any, on_record: Callable[[Record], None]) -> None:
        self._reactor = reactor
        self._on_record = on_record
        self._records: deque[Record] = deque()
        self._put_bytes = 0
        self._taken_bytes = 0
        self._is_scheduled = False
        self._is_paused = False
        self._is_closed = False
        self._lock = Lock()

    def put(self, records: Iterable[Record]) -> None:
        """Add `records`. Called in the thread that polls."""
        if self._is_closed:
            return
        for record in records:
            self._put_bytes += _size(record)
            self._records.append(record)
        if self._must_schedule():
            self._reactor.callFromThread(self._take_some)

    def pause(self) -> None:
        """Take no records until `resume`. Both are called in the reactor's thread."""
        self._is_paused = True

    def resume(self) -> None:
        """Take records again."""
        self._is_paused = False
        self._schedule()

    def close(self) -> None:
        """Drop all records, and accept no more."""
        self._is_closed = True
        self._records.clear()

    @property
    def is_empty(self) -> bool:
        """Whether all records are taken."""
        return not self._records

    @property
    def is_full(self) -> bool:
        """Whether no more records should be added."""
        return len(self._records) > MAX_RECORDS or self._bytes > MAX_BYTES

    @property
    def has_room(self) -> bool:
        """Whether a queue that was full is half empty."""
        return len(self._records) <= MAX_RECORDS / 2 and self._bytes <= MAX_BYTES / 2

    @property
    def _bytes(self) -> int:
        return self._put_bytes - self._taken_bytes

    def _take_some(self) -> None:
        with self._lock:
            self._is_scheduled = False
        room = BYTES_PER_ITERATION
        for _ in range(RECORDS_PER_ITERATION):
            if not self._records or room <= 0 or self._is_paused:
                break
            record = self._records.popleft()
            room -= _size(record)
            self._taken_bytes += _size(record)
            try:
                self._on_record(record)
            except Exception:
                self._log.failure("internal error: a record was not processed")
        self._schedule()

    def _schedule(self) -> None:
        if self._records and not self._is_paused and self._must_schedule():
            self._reactor.callLater(0, self._take_some)

    def _must_schedule(self) -> bool:
        """Whether no call of `_take_some` is scheduled; if so, the caller must schedule one."""
        with self._lock:
            was_scheduled, self._is_scheduled = self._is_scheduled, True
        return not was_scheduled


def _size(record: Record) -> int:
    return RECORD_OVERHEAD + len(record.value or b"")
