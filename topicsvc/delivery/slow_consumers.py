"""Limits the bytes that wait for all slow clients together.

A send queue reports here only while bytes wait: clients that keep up cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from topicsvc.scheduling.deadlines import Deadlines

__all__ = ["STALL_TIMEOUT", "Consumer", "SlowConsumers"]

STALL_TIMEOUT = 10.0
"""Seconds after which a client that reads nothing is a slow consumer."""


class Consumer(Protocol):
    """One client, with the bytes that wait for it.

    Attributes:
        address: the client's address, for the log; None: not known.
    """

    address: str | None

    def drop_slow_consumer(self) -> None:
        """Discard the waiting bytes, and close the connection."""
        ...

    def check_stall(self) -> None:
        """Bytes have waited for `STALL_TIMEOUT`: drop the client if it has read nothing."""
        ...


class SlowConsumers:
    """Counts the bytes that wait for each client, and drops the slowest clients over a limit.

    Args:
        max_bytes: returns the most bytes that may wait for all clients together.
        on_dropped: called with the address of each client that is dropped because of `max_bytes`.
        clock: the reactor, or a clock in its place.
        now: the time of day, in seconds since the epoch: data that waits is dropped at the expiry.
        stall_timeout: seconds after which a client that reads nothing is dropped.

    Attributes:
        total: bytes that wait for all clients together.
        now: see above.
        stalls: clients whose transport holds bytes, each with the deadline of its next check.
    """

    def __init__(
        self,
        max_bytes: Callable[[], int],
        on_dropped: Callable[[str | None], None],
        clock: IReactorTime,
        now: Callable[[], float],
        stall_timeout: float = STALL_TIMEOUT,
    ) -> None:
        self.total = 0
        self.now = now
        self.stalls = Deadlines[Consumer](
            clock, stall_timeout, lambda consumer: consumer.check_stall()
        )
        self._max_bytes = max_bytes
        self._on_dropped = on_dropped
        self._waiting: dict[Consumer, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def update(self, consumer: Consumer, waiting: int) -> None:
        """Set the bytes that wait for `consumer`, and drop clients if there are too many."""
        before = self._waiting.get(consumer, 0)
        self.total += waiting - before
        if waiting:
            self._waiting[consumer] = waiting
        elif before:
            del self._waiting[consumer]
        if waiting > before and self.total > self._max_bytes():
            self._drop_slowest()

    def waiting_for(self, consumer: object) -> int:
        """The bytes that wait for `consumer`, when that was last reported."""
        return self._waiting.get(consumer, 0)  # type: ignore[call-overload, no-any-return]

    def forget(self, consumer: Consumer) -> None:
        """No longer count bytes for `consumer`, or check whether it reads."""
        self.stalls.cancel(consumer)
        self.update(consumer, 0)

    def _drop_slowest(self) -> None:
        while self._waiting and self.total > self._max_bytes():
            slowest = max(self._waiting, key=self._waiting.__getitem__)
            self._on_dropped(slowest.address)
            self.forget(slowest)
            slowest.drop_slow_consumer()
