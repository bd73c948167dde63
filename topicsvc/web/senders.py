"""Counts the messages of each sender in the last minute, for operators."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

from topicsvc.scheduling.heavy_hitters import HeavyHitters
from topicsvc.websocket.session_log import MAX_SUBJECT

__all__ = ["Sender", "Senders"]


@dataclass(frozen=True, slots=True)
class Sender:
    """One sender.

    Attributes:
        subject: the subject of its token; None: the token has none.
        address: its address, without a port.
        messages: the messages of its requests in the last minute, whether or not accepted.
    """

    subject: str | None
    address: str
    messages: int


class Senders:
    """The senders of the last minute, in bounded memory; see `HeavyHitters`.

    Args:
        clock: the reactor, or a clock in its place.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts = HeavyHitters[tuple[str | None, str]]()

    def count(self, subject: str | None, address: str, messages: int) -> None:
        """Count the messages of one request with a valid token."""
        if subject is not None and len(subject) > MAX_SUBJECT:
            subject = subject[:MAX_SUBJECT]
        self._counts.add((subject, address), messages, self._clock.seconds())

    def top(self, limit: int) -> list[Sender]:
        """The senders with the most messages, at most `limit`."""
        return [
            Sender(subject, address, messages)
            for (subject, address), messages in self._counts.top(limit, self._clock.seconds())
        ]
