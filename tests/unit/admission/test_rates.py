"""`RateTable`: an allowance for each key, in bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.admission.rates import RateTable


class RateTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1000.0
        self.limit = 6
        self.table = RateTable[str](self.clock, lambda: self.limit, max_keys=3)

    def use(self, key: str, uses: int = 1) -> float:
        """Use `key`, if this is allowed; return the seconds to wait."""
        seconds = self.table.wait(key, uses)
        if not seconds:
            self.table.use(key, uses)
        return seconds

    def test_each_key_has_an_allowance_of_its_own(self) -> None:
        self.assertEqual([self.use("a") for _ in range(6)], [0] * 6)
        self.assertAlmostEqual(self.use("a"), 10)
        self.assertEqual(self.use("b"), 0)

    def test_the_time_to_wait_is_exact(self) -> None:
        self.use("a", 6)
        seconds = self.use("a", 3)
        self.assertAlmostEqual(seconds, 30)
        self.clock.advance(seconds - 0.1)
        self.assertGreater(self.use("a", 3), 0)
        self.clock.advance(0.1)
        self.assertEqual(self.use("a", 3), 0)

    def test_more_uses_than_the_limit_are_never_allowed(self) -> None:
        self.assertGreater(self.use("a", 7), 0)
        self.assertEqual(len(self.table), 0)
        self.table.use("a", 7)
        self.assertEqual(self.use("a", 6), 0)

    def test_without_a_limit_nothing_is_kept(self) -> None:
        self.limit = 0
        self.assertEqual([self.use("a", 100) for _ in range(100)], [0] * 100)
        self.assertEqual(len(self.table), 0)

    def test_a_new_limit_applies_at_once(self) -> None:
        self.use("a", 6)
        self.limit = 60
        self.assertAlmostEqual(self.use("a"), 1)
        self.limit = 0
        self.assertEqual(self.use("a"), 0)

    def test_full_allowances_are_forgotten(self) -> None:
        self.use("a")
        self.use("b", 6)
        self.clock.advance(10)
        self.use("c")
        self.assertEqual(set(self.table._full_at), {"b", "c"})

    def test_the_least_recently_used_key_is_forgotten_if_there_are_too_many(self) -> None:
        for key in "abcad":
            self.use(key, 2)
        self.assertEqual(set(self.table._full_at), {"c", "a", "d"})

    @given(
        st.lists(
            st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 8), st.floats(0, 30)),
            max_size=60,
        )
    )
    def test_it_never_keeps_more_keys_than_allowed(
        self, uses: list[tuple[str, int, float]]
    ) -> None:
        self.setUp()
        for key, count, pause in uses:
            self.clock.advance(pause)
            self.use(key, count)
            self.assertLessEqual(len(self.table), 3)
