"""`WorkBudget`: work spread over reactor iterations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.work_budget import WorkBudget


class WorkBudgetTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.budget = WorkBudget(self.clock, 0.004)
        self.calls: list[str] = []

    def work(self, seconds: float) -> None:
        """Do work that takes `seconds`, without an iteration of the clock."""
        before = self.budget.now()
        self.clock.rightNow += seconds
        self.assertEqual(self.budget.spend(before), self.clock.rightNow)

    def worker(self, name: str, seconds: float = 0.0) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.work(seconds)

        return call

    def iterate(self) -> None:
        """One reactor iteration: a call that it schedules runs in the next one."""
        for call in tuple(self.clock.getDelayedCalls()):
            self.clock.calls.remove(call)
            call.called = True
            call.func(*call.args, **call.kw)

    def test_the_budget_is_spent_by_all_work_of_an_iteration(self) -> None:
        self.work(0.0025)
        self.assertFalse(self.budget.is_spent)
        self.work(0.0025)
        self.assertTrue(self.budget.is_spent)
        self.iterate()
        self.assertFalse(self.budget.is_spent)
        self.work(0.0025)
        self.assertFalse(self.budget.is_spent)

    def test_the_time_of_work_within_other_work_is_counted_once(self) -> None:
        before = self.budget.now()
        self.work(0.003)
        self.budget.spend(before)
        self.assertFalse(self.budget.is_spent, "3 ms, not 6 ms")
        self.work(0.001)
        self.assertTrue(self.budget.is_spent)

    def test_deferred_work_is_called_in_order_until_the_budget_is_spent(self) -> None:
        for name in "abcd":
            self.budget.defer(self.worker(name, 0.0025))
        self.assertEqual((self.calls, len(self.budget)), ([], 4))
        self.iterate()
        self.assertEqual((self.calls, len(self.budget)), (["a", "b"], 2))
        self.iterate()
        self.assertEqual(self.calls, ["a", "b", "c", "d"])

    def test_work_that_is_deferred_again_waits_for_the_next_iteration(self) -> None:
        def again() -> None:
            self.calls.append("again")
            self.budget.defer(self.worker("later"))

        self.budget.defer(again)
        self.budget.defer(self.worker("other"))
        self.iterate()
        self.assertEqual(self.calls, ["again", "other"])
        self.iterate()
        self.assertEqual(self.calls, ["again", "other", "later"])

    def test_work_that_fails_does_not_stop_the_work_behind_it(self) -> None:
        self.budget.defer(partial(int, "no number"))
        self.budget.defer(self.worker("other"))
        self.iterate()
        self.assertEqual(self.calls, ["other"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_without_work_there_is_no_timer(self) -> None:
        self.work(0.001)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.work(0.004)
        self.iterate()
        self.assertEqual(self.clock.getDelayedCalls(), [])
