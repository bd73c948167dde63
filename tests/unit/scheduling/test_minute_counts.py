"""Counts of the last minute."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.minute_counts import TICK, MinuteCounts


def add(counts: MinuteCounts, now: float, messages: int = 1, size: int = 10) -> None:
    tick = int(now / TICK)
    if counts.tick != tick:
        counts.start_tick(tick)
    counts.messages += messages
    counts.size += size


class MinuteCountsTests(SynchronousTestCase):
    def test_a_new_count_is_0(self) -> None:
        self.assertEqual(MinuteCounts().last_minute(12345.6), (0, 0))

    def test_a_burst_counts_in_full_for_a_minute_from_its_tick_on(self) -> None:
        counts = MinuteCounts()
        for _ in range(100):
            add(counts, 1002)
        for now in (1002, 1002.5, 1010, 1059.9, 1060):
            self.assertEqual(counts.last_minute(now), (100, 1000), now)

    def test_a_burst_leaves_the_minute_evenly_over_a_tick(self) -> None:
        counts = MinuteCounts()
        add(counts, 1000, 100, 1000)
        found = [counts.last_minute(now)[0] for now in (1060, 1061, 1062.5, 1064, 1065, 9999)]
        self.assertEqual(found, [100, 80, 50, 20, 0, 0])

    def test_a_steady_rate_is_exact_at_any_time(self) -> None:
        counts = MinuteCounts()
        for second in range(300):
            add(counts, second, 7, 70)
            if second > 65 and second % 5 == 4:
                self.assertEqual(counts.last_minute(second + 1), (420, 4200))

    def test_totals_are_kept_after_the_minute(self) -> None:
        counts = MinuteCounts()
        add(counts, 10)
        add(counts, 1000)
        self.assertEqual((counts.messages, counts.size), (2, 20))
        self.assertEqual(counts.last_minute(1001), (1, 10))

    def test_a_clock_that_is_behind_the_last_tick_does_no_harm(self) -> None:
        counts = MinuteCounts()
        add(counts, 1000)
        self.assertEqual(counts.last_minute(999.9999), (1, 10))

    @given(st.lists(st.tuples(st.floats(0, 200), st.integers(1, 100)), max_size=50))
    def test_the_count_is_between_that_of_55_and_that_of_65_seconds(
        self, events: list[tuple[float, int]]
    ) -> None:
        counts = MinuteCounts()
        for at, messages in sorted(events):
            add(counts, at, messages)
        for now in (200.0, 203.7, 230.0, 262.5):
            found, _ = counts.last_minute(now)
            least = sum(messages for at, messages in events if at > now - 55)
            most = sum(messages for at, messages in events if at > now - 65)
            self.assertTrue(least <= found <= most, (now, least, found, most))

    def test_a_count_has_a_constant_size(self) -> None:
        """10,000 busy topics need some 4 MB."""
        counts = MinuteCounts()
        for second in range(10_000):
            add(counts, second, 10**6, 10**9)
        assert counts._starts is not None
        self.assertLess(sys.getsizeof(counts) + sys.getsizeof(counts._starts), 400)
