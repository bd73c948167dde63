"""Test cases for send queues on real sockets that send as much as a test allows.

A test class combines a mixin from here, which listens and connects, with a kind of send queue and
a `TestCase`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor, ssl, tcp
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.trial import util

from tests.support.certificates import Authority
from tests.support.processes import until
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.listening.proxy_protocol import ProxiedFactory
from topicsvc.listening.tls import TlsTransport
from topicsvc.settings import LimitSettings

HANDSHAKE_ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
LIMIT = 64 * 1024 * 1024
TIMEOUT = 30.0


class FaultySocket(socket.socket):
    """A socket that sends as much as the test allows.

    Attributes:
        take: called with the number of bytes of a send; returns how many are sent, or raises.
        offers: for each send, the number of bytes to send and of bytes sent.
        refusals: the number of sends that raised.
    """

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(fileno=accepted.detach())
        self.take: Callable[[int], int] = lambda size: size
        self.offers: list[tuple[int, int]] = []
        self.refusals = 0

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            sent = super().send(memoryview(data)[: self.take(len(data))], flags)
        except OSError:
            self.refusals += 1
            raise
        self.offers.append((len(data), sent))
        return sent

    @property
    def partial(self) -> int:
        """The number of sends of which only a part was sent."""
        return sum(0 < taken < offered for offered, taken in self.offers)


class Sender(Protocol):
    """The service's side: first writes to the transport directly, as the HTTP side does."""

    def __init__(self, test: SendQueueCase) -> None:
        self.test = test
        self.received = b""
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(HANDSHAKE_ANSWER)
        test = self.test
        self.send_queue = test.open(
            self.transport, test.limit, test.slow_consumers, test.drops.append
        )
        test.ready.callback(self)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: object) -> None:
        self.send_queue.detach()
        self.lost.callback(None)


class Receiver(Protocol):
    """The client's side, which reads when the test says so.

    Attributes:
        reason: why its connection was lost.
    """

    reason: Failure | None = None

    def __init__(self) -> None:
        self.received = bytearray()
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure) -> None:
        self.reason = reason
        self.lost.callback(None)


class SendQueueCase:
    """Mix into a TestCase that sets `open` and `kind`: a function and the class that it makes.

    Sockets are real. The times of `SlowConsumers` are virtual.
    """

    timeout = 120
    kind: type
    open: Any
    transport: type[tcp.Server] = tcp.Server
    limit = LIMIT
    greeting = b""
    overhead = 0
    """Bytes that TLS adds to each record."""

    def listen(self, factory: Factory) -> Any:
        return TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)

    def client(self, port: int) -> Any:
        return TCP4ClientEndpoint(reactor, "127.0.0.1", port)

    def accept(self, accepted: socket.socket, *rest: Any) -> tcp.Server:
        """Make the transport of a connection."""
        self.socket = FaultySocket(accepted)
        return self.transport(self.socket, *rest)

    @inlineCallbacks
    def setUp(self) -> Any:
        self.drops: list[int] = []
        self.clock = Clock()
        self.slow_consumers = SlowConsumers(
            lambda: LimitSettings().queued_bytes, lambda _: None, self.clock, self.clock.seconds
        )
        self.stalls = self.slow_consumers.stalls
        self.port = yield self.listen(Factory.forProtocol(lambda: Sender(self)))
        self.port.transport = self.accept
        self.addCleanup(self.port.stopListening)
        yield self.connect()
        self.assertIsInstance(self.send_queue, self.kind)

    @inlineCallbacks
    def connect(self) -> Any:
        self.ready: Deferred[Sender] = Deferred()
        self.receiver = Receiver()
        yield connectProtocol(self.client(self.port.getHost().port), self.receiver)
        self.receiver.transport.write(self.greeting)
        self.sender: Sender = yield self.ready
        self.send_queue = self.sender.send_queue

    @inlineCallbacks
    def tearDown(self) -> Any:
        if not self.receiver.lost.called:
            self.receiver.transport.abortConnection()
        yield self.sender.lost
        yield self.receiver.lost

    @property
    def tcp(self) -> tcp.Server:
        """The TCP transport below all wrappers."""
        transport = self.sender.transport
        while isinstance(transport, ProtocolWrapper):
            transport = transport.transport
        return transport

    @property
    def is_free(self) -> bool:
        """Whether no bytes wait above the transport."""
        return not self.send_queue._queued and not getattr(self.send_queue, "_unwritten", b"")

    @inlineCallbacks
    def assert_received(self, data: bytes) -> Any:
        expected = HANDSHAKE_ANSWER + data
        received = self.receiver.received
        yield until(lambda: len(received) >= len(expected), "all bytes have arrived", TIMEOUT)
        self.assertEqual(len(received), len(expected))
        self.assertTrue(received == expected, "the bytes differ")
        self.assertEqual(self.send_queue._queued, 0)

    def assert_lost(self) -> None:
        """The connection is lost, no bytes wait, and no deadline runs."""
        self.assertTrue(self.sender.lost.called)
        self.assertTrue(self.is_free)
        self.assertEqual(
            (len(self.slow_consumers), self.slow_consumers.total, len(self.stalls)), (0, 0, 0)
        )

    def assert_waiting(self, size: int) -> None:
        """At least `size` bytes wait, and no more than TLS adds to them."""
        waiting = self.send_queue.waiting
        self.assertGreaterEqual(waiting, size)
        self.assertLessEqual(waiting, size + self.overhead * (2 + size // 1000))


class ProxiedCase(SendQueueCase):
    """Connections through a proxy that uses the PROXY protocol."""

    greeting = b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n"

    def listen(self, factory: Factory) -> Any:
        return super().listen(ProxiedFactory(factory))


class TlsCase(SendQueueCase):
    """TLS with one certificate, and the transports that the service makes."""

    overhead = 22
    # Twisted makes these calls, not the service.
    suppress = (
        util.suppress(message="Passing pyOpenSSL", category=DeprecationWarning),
        util.suppress(message="X509.* is deprecated", category=DeprecationWarning),
    )

    def listen(self, factory: Factory) -> Any:
        directory = Path(self.mktemp())
        directory.mkdir(parents=True)
        authority = Authority(directory)
        key, certificate = authority.issue("localhost")
        self.trusted = ssl.Certificate.loadPEM(authority.ca_file.read_bytes())
        pem = certificate.read_bytes() + key.read_bytes()
        options = ssl.PrivateCertificate.loadPEM(pem).options()
        self.restrict(options.getContext())
        endpoint = SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1")

        def free_when_lost(port: Any) -> Any:
            port.factory.protocol = TlsTransport
            return port

        return endpoint.listen(factory).addCallback(free_when_lost)

    def restrict(self, context: SSL.Context) -> None:
        """Leave the context as it is."""

    def client(self, port: int) -> Any:
        options = ssl.optionsForClientTLS("localhost", trustRoot=self.trusted)
        return wrapClientTLS(options, super().client(port))

    @property
    def tls(self) -> Any:
        """The TLS transport."""
        transport = self.sender.transport
        while not hasattr(transport, "_appSendBuffer"):
            transport = transport.transport
        return transport
