"""Pure: who is at the other end, by address.

Addresses come from the network, from a PROXY header, or from what a trusted proxy has
written into a request; whoever counts them counts an IPv6 network of 64 bits as one, because
anybody who has one such address has all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from topicsvc.settings import Network

__all__ = ["behind_proxies", "counted_as", "is_within", "parse_network"]


MAX_KEPT = 4096
"""Addresses whose reading is kept: it costs more than all the counting."""

_PREFIX = 64
_MAX_LENGTH = 64
_FOR = re.compile(r'(?:^|;)[ \t]*for[ \t]*=[ \t]*("[^"\\]*"|[^",;\s]*)[ \t]*(?:;|$)', re.IGNORECASE)
_BRACKETED = re.compile(r"\[([^]]*)\](?::\d{1,5})?")
_WITH_PORT = re.compile(r"([0-9.]+):\d{1,5}")


def parse_network(text: str) -> Network:
    """Read an address, ``192.0.2.1``, or a network, ``2001:db8::/32``.

    Raises:
        ValueError: it is neither, or has bits set behind its prefix.
    """
    return ip_network(text)


def is_within(host: str, networks: Iterable[Network]) -> bool:
    """Whether `host` is an address in one of the networks."""
    address = _address(host)
    return address is not None and any(address in network for network in networks)


@lru_cache(MAX_KEPT)
def counted_as(host: str) -> str:
    """What `host` is counted by: an IPv4 address, an IPv6 network, or its own text."""
    if ":" not in host:
        return host[:_MAX_LENGTH]
    address = _address(host)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> _PREFIX << _PREFIX, _PREFIX)))
    return host[:_MAX_LENGTH] if address is None else str(address)


def behind_proxies(
    host: str,
    x_forwarded_for: Sequence[bytes],
    forwarded: Sequence[bytes],
    trusted: Sequence[Network],
) -> str:
    """The address of whoever asks through trusted proxies: the rightmost that is not trusted.

    ``X-Forwarded-For`` is read where there is one, else ``Forwarded`` (RFC 7239): a proxy writes
    one of them and lets a client's other one pass.

    Args:
        host: who is connected.
        x_forwarded_for: the values of these headers, in their order.
        forwarded: the same.
        trusted: whose word is taken.
    """
    if not trusted or not is_within(host, trusted):
        return host
    hops = _items(x_forwarded_for)
    if not hops:
        hops = [_forwarded_for(item) for item in _items(forwarded)]
    for hop in reversed(hops):
        address = _address(_bare(hop))
        if address is None:
            break  # hidden or nonsense: whoever wrote it is the last that is known
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
    """The node that an element of ``Forwarded`` names; empty: none."""
    match = _FOR.search(element)
    return "" if match is None else match[1].strip('"')


def _bare(node: str) -> str:
    """An address without the port and the brackets that it may have."""
    match = _BRACKETED.fullmatch(node) or _WITH_PORT.fullmatch(node)
    return node if match is None else match[1]
