"""The ways out, on real sockets: plain TCP and TLS, each the short way and the plain way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial import util
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.harness import MemoryTransport, ServiceTestCase
from tests.integration.certificates import Authority
from topicsvc import transmit
from topicsvc.backlog import Backlog
from topicsvc.limits import Limits
from topicsvc.proxied import ProxiedFactory
from topicsvc.records import DirectRecords, Records
from topicsvc.transmit import SocketOutbound, TlsOutbound, TransportOutbound, way_out

HANDSHAKE_ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
LIMIT = 64 * 1024 * 1024


class Sender(Protocol):
    """Our side: writes something the transport's own way first, as the handshake does."""

    def __init__(self, test: WayOutTests) -> None:
        self.test = test
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(HANDSHAKE_ANSWER)
        self.outbound = self.test.open(self.transport, LIMIT, self.test.backlog, print)
        self.test.ready.callback(self)

    def connectionLost(self, reason: object) -> None:
        self.lost.callback(None)


class Receiver(Protocol):
    """The peer, which reads when it is told to."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.lost: Deferred[None] = Deferred()
        self._wanted: tuple[int, Deferred[None]] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._wanted is not None and len(self.received) >= self._wanted[0]:
            wanted, self._wanted = self._wanted, None
            wanted[1].callback(None)

    def has(self, size: int) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._wanted = (size, done)
        self.dataReceived(b"")
        return done

    def connectionLost(self, reason: object) -> None:
        self.lost.callback(None)


class WayOutTests:
    """Mix into a TestCase that says how to listen, connect and make the way out."""

    kind: type
    open: Any
    greeting = b""

    def listen(self, factory: Factory) -> Any:
        return TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)

    def client(self, port: int) -> Any:
        return TCP4ClientEndpoint(reactor, "127.0.0.1", port)

    @inlineCallbacks
    def setUp(self) -> Any:
        self.backlog = Backlog(Limits(reactor, reactor.seconds), reactor, stall_timeout=60)
        self.stalls = self.backlog.stalls
        self.ready: Deferred[Sender] = Deferred()
        factory = Factory.forProtocol(lambda: Sender(self))
        port = yield self.listen(factory)
        self.addCleanup(port.stopListening)
        self.receiver = Receiver()
        yield connectProtocol(self.client(port.getHost().port), self.receiver)
        self.receiver.transport.write(self.greeting)
        self.sender: Sender = yield self.ready
        self.outbound = self.sender.outbound
        self.assertIsInstance(self.outbound, self.kind)

    @inlineCallbacks
    def tearDown(self) -> Any:
        if not self.receiver.lost.called:
            self.receiver.transport.abortConnection()
        yield self.sender.lost
        yield self.receiver.lost

    @inlineCallbacks
    def assert_received(self, data: bytes) -> Any:
        expected = HANDSHAKE_ANSWER + data
        yield self.receiver.has(len(expected))
        self.assertEqual(len(self.receiver.received), len(expected))
        self.assertTrue(self.receiver.received == expected, "the bytes differ")
        self.assertEqual(self.outbound._queued, 0)

    @inlineCallbacks
    def test_what_is_written_at_once_follows_what_was_written_before(self) -> Any:
        self.outbound.write(b"first")
        self.outbound.write(b"second")
        yield self.assert_received(b"firstsecond")
        self.outbound.write(b"third")
        yield self.assert_received(b"firstsecondthird")
        self.assertEqual(self.outbound.waiting, 0)
        self.assertEqual(len(self.stalls), 0)

    @inlineCallbacks
    def test_a_peer_that_does_not_read_for_a_while_gets_all_in_order(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        written = bytearray()
        generator = random.Random(1)
        while len(written) < 16 * 1024 * 1024:
            data = generator.randbytes(generator.choice([1, 140, 9000, 70000, 300000]))
            self.outbound.write(data)
            written += data
            if generator.random() < 0.1:
                yield deferLater(reactor, 0)
        self.assertGreater(self.outbound.waiting, 1024 * 1024)
        self.assertEqual(len(self.stalls), 1)
        self.receiver.transport.resumeProducing()
        yield self.assert_received(bytes(written))
        yield deferLater(reactor, 0)
        self.assertEqual((self.outbound.waiting, len(self.stalls)), (0, 0))

    @inlineCallbacks
    def test_order_is_kept_when_both_ways_alternate(self) -> Any:
        generator = random.Random(2)
        written = bytearray()
        for _ in range(300):
            data = generator.randbytes(generator.choice([1, 500, 40000]))
            if generator.random() < 0.5:
                self.outbound.write(data)
                written += data
            elif not self.outbound._queued:
                # What TLS or Twisted might say on their own goes the transport's way.
                self.sender.transport.write(data)
                written += data
            if generator.random() < 0.3:
                yield deferLater(reactor, 0)
        yield self.assert_received(bytes(written))

    @inlineCallbacks
    def test_a_peer_that_is_gone_is_noticed_and_nothing_is_raised(self) -> Any:
        self.receiver.transport.abortConnection()
        for _ in range(50):
            self.outbound.write(b"x" * 100_000)
            yield deferLater(reactor, 0.001)
        self.assertTrue(self.sender.lost.called)
        self.outbound.write(b"x")
        self.outbound.finish()

    @inlineCallbacks
    def test_a_close_frame_behind_data_is_the_last_to_arrive(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        big = b"x" * (8 * 1024 * 1024)
        self.outbound.write(big)
        self.outbound.write(b"data")
        self.outbound.write(b"close")
        self.outbound.finish()
        self.sender.transport.loseConnection()
        self.receiver.transport.resumeProducing()
        while not self.receiver.lost.called:
            yield deferLater(reactor, 0.01)
        self.assertEqual(bytes(self.receiver.received[-9:]), b"dataclose")
        self.assertEqual(len(self.receiver.received), len(HANDSHAKE_ANSWER + big) + 9)

    @inlineCallbacks
    def test_what_waits_is_counted_across_both_queues(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        while not self.outbound._queued:
            self.outbound.write(b"x" * 50_000)
        before = self.outbound.waiting
        self.assertGreater(before, self.outbound._queued)
        self.outbound.write(b"x" * 1000)
        self.assertEqual(self.outbound.waiting, before + 1000)


class TlsMixin:
    # Twisted hands pyOpenSSL what pyOpenSSL would rather not have; no call of ours.
    suppress = (
        util.suppress(message="Passing pyOpenSSL", category=DeprecationWarning),
        util.suppress(message="X509.* is deprecated", category=DeprecationWarning),
    )

    def listen(self, factory: Factory) -> Any:
        directory = Path(self.mktemp())
        directory.mkdir(parents=True)
        authority = Authority(directory)
        key, cert = authority.issue("localhost")
        self.trusted = ssl.Certificate.loadPEM(authority.ca_file.read_bytes())
        options = ssl.PrivateCertificate.loadPEM(cert.read_bytes() + key.read_bytes()).options()
        return SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1").listen(factory)

    def client(self, port: int) -> Any:
        options = ssl.optionsForClientTLS("localhost", trustRoot=self.trusted)
        return wrapClientTLS(options, super().client(port))


class SocketTests(WayOutTests, TestCase):
    kind = SocketOutbound
    open = staticmethod(way_out)


class ProxiedTests(WayOutTests, TestCase):
    """Behind a proxy that speaks the PROXY protocol."""

    kind = SocketOutbound
    open = staticmethod(way_out)
    greeting = b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n"

    def listen(self, factory: Factory) -> Any:
        return super().listen(ProxiedFactory(factory))


class PlainTransportTests(WayOutTests, TestCase):
    kind = TransportOutbound
    open = staticmethod(TransportOutbound)


class TlsTests(TlsMixin, WayOutTests, TestCase):
    kind = TlsOutbound
    open = staticmethod(way_out)

    def test_the_records_are_made_by_the_shortest_way(self) -> None:
        self.assertIs(type(self.outbound._records), DirectRecords)


class TlsByMethodsTests(TlsMixin, WayOutTests, TestCase):
    """A pyOpenSSL whose inside is another: its methods make the records."""

    kind = TlsOutbound
    open = staticmethod(way_out)

    def setUp(self) -> Any:
        self.patch(transmit, "records_of", Records)
        return super().setUp()


class TlsDirectoryTests(TlsMixin, WayOutTests, TestCase):
    """Certificates chosen by name: ``tls:DIRECTORY``."""

    kind = TlsOutbound
    open = staticmethod(way_out)

    def listen(self, factory: Factory) -> Any:
        directory = Path(self.mktemp()).absolute()
        chosen = directory / "chosen"
        chosen.mkdir(parents=True)
        authority = Authority(directory)
        key, cert = authority.issue("localhost")
        (chosen / "localhost.pem").write_bytes(cert.read_bytes() + key.read_bytes())
        self.trusted = ssl.Certificate.loadPEM(authority.ca_file.read_bytes())
        text = f"tls:{chosen}:port=0:interface=127.0.0.1"
        return serverFromString(reactor, text).listen(factory)


class TlsTransportTests(TlsMixin, WayOutTests, TestCase):
    kind = TransportOutbound
    open = staticmethod(TransportOutbound)


class ChoiceTests(ServiceTestCase):
    """That the short way is in use where it should be is asserted by each setUp above."""

    def test_a_transport_of_another_kind_takes_the_plain_way(self) -> None:
        client = self.connect()
        self.assertIsInstance(client.transport.protocol._outbound, TransportOutbound)


class InsideTests(SynchronousTestCase):
    def test_an_inside_that_is_not_as_expected_is_not_trusted(self) -> None:
        class Odd(MemoryTransport):
            pass

        self.assertFalse(transmit._is_transparent(Odd(None, 1)))
        self.assertFalse(transmit._is_transparent_tls(object()))
