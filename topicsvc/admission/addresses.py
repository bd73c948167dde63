"""Reads client addresses, and decides which of them count as one client.

An address comes from the network, from a PROXY header, or from a request header that a trusted
proxy has written. An IPv6 network of 64 bits counts as one address: a client that has one address
of such a network has all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from topicsvc.settings import Network

__all__ = ["address_key", "forwarded_address", "is_within", "parse_network"]


_CACHE_SIZE = 4096
"""Addresses whose key is cached: parsing an address costs more than counting a connection."""

_IPV6_PREFIX = 64
_MAX_KEY_LENGTH = 64
_FOR = re.compile(r'(?:^|;)[ \t]*for[ \t]*=[ \t]*("[^"\\]*"|[^",;\s]*)[ \t]*(?:;|$)', re.IGNORECASE)
_BRACKETED = re.compile(r"\[([^]]*)\](?::\d{1,5})?")
_WITH_PORT = re.compile(r"([0-9.]+):\d{1,5}")


def parse_network(text: str) -> Network:
    """Parse an address, ``192.0.2.1``, or a network, ``2001:db8::/32``.

    Raises:
        ValueError: `text` is neither, or has bits set after its prefix.
    """
    return ip_network(text)


def is_within(host: str, networks: Iterable[Network]) -> bool:
    """Whether `host` is an address in one of the networks."""
    address = _address(host)
    return address is not None and any(address in network for network in networks)


@lru_cache(_CACHE_SIZE)
def address_key(host: str) -> str:
    """The text by which `host` is counted: an IPv4 address, an IPv6 network, or `host` itself."""
    if ":" not in host:
        return host[:_MAX_KEY_LENGTH]
    address = _address(host)
    if isinstance(address, IPv6Address):
        network = int(address) >> _IPV6_PREFIX << _IPV6_PREFIX
        return str(IPv6Network((network, _IPV6_PREFIX)))
    return host[:_MAX_KEY_LENGTH] if address is None else str(address)


def forwarded_address(
    host: str,
    x_forwarded_for: Sequence[bytes],
    forwarded: Sequence[bytes],
    trusted: Sequence[Network],
) -> str:
    """The address of a client behind trusted proxies: the rightmost address that is not trusted.

    ``X-Forwarded-For`` is read if there is one, otherwise ``Forwarded`` (RFC 7239): a proxy writes
    one of them, and may pass on the other one as the client sent it.

    Args:
        host: the address of the connection.
        x_forwarded_for: the values of these headers, in their order.
        forwarded: the values of these headers, in their order.
        trusted: the networks of trusted proxies.
    """
    if not trusted or not is_within(host, trusted):
        return host
    hops = _items(x_forwarded_for)
    if not hops:
        hops = [_forwarded_for(item) for item in _items(forwarded)]
    for hop in reversed(hops):
        address = _address(_without_port(hop))
        if address is None:
            break  # no address: the last one known is that of the proxy that wrote this
        host = str(address)
        if not is_within(host, trusted):
            break
    return host


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _items(values: Sequence[bytes]) -> list[str]:
    joined = b",".join(values).decode("latin-1")
    return [item.strip() for item in joined.split(",")] if joined else []


def _forwarded_for(element: str) -> str:
    """The node that an element of ``Forwarded`` names; empty if it names none."""
    match = _FOR.search(element)
    return "" if match is None else match[1].strip('"')


def _without_port(node: str) -> str:
    """An address without its port and brackets, if it has any."""
    match = _BRACKETED.fullmatch(node) or _WITH_PORT.fullmatch(node)
    return node if match is None else match[1]
