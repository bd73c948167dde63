"""Listens on sockets that systemd or the parent process opened, as what they are."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import unix
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

__all__ = ["InheritedEndpoint"]

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


@implementer(IStreamServerEndpoint)
class InheritedEndpoint:
    """A socket that systemd or the parent passed, with the family that it has.

    Twisted believes the family in the endpoint string. The socket of ``ListenStream=8081`` is one
    of IPv6 that takes IPv4 too. With ``domain=INET``, Twisted would read the addresses of its
    clients from memory that nobody has written.

    Args:
        descriptor: the number of the descriptor.
        reactor: the reactor.
        backlog: how many connections may wait; None: the socket listens already.
    """

    def __init__(self, descriptor: int, reactor: Any, backlog: int | None = None) -> None:
        self.descriptor = descriptor
        self._reactor = reactor
        self._backlog = backlog

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See `IStreamServerEndpoint`."""
        try:
            if self._backlog is not None:  # see `SharedSockets.refuse`
                with socket.socket(fileno=os.dup(self.descriptor)) as passed:
                    passed.listen(self._backlog)
            family = _family(self.descriptor)
        except (OSError, ValueError) as error:
            return fail(error)
        if family == socket.AF_UNIX:
            return succeed(_listen_unix(self.descriptor, factory, self._reactor))
        endpoint: IStreamServerEndpoint = AdoptedStreamServerEndpoint(
            self._reactor, self.descriptor, family
        )
        return endpoint.listen(factory)


def _family(descriptor: int) -> int:
    """The address family of a socket that listens.

    Raises:
        OSError: the descriptor is no socket.
        ValueError: the socket does not listen for connections.
    """
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        is_listening = listening.type == socket.SOCK_STREAM and listening.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )
        if not is_listening or listening.family not in _FAMILIES:
            raise ValueError(
                "systemd's socket does not listen for connections: "
                "the .socket unit needs ListenStream=, and no Accept=yes"
            )
        return listening.family


def _listen_unix(descriptor: int, factory: IProtocolFactory, reactor: Any) -> IListeningPort:
    """Listen on a UNIX socket, and leave its file to the process that opened it.

    Twisted would change the mode and the backlog that the .socket unit sets, and remove the file
    at the end. It does not, if the name of the socket is abstract.
    """
    with socket.socket(fileno=descriptor) as passed:
        passed.setblocking(False)
        name = os.fsencode(passed.getsockname())
        port: Any = unix.Port(
            b"\0" + name.lstrip(b"\0"), factory, socket.SOMAXCONN, reactor=reactor
        )
        port._preexistingSocket = passed.dup()
    port.startListening()
    listening: IListeningPort = port
    return listening
