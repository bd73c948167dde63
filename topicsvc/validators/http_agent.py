"""Adapter: connections to a judge of tokens: verified, pooled, bounded, and left abruptly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet._sslverify import ClientTLSOptions
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import ClientFactory
from twisted.internet.ssl import (
    CertificateOptions,
    platformTrust,
)
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from topicsvc.validators.http_client import MAX_BODY
from topicsvc.validators.resolver import SparingReactor

__all__ = ["MAX_ANSWER", "BoundedAgent"]

MAX_ANSWER = 2 * MAX_BODY
"""Most bytes that one answer may take on the wire, with its head and its chunks' frames."""

IDLE_TIMEOUT = 15
"""Seconds that a connection is kept for the next question.

Where cells have hosts of their own a connection serves one cell alone, so none is kept long.
"""


_MOST_OPENED = 1000
"""WebSocketServer after which the pool starts afresh: it forgets no host that it has ever seen."""


@implementer(IAgent)
class BoundedAgent:
    """Carries requests that are safe to repeat.

    A server may close a kept connection at the moment at which the next request is written
    to it. Such a request is sent once more, over a connection of its own.

    Args:
        reactor: makes connections and keeps the time.
        authorities: who may vouch for the server; None: whom the system trusts.
        kept: most connections that are kept open for later questions.
    """

    def __init__(self, reactor: Any, authorities: Any, kept: int) -> None:
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = kept
        self._pool.cachedConnectionTimeout = IDLE_TIMEOUT
        self._pool.retryAutomatically = False
        endpoints = _Endpoints(reactor, authorities, kept, self._pool.closeCachedConnections)
        self._kept = Agent.usingEndpointFactory(reactor, endpoints, self._pool)
        self._fresh = Agent.usingEndpointFactory(reactor, endpoints)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See `twisted.web.iweb.IAgent`."""
        asked: Deferred[IResponse] = self._kept.request(method, uri, headers, bodyProducer)

        def again(failure: Failure) -> Any:
            if not _was_closed(failure):
                return failure
            once_more: Deferred[IResponse] = self._fresh.request(method, uri, headers, bodyProducer)
            return once_more

        asked.addErrback(again)
        return asked

    def close(self) -> Deferred[None]:
        """Close the connections that are kept; fires when they are closed."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing


def _was_closed(failure: Failure) -> bool:
    """Whether the connection ended before a byte of the answer came, and not by our wish."""
    if not failure.check(ResponseNeverReceived, RequestTransmissionFailed):
        return False
    reasons: list[Failure] = getattr(failure.value, "reasons", [])
    return not any(reason.check(CancelledError) for reason in reasons)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Where a request goes; counts the connections that are open.

    A client chooses a cell, and with it a host. So all hosts share one context for TLS: with
    the system's authorities in it, each of its own would be a megabyte and 6 ms.
    """

    def __init__(
        self,
        reactor: Any,
        authorities: Any,
        kept: int,
        close_kept: Callable[[], Deferred[None]],
    ) -> None:
        # All that may be under way ask of hosts of their own, and once more.
        self._reactor = SparingReactor(reactor, 2 * kept)
        self._tls = CertificateOptions(trustRoot=authorities or platformTrust())
        self._kept = kept
        self._close_kept = close_kept
        self._open = 0
        self._opened = 0

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See `twisted.web.iweb.IAgentEndpointFactory`."""
        host = uri.host.decode("ascii")
        endpoint: Any = HostnameEndpoint(self._reactor, host, uri.port)
        if uri.scheme == b"https":
            # Private to Twisted, but the one way to its check of names with a shared context.
            verifying = ClientTLSOptions(self._tls.clientConnectionForTLS, host)
            endpoint = wrapClientTLS(verifying, endpoint)
        return _Endpoint(endpoint, self)

    def opened(self) -> None:
        """A connection is there."""
        self._open += 1
        self._opened += 1
        if self._open > 2 * self._kept or self._opened > _MOST_OPENED:
            # The pool bounds what it keeps by host; this bounds it over all hosts.
            self._opened = 0
            self._close_kept()

    def gone(self) -> None:
        """A connection is lost."""
        self._open -= 1


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """An endpoint whose connections are bounded."""

    def __init__(self, endpoint: IStreamClientEndpoint, endpoints: _Endpoints) -> None:
        self._endpoint = endpoint
        self._endpoints = endpoints

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `twisted.internet.interfaces.IStreamClientEndpoint`."""
        return self._endpoint.connect(_Bounding(factory, self._endpoints))


class _Bounding(ClientFactory):
    """Puts a bound on what the protocols of another factory take for one answer.

    Twisted's HTTP client bounds neither an answer's headers nor its body, and its way to
    leave a connection waits for the peer on TLS; both matter when the peer is at fault.
    """

    noisy = False

    def __init__(self, factory: IProtocolFactory, endpoints: _Endpoints) -> None:
        self._factory = factory
        self._endpoints = endpoints

    def buildProtocol(self, addr: Any) -> Any:
        protocol: Any = self._factory.buildProtocol(addr)
        made, take, lost = (
            protocol.makeConnection,
            protocol.dataReceived,
            protocol.connectionLost,
        )
        taken = 0
        is_lost = False

        def make_connection(transport: Any) -> None:
            def leave() -> None:
                if not is_lost:  # the pool also leaves those that the peer has left
                    transport.abortConnection()

            self._endpoints.opened()
            transport.loseConnection = leave
            made(transport)

        def data_received(data: bytes) -> None:
            nonlocal taken
            taken += len(data)
            if taken > MAX_ANSWER:
                protocol.transport.abortConnection()
                return
            take(data)
            if protocol.state == "QUIESCENT":
                taken = 0

        def connection_lost(reason: Failure) -> None:
            nonlocal is_lost
            is_lost = True
            self._endpoints.gone()
            lost(reason)

        protocol.makeConnection = make_connection
        protocol.dataReceived = data_received
        protocol.connectionLost = connection_lost
        return protocol
