"""TLS handshakes and decryption within the budget of a reactor iteration, in virtual time."""

from __future__ import annotations

import contextlib
import select
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import ISystemHandle
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from tests.support.certificates import Authority
from topicsvc.delivery.transports import TlsSendQueue
from topicsvc.listening import paced_tls
from topicsvc.listening.endpoints import read_contexts
from topicsvc.listening.paced_tls import (
    MAX_OUTPUT,
    OUTPUT_TIME,
    PacedTls,
    budget_of_waiting_input,
    set_tls_budget,
)
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

    def __init__(self, test: TlsTestCase) -> None:
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


class TlsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        key, certificate = Authority(directory).issue("unit1.example")
        contexts = ServerContexts(read_contexts(f"ssl:443:privateKey={key}:certKey={certificate}"))
        self.clock = Clock()
        protocols = Factory.forProtocol(Protocol)
        self.factory: Any = TLSMemoryBIOFactory(contexts, False, protocols, self.clock)
        self.factory.protocol = PacedTls
        self.budget = WorkBudget(self.clock, 0.004)


class PacedTlsTests(TlsTestCase):
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

    def test_another_budget_is_set_below_other_protocols(self) -> None:
        peer = TlsPeer(self)
        peer.start()
        peer.exchange()
        self.budget.charge(1.0)
        wrapper = ProtocolWrapper(Factory(), Protocol())
        wrapper.transport = peer.server
        set_tls_budget(wrapper, WorkBudget(self.clock, 0.004))
        peer.client.send(b"a")
        peer.flush()
        self.assertEqual(peer.protocol.received, b"a")

    def test_the_budget_of_input_that_waits(self) -> None:
        peer = TlsPeer(self)
        peer.start()
        peer.exchange()
        wrapper = ProtocolWrapper(Factory(), Protocol())
        wrapper.transport = peer.server
        self.assertIsNone(budget_of_waiting_input(wrapper))
        self.budget.charge(1.0)
        peer.client.send(b"a")
        peer.flush()
        self.assertIs(budget_of_waiting_input(wrapper), self.budget)
        self.clock.advance(0)
        self.assertIsNone(budget_of_waiting_input(wrapper))
        self.assertIsNone(budget_of_waiting_input(StringTransport()))

    def test_a_connection_without_tls_has_no_budget_of_its_own(self) -> None:
        transport = StringTransport()
        set_tls_budget(transport, self.budget)
        self.assertFalse(hasattr(transport, "budget"))

    def test_without_a_budget_nothing_is_deferred(self) -> None:
        peer = TlsPeer(self)
        peer.start()
        peer.exchange()
        self.budget.charge(1.0)
        peer.server.budget = None
        peer.client.send(b"a")
        peer.flush()
        self.assertEqual(peer.protocol.received, b"a")


class RecordCase(TlsTestCase):
    def connect(self) -> TlsPeer:
        peer = TlsPeer(self)
        peer.start()
        peer.exchange()
        peer.exchange()
        self.written: list[int] = []
        connection = peer.server._tlsConnection
        write = connection.bio_write

        def note(data: bytes) -> int:
            self.written.append(len(data))
            return int(write(data))

        self.patch(connection, "bio_write", note)
        return peer

    def give_socket(self, peer: TlsPeer) -> None:
        """Give the transport of `peer` a socket, and a size of its reads."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.client_socket = socket.create_connection(server.getsockname())
            self.socket, _ = server.accept()
        self.addCleanup(self.socket.close)
        self.addCleanup(self.client_socket.close)
        transport: Any = peer.transport
        transport.getHandle = lambda: self.socket
        transport.bufferSize = 1024
        directlyProvides(transport, ISystemHandle)

    def arrive(self, size: int) -> None:
        """Let so many bytes be in the socket."""
        self.client_socket.sendall(b"x" * size)
        while len(self.socket.recv(size, socket.MSG_PEEK)) < size:
            pass

    @property
    def low_water(self) -> int:
        """Bytes that must have arrived before the kernel reports them."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    def record(self, peer: TlsPeer, data: bytes) -> bytes:
        peer.client.send(data)
        return peer.client.bio_read(65536)


class RecordTests(RecordCase):
    """OpenSSL gets whole records only."""

    def test_a_part_of_a_record_stays_outside_openssl(self) -> None:
        peer = self.connect()
        record = self.record(peer, b"x" * 16_384)
        for at in range(0, len(record) - 1, 4096):
            peer.server.dataReceived(record[at : min(at + 4096, len(record) - 1)])
        self.assertEqual((self.written, peer.protocol.received), ([], b""))
        peer.server.dataReceived(record[-1:])
        self.assertEqual(peer.protocol.received, b"x" * 16_384)
        self.assertEqual(self.written, [len(record)])

    def test_each_segmentation_of_records_gives_the_same_data(self) -> None:
        for step in (1, 4, 5, 6, 700, 4096, 20_000):
            peer = self.connect()
            sent = [b"a", b"b" * 3000, b"c" * 16_384, b"", b"d" * 40]
            records = b"".join(self.record(peer, each) for each in sent if each)
            for at in range(0, len(records), step):
                peer.server.dataReceived(records[at : at + step])
            self.assertEqual(peer.protocol.received, b"".join(sent), step)

    def test_bytes_that_are_not_tls_end_the_connection_at_once(self) -> None:
        for data in (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\xff\xff", b"\x80\x2e\x01\x03\x01"):
            peer = TlsPeer(self)
            peer.server.dataReceived(data)
            self.assertTrue(peer.transport.disconnecting, data)

    def test_a_handshake_that_is_too_long_ends_the_connection(self) -> None:
        """It is one record, several, or one of which only the header has arrived."""

        def hello(size: int) -> bytes:
            return b"\x16\x03\x01" + size.to_bytes(2) + b"\x01\x01\xff\x00" + b"x" * (size - 4)

        for data in (hello(16_385), hello(16_385)[:9], hello(8_000) + hello(8_400)):
            for step in (1, 1000, 20_000):
                peer = TlsPeer(self)
                for at in range(0, len(data), step):
                    self.assertFalse(peer.transport.disconnected)
                    peer.server.dataReceived(data[at : at + step])
                    if peer.transport.disconnected:
                        break
                self.assertTrue(peer.transport.disconnected, (len(data), step))
        peer = TlsPeer(self)
        peer.server.dataReceived(hello(16_384))
        self.assertFalse(peer.transport.disconnected, "the longest")

    def test_the_rest_of_a_long_record_is_left_to_the_network(self) -> None:
        peer = self.connect()
        self.give_socket(peer)
        transport: Any = peer.transport
        record = self.record(peer, b"x" * 16_384)
        peer.server.dataReceived(record[:1024])
        self.assertEqual((self.low_water, transport.bufferSize), (len(record) - 1024, 1024))
        self.arrive(len(record) - 1024)
        peer.server.dataReceived(record[1024:2048])
        self.assertEqual((self.low_water, transport.bufferSize), (1, len(record) - 2048))
        peer.server.dataReceived(record[2048:])
        self.assertEqual((self.low_water, transport.bufferSize), (1, 1024))
        self.assertEqual(peer.protocol.received, b"x" * 16_384)

    def test_a_part_that_the_kernel_reports_early_is_read(self) -> None:
        """Otherwise the client's window would stay closed."""
        peer = self.connect()
        self.give_socket(peer)
        record = self.record(peer, b"x" * 16_384)
        for at in range(0, len(record), 1000):
            peer.server.dataReceived(record[at : at + 1000])
            self.assertTrue(peer.is_reading)
            missing = len(record) - at - 1000
            self.assertEqual(self.low_water, missing if missing > 1024 else 1)
        self.assertEqual(peer.protocol.received, b"x" * 16_384)

    def test_the_end_of_the_connection_is_read(self) -> None:
        peer = self.connect()
        self.give_socket(peer)
        transport: Any = peer.transport
        record = self.record(peer, b"x" * 16_384)
        peer.server.dataReceived(record[:1024])
        self.client_socket.shutdown(socket.SHUT_WR)
        select.select([self.socket], [], [])
        peer.server.dataReceived(record[1024:2048])
        self.assertEqual((self.low_water, transport.bufferSize), (1, len(record) - 2048))

    def test_a_rest_that_has_arrived_is_read_at_once(self) -> None:
        peer = self.connect()
        self.give_socket(peer)
        transport: Any = peer.transport
        record = self.record(peer, b"x" * 16_384)
        self.arrive(len(record))
        peer.server.dataReceived(record[:1024])
        self.assertEqual((self.low_water, transport.bufferSize), (1, len(record) - 1024))
        peer.server.dataReceived(record[1024:])
        self.assertEqual(transport.bufferSize, 1024)

    def test_the_rest_of_a_short_record_is_read_as_it_arrives(self) -> None:
        peer = self.connect()
        self.give_socket(peer)
        transport: Any = peer.transport
        peer.server.dataReceived(self.record(peer, b"y" * 500)[:100])
        self.assertEqual((self.low_water, transport.bufferSize), (1, 1024))

    def test_a_size_of_reads_that_the_protocol_sets_meanwhile_stays(self) -> None:
        peer = self.connect()
        self.give_socket(peer)
        transport: Any = peer.transport

        def read_more(data: bytes) -> None:
            transport.bufferSize = 15_000

        self.patch(peer.protocol, "dataReceived", read_more)
        records = self.record(peer, b"x" * 16_384) + self.record(peer, b"x" * 16_384)
        self.arrive(len(records))
        peer.server.dataReceived(records[:1024])
        peer.server.dataReceived(records[1024:17_000])
        self.assertEqual(transport.bufferSize, len(records) - 17_000)
        peer.server.dataReceived(records[17_000:])
        self.assertEqual((self.low_water, transport.bufferSize), (1, 15_000))

    def test_nothing_is_set_on_a_socket_that_is_closed(self) -> None:
        peer = self.connect()
        self.give_socket(peer)
        record = self.record(peer, b"x" * 16_384)
        self.socket.close()
        peer.server.dataReceived(record[:1024])
        peer.server.dataReceived(record[1024:])
        self.assertEqual(peer.protocol.received, b"x" * 16_384)


class OwnOutputTests(RecordCase):
    """What OpenSSL sends without the application, such as responses to key updates."""

    OUTPUT = b"y" * 5
    SIZE = 27

    def update_keys(self, peer: TlsPeer) -> None:
        """Let OpenSSL have output of its own when the next record arrives."""
        peer.server._tlsConnection.send(self.OUTPUT)
        peer.server.dataReceived(self.record(peer, b"x"))

    def test_too_much_in_a_minute_ends_the_connection(self) -> None:
        peer = self.connect()
        for _ in range(MAX_OUTPUT // self.SIZE):
            self.update_keys(peer)
        self.assertFalse(peer.transport.disconnected)
        self.update_keys(peer)
        self.assertTrue(peer.transport.disconnected)

    def test_each_minute_is_counted_for_itself(self) -> None:
        peer = self.connect()
        for _ in range(5):
            self.clock.advance(OUTPUT_TIME)
            for _ in range(MAX_OUTPUT // self.SIZE):
                self.update_keys(peer)
        self.assertFalse(peer.transport.disconnected)

    def test_data_of_the_application_does_not_count(self) -> None:
        peer = self.connect()

        def respond(data: bytes) -> None:
            peer.server.write(b"z" * 100_000)

        self.patch(peer.protocol, "dataReceived", respond)
        for _ in range(5):
            peer.server.dataReceived(self.record(peer, b"x"))
        self.clock.advance(1)
        self.assertGreater(len(peer.transport.value()), 500_000)
        self.assertFalse(peer.transport.disconnected)


class BufferTests(RecordCase):
    """OpenSSL's buffers, which never shrink, are replaced."""

    def buffers(self, peer: TlsPeer) -> tuple[Any, Any]:
        connection = peer.server._tlsConnection
        return connection._into_ssl, connection._from_ssl

    def respond(self, peer: TlsPeer) -> bytes:
        """Send a response to the client, and return what it has got."""
        peer.server.write(b"response")
        self.clock.advance(1)
        peer.client.bio_write(peer.transport.value())
        peer.transport.clear()
        return peer.client.recv(100)

    def test_those_of_the_handshake_are_not_kept(self) -> None:
        peer = TlsPeer(self)
        before = self.buffers(peer)
        peer.start()
        self.assertEqual(self.buffers(peer), before, "the handshake is not complete")
        peer.exchange()
        after = self.buffers(peer)
        for old, new in zip(before, after, strict=True):
            self.assertNotEqual(old, new)
        peer.exchange()
        self.assertEqual(self.respond(peer), b"response")
        self.assertEqual(self.buffers(peer), after)

    def test_those_of_long_input_are_not_kept(self) -> None:
        peer = self.connect()
        before = self.buffers(peer)
        for count, size in enumerate((100, 16_384, 100, 16_384), 1):
            peer.server.dataReceived(self.record(peer, b"x" * size))
            after = self.buffers(peer)
            self.assertEqual(after[0] == before[0], size == 100, size)
            self.assertEqual(after[1], before[1], "that for output stays")
            before = after
            self.assertEqual(len(peer.protocol.received), sum((100, 16_384, 100, 16_384)[:count]))
        self.assertEqual(self.respond(peer), b"response")

    def test_output_that_waits_at_the_end_of_the_handshake_is_not_lost(self) -> None:
        peer = TlsPeer(self)
        before = self.buffers(peer)
        peer.start()
        self.patch(peer.server, "_flushSendBIO", lambda: None)
        peer.exchange()
        self.assertTrue(peer.server._handshakeDone)
        self.assertEqual(self.buffers(peer)[1], before[1])
        self.assertGreater(len(peer.server._tlsConnection.bio_read(65_536)), 0)

    def test_the_one_that_records_refer_to_is_not_replaced(self) -> None:
        """A response, to a deadline for example, may be made before the end of the handshake."""
        peer = TlsPeer(self)
        before = self.buffers(peer)
        lower = SimpleNamespace(
            getHandle=lambda: SimpleNamespace(send=len), registerProducer=lambda *arguments: None
        )
        consumers: Any = None
        queue = TlsSendQueue(peer.server, lower, 1000, consumers, str)
        peer.start()
        peer.exchange()
        peer.exchange()
        self.assertEqual(self.buffers(peer)[1], before[1])
        for _ in range(3):
            peer.server.dataReceived(self.record(peer, b"x" * 16_384))
            encrypted, rest = queue._records.encrypt(b"response")
            self.assertEqual(rest, b"")
            peer.client.bio_write(bytes(encrypted))
            self.assertEqual(peer.client.recv(100), b"response")

    def test_a_pyopenssl_with_other_internals_keeps_its_buffers(self) -> None:
        self.patch(paced_tls, "_ffi", None)
        peer = self.connect()
        before = self.buffers(peer)
        peer.server.dataReceived(self.record(peer, b"x" * 16_384))
        self.assertEqual(self.buffers(peer), before)
        self.assertEqual(self.respond(peer), b"response")
