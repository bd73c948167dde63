"""Listens on the endpoints of the settings, and replaces their certificates."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

from twisted.application import strports
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from topicsvc.listening.certificates import EndpointPreview
from topicsvc.listening.endpoints import is_systemd, is_tls, parse, unproxied

__all__ = ["Listener", "endpoint_problem"]

_PORT = re.compile(r"(?:^(?:tcp6?|ssl):|:port=)(-?\d+)")


def endpoint_problem(text: str, reactor: Any, is_start: bool) -> str | None:
    """Why an endpoint string cannot be listened on, as far as that is known in advance.

    Args:
        text: the endpoint string.
        reactor: the reactor that would listen.
        is_start: whether the service starts now; otherwise a missing systemd socket is no problem.
    """
    if is_systemd(text) and not is_start:
        return None
    try:
        _checked_endpoint(text, reactor)
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

    Attributes:
        port: the listening port; None: not yet listening, or no longer.

    Raises:
        ValueError: the endpoint cannot be used; the text says why.
    """

    def __init__(self, setting: str, text: str, factory: IProtocolFactory, reactor: Any) -> None:
        self.setting = setting
        self.text = text
        self.port: IListeningPort | None = None
        self._factory = factory
        self._is_bound = False
        endpoint = _checked_endpoint(text, reactor)
        self._service: StreamServerEndpointService = strports.service(text, factory, reactor)
        self._service.endpoint = _PortRecorder(endpoint, self)

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
        if not is_tls(self.text):
            return None
        preview = EndpointPreview(self.text)
        certificate = preview.certificate()

        def replace() -> str:
            port: Any = self.port
            if port is not None:
                factory = preview.factory(self._factory)
                # The new factory starts first: a site with no port left would stop.
                factory.doStart()
                port.factory, previous = factory, port.factory
                _free_when_lost(port)
                previous.doStop()
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
            _free_when_lost(port)
            _disable_nagle(port)
            return port

        return self._endpoint.listen(factory).addCallback(record)


class _FreedTransport(BufferingTLSTransport):
    """A TLS connection whose memory is freed as soon as the connection is lost.

    If a connection ends with an error, as most do, Twisted keeps the failure in a local variable
    of a frame in the failure's own traceback. This reference cycle holds the connection and a
    buffer of 32 KiB. As full garbage collections are rare (see `topicsvc.process.setup.tune_gc`),
    1,000 such connections held 25 MB.
    """

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]


def _free_when_lost(port: Any) -> None:
    """Let the connections of `port`, if it has TLS, be `_FreedTransport`."""
    if isinstance(getattr(port, "factory", None), TLSMemoryBIOFactory):
        port.factory.protocol = _FreedTransport


def _disable_nagle(port: Any) -> None:
    """Set TCP_NODELAY on the port's socket; accepted connections inherit it.

    Responses of one batch may be written in two parts. With Nagle's algorithm the second would
    wait until the client acknowledges the first: up to 40 ms.
    """
    listening = getattr(port, "socket", None)
    if listening is not None and listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _checked_endpoint(text: str, reactor: Any) -> IStreamServerEndpoint:
    """Parse an endpoint string, and check what Twisted checks only when it listens.

    Raises:
        ValueError: the endpoint cannot be used; the text says why.
    """
    for found in _PORT.finditer(unproxied(text)):
        if not 0 <= int(found[1]) <= 65535:
            raise ValueError(f"{found[1]} is not a port from 0 to 65535")
    endpoint = parse(text, reactor)
    if is_tls(text):
        EndpointPreview(text).certificate()
    return endpoint
