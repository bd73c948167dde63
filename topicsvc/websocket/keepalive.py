"""Counts the pings of a connection that its client has not answered."""

from __future__ import annotations

__all__ = ["PingTracker"]

_SEQUENCE_BYTES = 4


class PingTracker:
    """The pings of one connection.

    Args:
        limit: number of unanswered pings in a row after which the connection is closed.
    """

    __slots__ = ("_answered", "_limit", "_sent")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sent = 0
        self._answered = 0

    @property
    def unanswered(self) -> int:
        """Pings sent since the last one that was answered."""
        return self._sent - self._answered

    def next_ping(self) -> bytes | None:
        """The payload of the ping to send now; None: too many are unanswered."""
        if self.unanswered >= self._limit:
            return None
        self._sent += 1
        return self._sent.to_bytes(_SEQUENCE_BYTES, "big")

    def pong(self, payload: bytes) -> bool:
        """Take a pong; return whether it answers an outstanding ping. Other pongs do not count."""
        if len(payload) != _SEQUENCE_BYTES:
            return False
        is_answer = self._answered < int.from_bytes(payload, "big") <= self._sent
        if is_answer:
            self._answered = self._sent
        return is_answer
