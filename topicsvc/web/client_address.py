"""Adapter: who is connected, as far as the transport and trusted proxies tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.web.http_headers import Headers

from topicsvc.admission.addresses import behind_proxies, is_within
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.settings import LimitSettings, Network

__all__ = ["arriving_host", "recognize"]


def arriving_host(transport: Any, trusted: Sequence[Network]) -> str | None:
    """The address that a new connection is counted by.

    None: that will be known when a request has come, from the PROXY header before it or a
    trusted proxy's in it; or never, where there are no addresses.
    """
    if isinstance(transport, ProtocolWrapper) and not isinstance(transport, TLSMemoryBIOProtocol):
        return None  # the PROXY protocol
    host: str | None = getattr(transport.getPeer(), "host", None)
    return None if host is None or is_within(host, trusted) else host


def recognize(
    quota: ClientQuota, transport: Any, headers: Headers, settings: LimitSettings
) -> None:
    """Say whom a connection serves, now that a request's headers are there."""
    peer = transport.getPeer()
    host: str | None = getattr(peer, "host", None)
    if host is None:
        quota.peer = str(peer)
        return
    client = host
    if settings.trusted_proxies:
        client = behind_proxies(
            host,
            headers.getRawHeaders(b"x-forwarded-for", []),
            headers.getRawHeaders(b"forwarded", []),
            settings.trusted_proxies,
        )
    quota.peer = f"{host}:{peer.port}" if client == host else client
    quota.set_client_address(client)
