"""Decides when a connection that only receives is dead."""

from __future__ import annotations

__all__ = ["MAX_SILENCE", "MIN_SILENCE", "OWN_PING_INTERVAL", "Silence"]

PINGS = 3
"""Ping intervals without a byte after which a connection is dead."""

OWN_PING_INTERVAL = 60.0
"""Seconds between two pings of this client. Its pings are answered even by a service whose own
pings are rare."""

MAX_SILENCE = PINGS * OWN_PING_INTERVAL
"""Seconds without a byte after which any connection is dead. The service's default is a ping
every 60 seconds."""

MIN_SILENCE = 10.0
"""Seconds that a connection may be silent, however often the service pings."""


class Silence:
    """Measures how long nothing has arrived, and how often the service pings.

    Args:
        now: the time, in seconds.
    """

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._pinged_at: float | None = None
        self._intervals = 0
        self._longest = 0.0

    def heard(self, now: float) -> None:
        """Bytes have arrived."""
        self._heard_at = now

    def pinged(self, now: float) -> None:
        """A ping of the service has arrived."""
        if self._pinged_at is not None:
            self._intervals += 1
            self._longest = max(self._longest, now - self._pinged_at)
        self._pinged_at = now

    @property
    def limit(self) -> float:
        """Seconds without a byte after which the connection is dead.

        Pings that were delayed arrive together, so the longest of several intervals counts.
        """
        if self._intervals < PINGS:
            return MAX_SILENCE
        return min(MAX_SILENCE, max(MIN_SILENCE, PINGS * self._longest))

    def is_dead(self, now: float) -> bool:
        """Whether nothing has arrived for too long."""
        return now - self._heard_at >= self.limit
