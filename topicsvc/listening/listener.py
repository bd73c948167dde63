"""Adapter: what listens on the endpoints of the settings, and certificates read anew."""

from __future__ import annotations

import re
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
    """What keeps an endpoint string from being listened on, as far as can be told beforehand.

    Args:
        text: the endpoint string.
        reactor: what it would be listened on with.
        is_start: whether that will be done now; before, a socket of systemd's is not missed.
    """
    if is_systemd(text) and not is_start:
        return None
    try:
        _look(text, reactor)
    except ValueError as error:
        return str(error)
    return None


class Listener:
    """One endpoint of the settings and what listens on it.

    Args:
        setting: its key.
        text: the endpoint string.
        factory: makes a protocol for each connection.
        reactor: listens.

    Attributes:
        port: what listens; None: nothing yet, or nothing any more.

    Raises:
        ValueError: the endpoint cannot be used; the text says why.
    """

    def __init__(self, setting: str, text: str, factory: IProtocolFactory, reactor: Any) -> None:
        self.setting = setting
        self.text = text
        self.port: IListeningPort | None = None
        self._factory = factory
        self._is_bound = False
        endpoint = _look(text, reactor)
        self._service: StreamServerEndpointService = strports.service(text, factory, reactor)
        self._service.endpoint = _Noting(endpoint, self)

    def bind(self) -> None:
        """Listen.

        Raises:
            Exception: whatever an endpoint raises.
        """
        self._is_bound = True
        self._service.privilegedStartService()

    def start(self) -> None:
        """Listen, if that has not begun."""
        self._is_bound = True
        self._service.startService()

    def stop(self) -> Deferred[None]:
        """Listen no more; connections stay. Fires when the port is closed."""
        if not self._is_bound:
            return succeed(None)
        self._is_bound = False
        self.port = None
        return maybeDeferred(self._service.stopService)

    def reread(self) -> Callable[[], str] | None:
        """Read its certificates again; returns what puts them in place. None: it has none.

        What does that says which certificate it is. Who is connected stays so, under the old one.

        Raises:
            ValueError: they cannot be used; the text says why.
        """
        if not is_tls(self.text):
            return None
        rehearsal = EndpointPreview(self.text)
        certificate = rehearsal.certificate()

        def replace() -> str:
            port: Any = self.port
            if port is not None:
                factory = rehearsal.factory(self._factory)
                # The new one first: a site without a port would take itself for stopped.
                factory.doStart()
                port.factory, before = factory, port.factory
                _free_when_lost(port)
                before.doStop()
            return (
                f"the certificate of {self.text} (serial {certificate.serial_number:x}, "
                f"until {certificate.not_valid_after_utc:%Y-%m-%d})"
            )

        return replace


@implementer(IStreamServerEndpoint)
class _Noting:
    """An endpoint that remembers its port."""

    def __init__(self, endpoint: IStreamServerEndpoint, listener: Listener) -> None:
        self._endpoint = endpoint
        self._listener = listener

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        def note(port: IListeningPort) -> IListeningPort:
            self._listener.port = port
            _free_when_lost(port)
            return port

        return self._endpoint.listen(factory).addCallback(note)


class _FreedTransport(BufferingTLSTransport):
    """A TLS connection that is freed when it is lost.

    When one ends in a fault, as most do, Twisted keeps the fault in a local variable of a frame
    of its own traceback. That is a cycle, with the connection and a buffer of 32 KiB in it. The
    garbage collector, which is kept rare, comes for it late: 1,000 of them were 25 MB.
    """

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]


def _free_when_lost(port: Any) -> None:
    """See to it that the connections of `port` are freed when they are lost, if it has TLS."""
    if isinstance(getattr(port, "factory", None), TLSMemoryBIOFactory):
        port.factory.protocol = _FreedTransport


def _look(text: str, reactor: Any) -> IStreamServerEndpoint:
    """Look at what Twisted would find out too late; returns the endpoint.

    Raises:
        ValueError: it cannot be used; the text says why.
    """
    for found in _PORT.finditer(unproxied(text)):
        if not 0 <= int(found[1]) <= 65535:
            raise ValueError(f"{found[1]} is no port, 0 to 65535")
    endpoint = parse(text, reactor)
    if is_tls(text):
        EndpointPreview(text).certificate()
    return endpoint
