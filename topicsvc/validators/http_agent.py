"""Connects to a validator's server: verified, pooled, limited, and closed without waiting."""

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
from topicsvc.validators.propfind import MAX_PROPERTIES
from topicsvc.validators.resolver import CoalescingResolver, ReactorWithResolver

__all__ = ["MAX_RESPONSE", "BoundedAgent"]

MAX_RESPONSE = 2 * MAX_BODY
"""Most bytes of one response on the wire, with its headers and the framing of its chunks."""

_MAX_PROPFIND = MAX_PROPERTIES + MAX_RESPONSE
"""The same for PROPFIND, once its headers are complete."""

IDLE_TIMEOUT = 15
"""Seconds for which an idle connection is kept for the next request.

If cells have hosts of their own, a connection serves one cell only. So the time is short.
"""

_POOL_RESET_AFTER = 1000
"""New connections after which the pool is emptied: it never forgets a host by itself."""


@implementer(IAgent)
class BoundedAgent:
    """Sends requests that may safely be repeated.

    A server may close a kept connection while the next request is being written to it. Such
    a request is sent once more, over a new connection.

    Args:
        reactor: makes connections and measures time.
        authorities: trusted certificate authorities; None: those of the system.
        max_kept: most idle connections that are kept for later requests.
    """

    def __init__(self, reactor: Any, authorities: Any, max_kept: int) -> None:
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = max_kept
        self._pool.cachedConnectionTimeout = IDLE_TIMEOUT
        self._pool.retryAutomatically = False
        endpoints = _Endpoints(reactor, authorities, max_kept, self._pool.closeCachedConnections)
        self._pooled = Agent.usingEndpointFactory(reactor, endpoints, self._pool)
        self._unpooled = Agent.usingEndpointFactory(reactor, endpoints)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See `twisted.web.iweb.IAgent`."""
        response: Deferred[IResponse] = self._pooled.request(method, uri, headers, bodyProducer)

        def retry(failure: Failure) -> Any:
            if not _was_closed(failure):
                return failure
            second: Deferred[IResponse] = self._unpooled.request(method, uri, headers, bodyProducer)
            return second

        response.addErrback(retry)
        return response

    def close(self) -> Deferred[None]:
        """Close idle connections; fires when they are closed."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing


def _was_closed(failure: Failure) -> bool:
    """Whether the peer closed the connection before the first byte of its response."""
    if not failure.check(ResponseNeverReceived, RequestTransmissionFailed):
        return False
    reasons: list[Failure] = getattr(failure.value, "reasons", [])
    return not any(reason.check(CancelledError) for reason in reasons)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes the endpoint of a request, and counts open connections.

    A client chooses a cell, and with it a host. So all hosts share one TLS context: with the
    system's authorities, a context for each host would cost 1 MB and 6 ms.
    """

    def __init__(
        self,
        reactor: Any,
        authorities: Any,
        max_kept: int,
        close_idle: Callable[[], Deferred[None]],
    ) -> None:
        # Each request in progress may be to another host, and may be repeated.
        resolver = CoalescingResolver(reactor, 2 * max_kept)
        self._reactor = ReactorWithResolver(reactor, resolver)
        self._tls = CertificateOptions(trustRoot=authorities or platformTrust())
        self._max_kept = max_kept
        self._close_idle = close_idle
        self._open = 0
        self._opened = 0

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See `twisted.web.iweb.IAgentEndpointFactory`."""
        host = uri.host.decode("ascii")
        endpoint: Any = HostnameEndpoint(self._reactor, host, uri.port)
        if uri.scheme == b"https":
            # Private to Twisted: the only way to verify host names with a shared context.
            verifying = ClientTLSOptions(self._tls.clientConnectionForTLS, host)
            endpoint = wrapClientTLS(verifying, endpoint)
        return _Endpoint(endpoint, self)

    def connected(self) -> None:
        """Count a new connection."""
        self._open += 1
        self._opened += 1
        if self._open > 2 * self._max_kept or self._opened > _POOL_RESET_AFTER:
            # The pool limits idle connections for each host; this limits them over all hosts.
            self._opened = 0
            self._close_idle()

    def disconnected(self) -> None:
        """Count a connection that is closed."""
        self._open -= 1


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """An endpoint whose connections are counted and limited."""

    def __init__(self, endpoint: IStreamClientEndpoint, endpoints: _Endpoints) -> None:
        self._endpoint = endpoint
        self._endpoints = endpoints

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `twisted.internet.interfaces.IStreamClientEndpoint`."""
        return self._endpoint.connect(_LimitingFactory(factory, self._endpoints))


class _LimitingFactory(ClientFactory):
    """Limits how many bytes the protocols of another factory take for one response.

    Twisted's HTTP client limits neither the headers nor the body of a response. With TLS its
    way to close a connection waits for the peer. Both matter if the peer misbehaves.
    """

    noisy = False

    def __init__(self, factory: IProtocolFactory, endpoints: _Endpoints) -> None:
        self._factory = factory
        self._endpoints = endpoints

    def buildProtocol(self, addr: Any) -> Any:
        protocol: Any = self._factory.buildProtocol(addr)
        inner_make_connection, inner_connection_lost = (
            protocol.makeConnection,
            protocol.connectionLost,
        )
        is_lost = False

        def make_connection(transport: Any) -> None:
            def close() -> None:
                if not is_lost:  # the pool also closes connections that the peer has closed
                    transport.abortConnection()

            self._endpoints.connected()
            transport.loseConnection = close
            inner_make_connection(transport)

        def connection_lost(reason: Failure) -> None:
            nonlocal is_lost
            is_lost = True
            self._endpoints.disconnected()
            inner_connection_lost(reason)

        protocol.makeConnection = make_connection
        protocol.connectionLost = connection_lost
        _limit_responses(protocol)
        return protocol


def _limit_responses(protocol: Any) -> None:
    """Abort the connection of `protocol` if a response is too long.

    Only a PROPFIND may be answered at length, because its body is read while it arrives. Headers
    are kept.
    """
    inner_request, inner_data_received = protocol.request, protocol.dataReceived
    received = 0
    limit = MAX_RESPONSE

    def request(sent: Any) -> Deferred[Any]:
        nonlocal limit
        limit = MAX_RESPONSE

        def on_headers(response: IResponse) -> IResponse:
            nonlocal limit
            if sent.method == b"PROPFIND":
                limit = _MAX_PROPFIND
            return response

        responding: Deferred[Any] = inner_request(sent)
        return responding.addCallback(on_headers)

    def data_received(data: bytes) -> None:
        nonlocal received
        received += len(data)
        if received > limit:
            protocol.transport.abortConnection()
            return
        inner_data_received(data)
        if protocol.state == "QUIESCENT":
            received = 0

    protocol.request = request
    protocol.dataReceived = data_received
