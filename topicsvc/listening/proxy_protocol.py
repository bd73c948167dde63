"""Adapter: connections behind a proxy that speaks the PROXY protocol.

Twisted has an endpoint for it, ``haproxy:``. Its reader raises what it does not expect, with a
line in the log for each stranger; believes any text to be an address; knows no bare ``PROXY
UNKNOWN``; and needs the first 16 bytes in one piece. So the endpoint is Twisted's in name alone.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

from topicsvc.listening.proxy_header import NotProxied, Place, ProxyHeader

__all__ = ["PREFIX", "ProxiedEndpoint", "ProxiedFactory"]

PREFIX = "haproxy:"
"""What the string of such an endpoint begins with; that of the endpoint below follows."""


class ProxiedProtocol(ProtocolWrapper):
    """One connection; whom it serves is known when the header has come.

    There is no deadline here: that of what is above begins with the connection.
    """

    factory: ProxiedFactory
    transport: Any

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._header = ProxyHeader()
        self._is_read = self._is_refused = False

    def dataReceived(self, data: bytes) -> None:
        """Read the header; what follows is for the protocol above."""
        if self._is_read:
            self.wrappedProtocol.dataReceived(data)
        elif not self._is_refused:
            self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            rest = self._header.feed(data)
        except NotProxied as error:
            self._is_refused = True
            self.factory.refused(self.transport.getPeer(), error)
            self.transport.abortConnection()
            return
        self._is_read = rest is not None
        if rest:
            self.wrappedProtocol.dataReceived(rest)

    def getPeer(self) -> IAddress:
        """The proxy's client; the proxy, if its header names nobody."""
        return _address(self._header.source) or self.transport.getPeer()

    def getHost(self) -> IAddress:
        """Where that client has connected to; else where the proxy has."""
        return _address(self._header.destination) or self.transport.getHost()


def _address(place: Place | None) -> IPv4Address | IPv6Address | None:
    if place is None:
        return None
    kind = IPv4Address if place.address.version == 4 else IPv6Address
    return kind("TCP", str(place.address), place.port)


class ProxiedFactory(WrappingFactory[ProxiedProtocol]):
    """Puts the header before what `wrappedFactory` makes."""

    protocol = ProxiedProtocol
    _log = Logger()

    def __init__(self, wrapped: IProtocolFactory) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self._refused = 0

    def refused(self, peer: IAddress, why: Exception) -> None:
        """Somebody has sent no header: tell the log of the first, the tenth, the hundredth."""
        self._refused += 1
        if str(self._refused).strip("0") == "1":
            self._log.warn(
                "{peer} is closed, {why}: not a header of the PROXY protocol, which a haproxy: "
                "endpoint needs; {count} so far",
                peer=peer,
                why=why,
                count=self._refused,
            )

    def logPrefix(self) -> str:
        """What the log calls it."""
        return f"{type(self.wrappedFactory).__name__} (PROXY)"


@implementer(IStreamServerEndpoint)
class ProxiedEndpoint:
    """An endpoint whose connections begin with the header."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See `IStreamServerEndpoint`."""
        return self._endpoint.listen(ProxiedFactory(factory))
