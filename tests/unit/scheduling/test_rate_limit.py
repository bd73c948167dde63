"""`consume`: an allowance, its burst and its refill."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.rate_limit import consume, seconds_until

EPOCH = 1518612600.0


class ConsumeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.full_at = 0.0

    def consume(self, now: float, limit: int = 60, seconds: float = 60) -> bool:
        full_at = consume(self.full_at, now, limit, seconds)
        if full_at is None:
            return False
        self.full_at = full_at
        return True

    def consumed(self, attempts: int, now: float, **rate: int) -> int:
        return sum(self.consume(now, **rate) for _ in range(attempts))

    def test_the_whole_allowance_at_once_and_no_more(self) -> None:
        for limit, seconds in ((60, 60), (1, 60), (7, 60), (30, 1), (600, 60)):
            self.full_at = 0.0
            self.assertEqual(self.consumed(limit * 3, EPOCH, limit=limit, seconds=seconds), limit)

    def test_the_allowance_comes_back_evenly(self) -> None:
        self.consumed(60, EPOCH)
        self.assertEqual(self.consumed(10, EPOCH + 3), 3)
        self.assertEqual(self.consumed(10, EPOCH + 3.9), 0)
        self.assertEqual(self.consumed(100, EPOCH + 1000), 60)

    def test_a_use_within_the_rate_is_never_refused(self) -> None:
        self.assertEqual(sum(self.consume(EPOCH + second) for second in range(600)), 600)

    def test_a_refused_use_costs_nothing(self) -> None:
        self.consumed(1000, EPOCH)
        self.assertTrue(self.consume(EPOCH + 1))

    def test_several_units_at_once(self) -> None:
        self.assertIsNotNone(consume(0.0, EPOCH, 60, 60, 60))
        self.assertIsNone(consume(0.0, EPOCH, 60, 60, 61))
        self.consumed(40, EPOCH)
        self.assertIsNotNone(consume(self.full_at, EPOCH, 60, 60, 20))
        self.assertIsNone(consume(self.full_at, EPOCH, 60, 60, 21))


class SecondsUntilTests(SynchronousTestCase):
    @given(st.floats(-100, 100), st.integers(1, 100), st.integers(1, 60), st.integers(1, 100))
    def test_it_is_0_if_a_use_succeeds_and_otherwise_the_time_until_it_does(
        self, offset: float, limit: int, seconds: int, units: int
    ) -> None:
        full_at = EPOCH + min(offset, seconds)
        wait = seconds_until(full_at, EPOCH, limit, seconds, units)
        is_allowed = consume(full_at, EPOCH, limit, seconds, units) is not None
        self.assertEqual(wait == 0, is_allowed)
        if wait and units <= limit:
            later = EPOCH + wait + 0.001
            self.assertIsNotNone(consume(full_at, later, limit, seconds, units))
            self.assertIsNone(consume(full_at, EPOCH + wait - 0.01, limit, seconds, units))
