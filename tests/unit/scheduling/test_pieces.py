"""`run_in_pieces`: long work within the budget of each iteration."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.pieces import Pieces, run_in_pieces
from topicsvc.scheduling.work_budget import WorkBudget


class RunInPiecesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.budget = WorkBudget(self.clock, 0.003)
        self.done = 0
        self.is_closed = False

    def work(self, pieces: int, seconds: float = 0.001) -> Pieces[str]:
        try:
            for _ in range(pieces):
                self.clock.rightNow += seconds
                self.done += 1
                yield
        finally:
            self.is_closed = True
        return "result"

    def iterate(self) -> None:
        """One reactor iteration: a call that it schedules runs in the next one."""
        for call in tuple(self.clock.getDelayedCalls()):
            self.clock.calls.remove(call)
            call.called = True
            call.func(*call.args, **call.kw)

    def test_work_within_the_budget_is_done_at_once(self) -> None:
        self.assertEqual(self.successResultOf(run_in_pieces(self.work(2), self.budget)), "result")

    def test_no_iteration_takes_longer_than_the_budget_and_one_piece(self) -> None:
        working = run_in_pieces(self.work(20), self.budget)
        iterations = [self.done]
        while not working.called:
            self.iterate()
            iterations.append(self.done - sum(iterations))
        self.assertEqual(self.successResultOf(working), "result")
        self.assertEqual(sum(iterations), 20)
        self.assertLessEqual(max(iterations), 4)

    def test_two_works_share_the_budget(self) -> None:
        first = run_in_pieces(self.work(10), self.budget)
        second = run_in_pieces(self.work(10), self.budget)
        self.assertLessEqual(self.done, 4)
        while not (first.called and second.called):
            before = self.done
            self.iterate()
            self.assertLessEqual(self.done - before, 4)
        self.assertEqual(self.successResultOf(second), "result")

    def test_an_exception_fails_the_result(self) -> None:
        def failing() -> Pieces[None]:
            yield
            raise RuntimeError("injected by the test")

        self.failureResultOf(run_in_pieces(failing(), self.budget), RuntimeError)

    def test_cancelling_stops_the_work(self) -> None:
        working = run_in_pieces(self.work(100), self.budget)
        done = self.done
        working.cancel()
        self.failureResultOf(working, CancelledError)
        for _ in range(5):
            self.iterate()
        self.assertEqual((self.done, self.is_closed), (done, True))
