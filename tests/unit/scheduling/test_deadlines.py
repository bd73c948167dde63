"""Many waits on one timer."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.deadlines import Deadlines


class DeadlinesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.over: list[tuple[str, float]] = []
        self.deadlines = Deadlines[str](self.clock, 10, self.expired)

    def expired(self, member: str) -> None:
        self.over.append((member, self.clock.seconds()))

    def test_each_is_over_in_its_own_time_on_one_timer(self) -> None:
        for member in "abc":
            self.deadlines.start(member)
            self.clock.advance(1)
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.pump([1] * 12)
        self.assertEqual(self.over, [("a", 10), ("b", 11), ("c", 12)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_those_cancelled_are_not_called_and_the_last_takes_the_timer_along(self) -> None:
        self.deadlines.start("a")
        self.clock.advance(1)
        self.deadlines.start("b")
        self.deadlines.cancel("a")
        self.deadlines.cancel("a")
        self.assertNotIn("a", self.deadlines)
        self.clock.pump([1] * 12)
        self.assertEqual(self.over, [("b", 11)])
        self.deadlines.start("c")
        self.deadlines.cancel("c")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_starting_again_keeps_the_time(self) -> None:
        self.deadlines.start("a")
        self.clock.advance(5)
        self.deadlines.start("a")
        self.clock.advance(5)
        self.assertEqual(self.over, [("a", 10)])

    def test_one_that_fails_does_not_keep_others_from_their_turn(self) -> None:
        def failing(member: str) -> None:
            self.expired(member)
            raise RuntimeError("said the test")

        deadlines = Deadlines[str](self.clock, 10, failing)
        deadlines.start("a")
        deadlines.start("b")
        self.clock.advance(10)
        self.assertEqual([member for member, _ in self.over], ["a", "b"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_an_action_may_start_and_cancel(self) -> None:
        def restarting(member: str) -> None:
            self.expired(member)
            deadlines.cancel("b")
            if len(self.over) < 3:
                deadlines.start(member)

        deadlines = Deadlines[str](self.clock, 10, restarting)
        deadlines.start("a")
        self.clock.advance(1)
        deadlines.start("b")
        self.clock.pump([1] * 40)
        self.assertEqual(self.over, [("a", 10), ("a", 20), ("a", 30)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_action_may_end_the_wait_of_another_that_is_over_too(self) -> None:
        def ending(member: str) -> None:
            self.expired(member)
            deadlines.cancel("b")
            deadlines.cancel("c")
            deadlines.start("c")

        deadlines = Deadlines[str](self.clock, 10, ending)
        for member in "abc":
            deadlines.start(member)
        self.clock.advance(10)
        self.assertEqual(self.over, [("a", 10)])
        deadlines.cancel("c")
        self.assertEqual(self.clock.getDelayedCalls(), [])
