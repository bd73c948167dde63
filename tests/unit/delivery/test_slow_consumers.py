"""`SlowConsumers`: the bytes that wait for all clients, and which clients are dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.delivery.test_send_queue import FakeSendQueue
from topicsvc.admission.limits import Limits
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.settings import LimitSettings


class SlowConsumersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.build(1000)

    def build(self, queued_bytes: int, clients: int = 3) -> None:
        self.clock = Clock()
        self.limits = Limits(
            self.clock, self.clock.seconds, LimitSettings(queued_bytes=queued_bytes)
        )
        self.slow_consumers = SlowConsumers(
            lambda: self.limits.settings.queued_bytes,
            lambda _: self.limits.record_refusal("queued_bytes"),
            self.clock,
            self.clock.seconds,
        )
        self.dropped: list[int] = []
        self.queues = [self.make_queue(number) for number in range(clients)]

    def make_queue(self, number: int) -> FakeSendQueue:
        def drop(waiting: int) -> None:
            self.dropped.append(number)
            queue.write(b"a close frame")

        queue = FakeSendQueue(10**6, self.slow_consumers, drop)
        return queue

    def stop_reading(self) -> None:
        for queue in self.queues:
            queue.capacity = 0

    def test_a_client_that_keeps_up_is_not_counted(self) -> None:
        calls = []
        self.patch(self.slow_consumers, "update", lambda *_: calls.append(_))
        self.patch(self.slow_consumers, "forget", lambda *_: calls.append(_))
        for _ in range(100):
            self.queues[0].write(b"x" * 1000)
            self.queues[0].deliver(b"x" * 1000, 1, -1.0)
        self.assertEqual((calls, len(self.slow_consumers), self.slow_consumers.total), ([], 0, 0))

    def test_over_the_limit_the_slowest_client_is_dropped(self) -> None:
        self.stop_reading()
        first, second, third = self.queues
        first.write(b"x" * 300)
        second.write(b"x" * 250)
        second.write(b"x" * 250)
        self.assertEqual((self.slow_consumers.total, self.dropped), (800, []))
        third.write(b"x" * 201)
        self.assertEqual((self.slow_consumers.total, self.dropped), (501, [1]))
        self.assertEqual(self.limits.refusals["queued_bytes"], 1)
        self.assertEqual(len(self.slow_consumers), 2)

    def test_it_may_be_the_client_of_the_current_write(self) -> None:
        self.stop_reading()
        self.queues[0].write(b"x" * 400)
        self.queues[1].write(b"y" * 700)
        self.assertEqual((self.slow_consumers.total, self.dropped), (400, [1]))
        self.queues[1].read(10**6)
        self.assertTrue(self.queues[1].sent.endswith(b"a close frame"))
        self.assertEqual(self.slow_consumers.total, 400)

    def test_as_many_clients_as_needed_are_dropped(self) -> None:
        self.stop_reading()
        for queue in self.queues:
            queue.write(b"x" * 333)
        self.limits.settings = LimitSettings(queued_bytes=340)
        self.queues[2].write(b"x")
        self.assertEqual((sorted(self.dropped), self.slow_consumers.total), ([0, 2], 333))

    def test_sent_and_discarded_bytes_are_not_counted(self) -> None:
        self.stop_reading()
        queue = self.queues[0]
        queue.write(b"x" * 400)
        queue.write(b"x" * 400)
        queue.read(10**6)
        self.assertEqual(
            (self.slow_consumers.total, len(self.slow_consumers), self.dropped), (0, 0, [])
        )
        queue.capacity = 0
        queue.write(b"x" * 400)
        queue.discard()
        self.assertEqual((self.slow_consumers.total, len(self.slow_consumers)), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @given(
        st.lists(
            st.tuples(st.sampled_from("wwrd"), st.integers(0, 2), st.integers(1, 400)),
            max_size=60,
        )
    )
    def test_the_total_is_within_the_limit_and_never_too_low(
        self, steps: list[tuple[str, int, int]]
    ) -> None:
        self.build(1000)
        self.stop_reading()
        for step, number, size in steps:
            queue = self.queues[number]
            if step == "w":
                queue.write(b"x" * size)
            elif step == "r" and queue.held:
                queue.read(size)
            elif step == "d":
                queue.discard()
            open_ = [each for each in self.queues if each._on_slow_consumer is not None]
            self.assertLessEqual(self.slow_consumers.total, 1000)
            self.assertGreaterEqual(self.slow_consumers.total, sum(each.waiting for each in open_))
            self.assertLessEqual(len(self.slow_consumers), len(open_))
        for queue in self.queues:
            queue.discard()
        self.assertEqual((self.slow_consumers.total, len(self.slow_consumers)), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class WriteReplaceableTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        slow_consumers = SlowConsumers(
            lambda: LimitSettings().queued_bytes, lambda _: None, clock, clock.seconds
        )
        self.send_queue = FakeSendQueue(1000, slow_consumers, lambda _: None)

    def test_with_an_empty_queue_each_write_is_sent_at_once(self) -> None:
        self.send_queue.write_replaceable(b"a")
        self.send_queue.write_replaceable(b"b")
        self.assertEqual(self.send_queue.sent, b"ab")

    def test_otherwise_the_last_write_replaces_the_others_and_is_sent_last(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"1")
        for number in range(100):
            self.send_queue.write_replaceable(b"<%d>" % number)
        self.send_queue.write(b"2")
        self.assertEqual(self.send_queue.waiting, 2)
        self.send_queue.read(10**6)
        self.assertEqual(self.send_queue.sent, b"12<99>")

    def test_it_waits_until_the_queue_is_empty(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"1")
        self.send_queue.write(b"2")
        self.send_queue.write_replaceable(b"x")
        self.send_queue.read(1)
        self.assertEqual(self.send_queue.sent, b"1")
        self.send_queue.read(1)
        self.send_queue.read(10)
        self.assertEqual(self.send_queue.sent, b"12x")

    def test_it_is_not_sent_after_finish(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"1")
        self.send_queue.write_replaceable(b"x")
        self.send_queue.finish()
        self.send_queue.read(10)
        self.assertEqual((self.send_queue.sent, self.send_queue.last), (b"1", b""))
