"""Resolves host names: one lookup at a time for each name, and a limit on all lookups.

A lookup of the system's resolver cannot be stopped. While it hangs, each abandoned request would
leave a lookup behind that waits for a thread: 15 KiB each, for as long as the resolver hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from zope.interface import implementer

__all__ = ["CoalescingResolver", "ReactorWithResolver"]


@implementer(IReactorPluggableNameResolver)
class ReactorWithResolver:
    """A reactor with another name resolver, for the endpoints of one owner.

    `twisted.internet.endpoints.HostnameEndpoint` takes the resolver from its reactor. The
    alternative, `installNameResolver`, replaces the resolver of the whole process, and a
    resolver cannot see which part of the service needs a name.

    Unauthenticated clients choose which cells' hosts are looked up. If the system's resolver
    hangs, their lookups reach the limit. With one resolver for the process, a lookup for the
    broker's connection would then fail at once, instead of waiting. Without a limit, the
    lookups would use up memory.

    Args:
        reactor: does everything else.
        resolver: looks names up.
    """

    def __init__(self, reactor: Any, resolver: IHostnameResolver) -> None:
        self._reactor = reactor
        self.nameResolver = resolver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See `twisted.internet.interfaces.IReactorPluggableNameResolver`."""
        previous, self.nameResolver = self.nameResolver, resolver
        return previous


@implementer(IHostnameResolver)
class CoalescingResolver:
    """Looks names up with a reactor's resolver; requests for the same name share a lookup.

    Args:
        reactor: has the resolver. It may be replaced later.
        max_lookups: lookups in progress, those included that nothing waits for any more. If
            there are as many, another name has no address.
    """

    def __init__(self, reactor: Any, max_lookups: int) -> None:
        self._reactor = reactor
        self._max_lookups = max_lookups
        self._lookups: dict[Any, _Lookup] = {}

    def __len__(self) -> int:
        return len(self._lookups)

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
        lookup = self._lookups.get(key)
        if lookup is not None:
            lookup.receivers.append(resolutionReceiver)
        elif len(self._lookups) >= self._max_lookups:
            resolutionReceiver.resolutionComplete()
        else:
            lookup = self._lookups[key] = _Lookup(lambda: self._lookups.pop(key))
            lookup.receivers.append(resolutionReceiver)
            self._reactor.nameResolver.resolveHostName(lookup, *key)
        return resolution


@implementer(IResolutionReceiver)
class _Lookup:
    """One lookup, and those that wait for its addresses."""

    def __init__(self, on_complete: Callable[[], object]) -> None:
        self._on_complete = on_complete
        self._addresses: list[IAddress] = []
        self.receivers: list[IResolutionReceiver] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See `twisted.internet.interfaces.IResolutionReceiver`."""

    def addressResolved(self, address: IAddress) -> None:
        """See `twisted.internet.interfaces.IResolutionReceiver`."""
        self._addresses.append(address)

    def resolutionComplete(self) -> None:
        """See `twisted.internet.interfaces.IResolutionReceiver`."""
        self._on_complete()
        for receiver in self.receivers:
            for address in self._addresses:
                receiver.addressResolved(address)
            receiver.resolutionComplete()


@implementer(IHostResolution)
class _Resolution:
    """A resolution that cannot be cancelled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Do nothing: others may wait for the lookup, and its thread cannot be stopped."""
