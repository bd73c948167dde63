"""Many calls, some in each turn."""

from __future__ import annotations

from functools import partial

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.call_queue import CallQueue


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = CallQueue(self.clock, 3)
        self.made: list[int] = []

    def calls(self, *numbers: int) -> list[partial[None]]:
        return [partial(self.made.append, number) for number in numbers]

    def turn(self) -> None:
        """One turn of a reactor: what it makes due has its turn in the next."""
        for call in tuple(self.clock.getDelayedCalls()):
            self.clock.calls.remove(call)
            call.called = True
            call.func(*call.args, **call.kw)

    def test_some_are_made_at_once_the_others_in_the_turns_that_follow(self) -> None:
        self.queue.run(self.calls(*range(8)))
        seen = [len(self.made)]
        while self.clock.getDelayedCalls():
            self.turn()
            seen.append(len(self.made))
        self.assertEqual(seen, [3, 6, 8, 8])
        self.assertEqual(self.made, list(range(8)))

    def test_what_is_given_in_one_turn_shares_it(self) -> None:
        for number in range(5):
            self.queue.run(self.calls(number))
        self.assertEqual(self.made, [0, 1, 2])
        self.turn()
        self.assertEqual(self.made, [0, 1, 2, 3, 4])

    def test_later_is_not_now(self) -> None:
        self.queue.defer(self.calls(1, 2))
        self.assertEqual(self.made, [])
        self.turn()
        self.assertEqual(self.made, [1, 2])

    def test_what_is_given_after_these_keeps_its_place(self) -> None:
        self.queue.defer(self.calls(1))
        self.queue.run(self.calls(2))
        self.assertEqual(self.made, [])
        self.turn()
        self.assertEqual(self.made, [1, 2])

    def test_one_that_fails_keeps_no_other_from_its_turn(self) -> None:
        self.queue.run([partial(int, "no number"), *self.calls(1)])
        self.assertEqual(self.made, [1])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_call_may_give_others(self) -> None:
        self.queue.run([partial(self.queue.run, self.calls(1, 2)), *self.calls(3)])
        self.assertEqual(self.made, [3, 1])
        self.turn()
        self.assertEqual(self.made, [3, 1, 2])

    def test_nothing_costs_no_timer(self) -> None:
        self.queue.run([])
        self.assertEqual(self.clock.getDelayedCalls(), [])
