"""Makes endpoints from Twisted's endpoint strings, with TLS and the PROXY protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    serverFromString,
)
from twisted.internet.interfaces import IStreamServerEndpoint

from topicsvc.explain import explain_endpoint_error
from topicsvc.listening.certificates import read_directory, read_pair
from topicsvc.listening.endpoint_string import PREFIX, EndpointString
from topicsvc.listening.inherited_sockets import InheritedEndpoint
from topicsvc.listening.proxy_protocol import ProxiedEndpoint
from topicsvc.listening.tls import TlsEndpoint
from topicsvc.listening.tls_contexts import ContextSet

__all__ = ["parse", "read_contexts"]

_UNUSABLE = {
    "stdio": "it has no clients: serve on tcp:, ssl:, tls:, unix: or systemd:",
    "autobahn": "topicsvc serves WebSocket itself: write only the endpoint in it",
}


def parse(text: str, reactor: Any, descriptor: int | None = None) -> IStreamServerEndpoint:
    """The endpoint that `text` describes.

    Args:
        text: the endpoint string.
        reactor: the reactor.
        descriptor: a socket that the parent opened for this endpoint; None: it opens its own.

    Raises:
        ValueError: it describes no endpoint that can be used; the text says why.
    """
    string = EndpointString.parse(text)
    if string.kind in _UNUSABLE:
        raise ValueError(_UNUSABLE[string.kind])
    port = string.get("port")
    if string.has_port and port.lstrip("-").isdecimal() and not 0 <= int(port) <= 65535:
        raise ValueError(f"{port} is not a port from 0 to 65535")
    if string.is_tls:
        lower, contexts = _tls(string, reactor)
        if descriptor is not None:
            lower = _of_parent(string, descriptor, reactor)
        for _ in range(string.proxies):
            lower = ProxiedEndpoint(lower)
        return TlsEndpoint(lower, contexts, reactor)
    if descriptor is None:
        endpoint = _own(string, reactor)
    else:
        endpoint = _of_parent(string, descriptor, reactor)
    for _ in range(string.proxies):
        endpoint = ProxiedEndpoint(endpoint)
    return endpoint


def _of_parent(string: EndpointString, descriptor: int, reactor: Any) -> InheritedEndpoint:
    """The endpoint with a socket that the parent opened."""
    return InheritedEndpoint(descriptor, reactor, string.backlog if string.has_port else None)


def _own(string: EndpointString, reactor: Any) -> IStreamServerEndpoint:
    """The endpoint without TLS and without PROXY headers."""
    try:
        endpoint: IStreamServerEndpoint = serverFromString(
            reactor, string.text.removeprefix(PREFIX * string.proxies)
        )
    except Exception as error:  # endpoint parsers raise exceptions of many types
        if string.kind == "systemd" and isinstance(error, LookupError):
            raise ValueError(
                "systemd passed no such socket; start the .socket unit, not only the service"
            ) from error
        raise _not_an_endpoint(error) from error
    if isinstance(endpoint, AdoptedStreamServerEndpoint):
        return InheritedEndpoint(endpoint.fileno, reactor)
    return endpoint


def read_contexts(text: str) -> ContextSet:
    """Read the certificates of a TLS endpoint.

    Raises:
        ValueError: it cannot be used; the text says why.
    """
    return _tls(EndpointString.parse(text), None)[1]


def _tls(string: EndpointString, reactor: Any) -> tuple[IStreamServerEndpoint, ContextSet]:
    parser = _tls_with_one_certificate if string.kind == "ssl" else _tls_with_a_directory
    try:
        lower, *files = parser(reactor, *string.positional, **string.named)
    except (TypeError, ValueError) as error:
        raise _not_an_endpoint(error) from error
    if string.kind == "tls":
        return lower, ContextSet(read_directory(Path(files[0])))
    key, certificate, chain, parameters = (None if each is None else Path(each) for each in files)
    assert key is not None  # noqa: S101 - required by the parser
    contexts = ContextSet(read_pair(key, certificate or key, chain), parameters)
    return lower, contexts


def _tls_with_one_certificate(
    reactor: Any,
    port: str,
    privateKey: str,
    certKey: str | None = None,
    sslmethod: str | None = None,
    interface: str = "",
    backlog: str = "50",
    extraCertChain: str | None = None,
    dhParameters: str | None = None,
) -> tuple[Any, ...]:
    """The parameters of ``ssl:``, named as in Twisted's parser."""
    if sslmethod is not None:
        raise ValueError("leave out sslmethod=: TLS 1.2 and 1.3 are served")
    endpoint = TCP4ServerEndpoint(reactor, int(port), int(backlog), interface)
    return endpoint, privateKey, certKey, extraCertChain, dhParameters


def _tls_with_a_directory(
    reactor: Any, path: str, port: str = "443", backlog: str = "50", interface: str = "::"
) -> tuple[Any, ...]:
    """The parameters of ``tls:``, named as in Twisted's parser."""
    return TCP6ServerEndpoint(reactor, int(port), int(backlog), interface), path


def _not_an_endpoint(error: Exception) -> ValueError:
    return ValueError(f"{explain_endpoint_error(error)}; allowed: a Twisted endpoint, tcp:8080")
