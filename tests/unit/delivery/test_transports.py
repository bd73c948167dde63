"""All kinds of send queue on real sockets: TCP and TLS, each the fast path and the fallback."""

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

from tests.support.harness import TOPIC, ServiceTestCase
from tests.support.processes import until
from tests.support.send_queue_cases import (
    HANDSHAKE_ANSWER,
    LIMIT,
    TIMEOUT,
    ProxiedCase,
    SendQueueCase,
    TlsCase,
)
from topicsvc.delivery import transports
from topicsvc.delivery.slow_consumers import STALL_TIMEOUT
from topicsvc.delivery.tls_records import DirectRecords, Records
from topicsvc.delivery.transports import (
    SocketSendQueue,
    TlsSendQueue,
    TransportSendQueue,
    make_send_queue,
)
from topicsvc.interfaces import Message
from topicsvc.listening import paced_tls
from topicsvc.websocket.messages import data_frame

SIZES = [1, 140, 9000, 70000]
DIGITS = (b"1", b"2", b"3", b"4", b"5", b"6")


def take_nothing(size: int) -> int:
    """Send nothing: the kernel's buffer is full."""
    raise BlockingIOError(errno.EAGAIN, "full")


class SendBuffer:
    """A kernel buffer with space for `space` bytes; then a send fails with this error."""

    def __init__(self, space: int = 0, number: int = errno.EAGAIN) -> None:
        self.space = space
        self._number = number

    def take(self, size: int) -> int:
        if self.is_full():
            raise OSError(self._number, "no space")
        taken = min(size, self.space, 10_000)
        self.space -= taken
        return taken

    def is_full(self) -> bool:
        return not self.space


class CommonCases(SendQueueCase):
    """Tests of every send queue.

    Attributes:
        sent_after_expiry: of six messages, the last in the queue, how many may be sent after the
            expiry: those of which the transport has a part.
    """

    sent_after_expiry: tuple[int, ...] = (1,)

    @inlineCallbacks
    def write_at_random(self, generator: random.Random, size: int) -> Any:
        """Write `size` bytes in writes of all lengths, over many iterations; fires with them."""
        written = bytearray()
        while len(written) < size:
            data = generator.randbytes(generator.choice(SIZES))
            self.send_queue.write(data)
            written += data
            if generator.random() < 0.2:
                yield deferLater(reactor, 0)
        return bytes(written)

    @inlineCallbacks
    def test_writes_that_are_sent_at_once_keep_their_order(self) -> Any:
        self.send_queue.write(b"first")
        self.send_queue.write(b"second")
        yield self.assert_received(b"firstsecond")
        self.send_queue.write(b"third")
        yield self.assert_received(b"firstsecondthird")
        self.assertEqual(self.send_queue.waiting, 0)
        self.assertEqual(len(self.stalls), 0)

    @inlineCallbacks
    def test_a_client_that_reads_late_gets_all_in_order(self) -> Any:
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
    def test_sends_that_fail_for_the_moment(self) -> Any:
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
    def test_writes_to_the_queue_and_to_the_transport_keep_their_order(self) -> Any:
        generator = random.Random(2)
        written = bytearray()
        writes = {"queue": 0, "transport": 0, "queue, while the transport holds bytes": 0}

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
                writes["queue, while the transport holds bytes" if holds else "queue"] += 1
                self.send_queue.write(data)
                written += data
            elif self.is_free:
                # As the HTTP side writes.
                writes["transport"] += 1
                self.sender.transport.write(data)
                written += data
            for _ in range(generator.choice([0, 0, 1, 5])):
                yield deferLater(reactor, 0)
        yield self.assert_received(bytes(written))
        for kind, times in writes.items():
            self.assertGreater(times, 20, kind)

    @inlineCallbacks
    def assert_lost_while_writing(self) -> Any:
        """The connection is lost during writes; the client received the first of the bytes."""
        for _ in range(100):
            if self.sender.lost.called:
                break
            self.send_queue.write(b"x" * 100_000)
            yield deferLater(reactor, 0.01)
        self.assert_lost()
        self.send_queue.write(b"x")
        self.send_queue.write_replaceable(b"x")
        self.send_queue.finish()
        self.assert_lost()
        yield deferLater(reactor, 0.01)
        received = bytes(self.receiver.received)
        expected = HANDSHAKE_ANSWER + b"x" * len(received)
        self.assertTrue(expected.startswith(received))

    @inlineCallbacks
    def test_a_lost_connection_is_noticed_and_nothing_is_raised(self) -> Any:
        self.receiver.transport.abortConnection()
        yield self.assert_lost_while_writing()

    @inlineCallbacks
    def test_the_connection_is_lost_during_a_write(self) -> Any:
        for number in (errno.ECONNRESET, errno.EPIPE):
            buffer = SendBuffer(30_000, number)
            yield self.assert_received(b"")
            self.socket.take = buffer.take
            self.send_queue.write(b"x" * 50_000)
            yield self.assert_lost_while_writing()
            self.assertTrue(buffer.is_full())
            yield self.receiver.lost
            if number == errno.ECONNRESET:
                yield self.connect()

    @inlineCallbacks
    def test_the_connection_is_lost_while_bytes_wait(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        while not self.send_queue._queued:
            self.send_queue.write(b"x" * 50_000)
        self.assertEqual((len(self.slow_consumers), len(self.stalls)), (1, 1))
        self.receiver.transport.abortConnection()
        yield until(lambda: self.sender.lost.called, "the loss is noticed", TIMEOUT)
        self.assert_lost()

    @inlineCallbacks
    def test_the_client_closes(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.loseConnection()
        yield until(lambda: self.sender.lost.called, "the loss is noticed", TIMEOUT)
        self.assert_lost()

    @inlineCallbacks
    def test_the_client_closes_while_bytes_wait(self) -> Any:
        yield self.assert_received(b"")
        self.socket.take = take_nothing
        while not self.send_queue._queued:
            self.send_queue.write(b"x" * 50_000)
        self.receiver.transport.loseConnection()
        yield deferLater(reactor, 0.05)
        self.socket.take = lambda size: size
        yield until(lambda: self.sender.lost.called, "the loss is noticed", TIMEOUT)
        self.assert_lost()

    @inlineCallbacks
    def test_a_close_frame_behind_data_arrives_last(self) -> Any:
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
        yield until(lambda: self.receiver.lost.called, "the client has closed", TIMEOUT)
        self.assertEqual(bytes(self.receiver.received[-9:]), b"dataclose")
        self.assertEqual(len(self.receiver.received), len(HANDSHAKE_ANSWER + big) + 9)
        # Over TLS, a close alert follows, and not only the end of the stream.
        self.assertTrue(self.receiver.reason.check(ConnectionDone), self.receiver.reason)

    @inlineCallbacks
    def test_data_that_waits_is_dropped_when_the_grant_expires(self) -> Any:
        """The transport sends what it has: a message of which a part is sent, or TLS records."""
        yield self.assert_received(b"")
        self.send_queue.deliver_until = self.send_queue.send_until = 5.0
        self.socket.take = SendBuffer(25_000).take
        frames = [data_frame(Message(TOPIC, None, digit * 30_000)) for digit in DIGITS]
        self.send_queue.deliver(b"".join(frames[:5]), 5, 0.0)
        self.send_queue.deliver(frames[5], 1, 0.0)
        self.clock.advance(5)
        self.socket.take = lambda size: size
        self.send_queue.write(b"the close frame")
        received = self.receiver.received
        yield until(lambda: received.endswith(b"the close frame"), "the last bytes", TIMEOUT)
        sent = (len(received) - len(HANDSHAKE_ANSWER) - 15) // len(frames[0])
        expected = HANDSHAKE_ANSWER + b"".join(frames[:sent]) + b"the close frame"
        self.assertTrue(received == expected, "the bytes differ")
        self.assertIn(sent, self.sent_after_expiry)
        self.assertEqual((self.send_queue.waiting, self.slow_consumers.total), (0, 0))

    @inlineCallbacks
    def test_waiting_bytes_of_both_queues_are_counted(self) -> Any:
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
    def test_a_long_write_that_cannot_be_sent_is_counted_completely(self) -> Any:
        yield self.assert_received(b"")
        self.socket.take = take_nothing
        self.send_queue.write(b"x" * 5_000_000)
        self.assert_waiting(5_000_000)
        self.assertEqual(self.slow_consumers.total, self.send_queue.waiting)

    @inlineCallbacks
    def test_sent_bytes_are_not_counted(self) -> Any:
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
    def test_the_limit_on_waiting_bytes(self) -> Any:
        yield self.assert_received(b"")
        self.send_queue._limit = 500_000
        self.socket.take = take_nothing
        written = 0
        while not self.drops:
            self.send_queue.write(b"x" * 9000)
            written += 9000
            self.assertLess(written, 1_000_000)
        # The last write exceeded the limit.
        self.assertGreater(written, 500_000 - self.overhead * 60)
        self.assertLessEqual(written - 9000, 500_000)
        self.assertEqual((len(self.slow_consumers), len(self.stalls)), (0, 0))

    @inlineCallbacks
    def test_a_client_that_reads_slowly_has_not_stalled(self) -> Any:
        yield self.assert_received(b"")
        buffer = SendBuffer()
        self.socket.take = buffer.take
        self.send_queue.write(b"x" * 1_000_000)
        for _ in range(5):
            self.clock.advance(STALL_TIMEOUT - 1)
            buffer.space = 150_000
            yield until(buffer.is_full, "the bytes are sent", TIMEOUT)
            self.assertEqual((self.drops, len(self.stalls)), ([], 1))
        self.clock.pump([STALL_TIMEOUT, STALL_TIMEOUT])
        [waiting] = self.drops
        self.assertGreaterEqual(waiting, 1_000_000 - 750_000)
        self.assertLess(waiting, 1_000_000 - 600_000)


class TcpCases(CommonCases):
    """Tests over TCP."""

    @inlineCallbacks
    def test_a_half_close_behind_data_arrives_last(self) -> Any:
        yield self.assert_received(b"")
        self.receiver.transport.pauseProducing()
        big = b"x" * (8 * 1024 * 1024)
        self.send_queue.write(big)
        self.send_queue.write(b"close")
        self.assertEqual(self.send_queue._queued, 5)
        self.send_queue.finish()
        self.sender.transport.loseWriteConnection()
        self.receiver.transport.resumeProducing()
        yield until(lambda: self.receiver.lost.called, "the client has closed", TIMEOUT)
        yield self.assert_received(big + b"close")


class TlsCases(CommonCases, TlsCase):
    """Tests over TLS."""

    sent_after_expiry = (5,)  # encrypted at once

    @inlineCallbacks
    def test_earlier_output_of_tls_is_sent_before_a_write(self) -> Any:
        yield self.assert_received(b"")
        # Encrypted, and not yet read from OpenSSL.
        self.tls.getHandle().send(b"y" * 5000)
        self.send_queue.write(b"z")
        yield self.assert_received(b"y" * 5000 + b"z")


class RenegotiationCases(TlsCase):
    """TLS 1.2, where TLS cannot write while it waits for the client's part of a handshake."""

    def restrict(self, context: SSL.Context) -> None:
        context.set_max_proto_version(SSL.TLS1_2_VERSION)

    @inlineCallbacks
    def test_writes_during_a_handshake(self) -> Any:
        # The service starts no handshake, so their output counts as caused by the client.
        self.patch(paced_tls, "MAX_OUTPUT", 1_000_000)
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
    def test_a_client_that_does_not_answer_a_handshake_has_stalled(self) -> Any:
        yield self.assert_received(b"")
        peer = self.receiver.transport.transport
        writes: list[bytes] = []
        write = peer.write

        def write_once(data: bytes) -> None:
            if not writes:
                write(data)
            writes.append(data)

        peer.write = write_once
        self.tls.getHandle().renegotiate()
        self.send_queue.write(b"during a handshake")
        yield until(lambda: len(writes) > 1, "the client would answer", TIMEOUT)
        self.send_queue.write(b"x" * 1000)
        yield until(lambda: self.tls._appSendBuffer, "the data waits for the handshake", TIMEOUT)
        self.assert_waiting(1000)
        for _ in range(3):
            self.tcp.startWriting()  # as other output of the transport does
            yield deferLater(reactor, 0.01)
            self.assertEqual((self.drops, len(self.stalls)), ([], 1))
            self.clock.advance(STALL_TIMEOUT / 4)
        self.send_queue.write(b"in the send queue")
        self.assertEqual(self.send_queue._queued, 17)
        self.assert_waiting(1017)
        self.clock.pump([STALL_TIMEOUT / 4, STALL_TIMEOUT])
        self.assertEqual(len(self.drops), 1)


class SocketTests(TcpCases, TestCase):
    kind = SocketSendQueue
    open = staticmethod(make_send_queue)


class ProxiedTests(TcpCases, ProxiedCase, TestCase):
    kind = SocketSendQueue
    open = staticmethod(make_send_queue)


class TransportTests(TcpCases, TestCase):
    kind = TransportSendQueue
    sent_after_expiry = (3,)  # 64 KiB
    open = staticmethod(TransportSendQueue)


class TlsTests(TlsCases, TestCase):
    kind = TlsSendQueue
    open = staticmethod(make_send_queue)

    def test_openssl_s_functions_make_the_records(self) -> None:
        self.assertIs(type(self.send_queue._records), DirectRecords)

    @inlineCallbacks
    def test_tls_cannot_encrypt_all_of_a_write(self) -> Any:
        yield self.assert_received(b"")
        encrypt = self.send_queue._records.encrypt
        self.send_queue._records = SimpleNamespace(
            encrypt=lambda data: (encrypt(data[:40_000])[0], data[40_000:])
        )
        data = random.Random(7).randbytes(100_000)
        self.send_queue.write(data)
        self.assertEqual(sum(map(len, self.tls._aggregator._buffer)), 60_000)
        self.assert_waiting(60_000)
        self.send_queue.write(b"the end")
        yield self.assert_received(data + b"the end")


class TlsByMethodsTests(TlsCases, TestCase):
    """A pyOpenSSL with other internals: its methods make the records."""

    kind = TlsSendQueue
    open = staticmethod(make_send_queue)

    def setUp(self) -> Any:
        self.patch(transports, "make_records", Records)
        return super().setUp()


class TlsTransportTests(TlsCases, TestCase):
    kind = TransportSendQueue
    sent_after_expiry = (3, 4, 5)  # 64 KiB in each of the two layers
    open = staticmethod(TransportSendQueue)


class RenegotiationTests(RenegotiationCases, TestCase):
    kind = TlsSendQueue
    open = staticmethod(make_send_queue)


class RenegotiationTransportTests(RenegotiationCases, TestCase):
    kind = TransportSendQueue
    open = staticmethod(TransportSendQueue)


class FallbackTests(ServiceTestCase):
    """The opposite, the fast path: see `tests.unit.delivery.test_fast_path_selection`."""

    def test_a_transport_of_another_kind_gets_the_fallback(self) -> None:
        client = self.connect()
        self.assertIsInstance(client.transport.protocol._send_queue, TransportSendQueue)
