"""Limits the messages that are sent and not yet confirmed by the broker."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail

from topicsvc.errors import BrokerUnavailable

__all__ = ["MAX_BYTES_IN_FLIGHT", "MAX_IN_FLIGHT", "InFlightLimit", "OnResult"]

MAX_IN_FLIGHT = 2000
"""Messages that may wait for the broker's confirmation."""

MAX_BYTES_IN_FLIGHT = 67108864
"""Bytes of these messages in total. A single message may be longer."""

OnResult = Callable[[BrokerUnavailable | None], None]
"""Is called once with the result of a request. None: the broker has confirmed it."""


class InFlightLimit:
    """Sends a message unless too many messages wait for the broker's confirmation."""

    def __init__(self) -> None:
        self._messages = 0
        self._bytes = 0

    def send(self, size: int, send: Callable[[OnResult], None]) -> Deferred[None]:
        """Call `send` with a callback for the result; the Deferred fires with that result.

        Args:
            size: bytes of the message.
            send: passes the message to the broker. It must make sure that its argument is
                called once.

        Fails with:
            BrokerUnavailable: the broker has not accepted the message, or too many messages
                wait for confirmation.
        """
        if self._messages >= MAX_IN_FLIGHT or (
            self._messages and self._bytes + size > MAX_BYTES_IN_FLIGHT
        ):
            return fail(BrokerUnavailable("too many messages wait for the broker's confirmation"))
        accepted: Deferred[None] = Deferred()

        def on_result(result: BrokerUnavailable | None) -> None:
            self._messages -= 1
            self._bytes -= size
            if result is None:
                accepted.callback(None)
            else:
                accepted.errback(result)

        self._messages += 1
        self._bytes += size
        send(on_result)
        return accepted
