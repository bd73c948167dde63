"""`DueTimes`: members whose time moves, with one timer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.call_queue import CallQueue
from topicsvc.scheduling.due_times import PER_ITERATION, PRECISION, DueTimes


class DueTimesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.due: dict[str, float] = {}
        self.called: list[tuple[str, float]] = []
        self.times = DueTimes(self.clock, self.due.__getitem__, self.on_due)

    def on_due(self, member: str) -> None:
        self.called.append((member, self.clock.seconds()))
        self.due[member] = self.clock.seconds() + 10

    def add(self, member: str, due: float) -> None:
        self.due[member] = due
        self.times.add(member)

    def advance(self, seconds: float) -> None:
        self.clock.pump([PRECISION] * int(seconds / PRECISION))

    def test_each_member_is_called_at_its_time_again_and_again(self) -> None:
        self.add("a", 10)
        self.add("b", 3.1)
        self.advance(25)
        self.assertEqual(
            self.called, [("b", 3.25), ("a", 10), ("b", 13.25), ("a", 20), ("b", 23.25)]
        )

    def test_a_time_that_has_moved_is_read_when_the_old_one_has_come(self) -> None:
        self.add("a", 10)
        self.advance(9)
        self.due["a"] = 19
        self.advance(9)
        self.assertEqual(self.called, [])
        self.advance(1)
        self.assertEqual(self.called, [("a", 19)])

    def test_a_discarded_member_is_not_called_and_the_last_one_stops_the_timer(self) -> None:
        self.add("a", 10)
        self.add("b", 10)
        self.times.discard("a")
        self.times.discard("a")
        self.advance(11)
        self.assertEqual([member for member, _ in self.called], ["b"])
        self.times.discard("b")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.add("c", 30)
        self.advance(20)
        self.assertEqual(self.called[-1][0], "c")

    def test_many_members_are_spread_over_iterations(self) -> None:
        for number in range(3 * PER_ITERATION):
            self.add(str(number), 5)
        in_one_iteration: list[int] = []
        make = CallQueue.run

        def run(queue: CallQueue, calls: Iterable[Callable[[], None]]) -> None:
            before = len(self.called)
            make(queue, calls)
            in_one_iteration.append(len(self.called) - before)

        self.patch(CallQueue, "run", run)
        self.clock.advance(5)
        self.assertEqual(max(in_one_iteration), PER_ITERATION)
        self.assertEqual(len(self.called), 3 * PER_ITERATION)

    def test_a_member_that_is_discarded_meanwhile_is_not_called(self) -> None:
        for number in range(PER_ITERATION + 1):
            self.add(str(number), 5)

        def discard_last(member: str) -> None:
            self.on_due(member)
            self.times.discard(str(PER_ITERATION))

        self.times._on_due = discard_last
        self.clock.advance(5)
        self.assertEqual(len(self.called), PER_ITERATION)

    def test_an_earlier_member_moves_the_timer(self) -> None:
        self.add("a", 50)
        self.add("b", 5)
        self.advance(5)
        self.assertEqual(self.called, [("b", 5)])

    def test_an_exception_is_logged_and_the_others_are_called(self) -> None:
        def fails(member: str) -> None:
            self.on_due(member)
            raise ZeroDivisionError("injected by the test")

        self.times = DueTimes(self.clock, self.due.__getitem__, fails)
        self.add("a", 5)
        self.add("b", 5)
        self.advance(5)
        self.assertEqual([member for member, _ in self.called], ["a", "b"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.advance(10)
        self.assertEqual(len(self.called), 4)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
