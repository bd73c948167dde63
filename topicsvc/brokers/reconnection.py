"""Keeps a connection to a broker, and reconnects when it is lost.

The protocol of the connection is in a package of its own for each kind of broker.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from twisted.application.internet import ClientService
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = [
    "CONNECT_TIMEOUT",
    "INITIAL_RETRY_DELAY",
    "MAX_RETRY_DELAY",
    "STOP_TIMEOUT",
    "BrokerClient",
    "BrokerConnection",
    "BrokerHandler",
    "RetryDelays",
    "TimeoutEndpoint",
]

CONNECT_TIMEOUT = 5.0
"""Seconds that an attempt to connect may take."""

INITIAL_RETRY_DELAY = 0.1
MAX_RETRY_DELAY = 3.0
"""Seconds before a new attempt: doubled each time, then multiplied by 0.5 to 1.5."""


MAX_LINES = 8
"""Lines of the log about one outage of one connection."""

STOP_TIMEOUT = 2.0
"""Seconds that closing the connection may take."""


class BrokerHandler(Protocol):
    """Handles the events of a `BrokerClient`."""

    def on_connected(self) -> None:
        """The broker has accepted the connection: requests can be made."""
        ...

    def on_lost(self, last_heard: float) -> None:
        """The connection is lost. The broker was last heard at `last_heard`, by the clock.

        Pending requests fail after this call.
        """
        ...


class BrokerConnection(Protocol):
    """One connection to a broker.

    Attributes:
        last_heard: when the last bytes of the broker arrived, by the client's clock.
    """

    last_heard: float

    @property
    def is_up(self) -> bool:
        """Whether the broker has accepted the connection. Stays true when it is lost."""
        ...

    def pause(self) -> None:
        """Stop reading."""
        ...

    def resume(self) -> None:
        """Read again."""
        ...

    def close(self) -> None:
        """Tell the broker that the connection ends, if the protocol has a word for that."""
        ...

    def abort(self, why: str) -> None:
        """Abort the connection."""
        ...


Connection = TypeVar("Connection", bound=BrokerConnection)
Handler = TypeVar("Handler", bound=BrokerHandler)


class BrokerClient(Service, Generic[Connection, Handler]):
    """Keeps a connection for as long as the service runs.

    Args:
        name: the purpose of the connection, for the log.
        endpoint: of the broker.
        clock: the time and timers.
        handler: handles the events.
        random: for the jitter of the retry delays.
        where: the broker's address, for the log; empty: it is not shown.

    Attributes:
        last_error: the last known reason why there is no connection; empty if there is none.
        limitation: what does not work, although the connection is up; empty if all works.
    """

    name: str
    broker: ClassVar[str]
    """The broker's name in the log."""

    _log: ClassVar[Logger]

    def __init__(
        self,
        name: str,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        handler: Handler,
        random: Random,
        where: str = "",
    ) -> None:
        self.name = name
        self._shown = f"{self.broker} at {where}" if where else self.broker
        self._told: set[str] = set()  # kinds and reasons of the lines about the present outage
        self._lines = 0
        self.clock = clock
        self.handler = handler
        self._retry_delays = RetryDelays(random)
        self._connects = 0
        self._is_paused = False
        self.last_error = ""
        self.limitation = ""
        self._connection: Connection | None = None
        self._client = _QuietClientService(
            TimeoutEndpoint(endpoint, clock, self._on_connect_failed),
            _ConnectionFactory(self),
            retryPolicy=self._retry_delays,
            clock=clock,
        )

    def make_connection(self) -> Connection:
        """Return the protocol of a new connection, which calls the methods below."""
        raise NotImplementedError

    @property
    def is_up(self) -> bool:
        """Whether requests can be made."""
        return self._connection is not None and self._connection.is_up

    @property
    def reconnects(self) -> int:
        """How often the broker has accepted a connection after the first one."""
        return max(0, self._connects - 1)

    def pause(self) -> None:
        """Stop reading until `resume`, also from a new connection after a reconnect."""
        self._is_paused = True
        if self._connection is not None and self._connection.is_up:
            self._connection.pause()

    def resume(self) -> None:
        """Read again."""
        self._is_paused = False
        if self._connection is not None and self._connection.is_up:
            self._connection.resume()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._client.startService()

    def stopService(self) -> Deferred[None]:
        """Close, after `STOP_TIMEOUT` by force; fires when closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._connection is not None and self._connection.is_up:
            self._connection.close()
        stopping = self._client.stopService()
        connection = self._connection
        if connection is not None:
            force = self.clock.callLater(STOP_TIMEOUT, connection.abort, "stopping")

            def stopped(_: None) -> None:
                if force.active():
                    force.cancel()

            stopping.addCallback(stopped)
        return stopping

    # Called by the connection.

    def on_connection_made(self, connection: Connection) -> None:
        """A connection is made; the broker has not accepted it yet."""
        self._connection = connection

    def on_greeting(self) -> None:
        """The broker has accepted the connection."""
        self._connects += 1
        self._retry_delays.reset()
        self.last_error = ""
        self._told.clear()
        self._lines = 0
        self._log.info("the {name} is connected to {broker}", name=self.name, broker=self._shown)
        self.handler.on_connected()
        if self._is_paused:
            self.pause()

    def on_connection_lost(self, connection: Connection, why: str) -> None:
        """The connection is lost."""
        self._connection = None
        if self.running and connection.is_up:
            self._log_outage("the {name} has lost {broker}: {why}", why, "")
        elif self.running:
            self._log_outage("the {name} cannot use {broker}: {why}", why, why)
        if connection.is_up:
            self.handler.on_lost(connection.last_heard)

    def log_error(self, format_: str, why: str) -> None:
        """Log an error unless its reason is the same as that of the last one."""
        if why != self.last_error:
            self.last_error = why
            self._log.warn(format_, name=self.name, broker=self._shown, why=why)

    def _log_outage(self, format_: str, why: str, kind: str) -> None:
        """Log why there is no connection, unless the outage has a line of this kind."""
        self.last_error = why
        if kind not in self._told and self._lines < MAX_LINES:
            self._told |= {kind, why}
            self._lines += 1
            self._log.warn(format_, name=self.name, broker=self._shown, why=why)

    def _on_connect_failed(self, failure: Failure) -> None:
        if self.running and not failure.check(CancelledError):  # else it was cancelled by a stop
            why = failure.getErrorMessage().rstrip(".")
            self._log_outage("the {name} cannot reach {broker}: {why}", why, "")


class _QuietLogger(Logger):
    """Leaves out the line of ClientService about each attempt: `BrokerClient` logs the outage."""

    def info(self, format: str | None = None, **kwargs: object) -> None:  # noqa: A002
        """Nothing."""


class _QuietClientService(ClientService):
    _log = _QuietLogger()


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, client: BrokerClient[Any, Any]) -> None:
        self._client = client

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._client.make_connection()


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
