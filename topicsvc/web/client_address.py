"""The client's address, from the transport, the PROXY protocol and trusted proxies' headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol

from topicsvc.admission.addresses import forwarded_address, is_within
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.printable import host_and_port
from topicsvc.settings import LimitSettings, Network
from topicsvc.web.http_parser import RequestHead

__all__ = ["address_of_peer", "initial_address", "set_client_address"]


def initial_address(transport: Any, trusted: Sequence[Network]) -> str | None:
    """Return the address that a new connection is counted under.

    Returns:
        None: the transport has no addresses, or the client's address is known only with the
        PROXY header, or with its first request, in which a trusted proxy names it.
    """
    lower = transport.transport if isinstance(transport, TLSMemoryBIOProtocol) else transport
    if isinstance(lower, ProtocolWrapper):
        return None  # the PROXY protocol
    return address_of_peer(transport, trusted)


def address_of_peer(transport: Any, trusted: Sequence[Network]) -> str | None:
    """Return the address of the peer, in a PROXY header if there was one; None: as above."""
    host: str | None = getattr(transport.getPeer(), "host", None)
    return None if host is None or is_within(host, trusted) else host


def set_client_address(
    quota: ClientQuota, transport: Any, head: RequestHead, settings: LimitSettings
) -> None:
    """Set `quota`'s client address and `peer`, once the headers of a request have arrived."""
    if quota.peer and not settings.trusted_proxies:
        return  # set by an earlier request of the connection
    peer = transport.getPeer()
    host: str | None = getattr(peer, "host", None)
    if host is None:
        quota.peer = host_and_port(peer)
        return
    client = host
    if settings.trusted_proxies:
        client = forwarded_address(
            host,
            head.get_all(b"x-forwarded-for"),
            head.get_all(b"forwarded"),
            settings.trusted_proxies,
        )
    quota.peer = host_and_port(peer) if client == host else client
    quota.set_client_address(client)
