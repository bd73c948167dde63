"""The ways out, on real sockets: plain TCP and TLS, each the short way and the plain way."""

from __future__ import annotations

import errno
import random
from types import SimpleNamespace
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tests.support.harness import ServiceTestCase
from tests.support.processes import until
from tests.support.send_queue_cases import HANDSHAKE_ANSWER, LIMIT, TIMEOUT, Proxied, Tls, WayOut
from topicsvc.delivery import transports
from topicsvc.delivery.slow_consumers import STALL_TIMEOUT
from topicsvc.delivery.tls_records import DirectRecords, Records
from topicsvc.delivery.transports import (
    SocketSendQueue,
    TlsSendQueue,
    TransportSendQueue,
    make_send_queue,
)

SIZES = [1, 140, 9000, 70000]


def take_nothing(size: int) -> int:
    """The kernel's buffer is full."""
    raise BlockingIOError(errno.EAGAIN, "full")


class Room:
    """Takes so many bytes, and then nothing, for this reason."""

    def __init__(self, left: int = 0, number: int = errno.EAGAIN) -> None:
        self.left = left
        self._number = number

    def take(self, size: int) -> int:
        if self.is_used():
            raise OSError(self._number, "no room")
        taken = min(size, self.left, 10_000)
        self.left -= taken
        return taken

    def is_used(self) -> bool:
        return not self.left


class Matrix(WayOut):
    """What holds on every way out."""

    @inlineCallbacks
    def write_at_random(self, generator: random.Random, size: int) -> Any:
        """Write so many bytes in writes of all lengths, over many turns; fires with them."""
        written = bytearray()
        while len(written) < size:
            data = generator.randbytes(generator.choice(SIZES))
            self.send_queue.write(data)
            written += data
            if generator.random() < 0.2:
                yield deferLater(reactor, 0)
        return bytes(written)

    @inlineCallbacks
    def test_what_is_written_at_once_follows_what_was_written_before(self) -> Any:
        self.send_queue.write(b"first")
        self.send_queue.write(b"second")
        yield self.assert_received(b"firstsecond")
        self.send_queue.write(b"third")
        yield self.assert_received(b"firstsecondthird")
        self.assertEqual(self.send_queue.waiting, 0)
        self.assertEqual(len(self.stalls), 0)

    @inlineCallbacks
    def test_a_peer_that_does_not_read_for_a_while_gets_all_in_order(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        written = yield self.write_at_random(random.Random(1), 16 * 1024 * 1024)
        self.assertGreater(self.send_queue.waiting, 1024 * 1024)
        self.assertEqual(len(self.stalls), 1)
        self.receiver.transport.resumeProducing()
        yield self.assert_received(written)
        yield deferLater(reactor, 0)
        self.assertEqual((self.send_queue.waiting, len(self.stalls)), (0, 0))

    @inlineCallbacks
    def test_partial_writes(self) -> Any:
        generator = random.Random(3)
        yield self.assert_received(b"")
        self.socket.take = lambda size: min(size, generator.choice([1, 30, 5000, 60000]))
        written = yield self.write_at_random(generator, 1024 * 1024)
        yield self.assert_received(written)
        self.assertGreater(self.socket.partial, 20)

    @inlineCallbacks
    def test_a_kernel_that_takes_nothing_for_the_moment(self) -> Any:
        generator = random.Random(4)

        def take(size: int) -> int:
            if generator.random() < 0.5:
                raise OSError(generator.choice([errno.EAGAIN, errno.ENOBUFS]), "not now")
            return size

        yield self.assert_received(b"")
        self.socket.take = take
        written = yield self.write_at_random(generator, 2 * 1024 * 1024)
        yield self.assert_received(written)
        self.assertGreater(self.socket.refusals, 10)

    @inlineCallbacks
    def test_order_is_kept_when_both_ways_alternate(self) -> Any:
        generator = random.Random(2)
        written = bytearray()
        ways = {"ours": 0, "its own": 0, "ours, while it holds something": 0}

        def take(size: int) -> int:
            if generator.random() < 0.3:
                take_nothing(size)
            return min(size, generator.choice([1, 5000, 50000, 10**6]))

        yield self.assert_received(b"")
        self.socket.take = take
        for _ in range(400):
            data = generator.randbytes(generator.choice([1, 500, 40000]))
            if generator.random() < 0.5:
                holds = self.tcp._tempDataLen or len(self.tcp.dataBuffer) > self.tcp.offset
                ways["ours, while it holds something" if holds else "ours"] += 1
                self.send_queue.write(data)
                written += data
            elif self.is_free:
                # What somebody else writes, as the HTTP side has, goes the transport's own way.
                ways["its own"] += 1
                self.sender.transport.write(data)
                written += data
            for _ in range(generator.choice([0, 0, 1, 5])):
                yield deferLater(reactor, 0)
        yield self.assert_received(bytes(written))
        for way, times in ways.items():
            self.assertGreater(times, 20, way)

    @inlineCallbacks
    def assert_gone_while_writing(self) -> Any:
        """The connection is lost, whatever is written; what has arrived is what came first."""
        for _ in range(100):
            if self.sender.lost.called:
                break
            self.send_queue.write(b"x" * 100_000)
            yield deferLater(reactor, 0.01)
        self.assert_gone()
        self.send_queue.write(b"x")
        self.send_queue.write_newest(b"x")
        self.send_queue.finish()
        self.assert_gone()
        yield deferLater(reactor, 0.01)
        received = bytes(self.receiver.received)
        expected = HANDSHAKE_ANSWER + b"x" * len(received)
        self.assertTrue(expected.startswith(received))

    @inlineCallbacks
    def test_a_peer_that_is_gone_is_noticed_and_nothing_is_raised(self) -> Any:
        self.receiver.transport.abortConnection()
        yield self.assert_gone_while_writing()

    @inlineCallbacks
    def test_a_peer_that_goes_in_the_middle_of_a_write(self) -> Any:
        for number in (errno.ECONNRESET, errno.EPIPE):
            room = Room(30_000, number)
            yield self.assert_received(b"")
            self.socket.take = room.take
            self.send_queue.write(b"x" * 50_000)
            yield self.assert_gone_while_writing()
            self.assertTrue(room.is_used())
            yield self.receiver.lost
            if number == errno.ECONNRESET:
                yield self.connect()

    @inlineCallbacks
    def test_a_peer_that_goes_while_much_waits_for_it(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        while not self.send_queue._queued:
            self.send_queue.write(b"x" * 50_000)
        self.assertEqual((len(self.slow_consumers), len(self.stalls)), (1, 1))
        self.receiver.transport.abortConnection()
        yield until(lambda: self.sender.lost.called, "it is noticed", TIMEOUT)
        self.assert_gone()

    @inlineCallbacks
    def test_a_peer_that_says_that_it_goes(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.loseConnection()
        yield until(lambda: self.sender.lost.called, "it is noticed", TIMEOUT)
        self.assert_gone()

    @inlineCallbacks
    def test_a_peer_that_says_that_it_goes_while_much_waits_for_it(self) -> Any:
        yield self.assert_received(b"")
        self.socket.take = take_nothing
        while not self.send_queue._queued:
            self.send_queue.write(b"x" * 50_000)
        self.receiver.transport.loseConnection()
        yield deferLater(reactor, 0.05)
        self.socket.take = lambda size: size
        yield until(lambda: self.sender.lost.called, "it is noticed", TIMEOUT)
        self.assert_gone()

    @inlineCallbacks
    def test_a_close_frame_behind_data_is_the_last_to_arrive(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        big = b"x" * (8 * 1024 * 1024)
        self.send_queue.write(big)
        self.send_queue.write(b"data")
        self.send_queue.write(b"close")
        self.assertGreater(self.send_queue.buffered(), 1024 * 1024)
        self.assertEqual(self.send_queue._queued, 9)
        self.send_queue.finish()
        self.sender.transport.loseConnection()
        self.receiver.transport.resumeProducing()
        yield until(lambda: self.receiver.lost.called, "it has closed", TIMEOUT)
        self.assertEqual(bytes(self.receiver.received[-9:]), b"dataclose")
        self.assertEqual(len(self.receiver.received), len(HANDSHAKE_ANSWER + big) + 9)
        # Over TLS: a close alert came behind all that, and not just the end of the stream.
        self.assertTrue(self.receiver.reason.check(ConnectionDone), self.receiver.reason)

    @inlineCallbacks
    def test_what_waits_is_counted_across_both_queues(self) -> Any:
        yield self.assert_received(b"")
        self.socket.take = take_nothing
        written = 0
        while not self.send_queue._queued:
            self.send_queue.write(b"x" * 50_000)
            written += 50_000
        self.assert_waiting(written)
        self.send_queue.write(b"x" * 1000)
        self.assert_waiting(written + 1000)
        self.assertEqual(self.slow_consumers.total, self.send_queue.waiting)

    @inlineCallbacks
    def test_a_long_write_that_cannot_leave_is_counted_whole(self) -> Any:
        yield self.assert_received(b"")
        self.socket.take = take_nothing
        self.send_queue.write(b"x" * 5_000_000)
        self.assert_waiting(5_000_000)
        self.assertEqual(self.slow_consumers.total, self.send_queue.waiting)

    @inlineCallbacks
    def test_what_has_left_is_not_counted(self) -> Any:
        yield self.assert_received(b"")
        written = b""
        for round_ in (b"a", b"b", b"c"):
            self.socket.take = take_nothing
            self.send_queue.write(round_ * 100_000)
            waiting = self.send_queue.waiting
            self.assertGreaterEqual(waiting, 100_000)
            self.assertLessEqual(waiting, 140_000)
            self.socket.take = lambda size: size
            written += round_ * 100_000
            yield self.assert_received(written)
        for _ in range(500):
            self.send_queue.write(b"d" * 2000)
            yield deferLater(reactor, 0)
        yield self.assert_received(written + b"d" * 1_000_000)
        self.socket.take = take_nothing
        self.send_queue.write(b"e" * 100_000)
        self.assertGreaterEqual(self.send_queue.waiting, 100_000)
        self.assertLessEqual(self.send_queue.waiting, 200_000)

    @inlineCallbacks
    def test_the_bound_of_what_waits_holds(self) -> Any:
        yield self.assert_received(b"")
        self.send_queue._limit = 500_000
        self.socket.take = take_nothing
        written = 0
        while not self.overflows:
            self.send_queue.write(b"x" * 9000)
            written += 9000
            self.assertLess(written, 1_000_000)
        # The last of them was too much.
        self.assertGreater(written, 500_000 - self.overhead * 60)
        self.assertLessEqual(written - 9000, 500_000)
        self.assertEqual((len(self.slow_consumers), len(self.stalls)), (0, 0))

    @inlineCallbacks
    def test_a_peer_that_reads_slowly_is_no_peer_that_has_stalled(self) -> Any:
        yield self.assert_received(b"")
        room = Room()
        self.socket.take = room.take
        self.send_queue.write(b"x" * 1_000_000)
        for _ in range(5):
            self.clock.advance(STALL_TIMEOUT - 1)
            room.left = 150_000
            yield until(room.is_used, "it reads", TIMEOUT)
            self.assertEqual((self.overflows, len(self.stalls)), ([], 1))
        self.clock.pump([STALL_TIMEOUT, STALL_TIMEOUT])
        [waiting] = self.overflows
        self.assertGreaterEqual(waiting, 1_000_000 - 750_000)
        self.assertLess(waiting, 1_000_000 - 600_000)


class TcpMatrix(Matrix):
    """What holds over TCP besides."""

    @inlineCallbacks
    def test_half_a_close_behind_data_is_the_last_to_arrive(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        big = b"x" * (8 * 1024 * 1024)
        self.send_queue.write(big)
        self.send_queue.write(b"close")
        self.assertEqual(self.send_queue._queued, 5)
        self.send_queue.finish()
        self.sender.transport.loseWriteConnection()
        self.receiver.transport.resumeProducing()
        yield until(lambda: self.receiver.lost.called, "it has closed", TIMEOUT)
        yield self.assert_received(big + b"close")


class TlsMatrix(Matrix, Tls):
    """What holds over TLS besides."""

    @inlineCallbacks
    def test_what_tls_has_to_say_itself_leaves_before_what_is_written_then(self) -> Any:
        yield self.assert_received(b"")
        # Encrypted, and not read by anybody yet.
        self.tls.getHandle().send(b"y" * 5000)
        self.send_queue.write(b"z")
        yield self.assert_received(b"y" * 5000 + b"z")


class RenegotiationMatrix(Tls):
    """TLS 1.2, in which TLS cannot write while it waits for the peer's part of a handshake."""

    def restrict(self, context: SSL.Context) -> None:
        context.set_max_proto_version(SSL.TLS1_2_VERSION)

    @inlineCallbacks
    def test_what_is_written_when_it_is_the_peer_s_turn(self) -> Any:
        yield self.assert_received(b"")
        generator = random.Random(5)
        written = bytearray()
        connection = self.tls.getHandle()
        waited = 0
        for number in range(1, 6):
            connection.renegotiate()
            while connection.renegotiate_pending():
                data = generator.randbytes(generator.choice([1, 500, 40000]))
                self.send_queue.write(data)
                written += data
                self.assertLess(len(written), LIMIT)
                yield deferLater(reactor, 0)
                waited += bool(self.tls._appSendBuffer)
            self.assertEqual(connection.total_renegotiations(), number)
            self.assertGreaterEqual(waited, number)
        yield self.assert_received(bytes(written))
        self.assertEqual((self.send_queue.waiting, len(self.stalls)), (0, 0))

    @inlineCallbacks
    def test_a_peer_that_does_not_take_its_turn_has_stalled(self) -> Any:
        yield self.assert_received(b"")
        peer = self.receiver.transport.transport
        said: list[bytes] = []
        write = peer.write

        def write_once(data: bytes) -> None:
            if not said:
                write(data)
            said.append(data)

        peer.write = write_once
        self.tls.getHandle().renegotiate()
        self.send_queue.write(b"with this it begins")
        yield until(lambda: len(said) > 1, "it would take its turn", TIMEOUT)
        self.send_queue.write(b"x" * 1000)
        yield until(lambda: self.tls._appSendBuffer, "it is waited for", TIMEOUT)
        self.assert_waiting(1000)
        for _ in range(3):
            self.tcp.startWriting()  # whatever else there is to say
            yield deferLater(reactor, 0.01)
            self.assertEqual((self.overflows, len(self.stalls)), ([], 1))
            self.clock.advance(STALL_TIMEOUT / 4)
        self.send_queue.write(b"in our own queue")
        self.assertEqual(self.send_queue._queued, 16)
        self.assert_waiting(1016)
        self.clock.pump([STALL_TIMEOUT / 4, STALL_TIMEOUT])
        self.assertEqual(len(self.overflows), 1)


class SocketTests(TcpMatrix, TestCase):
    kind = SocketSendQueue
    open = staticmethod(make_send_queue)


class ProxiedTests(TcpMatrix, Proxied, TestCase):
    kind = SocketSendQueue
    open = staticmethod(make_send_queue)


class PlainTransportTests(TcpMatrix, TestCase):
    kind = TransportSendQueue
    open = staticmethod(TransportSendQueue)


class TlsTests(TlsMatrix, TestCase):
    kind = TlsSendQueue
    open = staticmethod(make_send_queue)

    def test_the_records_are_made_by_the_shortest_way(self) -> None:
        self.assertIs(type(self.send_queue._records), DirectRecords)

    @inlineCallbacks
    def test_tls_that_stops_in_the_middle_of_a_write(self) -> Any:
        yield self.assert_received(b"")
        of = self.send_queue._records.of
        self.send_queue._records = SimpleNamespace(
            of=lambda data: (of(data[:40_000])[0], data[40_000:])
        )
        data = random.Random(7).randbytes(100_000)
        self.send_queue.write(data)
        self.assertEqual(sum(map(len, self.tls._aggregator._buffer)), 60_000)
        self.assert_waiting(60_000)
        self.send_queue.write(b"the end")
        yield self.assert_received(data + b"the end")


class TlsByMethodsTests(TlsMatrix, TestCase):
    """A pyOpenSSL whose inside is another: its methods make the records."""

    kind = TlsSendQueue
    open = staticmethod(make_send_queue)

    def setUp(self) -> Any:
        self.patch(transports, "make_records", Records)
        return super().setUp()


class TlsTransportTests(TlsMatrix, TestCase):
    kind = TransportSendQueue
    open = staticmethod(TransportSendQueue)


class RenegotiationTests(RenegotiationMatrix, TestCase):
    kind = TlsSendQueue
    open = staticmethod(make_send_queue)


class RenegotiationTransportTests(RenegotiationMatrix, TestCase):
    kind = TransportSendQueue
    open = staticmethod(TransportSendQueue)


class ChoiceTests(ServiceTestCase):
    """That the short way is in use where it should be: see tests/test_wiring.py."""

    def test_a_transport_of_another_kind_takes_the_plain_way(self) -> None:
        client = self.connect()
        self.assertIsInstance(client.transport.protocol._send_queue, TransportSendQueue)
