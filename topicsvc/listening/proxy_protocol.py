"""Accepts connections from a proxy that sends a PROXY protocol header.

Twisted's own wrapper (``twisted.protocols.haproxy``) is not used: it closes a bare ``PROXY
UNKNOWN``, closes if the first 16 bytes arrive in pieces, lets a bad port raise ValueError into
the log, and takes any text for an address.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IListeningPort,
    ILoggingContext,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

from topicsvc.listening.proxy_header import InvalidProxyHeader, ProxyHeader, SocketAddress
from topicsvc.printable import host_and_port

__all__ = ["LearnsPeer", "ProxiedEndpoint", "ProxiedFactory"]


@runtime_checkable
class LearnsPeer(Protocol):
    """A protocol that is told when the PROXY header has named its client."""

    def peer_known(self) -> None:
        """The transport's `getPeer` now returns the address of the client."""
        ...


@implementer(IHalfCloseableProtocol)
class ProxiedProtocol(ProtocolWrapper):
    """One connection from a proxy; the header gives the client's address.

    It has no deadline of its own: the wrapped protocol's deadline for the request head starts
    with the connection and so covers the header.
    """

    factory: ProxiedFactory
    transport: Any

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._header = ProxyHeader()
        self._is_read = self._is_refused = False

    def dataReceived(self, data: bytes) -> None:
        """Parse the header, then pass all data to the wrapped protocol."""
        if self._is_read:
            self.wrappedProtocol.dataReceived(data)
        elif not self._is_refused:
            self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            rest = self._header.feed(data)
        except InvalidProxyHeader as error:
            self._is_refused = True
            self.factory.refused(self.transport.getPeer(), error)
            self.transport.abortConnection()
            return
        if rest is None:
            return
        self._is_read = True
        protocol = self.wrappedProtocol
        while isinstance(protocol, ProtocolWrapper):  # TLS
            protocol = protocol.wrappedProtocol
        if isinstance(protocol, LearnsPeer):
            protocol.peer_known()
        if rest:
            self.wrappedProtocol.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """Tell the wrapped protocol that the client has closed its half, or close all of it."""
        protocol: Any = self.wrappedProtocol
        # The class is asked, because TLS takes over the interfaces of its transport: this object.
        if IHalfCloseableProtocol.implementedBy(type(protocol)):
            protocol.readConnectionLost()
        else:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the wrapped protocol has closed this half itself."""

    def getPeer(self) -> IAddress:
        """The address of the proxy's client, or of the proxy if the header has none."""
        return _address(self._header.source) or self.transport.getPeer()

    def getHost(self) -> IAddress:
        """The address that the client connected to, or that the proxy connected to."""
        return _address(self._header.destination) or self.transport.getHost()


def _address(address: SocketAddress | None) -> IPv4Address | IPv6Address | None:
    if address is None:
        return None
    kind = IPv4Address if address.host.version == 4 else IPv6Address
    return kind("TCP", str(address.host), address.port)


class ProxiedFactory(WrappingFactory[ProxiedProtocol]):
    """Wraps each protocol of `wrappedFactory` in a `ProxiedProtocol`."""

    protocol = ProxiedProtocol
    _log = Logger()

    def __init__(self, wrapped: IProtocolFactory) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self._refused = 0

    def refused(self, peer: IAddress, why: Exception) -> None:
        """Count an invalid header; log the first, the tenth, the hundredth and so on."""
        self._refused += 1
        if str(self._refused).strip("0") == "1":
            self._log.warn(
                "closed {peer}: no valid PROXY protocol header ({why}), which a haproxy: endpoint "
                "needs; {count} so far",
                peer=host_and_port(peer),
                why=why,
                count=self._refused,
            )

    def logPrefix(self) -> str:
        """The name of the factory in log lines."""
        wrapped: Any = self.wrappedFactory
        is_named = ILoggingContext.providedBy(wrapped)
        return f"{wrapped.logPrefix() if is_named else type(wrapped).__name__} (PROXY)"


@implementer(IStreamServerEndpoint)
class ProxiedEndpoint:
    """An endpoint whose connections start with a PROXY protocol header."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See `IStreamServerEndpoint`."""
        return self._endpoint.listen(ProxiedFactory(factory))
