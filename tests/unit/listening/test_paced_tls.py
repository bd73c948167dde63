"""TLS handshakes and decryption within the budget of a reactor iteration, in virtual time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import Authority
from topicsvc.listening.endpoints import read_contexts
from topicsvc.listening.paced_tls import PacedTls
from topicsvc.listening.tls import ServerContexts
from topicsvc.scheduling.work_budget import WorkBudget


class Echo(Protocol):
    budget: WorkBudget | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.budget = self.budget
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data


class TlsPeer:
    """A client and the service's connection to it, with the bytes between them in memory."""

    def __init__(self, test: PacedTlsTests) -> None:
        self.protocol = Echo()
        self.protocol.budget = test.budget
        self.server = test.factory.protocol(test.factory, self.protocol)
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.7", 1))
        self.server.makeConnection(self.transport)
        self.client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        self.client.set_connect_state()

    def exchange(self) -> None:
        """Pass on what both have written."""
        self.client.bio_write(self.transport.value() or b"")
        self.transport.clear()
        with contextlib.suppress(SSL.WantReadError):
            self.client.do_handshake()
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self.server.dataReceived(self.client.bio_read(65536))

    def start(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self.client.do_handshake()
        self.flush()

    @property
    def is_reading(self) -> bool:
        return self.transport.producerState == "producing"


class PacedTlsTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        key, certificate = Authority(directory).issue("unit1.example")
        contexts = ServerContexts(read_contexts(f"ssl:443:privateKey={key}:certKey={certificate}"))
        self.factory: Any = TLSMemoryBIOFactory(contexts, False, Factory.forProtocol(Protocol))
        self.factory.protocol = PacedTls
        self.clock = Clock()
        self.budget = WorkBudget(self.clock, 0.004)

    def test_a_handshake_within_the_budget_is_not_deferred(self) -> None:
        peer = TlsPeer(self)
        peer.start()
        self.assertGreater(len(peer.transport.value()), 0)

    def test_handshakes_beyond_the_budget_wait_for_later_iterations(self) -> None:
        self.budget.charge(1.0)
        peers = [TlsPeer(self) for _ in range(3)]
        for peer in peers:
            peer.start()
            self.assertEqual((peer.transport.value(), peer.is_reading), (b"", False))
        self.clock.advance(0)
        for peer in peers:
            self.assertGreater(len(peer.transport.value()), 0)
            self.assertTrue(peer.is_reading)

    def test_the_time_of_a_handshake_is_counted(self) -> None:
        seconds = self.clock.seconds
        self.spent = 0.0
        self.patch(self.clock, "seconds", lambda: self.spent + seconds())
        peers = [TlsPeer(self) for _ in range(10)]
        for peer in peers:
            handshake = peer.server._tlsConnection.do_handshake

            def slow(handshake: Any = handshake) -> None:
                self.spent += 0.001
                handshake()

            self.patch(peer.server._tlsConnection, "do_handshake", slow)
        for peer in peers:
            peer.start()
        answered = [bool(peer.transport.value()) for peer in peers]
        self.assertEqual(answered, [True] * 4 + [False] * 6)

    def test_data_that_waits_is_processed_in_order_and_nothing_more_is_read(self) -> None:
        peer = TlsPeer(self)
        peer.start()
        peer.exchange()
        self.budget.charge(1.0)
        for data in (b"a", b"b", b"c"):
            peer.client.send(data)
            peer.flush()
        self.assertEqual((peer.protocol.received, peer.is_reading), (b"", False))
        self.clock.advance(0)
        self.assertEqual((peer.protocol.received, peer.is_reading), (b"abc", True))

    def test_a_paused_connection_stays_paused_behind_deferred_work(self) -> None:
        peer = TlsPeer(self)
        peer.start()
        peer.exchange()
        self.budget.charge(1.0)
        peer.client.send(b"a")
        peer.flush()
        peer.server.pauseProducing()
        self.clock.advance(0)
        self.assertEqual((peer.protocol.received, peer.is_reading), (b"a", False))
        peer.server.resumeProducing()
        self.assertTrue(peer.is_reading)

    def test_reading_does_not_resume_while_work_is_deferred(self) -> None:
        peer = TlsPeer(self)
        self.budget.charge(1.0)
        peer.start()
        peer.server.pauseProducing()
        peer.server.resumeProducing()
        self.assertFalse(peer.is_reading)

    def test_a_connection_that_is_lost_meanwhile_is_left_alone(self) -> None:
        peer = TlsPeer(self)
        self.budget.charge(1.0)
        peer.start()
        peer.server.connectionLost(None)
        self.clock.advance(0)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_without_a_budget_nothing_is_deferred(self) -> None:
        peer = TlsPeer(self)
        peer.start()
        peer.exchange()
        self.budget.charge(1.0)
        peer.server.budget = None
        peer.client.send(b"a")
        peer.flush()
        self.assertEqual(peer.protocol.received, b"a")
