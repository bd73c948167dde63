"""Adapter: messages that a broker has not confirmed yet, within bounds."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail

from topicsvc.errors import BrokerUnavailable

__all__ = ["MAX_BYTES_IN_FLIGHT", "MAX_IN_FLIGHT", "Answered", "InFlightLimit"]

MAX_IN_FLIGHT = 2000
"""Most messages that the broker has not confirmed."""

MAX_BYTES_IN_FLIGHT = 67108864
"""Most bytes of them; one message alone may be longer."""

Answered = Callable[[BrokerUnavailable | None], None]
"""Takes a request's outcome, once: None, the broker has confirmed it."""


class InFlightLimit:
    """Sends messages as long as not too many are waiting for the broker's word."""

    def __init__(self) -> None:
        self._messages = 0
        self._bytes = 0

    def send(self, size: int, send_it: Callable[[Answered], None]) -> Deferred[None]:
        """Call `send_it` with what is to hear the outcome; fires with that outcome.

        Args:
            size: bytes of the message.
            send_it: gives the message to the broker. It must see to an outcome.

        Fails with:
            BrokerUnavailable: the broker has not accepted it, or too much is under way.
        """
        if self._messages >= MAX_IN_FLIGHT or (
            self._messages and self._bytes + size > MAX_BYTES_IN_FLIGHT
        ):
            return fail(BrokerUnavailable("too much is waiting for the broker"))
        accepted: Deferred[None] = Deferred()

        def answered(outcome: BrokerUnavailable | None) -> None:
            self._messages -= 1
            self._bytes -= size
            if outcome is None:
                accepted.callback(None)
            else:
                accepted.errback(outcome)

        self._messages += 1
        self._bytes += size
        send_it(answered)
        return accepted
