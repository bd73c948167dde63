"""Adapter: names of hosts to addresses: one lookup for each name, and a bound on all.

The system's resolver cannot be told to stop. While it hangs, each question that was given up
would leave a lookup behind that waits for a thread: 15 KiB each, for as long as it hangs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from zope.interface import implementer

__all__ = ["CoalescingResolver", "SparingReactor"]


@implementer(IReactorPluggableNameResolver)
class SparingReactor:
    """A reactor as it is, but for its lookups.

    Args:
        reactor: does everything.
        most: lookups under way.
    """

    def __init__(self, reactor: Any, most: int) -> None:
        self._reactor = reactor
        self.nameResolver = CoalescingResolver(reactor, most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See `twisted.internet.interfaces.IReactorPluggableNameResolver`."""
        before: IHostnameResolver = self._reactor.installNameResolver(resolver)
        return before


@implementer(IHostnameResolver)
class CoalescingResolver:
    """Looks names up by way of a reactor's resolver.

    Args:
        reactor: has the resolver.
        most: lookups under way, with those that nobody waits for any more; one more finds
            no address.
    """

    def __init__(self, reactor: Any, most: int) -> None:
        self._reactor = reactor
        self._most = most
        self._in_flight: dict[Any, _Lookup] = {}

    def __len__(self) -> int:
        return len(self._in_flight)

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See `twisted.internet.interfaces.IHostnameResolver`."""
        types = None if addressTypes is None else tuple(addressTypes)
        key = hostName, portNumber, types, transportSemantics
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        known = self._in_flight.get(key)
        if known is not None:
            known.receivers.append(resolutionReceiver)
        elif len(self._in_flight) >= self._most:
            resolutionReceiver.resolutionComplete()
        else:
            lookup = self._in_flight[key] = _Lookup(lambda: self._in_flight.pop(key))
            lookup.receivers.append(resolutionReceiver)
            self._reactor.nameResolver.resolveHostName(lookup, *key)
        return resolution


@implementer(IResolutionReceiver)
class _Lookup:
    """One lookup and who waits for it."""

    def __init__(self, ended: Any) -> None:
        self._ended = ended
        self._addresses: list[IAddress] = []
        self.receivers: list[IResolutionReceiver] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See `twisted.internet.interfaces.IResolutionReceiver`."""

    def addressResolved(self, address: IAddress) -> None:
        """See `twisted.internet.interfaces.IResolutionReceiver`."""
        self._addresses.append(address)

    def resolutionComplete(self) -> None:
        """See `twisted.internet.interfaces.IResolutionReceiver`."""
        self._ended()
        for receiver in self.receivers:
            for address in self._addresses:
                receiver.addressResolved(address)
            receiver.resolutionComplete()


@implementer(IHostResolution)
class _Resolution:
    """Nothing that can be stopped."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """The lookup goes on: others may wait for it, and no thread can be stopped."""
