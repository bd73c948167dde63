"""`SendQueue`: order, limits, and slow clients."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.admission.limits import Limits
from topicsvc.delivery.send_queue import CHUNK, SendQueue
from topicsvc.delivery.slow_consumers import SlowConsumers


class FakeSendQueue(SendQueue):
    """A send queue whose client reads when the test says so.

    Attributes:
        capacity: bytes that can be sent before the transport holds any.
        sent: the bytes that were sent.
        held: the bytes that the transport holds.
    """

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.capacity = 10**9
        self.sent = b""
        self.held = b""
        self.last: bytes | None = None
        self.sends = 0

    def buffered(self) -> int:
        return len(self.held)

    def send(self, data: bytes) -> bool:
        if self.held:
            return False
        self.sends += 1
        self.sent += data[: self.capacity]
        self.held = data[self.capacity :]
        self.capacity -= min(self.capacity, len(data))
        if self.held:
            self.blocked()
        return True

    def read(self, size: int) -> None:
        """The client reads `size` bytes."""
        self.sent += self.held[:size]
        self.capacity = max(0, size - len(self.held))
        self.held = self.held[size:]
        if not self.held:
            self.drained()

    def release(self) -> None:
        self.detach()

    def end(self, last: bytes) -> None:
        self.last = last


class SendQueueTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.build()

    def build(self) -> None:
        self.clock = Clock()
        self.drops = 0
        self.limits = Limits(self.clock, self.clock.seconds)
        self.slow_consumers = SlowConsumers(
            lambda: self.limits.settings.queued_bytes,
            lambda _: self.limits.record_refusal("queued_bytes"),
            self.clock,
            self.clock.seconds,
        )
        self.send_queue = FakeSendQueue(1000, self.slow_consumers, self.drop)

    def drop(self, waiting: int) -> None:
        self.drops += 1
        self.waited = waiting


class OrderTests(SendQueueTestCase):
    @given(
        st.lists(
            st.tuples(st.just("write"), st.integers(1, 30))
            | st.tuples(st.just("read"), st.integers(1, 60)),
            max_size=60,
        ),
        st.integers(0, 50),
    )
    def test_all_bytes_are_sent_in_order(self, steps: list[tuple[str, int]], capacity: int) -> None:
        self.build()
        self.send_queue.capacity = capacity
        written = b""
        for step, size in steps:
            if step == "write" and self.send_queue.waiting + size <= 1000:
                data = bytes((len(written) + at) % 251 for at in range(size))
                written += data
                self.send_queue.write(data)
            elif step == "read" and self.send_queue.held:
                self.send_queue.read(size)
            self.assertEqual(len(self.send_queue.sent) + self.send_queue.waiting, len(written))
        while self.send_queue.waiting:
            self.send_queue.read(self.send_queue.waiting)
        self.assertEqual(self.send_queue.sent, written)
        self.assertEqual((self.drops, self.clock.getDelayedCalls()), (0, []))

    def test_waiting_writes_are_joined(self) -> None:
        self.send_queue.capacity = 0
        for _ in range(100):
            self.send_queue.write(b"xyz")
        self.send_queue.read(10**6)
        self.assertEqual((self.send_queue.sent, self.send_queue.sends), (b"xyz" * 100, 2))

    def test_the_joined_bytes_are_limited(self) -> None:
        self.send_queue._limit = 10**9
        self.send_queue.capacity = 0
        self.send_queue.write(b"x")
        for _ in range(4):
            self.send_queue.write(b"x" * (CHUNK // 2))
        self.send_queue.read(10**9)
        self.assertEqual(self.send_queue.sends, 3)


class SlowConsumerTests(SendQueueTestCase):
    def test_a_client_over_the_limit_is_dropped_once(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"x" * 500)
        self.send_queue.write(b"x" * 500)
        self.assertEqual((self.send_queue.waiting, self.drops), (1000, 0))
        self.send_queue.write(b"x")
        self.assertEqual((self.send_queue.waiting, self.drops), (500, 1))
        self.send_queue.write(b"x" * 2000)
        self.send_queue.write(b"x" * 2000)
        self.assertEqual(self.drops, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_message_longer_than_the_limit_is_sent(self) -> None:
        self.send_queue.capacity = 100
        self.send_queue.write(b"x" * 5000)
        self.assertEqual((self.drops, self.send_queue.waiting), (0, 4900))
        self.send_queue.read(5000)
        self.send_queue.write(b"y")
        self.assertEqual((self.drops, len(self.send_queue.sent)), (0, 5001))

    def test_the_first_queued_message_may_exceed_the_limit_too(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"x" * 5000)
        self.send_queue.write(b"y" * 5000)
        self.assertEqual((self.drops, self.send_queue.waiting), (0, 10000))
        self.send_queue.write(b"z")
        self.assertEqual((self.drops, self.waited), (1, 10000))

    def test_a_client_that_reads_nothing_for_ten_seconds_is_dropped(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"x")
        self.clock.advance(9.9)
        self.assertEqual(self.drops, 0)
        self.clock.advance(0.1)
        self.assertEqual(self.drops, 1)

    def test_a_client_that_reads_little_is_not_dropped(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"x" * 100)
        for _ in range(5):
            self.clock.advance(9)
            self.send_queue.read(1)
            self.clock.advance(1)
        self.assertEqual(self.drops, 0)
        self.clock.advance(10)
        self.assertEqual(self.drops, 1)

    def test_a_new_write_does_not_hide_progress(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"x" * 100)
        self.clock.advance(9)
        self.send_queue.read(1)
        self.send_queue.write(b"y")
        self.clock.advance(1)
        self.assertEqual(self.drops, 0)
        self.clock.advance(10)
        self.assertEqual(self.drops, 1)

    def test_progress_is_checked_every_ten_seconds(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"x" * 500)
        self.clock.advance(1)
        self.send_queue.read(1)
        self.clock.pump([1] * 18)
        self.assertEqual(self.drops, 0)
        self.clock.advance(1)
        self.assertEqual(self.drops, 1)

    def test_no_deadline_after_all_is_read(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"x")
        self.send_queue.read(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class EndTests(SendQueueTestCase):
    def test_finish_gives_the_queue_to_the_transport(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"a")
        self.send_queue.write(b"b")
        self.send_queue.write(b"c")
        self.send_queue.finish()
        self.assertEqual((self.send_queue.held, self.send_queue.last), (b"a", b"bc"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_data_is_delivered_until_deliver_until(self) -> None:
        self.send_queue.deliver(b"before", 1, 5.0)
        self.send_queue.deliver_until = 10.0
        self.send_queue.deliver(b"in time", 1, 9.999)
        self.send_queue.deliver(b"too late", 1, 10.0)
        self.send_queue.discard()
        self.send_queue.deliver(b"after the end", 1, 9.0)
        self.assertEqual(self.send_queue.sent, b"in time")

    def test_discarded_writes_are_not_sent(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"a")
        self.send_queue.write(b"b")
        self.send_queue.discard()
        self.send_queue.write(b"close")
        self.send_queue.read(100)
        self.assertEqual(self.send_queue.sent, b"aclose")
