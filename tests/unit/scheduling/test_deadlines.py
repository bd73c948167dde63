"""`Deadlines`: many deadlines with one timer."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.deadlines import Deadlines


class DeadlinesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.passed: list[tuple[str, float]] = []
        self.deadlines = Deadlines[str](self.clock, 10, self.expired)

    def expired(self, member: str) -> None:
        self.passed.append((member, self.clock.seconds()))

    def test_each_deadline_passes_in_time_with_one_timer(self) -> None:
        for member in "abc":
            self.deadlines.start(member)
            self.clock.advance(1)
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.pump([1] * 12)
        self.assertEqual(self.passed, [("a", 10), ("b", 11), ("c", 12)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_cancelled_member_is_not_called_and_the_last_stops_the_timer(self) -> None:
        self.deadlines.start("a")
        self.clock.advance(1)
        self.deadlines.start("b")
        self.deadlines.cancel("a")
        self.deadlines.cancel("a")
        self.assertNotIn("a", self.deadlines)
        self.clock.pump([1] * 12)
        self.assertEqual(self.passed, [("b", 11)])
        self.deadlines.start("c")
        self.deadlines.cancel("c")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_starting_again_changes_nothing(self) -> None:
        self.deadlines.start("a")
        self.clock.advance(5)
        self.deadlines.start("a")
        self.clock.advance(5)
        self.assertEqual(self.passed, [("a", 10)])

    def test_restart_begins_anew(self) -> None:
        self.deadlines.start("a")
        self.clock.advance(5)
        self.deadlines.restart("a")
        self.deadlines.restart("b")
        self.clock.pump([1] * 9)
        self.assertEqual(self.passed, [])
        self.clock.advance(1)
        self.assertEqual(self.passed, [("a", 15), ("b", 15)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_new_length_applies_to_later_deadlines(self) -> None:
        self.deadlines.start("a")
        self.deadlines.set_length(5)
        self.deadlines.start("b")
        self.clock.advance(9)
        self.assertEqual(self.passed, [])
        self.deadlines.start("c")
        self.clock.advance(1)
        self.assertEqual(self.passed, [("a", 10), ("b", 10)])
        self.clock.advance(4)
        self.assertEqual(self.passed[2:], [("c", 14)])

    def test_a_call_that_fails_does_not_stop_the_others(self) -> None:
        def failing(member: str) -> None:
            self.expired(member)
            raise RuntimeError("injected by the test")

        deadlines = Deadlines[str](self.clock, 10, failing)
        deadlines.start("a")
        deadlines.start("b")
        self.clock.advance(10)
        self.assertEqual([member for member, _ in self.passed], ["a", "b"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_a_call_may_start_and_cancel_deadlines(self) -> None:
        def restarting(member: str) -> None:
            self.expired(member)
            deadlines.cancel("b")
            if len(self.passed) < 3:
                deadlines.start(member)

        deadlines = Deadlines[str](self.clock, 10, restarting)
        deadlines.start("a")
        self.clock.advance(1)
        deadlines.start("b")
        self.clock.pump([1] * 40)
        self.assertEqual(self.passed, [("a", 10), ("a", 20), ("a", 30)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_call_may_cancel_a_deadline_that_has_passed_too(self) -> None:
        def ending(member: str) -> None:
            self.expired(member)
            deadlines.cancel("b")
            deadlines.cancel("c")
            deadlines.start("c")

        deadlines = Deadlines[str](self.clock, 10, ending)
        for member in "abc":
            deadlines.start(member)
        self.clock.advance(10)
        self.assertEqual(self.passed, [("a", 10)])
        deadlines.cancel("c")
        self.assertEqual(self.clock.getDelayedCalls(), [])
