"""`History`: the limits of all kept messages."""

from __future__ import annotations

import gc
import tracemalloc

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.delivery.history import MAX_REPLAYS, SWEEP_INTERVAL, History
from topicsvc.delivery.ring import ENTRY_OVERHEAD, RING_OVERHEAD, Ring
from topicsvc.interfaces import TopicLog
from topicsvc.settings import HistorySettings


class HistoryTests(SynchronousTestCase):
    settings = HistorySettings(
        seconds=100,
        messages=10,
        bytes=1000,
        total=4 * (RING_OVERHEAD + 10 * (ENTRY_OVERHEAD + 1)) + 300,  # four short topics
    )

    def setUp(self) -> None:
        self.clock = Clock()
        self.history = History(self.settings, self.clock)

    def ring(self) -> Ring:
        return self.history.new_ring(None)

    def keep(self, ring: Ring, *frames: bytes) -> None:
        for frame in frames:
            mark, _ = ring.advance(None)
            self.history.keep(ring, frame, mark)

    def test_two_topics_of_one_process_have_different_epochs(self) -> None:
        first, second = self.ring(), self.ring()
        self.assertIsNone(self.history.replay(second, first.position))
        other_process = History(self.settings, self.clock).new_ring(None)
        self.assertIsNone(self.history.replay(other_process, first.position))

    def test_the_limits_of_a_topic(self) -> None:
        ring = self.ring()
        self.keep(ring, *[b"x"] * 12)
        self.assertEqual((len(ring), self.history.messages), (10, 10))
        self.keep(ring, b"y" * 995)
        self.assertEqual((len(ring), ring.size), (6, 1000))
        self.keep(ring, b"z" * 1001)  # it is too long to be kept at all
        self.assertEqual((len(ring), len(self.history)), (0, 0))
        self.assertEqual(self.history.memory, ring.memory)
        self.assertEqual(self.history.replay(ring, ring.position), (b"", 0))

    def test_over_the_total_the_least_recently_used_topic_goes_whole(self) -> None:
        rings = [self.ring() for _ in range(4)]
        for ring in rings:
            self.keep(ring, *[b"x"] * 10)
        self.assertEqual(self.history.evicted, 0)
        starts = [ring.position for ring in rings]
        self.history.replay(rings[0], starts[0])  # used
        self.keep(self.ring(), b"x")
        self.assertEqual([len(ring) for ring in rings], [10, 0, 10, 10])
        self.assertEqual(self.history.evicted, 1)
        self.assertLessEqual(self.history.memory, self.settings.total)
        # Its newest position stays provable.
        self.assertEqual(self.history.replay(rings[1], starts[1]), (b"", 0))

    def test_topics_without_messages_leave_half_of_the_total_to_messages(self) -> None:
        """They cannot be removed while clients use them, whatever is removed of other topics."""
        empty = [self.ring() for _ in range(20)]
        self.assertGreater(self.history.memory, 2 * self.settings.total)
        ring = self.ring()
        start = ring.position
        self.keep(ring, *[b"x"] * 10)
        self.assertEqual((len(ring), self.history.evicted), (10, 0))
        self.assertEqual(self.history.replay(ring, start), (b"x" * 10, 10))
        rings = [ring, *(self.ring() for _ in range(20))]
        for each in rings:
            self.keep(each, *[b"x"] * 10)
        self.assertGreater(self.history.evicted, 10)
        self.assertEqual(len(rings[-1]), 10)
        overhead = (len(empty) + len(rings)) * RING_OVERHEAD
        self.assertEqual(self.history.memory, sum(each.memory for each in (*empty, *rings)))
        self.assertLessEqual(self.history.memory - overhead, self.settings.total // 2)
        for each in (*empty, *rings[:-1]):
            self.history.forget(each)
        self.assertEqual((self.history.memory, len(rings[-1])), (rings[-1].memory, 10))

    def test_by_default_10922_topics_count_whole(self) -> None:
        """docs/configuration.md says so."""
        settings = HistorySettings()
        history = History(settings, self.clock)
        for _ in range(10922):
            history.new_ring(None)
        self.assertEqual((history._uncounted, RING_OVERHEAD), (0, 3072))
        history.new_ring(None)
        self.assertGreater(history._uncounted, 0)

    def test_few_topics_share_the_whole_total(self) -> None:
        """Topics that count for less than half of the total are counted with their messages."""
        rings = [self.ring() for _ in range(4)]
        for _ in range(3):
            for ring in rings:
                self.keep(ring, *[b"xxxxxxxxxxx"] * 10)
        self.assertGreater(self.history.evicted, 0)
        self.assertLessEqual(self.history.memory, self.settings.total)
        self.assertGreater(self.history.memory, 0.7 * self.settings.total)

    def test_the_search_for_old_messages_does_not_count_as_use(self) -> None:
        first, second = self.ring(), self.ring()
        self.keep(first, b"x")
        self.keep(second, b"x")
        self.clock.advance(SWEEP_INTERVAL)
        others = [self.ring() for _ in range(4)]
        for number in range(40):
            self.keep(others[number % 4], b"x")
            if not len(first):
                break
        self.assertEqual((len(first), len(second)), (0, 1))

    def test_messages_that_are_too_old_leave_without_being_asked_for(self) -> None:
        rings = [self.ring() for _ in range(3)]
        for ring in rings:
            self.keep(ring, b"x")
            self.clock.advance(1)
        self.clock.advance(96)
        self.assertEqual(self.history.messages, 3)
        for _ in range(4):
            self.clock.advance(1)
        self.assertEqual(self.history.messages, 0)
        for ring in rings:
            self.history.forget(ring)
        self.assertEqual(self.history.memory, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_message_of_the_broker_s_log_has_its_age(self) -> None:
        ring = self.history.new_ring(TopicLog("k", ("a",)))
        mark, _ = ring.advance(None)
        self.history.keep(ring, b"x", mark, age=99.5)
        self.assertEqual(self.history.replay(ring, "k.a"), (b"x", 1))
        self.clock.pump([0.5])
        self.assertIsNone(self.history.replay(ring, "k.a"))

    def test_few_replays_are_kept(self) -> None:
        ring = self.ring()
        positions = [ring.position]
        for _ in range(MAX_REPLAYS + 2):
            self.keep(ring, b"x")
            positions.append(ring.position)
        for position in positions:
            self.history.replay(ring, position)
        self.assertEqual(len(self.history._replays), MAX_REPLAYS)
        self.clock.advance(SWEEP_INTERVAL)
        self.assertEqual(len(self.history._replays), 0)

    def test_a_replay_is_made_again_when_the_kept_messages_have_changed(self) -> None:
        ring = self.ring()
        start = ring.position
        self.keep(ring, b"x")
        self.assertEqual(self.history.replay(ring, start), (b"x", 1))
        self.keep(ring, b"y")
        self.assertEqual(self.history.replay(ring, start), (b"xy", 2))
        self.history.clear(ring)
        self.assertIsNone(self.history.replay(ring, start))

    def test_no_timer_runs_after_stop(self) -> None:
        self.keep(self.ring(), b"x")
        self.history.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class MemoryTests(SynchronousTestCase):
    def test_the_memory_of_many_topics_is_not_underestimated(self) -> None:
        """Topics whose messages were removed count too: they can still prove their position."""
        for size in (50, 1000):
            with self.subTest(size=size):
                total = 12 * 1048576
                history = History(HistorySettings(total=total), Clock())
                gc.collect()
                tracemalloc.start()
                self.addCleanup(tracemalloc.stop)
                rings = [history.new_ring(None) for _ in range(1500)]
                number = 0
                while history.evicted < 1000:
                    for ring in rings[number % 7 :: 7]:
                        number += 1
                        mark, _ = ring.advance(None)
                        history.keep(ring, b"%08d" % number * (size // 8), mark)
                used, _ = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                self.assertGreater(history.memory, 0.8 * total)
                self.assertLess(used, 1.1 * total)

    def test_a_topic_that_was_full_keeps_no_memory_for_its_messages(self) -> None:
        """Topics get many short messages, one topic after the other, and then grow old."""
        clock = Clock()
        total = 4 * 1048576
        history = History(HistorySettings(total=total), clock)
        gc.collect()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        rings = [history.new_ring(None) for _ in range(60)]
        for ring in rings:
            for number in range(1000):
                mark, _ = ring.advance(None)
                history.keep(ring, b"%08d" % number, mark)
        used, _ = tracemalloc.get_traced_memory()
        self.assertGreater(history.evicted, 40)
        self.assertLess(used, 1.1 * total)
        clock.advance(121)
        for _ in range(300):
            clock.advance(SWEEP_INTERVAL)
        used, _ = tracemalloc.get_traced_memory()
        self.assertEqual(history.messages, 0)
        self.assertLess(used, 2 * history.memory)
