"""Listens on the endpoints of the settings, and replaces their certificates."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application import strports
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.tcp import Port
from zope.interface import implementer

from topicsvc.listening.endpoint_string import EndpointString, with_absolute_paths
from topicsvc.listening.endpoints import parse, read_contexts
from topicsvc.listening.tls import TlsEndpoint

__all__ = ["MAX_ACCEPTS", "Listener", "endpoint_problem"]

MAX_ACCEPTS = 16
"""Most connections that a port accepts in one reactor iteration."""


def endpoint_problem(
    text: str, reactor: Any, is_start: bool, directory: Path = Path()
) -> str | None:
    """Why an endpoint string cannot be listened on, as far as that is known in advance.

    Args:
        text: the endpoint string.
        reactor: the reactor that would listen.
        is_start: whether the service starts now; otherwise a missing systemd socket is no problem.
        directory: the directory that relative paths in `text` start from.
    """
    text = with_absolute_paths(text, directory)
    if EndpointString.parse(text).kind == "systemd" and not is_start:
        return None
    try:
        parse(text, reactor)
    except ValueError as error:
        return str(error)
    return None


class Listener:
    """One endpoint of the settings and its listening port.

    Args:
        setting: the key of the setting.
        text: the endpoint string.
        factory: makes a protocol for each connection.
        reactor: the reactor.
        directory: the directory that relative paths in `text` start from.
        descriptor: a socket that the parent opened for this endpoint; None: it opens its own.

    Attributes:
        port: the listening port; None: not yet listening, or no longer.

    Raises:
        ValueError: the endpoint cannot be used; the text says why.
    """

    def __init__(
        self,
        setting: str,
        text: str,
        factory: IProtocolFactory,
        reactor: Any,
        directory: Path = Path(),
        descriptor: int | None = None,
    ) -> None:
        self.setting = setting
        self.text = text
        self.port: IListeningPort | None = None
        self._is_bound = False
        self._absolute_text = with_absolute_paths(text, directory)
        endpoint = parse(self._absolute_text, reactor, descriptor)
        self._contexts = endpoint.contexts if isinstance(endpoint, TlsEndpoint) else None
        # A service of strports raises if its endpoint cannot listen; others log that only.
        self._service: StreamServerEndpointService = strports.service("tcp:0", factory, reactor)
        self._service.endpoint = _PortRecorder(endpoint, self)

    @property
    def certificate_expiry(self) -> float | None:
        """When the first of its certificates expires, in seconds since the epoch; None: no TLS."""
        return None if self._contexts is None else self._contexts.earliest_expiry

    def bind(self) -> None:
        """Listen.

        Raises:
            Exception: the endpoint cannot listen.
        """
        self._is_bound = True
        self._service.privilegedStartService()

    def start(self) -> None:
        """Listen, unless `bind` was called."""
        self._is_bound = True
        self._service.startService()

    def stop(self) -> Deferred[None]:
        """Listen no more; connections stay. Fires when the port is closed."""
        if not self._is_bound:
            return succeed(None)
        self._is_bound = False
        self.port = None
        return maybeDeferred(self._service.stopService)

    def read_certificates(self) -> Callable[[], str] | None:
        """Read the endpoint's certificates again.

        Returns:
            A function that puts them in place and returns a description of the certificate.
            Connections that exist already keep the old one. None: not a TLS endpoint.

        Raises:
            ValueError: the certificates cannot be used; the text says why.
        """
        contexts = self._contexts
        if contexts is None:
            return None
        new = read_contexts(self._absolute_text)
        certificate = new.default.certificate

        def replace() -> str:
            contexts.replace(new)
            return (
                f"the certificate of {self.text} (serial {certificate.serial_number:x}, "
                f"until {certificate.not_valid_after_utc:%Y-%m-%d})"
            )

        return replace


@implementer(IStreamServerEndpoint)
class _PortRecorder:
    """An endpoint that sets `Listener.port` when it listens."""

    def __init__(self, endpoint: IStreamServerEndpoint, listener: Listener) -> None:
        self._endpoint = endpoint
        self._listener = listener

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        def record(port: IListeningPort) -> IListeningPort:
            self._listener.port = port
            _disable_nagle(port)
            _limit_accepts(port)
            return port

        return self._endpoint.listen(factory).addCallback(record)


def _limit_accepts(port: Any) -> None:
    """Let `port` accept at most `MAX_ACCEPTS` connections in one reactor iteration.

    Twisted accepts 100 and more, each of which takes some 0.1 ms, or 0.3 ms with TLS.
    """
    known: Any = port if isinstance(port, Port) else None
    if known is None:
        return
    accept = known.doRead

    def accept_some() -> None:
        known.numberAccepts = MAX_ACCEPTS  # Twisted changes it with each call
        accept()

    known.doRead = accept_some


def _disable_nagle(port: Any) -> None:
    """Set TCP_NODELAY on the port's socket; accepted connections inherit it.

    Responses of one batch may be written in two parts. With Nagle's algorithm the second would
    wait until the client acknowledges the first: up to 40 ms.
    """
    listening = getattr(port, "socket", None)
    if listening is not None and listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
