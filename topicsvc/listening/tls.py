"""TLS over another server endpoint, with contexts that a reload replaces.

Twisted's ``ssl:`` and ``tls:`` parsers are not used: docs/design.md says why.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from topicsvc.listening.paced_tls import PacedTls
from topicsvc.listening.tls_contexts import ContextSet

__all__ = ["ServerContexts", "TlsEndpoint", "TlsTransport"]


@implementer(IOpenSSLServerConnectionCreator)
class ServerContexts:
    """The contexts of one endpoint for new connections.

    Args:
        contexts: the first contexts.
    """

    def __init__(self, contexts: ContextSet) -> None:
        self._current = contexts

    def replace(self, contexts: ContextSet) -> None:
        """Use other contexts; connections that have sent a server name keep theirs."""
        self._current.replaced_by(contexts)
        self._current = contexts

    @property
    def earliest_expiry(self) -> float:
        """See `ContextSet`."""
        return self._current.earliest_expiry

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """See `IOpenSSLServerConnectionCreator`."""
        return SSL.Connection(self._current.context(None))


class TlsTransport(PacedTls):
    """A TLS connection whose memory is freed as soon as the connection is lost.

    If a connection ends with an error, as most do, Twisted keeps the failure in a local variable
    of a frame in the failure's own traceback. This reference cycle holds the connection and a
    buffer of 32 KiB. As full garbage collections are rare (see `topicsvc.process.setup.tune_gc`),
    1,000 such connections held 25 MB.
    """

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]


class _TlsFactory(TLSMemoryBIOFactory):
    protocol = TlsTransport


@implementer(IStreamServerEndpoint)
class TlsEndpoint:
    """An endpoint with TLS over another endpoint.

    Args:
        endpoint: the endpoint that listens.
        contexts: the TLS contexts.
        reactor: the reactor.
    """

    def __init__(self, endpoint: IStreamServerEndpoint, contexts: ContextSet, reactor: Any) -> None:
        self.endpoint = endpoint
        self.contexts = ServerContexts(contexts)
        self._reactor = reactor

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See `IStreamServerEndpoint`."""
        return self.endpoint.listen(_TlsFactory(self.contexts, False, factory, clock=self._reactor))
