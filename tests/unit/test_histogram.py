"""Values in buckets."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.histogram import Histogram


class HistogramTests(SynchronousTestCase):
    def test_a_value_counts_in_the_first_bucket_whose_bound_is_not_below_it(self) -> None:
        histogram = Histogram([1, 2, 5])
        for value in (0.5, 1, 1.5, 2, 5, 6):
            histogram.observe(value)
        self.assertEqual(histogram.counts, [2, 2, 1, 1])
        self.assertEqual(histogram.cumulative(), [(1, 2), (2, 4), (5, 5), (inf, 6)])
        self.assertEqual(histogram.sum, 16)

    def test_a_negative_value_counts_as_0(self) -> None:
        histogram = Histogram([1])
        histogram.observe(-3600)
        self.assertEqual((histogram.counts, histogram.sum), ([1, 0], 0))

    @given(st.lists(st.floats(0, 100), max_size=50))
    def test_cumulative_counts(self, values: list[float]) -> None:
        histogram = Histogram([0.1, 1, 10])
        for value in values:
            histogram.observe(value)
        totals = [count for _, count in histogram.cumulative()]
        self.assertEqual(totals, sorted(totals))
        self.assertEqual(totals[-1], len(values))
        for bound, count in histogram.cumulative():
            self.assertEqual(count, sum(value <= bound for value in values))
