"""`LineBudget`: the lines of a second, and the count of the others."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.line_budget import LineBudget


class LineBudgetTests(SynchronousTestCase):
    def build(self) -> None:
        self.clock = Clock()
        self.reports: list[tuple[Counter[str], float]] = []
        self.budget = LineBudget(self.clock, 10, 60.0, lambda *report: self.reports.append(report))

    def test_lines_within_the_budget_need_no_report(self) -> None:
        self.build()
        for _ in range(100):
            self.assertTrue(self.budget.allow("a"))
            self.clock.advance(0.1)
        self.budget.flush()
        self.assertEqual((self.reports, self.clock.getDelayedCalls()), ([], []))

    def test_other_lines_are_counted_by_their_key_and_reported_once(self) -> None:
        self.build()
        allowed = [self.budget.allow("a" if at % 3 else "b") for at in range(40)]
        self.assertEqual(sum(allowed), 10)
        self.clock.advance(59)
        self.assertEqual(self.reports, [])
        self.clock.advance(1)
        self.assertEqual(self.reports, [({"a": 20, "b": 10}, 60.0)])
        self.clock.advance(600)
        self.assertEqual(len(self.reports), 1)

    def test_flush_reports_at_once(self) -> None:
        self.build()
        for _ in range(12):
            self.budget.allow("a")
        self.clock.advance(5)
        self.budget.flush()
        self.assertEqual((self.reports, self.clock.getDelayedCalls()), ([({"a": 2}, 5.0)], []))

    @given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3, 20.0]), max_size=200))
    def test_no_line_is_lost_and_no_second_has_too_many(self, pauses: list[float]) -> None:
        self.build()
        written: list[float] = []
        for pause in pauses:
            self.clock.advance(pause)
            if self.budget.allow("a"):
                written.append(self.clock.seconds())
        self.budget.flush()
        left_out = sum(report.total() for report, _ in self.reports)
        self.assertEqual(len(written) + left_out, len(pauses))
        for at in written:
            self.assertLessEqual(sum(at <= each < at + 1 for each in written), 20)
