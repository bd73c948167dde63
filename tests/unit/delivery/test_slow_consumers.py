"""All that waits for slow readers: its sum, and who goes when it is too much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.delivery.test_send_queue import FakeSendQueue
from topicsvc.admission.limits import Limits
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.settings import LimitSettings


class BacklogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.build(1000)

    def build(self, most: int, readers: int = 3) -> None:
        self.clock = Clock()
        self.limits = Limits(self.clock, self.clock.seconds, LimitSettings(queued_bytes=most))
        self.slow_consumers = SlowConsumers(
            lambda: self.limits.settings.queued_bytes,
            lambda: self.limits.record_refusal("queued_bytes"),
            self.clock,
        )
        self.gone: list[int] = []
        self.readers = [self.reader(number) for number in range(readers)]

    def reader(self, number: int) -> FakeSendQueue:
        def overflow(waiting: int) -> None:
            self.gone.append(number)
            reader.write(b"a close frame")

        reader = FakeSendQueue(10**6, self.slow_consumers, overflow)
        return reader

    def stop_reading(self) -> None:
        for reader in self.readers:
            reader.capacity = 0

    def test_who_keeps_up_is_not_asked_about(self) -> None:
        calls = []
        self.patch(self.slow_consumers, "update", lambda *_: calls.append(_))
        self.patch(self.slow_consumers, "forget", lambda *_: calls.append(_))
        for _ in range(100):
            self.readers[0].write(b"x" * 1000)
            self.readers[0].deliver(b"x" * 1000, 1, -1.0)
        self.assertEqual((calls, len(self.slow_consumers), self.slow_consumers.total), ([], 0, 0))

    def test_past_the_bound_the_slowest_goes(self) -> None:
        self.stop_reading()
        first, second, third = self.readers
        first.write(b"x" * 300)
        second.write(b"x" * 250)
        second.write(b"x" * 250)
        self.assertEqual((self.slow_consumers.total, self.gone), (800, []))
        third.write(b"x" * 201)
        self.assertEqual((self.slow_consumers.total, self.gone), (501, [1]))
        self.assertEqual(self.limits.refusals["queued_bytes"], 1)
        self.assertEqual(len(self.slow_consumers), 2)

    def test_it_may_be_whoever_is_being_written_to(self) -> None:
        self.stop_reading()
        self.readers[0].write(b"x" * 400)
        self.readers[1].write(b"y" * 700)
        self.assertEqual((self.slow_consumers.total, self.gone), (400, [1]))
        self.readers[1].read(10**6)
        self.assertTrue(self.readers[1].sent.endswith(b"a close frame"))
        self.assertEqual(self.slow_consumers.total, 400)

    def test_as_many_go_as_are_needed(self) -> None:
        self.stop_reading()
        for reader in self.readers:
            reader.write(b"x" * 333)
        self.limits.settings = LimitSettings(queued_bytes=340)
        self.readers[2].write(b"x")
        self.assertEqual((sorted(self.gone), self.slow_consumers.total), ([0, 2], 333))

    def test_what_has_left_waits_no_more(self) -> None:
        self.stop_reading()
        reader = self.readers[0]
        reader.write(b"x" * 400)
        reader.write(b"x" * 400)
        reader.read(10**6)
        self.assertEqual(
            (self.slow_consumers.total, len(self.slow_consumers), self.gone), (0, 0, [])
        )
        reader.capacity = 0
        reader.write(b"x" * 400)
        reader.discard()
        self.assertEqual((self.slow_consumers.total, len(self.slow_consumers)), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @given(
        st.lists(
            st.tuples(st.sampled_from("wwrd"), st.integers(0, 2), st.integers(1, 400)),
            max_size=60,
        )
    )
    def test_it_is_never_past_the_bound_and_never_below_the_truth(
        self, steps: list[tuple[str, int, int]]
    ) -> None:
        self.build(1000)
        self.stop_reading()
        for step, number, size in steps:
            reader = self.readers[number]
            if step == "w":
                reader.write(b"x" * size)
            elif step == "r" and reader.kept:
                reader.read(size)
            elif step == "d":
                reader.discard()
            live = [each for each in self.readers if each._overflow is not None]
            self.assertLessEqual(self.slow_consumers.total, 1000)
            self.assertGreaterEqual(self.slow_consumers.total, sum(each.waiting for each in live))
            self.assertLessEqual(len(self.slow_consumers), len(live))
        for reader in self.readers:
            reader.discard()
        self.assertEqual((self.slow_consumers.total, len(self.slow_consumers)), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class NewestTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        slow_consumers = SlowConsumers(lambda: LimitSettings().queued_bytes, lambda: None, clock)
        self.send_queue = FakeSendQueue(1000, slow_consumers, lambda _: None)

    def test_where_nothing_waits_it_goes_at_once(self) -> None:
        self.send_queue.write_newest(b"a")
        self.send_queue.write_newest(b"b")
        self.assertEqual(self.send_queue.sent, b"ab")

    def test_where_something_waits_the_newest_goes_last(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"1")
        for number in range(100):
            self.send_queue.write_newest(b"<%d>" % number)
        self.send_queue.write(b"2")
        self.assertEqual(self.send_queue.waiting, 2)
        self.send_queue.read(10**6)
        self.assertEqual(self.send_queue.sent, b"12<99>")

    def test_one_that_cannot_go_yet_waits_on(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"1")
        self.send_queue.write(b"2")
        self.send_queue.write_newest(b"x")
        self.send_queue.read(1)
        self.assertEqual(self.send_queue.sent, b"1")
        self.send_queue.read(1)
        self.send_queue.read(10)
        self.assertEqual(self.send_queue.sent, b"12x")

    def test_after_the_end_it_does_not_go(self) -> None:
        self.send_queue.capacity = 0
        self.send_queue.write(b"1")
        self.send_queue.write_newest(b"x")
        self.send_queue.finish()
        self.send_queue.read(10)
        self.assertEqual((self.send_queue.sent, self.send_queue.last), (b"1", b""))
