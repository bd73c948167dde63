"""Sockets that systemd or the parent opened are used as what they are."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from topicsvc.listening.inherited_sockets import InheritedEndpoint


class SystemdSocketTests(TestCase):
    def setUp(self) -> None:
        self.accepted: Deferred[Any] = Deferred()
        self.lost: Deferred[None] = Deferred()
        test = self

        class Accepted(Protocol):
            def connectionMade(self) -> None:
                test.accepted.callback(self.transport.getPeer())
                self.transport.loseConnection()

            def connectionLost(self, reason: object = None) -> None:
                test.lost.callback(None)

        self.factory = Factory.forProtocol(Accepted)

    def endpoint(self, listening: socket.socket) -> InheritedEndpoint:
        """The endpoint of an inherited descriptor."""
        return InheritedEndpoint(listening.detach(), reactor)

    @inlineCallbacks
    def peer(self, listening: socket.socket, target: Any) -> Any:
        """The address that the service sees for a client that connects to `target`."""
        family = listening.family
        port = yield self.endpoint(listening).listen(self.factory)
        if family == socket.AF_UNIX:
            client = socket.socket(socket.AF_UNIX)
            client.connect(target)
        else:
            client = socket.create_connection(target)
        with client:
            peer = yield self.accepted
            yield self.lost
            yield port.stopListening()
            return peer, client.getsockname()

    @inlineCallbacks
    def test_a_dual_stack_socket_is_used_as_one(self) -> Any:
        """``ListenStream=8081`` makes an IPv6 socket, which gets IPv4 clients too."""
        listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        target = ("127.0.0.1", listening.getsockname()[1])
        peer, local = yield self.peer(listening, target)
        self.assertEqual((peer.host, peer.port), (f"::ffff:{local[0]}", local[1]))

    @inlineCallbacks
    def test_an_ipv4_socket_is_used_as_one(self) -> Any:
        listening = socket.create_server(("127.0.0.1", 0))
        target = listening.getsockname()
        peer, local = yield self.peer(listening, target)
        self.assertEqual((peer.host, peer.port), local)

    @inlineCallbacks
    def test_a_unix_socket_keeps_its_file_and_its_mode(self) -> Any:
        path = Path(os.path.relpath(self.mktemp()))
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        path.chmod(0o620)
        yield self.peer(listening, str(path))
        self.assertEqual(path.stat().st_mode & 0o777, 0o620)
        self.assertTrue(path.is_socket(), "the file is systemd's")

    @inlineCallbacks
    def test_what_does_not_listen_is_refused(self) -> Any:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            opened = socket.socket(socket.AF_INET, kind)
            descriptor = opened.fileno()
            listening = self.endpoint(opened).listen(self.factory)
            failure = yield self.assertFailure(listening, ValueError)
            self.assertIn("needs ListenStream=", str(failure))
            os.close(descriptor)
        read, write = os.pipe()
        os.close(write)
        listening = InheritedEndpoint(read, reactor).listen(self.factory)
        yield self.assertFailure(listening, OSError)
        os.close(read)
