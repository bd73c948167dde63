"""Adapter: what was lost, counted alike for every broker outside this process."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Losses"]


@dataclass(slots=True)
class Losses:
    """How often the broker was away, and where messages may have been missed.

    Attributes:
        outages: times that the broker was lost after it had been there.
        reconnects: times that it came back, with all that is listened to live again.
        gaps: times that messages may have been missed: with ActiveMQ whenever topics with
            listeners were without a subscription, with Kafka when a partition no longer has
            the messages that come next.
        seconds: how long in all, from the last sign of the broker's life; Kafka's gaps are
            not measured in time.
        misrouted: messages that the broker brought for another topic than was subscribed.
        is_up: whether the broker was there when it was last heard of.
    """

    outages: int = 0
    reconnects: int = 0
    gaps: int = 0
    seconds: float = 0
    misrouted: int = 0
    is_up: bool = False

    def note(self, is_up: bool) -> None:
        """The broker is there, or not; counted if that is news."""
        if is_up == self.is_up:
            return
        self.is_up = is_up
        if not is_up:
            self.outages += 1
        elif self.outages:
            self.reconnects += 1
