"""Adapter: records on their way from the thread that polls to the reactor, within bounds.

One thread puts, the reactor takes, a little in each of its turns, so that a flood leaves
room for everything else. Neither waits for the other: each only adds up its own side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any, ClassVar, NamedTuple

from twisted.logger import Logger

__all__ = ["Record", "RecordQueue"]

MOST_BYTES = 16777216
MOST_RECORDS = 20000
"""Past either the inflow is full; it is not until both have fallen to a half."""

TURN_BYTES = 65536
TURN_RECORDS = 500
"""Taken in one turn of the reactor: what it would read from a socket in one."""

OVERHEAD = 200
"""Bytes that a record takes besides its value."""


class Record(NamedTuple):
    """What came for a subscription.

    Attributes:
        id: of the subscription.
        value: as it was sent; None: a record without one.
        cell: the header that says who sent it; None: there is none.
    """

    id: str
    value: bytes | None
    cell: bytes | None


class RecordQueue:
    """A queue with one thread at each end.

    Args:
        reactor: takes.
        take: called in the reactor's thread with each record.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, reactor: Any, take: Callable[[Record], None]) -> None:
        self._reactor = reactor
        self._take = take
        self._waiting: deque[Record] = deque()
        self._put_bytes = 0
        self._taken_bytes = 0
        self._is_due = False
        self._is_paused = False
        self._is_closed = False
        self._lock = Lock()

    def put(self, records: Iterable[Record]) -> None:
        """Hand over `records`. Called on the thread that polls."""
        if self._is_closed:
            return
        for record in records:
            self._put_bytes += _size(record)
            self._waiting.append(record)
        if self._is_to_be_scheduled():
            self._reactor.callFromThread(self._turn)

    def pause(self) -> None:
        """Take nothing until `resume`. Called, as that is, in the reactor's thread."""
        self._is_paused = True

    def resume(self) -> None:
        """Take again what is put."""
        self._is_paused = False
        self._go_on()

    def close(self) -> None:
        """What has not been taken by now is not wanted."""
        self._is_closed = True
        self._waiting.clear()

    @property
    def is_empty(self) -> bool:
        """Whether all that was put is taken."""
        return not self._waiting

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be put now."""
        return len(self._waiting) > MOST_RECORDS or self._bytes > MOST_BYTES

    @property
    def has_room(self) -> bool:
        """Whether one that was full has become empty enough."""
        return len(self._waiting) <= MOST_RECORDS / 2 and self._bytes <= MOST_BYTES / 2

    @property
    def _bytes(self) -> int:
        return self._put_bytes - self._taken_bytes

    def _turn(self) -> None:
        with self._lock:
            self._is_due = False
        room = TURN_BYTES
        for _ in range(TURN_RECORDS):
            if not self._waiting or room <= 0 or self._is_paused:
                break
            record = self._waiting.popleft()
            room -= _size(record)
            self._taken_bytes += _size(record)
            try:
                self._take(record)
            except Exception:
                self._log.failure("a record could not be taken")
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting and not self._is_paused and self._is_to_be_scheduled():
            self._reactor.callLater(0, self._turn)

    def _is_to_be_scheduled(self) -> bool:
        """Whether no turn is due; the one who asks sees to one."""
        with self._lock:
            was_due, self._is_due = self._is_due, True
        return not was_due


def _size(record: Record) -> int:
    return OVERHEAD + len(record.value or b"")
