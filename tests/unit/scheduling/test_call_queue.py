"""`CallQueue`: calls spread over reactor iterations."""

from __future__ import annotations

from functools import partial

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.call_queue import CallQueue


class CallQueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = CallQueue(self.clock, 3)
        self.made: list[int] = []

    def calls(self, *numbers: int) -> list[partial[None]]:
        return [partial(self.made.append, number) for number in numbers]

    def iterate(self) -> None:
        """One reactor iteration: a call that it schedules runs in the next one."""
        for call in tuple(self.clock.getDelayedCalls()):
            self.clock.calls.remove(call)
            call.called = True
            call.func(*call.args, **call.kw)

    def test_some_calls_are_made_at_once_the_others_in_later_iterations(self) -> None:
        self.queue.run(self.calls(*range(8)))
        seen = [len(self.made)]
        while self.clock.getDelayedCalls():
            self.iterate()
            seen.append(len(self.made))
        self.assertEqual(seen, [3, 6, 8, 8])
        self.assertEqual(self.made, list(range(8)))

    def test_calls_given_in_one_iteration_share_its_limit(self) -> None:
        for number in range(5):
            self.queue.run(self.calls(number))
        self.assertEqual(self.made, [0, 1, 2])
        self.iterate()
        self.assertEqual(self.made, [0, 1, 2, 3, 4])

    def test_deferred_calls_are_made_in_the_next_iteration(self) -> None:
        self.queue.defer(self.calls(1, 2))
        self.assertEqual(self.made, [])
        self.iterate()
        self.assertEqual(self.made, [1, 2])

    def test_calls_given_after_deferred_ones_follow_them(self) -> None:
        self.queue.defer(self.calls(1))
        self.queue.run(self.calls(2))
        self.assertEqual(self.made, [])
        self.iterate()
        self.assertEqual(self.made, [1, 2])

    def test_a_call_that_fails_does_not_stop_the_others(self) -> None:
        self.queue.run([partial(int, "no number"), *self.calls(1)])
        self.assertEqual(self.made, [1])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_call_may_add_calls(self) -> None:
        self.queue.run([partial(self.queue.run, self.calls(1, 2)), *self.calls(3)])
        self.assertEqual(self.made, [3, 1])
        self.iterate()
        self.assertEqual(self.made, [3, 1, 2])

    def test_no_calls_need_no_timer(self) -> None:
        self.queue.run([])
        self.assertEqual(self.clock.getDelayedCalls(), [])
