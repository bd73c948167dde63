"""Opens the sockets that the workers of one parent listen on.

The parent keeps them, and accepts nothing. Their backlogs outlive a worker: connections wait there
until its successor accepts them.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from topicsvc.listening.endpoint_string import PREFIX, EndpointString

__all__ = ["SharedSockets", "sharing_problem"]

_ANY = "0"


def sharing_problem(string: EndpointString) -> str | None:
    """Why several workers cannot listen on an endpoint; None: they can."""
    if string.has_port or string.kind in ("unix", "systemd"):
        return None
    return "workers cannot share it; allowed: tcp:, tcp6:, ssl:, tls:, unix: or systemd:"


class SharedSockets:
    """The sockets of one endpoint.

    With a TCP port, each worker has one of its own (``SO_REUSEPORT``), and the kernel distributes
    connections over them. A UNIX socket, or one of systemd's, is one socket for all workers: each
    connection goes to a worker that is free.

    Args:
        text: the endpoint string, with absolute paths.
        count: the number of workers.
        reactor: the reactor.

    Attributes:
        descriptors: the sockets of the workers, in their order.

    Raises:
        Exception: the endpoint cannot listen; endpoints raise exceptions of many types.
    """

    def __init__(self, text: str, count: int, reactor: Any) -> None:
        string = EndpointString.parse(text)
        self._sockets: list[socket.socket] = []
        self._port: Any = None
        self._is_any_port = False
        if string.has_port:
            self._open(string, count)
            self.descriptors = [each.fileno() for each in self._sockets]
            return
        endpoint = serverFromString(reactor, text.removeprefix(PREFIX * string.proxies))
        if isinstance(endpoint, AdoptedStreamServerEndpoint):
            self.descriptors = [endpoint.fileno] * count
            return
        results: list[Any] = []
        endpoint.listen(_NoClients()).addBoth(results.append)  # it has fired already
        [port] = results
        if isinstance(port, Failure):
            port.raiseException()
        port.stopReading()  # the workers accept
        self._port = port
        self.descriptors = [port.fileno()] * count

    def _open(self, string: EndpointString, count: int) -> None:
        port = int(string.get("port", "443"))
        interface = string.interface
        backlog = string.backlog
        self._is_any_port = not port
        try:
            if port:
                _bind(interface, port, is_shared=False).close()
            for _ in range(count):
                bound = _bind(interface, port, is_shared=True)
                self._sockets.append(bound)
                port = bound.getsockname()[1]  # that of the first, if any port is allowed
                bound.listen(backlog)
        except OSError as error:
            self.close()
            raise CannotListenError(interface, port, error) from error

    def refuse(self, index: int) -> bool:
        """Let the socket of one worker refuse connections, until it listens on it again.

        The connections that wait in its backlog are reset, and the kernel gives new ones to the
        other sockets. It keeps its address: see `InheritedEndpoint`. A socket of all workers stays
        as it is.

        Returns:
            Whether that is new.
        """
        # With port 0 the first socket would lose the port that the kernel has chosen for it.
        if not self._sockets or (index == 0 and self._is_any_port):
            return False
        try:
            # On Linux this ends the listening. A new socket instead could not be bound any more,
            # if the port is below 1024 and the process has given up the right to that.
            self._sockets[index].shutdown(socket.SHUT_RD)
        except OSError:  # it does not listen
            return False
        return True

    def close(self) -> Deferred[None]:
        """Close the sockets; remove the file of a UNIX socket, unless it is systemd's."""
        sockets, self._sockets = self._sockets, []
        for each in sockets:
            each.close()
        port, self._port = self._port, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)


def _bind(interface: str, port: int, is_shared: bool) -> socket.socket:
    """A socket with an address.

    Without `is_shared`, another process that listens on the address is an error: with
    ``SO_REUSEPORT`` the kernel would give it a part of the connections.
    """
    family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
    address: Any = (interface, port)
    if family == socket.AF_INET6:
        address = socket.getaddrinfo(interface, port, family, flags=socket.AI_NUMERICHOST)[0][4]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


class _NoClients(Factory):
    """A factory for a port that accepts nothing."""

    noisy = False

    def buildProtocol(self, addr: object) -> None:
        """Refuse a connection."""
