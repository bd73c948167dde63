"""Parts of every client that keeps a connection to a broker: timeouts and retry delays."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["CONNECT_TIMEOUT", "INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY", "RetryDelays",
           "TimeoutEndpoint"]  # fmt: skip

CONNECT_TIMEOUT = 5.0
"""Seconds that an attempt to connect may take."""

INITIAL_RETRY_DELAY = 0.1
MAX_RETRY_DELAY = 3.0
"""Seconds before a new attempt: doubled each time, then multiplied by 0.5 to 1.5."""


class RetryDelays:
    """The seconds before each attempt to connect; usable as ClientService's ``retryPolicy``.

    The number that ClientService passes is not used: it starts anew with each TCP connection, so
    a broker that refuses the login would be tried again at once.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._attempts = 0

    def reset(self) -> None:
        """The broker has accepted a connection."""
        self._attempts = 0

    def __call__(self, _: int) -> float:
        delay = min(INITIAL_RETRY_DELAY * 2**self._attempts, MAX_RETRY_DELAY)
        self._attempts = min(self._attempts + 1, 10)
        return float(delay * self._random.uniform(0.5, 1.5))


@implementer(IStreamClientEndpoint)
class TimeoutEndpoint:
    """An endpoint with a timeout for each attempt, which reports why an attempt failed.

    Args:
        endpoint: of the broker.
        clock: the time and timers.
        on_failed: called with the failure of each attempt.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        on_failed: Callable[[Failure], None],
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._on_failed = on_failed

    def __repr__(self) -> str:
        return "the broker"

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; see `IStreamClientEndpoint`."""

        def failed(failure: Failure) -> Failure:
            self._on_failed(failure)
            return failure

        attempt: Deferred[IProtocol] = self._endpoint.connect(factory)
        return attempt.addTimeout(CONNECT_TIMEOUT, self._clock).addErrback(failed)
