"""Parses Twisted endpoint strings, with ``haproxy:`` for the PROXY protocol."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint

from topicsvc.explain import explain_endpoint_error
from topicsvc.listening.proxy_protocol import PREFIX, ProxiedEndpoint

__all__ = ["is_proxied", "is_systemd", "is_tls", "parse", "unproxied"]


def unproxied(text: str) -> str:
    """The endpoint string without its ``haproxy:`` prefixes."""
    while is_proxied(text):
        text = text.removeprefix(PREFIX)
    return text


def is_tls(text: str) -> bool:
    """Whether an endpoint string describes a TLS endpoint."""
    return unproxied(text).startswith(("ssl:", "tls:"))


def is_proxied(text: str) -> bool:
    """Whether an endpoint string requires the PROXY protocol."""
    return text.startswith(PREFIX)


def is_systemd(text: str) -> bool:
    """Whether an endpoint string names a socket that systemd passes."""
    return unproxied(text).startswith("systemd:")


def parse(text: str, reactor: Any) -> IStreamServerEndpoint:
    """The endpoint that `text` describes.

    Raises:
        ValueError: it describes no endpoint; the text says why.
    """
    try:
        return _endpoint(text, reactor)
    except Exception as error:  # endpoint parsers raise exceptions of many types
        if is_systemd(text) and isinstance(error, LookupError):
            raise ValueError(
                "systemd passed no such socket; start the .socket unit, not only the service"
            ) from error
        raise ValueError(explain_endpoint_error(error)) from error


def _endpoint(text: str, reactor: Any) -> IStreamServerEndpoint:
    if is_proxied(text):
        return ProxiedEndpoint(_endpoint(text.removeprefix(PREFIX), reactor))
    endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    return endpoint
