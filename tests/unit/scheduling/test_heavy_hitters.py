"""The most frequent keys of the last minute."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.heavy_hitters import MAX_KEYS, HeavyHitters
from topicsvc.scheduling.minute_counts import TICKS


class HeavyHittersTests(SynchronousTestCase):
    def test_keys_are_counted_and_the_most_frequent_is_first(self) -> None:
        hitters = HeavyHitters[str]()
        for key, count in (("a", 3), ("b", 10), ("a", 4), ("c", 1)):
            hitters.add(key, count, 1000)
        self.assertEqual(hitters.top(10, 1001), [("b", 10), ("a", 7), ("c", 1)])
        self.assertEqual(hitters.top(2, 1001), [("b", 10), ("a", 7)])

    def test_counts_leave_the_minute(self) -> None:
        hitters = HeavyHitters[str]()
        hitters.add("old", 100, 1000)
        hitters.add("new", 1, 1030)
        self.assertEqual(hitters.top(10, 1060), [("old", 100), ("new", 1)])
        self.assertEqual(hitters.top(10, 1062.5), [("old", 50), ("new", 1)])
        self.assertEqual(hitters.top(10, 1065), [("new", 1)])
        self.assertEqual(hitters.top(10, 2000), [])

    def test_a_key_of_many_ticks_is_summed(self) -> None:
        hitters = HeavyHitters[str]()
        for second in range(300):
            hitters.add("steady", 2, second)
        self.assertEqual(hitters.top(1, 300), [("steady", 120)])

    def test_memory_is_bounded_whatever_the_number_of_keys(self) -> None:
        hitters = HeavyHitters[int]()
        for key in range(50_000):
            hitters.add(key, 1, key / 200)
            self.assertLessEqual(len(hitters._counts), MAX_KEYS)
        self.assertLessEqual(len(hitters._ticks), TICKS + 1)

    def test_a_frequent_key_is_found_among_many_rare_ones(self) -> None:
        """One sender with 2 % of 100,000 sends stands out among 50,000 other senders."""
        random = Random(1)
        hitters = HeavyHitters[int]()
        sends = [-1] * 2000 + [random.randrange(50_000) for _ in range(98_000)]
        random.shuffle(sends)
        for key in sends:
            hitters.add(key, 1, 1000)
        [(key, count), *_] = hitters.top(3, 1000)
        self.assertEqual(key, -1)
        self.assertTrue(2000 - 100_000 * 2 / MAX_KEYS <= count <= 2000, count)

    def test_clear_forgets_all_keys(self) -> None:
        hitters = HeavyHitters[str]()
        hitters.add("a", 1, 1000)
        hitters.clear()
        self.assertEqual(hitters.top(10, 1000), [])
        hitters.add("b", 1, 1000)
        self.assertEqual(hitters.top(10, 1000), [("b", 1)])
