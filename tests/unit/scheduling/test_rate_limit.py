"""How often something may happen."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.rate_limit import consume

EPOCH = 1518612600.0


class PaceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.full_at = 0.0

    def take(self, now: float, most: int = 60, seconds: float = 60) -> bool:
        full_at = consume(self.full_at, now, most, seconds)
        if full_at is None:
            return False
        self.full_at = full_at
        return True

    def taken(self, tries: int, now: float, **of: int) -> int:
        return sum(self.take(now, **of) for _ in range(tries))

    def test_all_at_once_and_then_no_more(self) -> None:
        for most, seconds in ((60, 60), (1, 60), (7, 60), (30, 1), (600, 60)):
            self.full_at = 0.0
            self.assertEqual(self.taken(most * 3, EPOCH, most=most, seconds=seconds), most)

    def test_it_comes_back_evenly(self) -> None:
        self.taken(60, EPOCH)
        self.assertEqual(self.taken(10, EPOCH + 3), 3)
        self.assertEqual(self.taken(10, EPOCH + 3.9), 0)
        self.assertEqual(self.taken(100, EPOCH + 1000), 60)

    def test_whoever_keeps_to_it_is_never_refused(self) -> None:
        self.assertEqual(sum(self.take(EPOCH + second) for second in range(600)), 600)

    def test_being_refused_costs_nothing(self) -> None:
        self.taken(1000, EPOCH)
        self.assertTrue(self.take(EPOCH + 1))
