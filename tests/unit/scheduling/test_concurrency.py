"""`ConcurrencyQueue`: order, limits, and members that end at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.concurrency import ConcurrencyQueue


class ConcurrencyQueueTests(SynchronousTestCase):
    limit = 2

    def setUp(self) -> None:
        self.started: list[int] = []
        self.ends_at_once = False
        self.queue = self.make_queue()

    def make_queue(self, max_waiting: int | None = None) -> ConcurrencyQueue[int]:
        return ConcurrencyQueue(
            self.start, lambda _: len(self.queue.in_progress) < self.limit, max_waiting
        )

    def start(self, member: int) -> bool:
        self.started.append(member)
        return not self.ends_at_once

    def add(self, *members: int) -> None:
        for member in members:
            self.assertTrue(self.queue.add(member))
        self.queue.fill()

    def done(self, member: int) -> None:
        self.queue.done(member)
        self.queue.fill()

    def test_members_start_in_order_and_only_some_at_once(self) -> None:
        self.add(1, 2, 3, 4)
        self.assertEqual(self.started, [1, 2])
        self.done(2)
        self.assertEqual(self.started, [1, 2, 3])
        self.done(1)
        self.done(3)
        self.assertEqual(self.started, [1, 2, 3, 4])
        self.assertFalse(self.queue.is_idle)
        self.done(4)
        self.assertTrue(self.queue.is_idle)

    def test_a_member_that_is_added_waits_for_fill(self) -> None:
        self.queue.add(1)
        self.assertEqual((self.started, list(self.queue.waiting)), ([], [1]))
        self.queue.fill()
        self.assertEqual((self.started, self.queue.in_progress), ([1], {1}))

    def test_a_full_queue_takes_no_more(self) -> None:
        self.queue = self.make_queue(max_waiting=3)
        self.add(1, 2)
        self.add(3, 4, 5)
        self.assertFalse(self.queue.add(6))
        self.done(1)
        self.assertTrue(self.queue.add(7))
        self.assertEqual(list(self.queue.waiting), [4, 5, 7])

    def test_a_discarded_member_does_not_start(self) -> None:
        self.add(1, 2, 3, 4)
        self.queue.discard(3)
        self.queue.discard(3)
        self.done(1)
        self.assertEqual(self.started, [1, 2, 4])

    def test_discard_leaves_a_member_in_progress_alone(self) -> None:
        self.add(1, 2, 3)
        self.queue.discard(1)
        self.queue.fill()
        self.assertEqual(self.started, [1, 2])

    def test_done_leaves_a_waiting_member_alone(self) -> None:
        self.add(1, 2, 3)
        self.done(3)
        self.done(3)
        self.assertEqual((self.started, list(self.queue.waiting)), ([1, 2], [3]))

    def test_a_member_may_end_before_start_returns(self) -> None:
        def start(member: int) -> bool:
            self.started.append(member)
            self.done(member)
            return True

        self.queue = ConcurrencyQueue(start, lambda _: not self.queue.in_progress)
        self.add(1, 2)
        self.assertEqual(self.started, [1, 2])
        self.assertTrue(self.queue.is_idle)

    def test_members_that_end_at_once_do_not_recurse(self) -> None:
        self.add(*range(3000))
        self.ends_at_once = True
        self.done(0)
        self.assertEqual(self.started, list(range(3000)))
        self.assertEqual(self.queue.in_progress, {1})

    def test_members_that_end_before_start_returns_do_not_recurse(self) -> None:
        def start(member: int) -> bool:
            self.started.append(member)
            if member:
                self.done(member)
            return True

        self.queue = ConcurrencyQueue(start, lambda _: not self.queue.in_progress)
        self.add(*range(3000))
        self.assertEqual(self.started, [0])
        self.done(0)
        self.assertEqual(self.started, list(range(3000)))
        self.assertTrue(self.queue.is_idle)

    def test_a_member_that_is_added_during_a_start_is_behind_the_others(self) -> None:
        def start(member: int) -> bool:
            self.started.append(member)
            if member < 10:
                self.add(member + 10)
            return False

        self.queue = ConcurrencyQueue(start, lambda _: True)
        self.add(1, 2, 3)
        self.assertEqual(self.started, [1, 2, 3, 11, 12, 13])

    def test_a_member_may_be_discarded_during_the_start_of_another(self) -> None:
        def start(member: int) -> bool:
            self.started.append(member)
            self.queue.discard(member + 1)
            return False

        self.queue = ConcurrencyQueue(start, lambda _: True)
        self.add(1, 2, 3)
        self.assertEqual(self.started, [1, 3])

    def test_a_start_that_fails_does_not_stop_the_others(self) -> None:
        def start(member: int) -> bool:
            self.started.append(member)
            raise RuntimeError("injected by the test")

        self.queue = ConcurrencyQueue(start, lambda _: not self.queue.in_progress)
        self.add(1, 2, 3)
        self.assertEqual(self.started, [1, 2, 3])
        self.assertTrue(self.queue.is_idle)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)

    def test_an_error_of_may_start_leaves_the_queue_usable(self) -> None:
        def may_start(member: int) -> bool:
            if self.limit == 0:
                raise RuntimeError("injected by the test")
            return True

        self.limit = 0
        self.queue = ConcurrencyQueue(self.start, may_start)
        self.queue.add(1)
        self.assertRaises(RuntimeError, self.queue.fill)
        self.limit = 1
        self.queue.fill()
        self.assertEqual(self.started, [1])

    def test_a_higher_limit_holds_from_the_next_fill(self) -> None:
        self.add(1, 2, 3, 4, 5)
        self.limit = 4
        self.queue.fill()
        self.assertEqual(self.started, [1, 2, 3, 4])
        self.limit = 1
        for member in (1, 2, 3):
            self.done(member)
        self.assertEqual(self.started, [1, 2, 3, 4])
        self.done(4)
        self.assertEqual(self.started, [1, 2, 3, 4, 5])

    @given(
        st.integers(1, 4),
        st.lists(st.tuples(st.sampled_from(["add", "done", "discard"]), st.integers(0, 9))),
    )
    def test_whatever_happens_the_order_and_the_limit_are_kept(
        self, limit: int, events: list[tuple[str, int]]
    ) -> None:
        self.setUp()
        self.limit = limit
        waiting: list[int] = []
        for number, (event, at) in enumerate(events):
            if event == "add":
                self.add(number)
                waiting.append(number)
            elif event == "discard" and self.queue.waiting:
                member = list(self.queue.waiting)[at % len(self.queue.waiting)]
                self.queue.discard(member)
                waiting.remove(member)
            elif event == "done" and self.queue.in_progress:
                self.done(sorted(self.queue.in_progress)[at % len(self.queue.in_progress)])
            self.assertLessEqual(len(self.queue.in_progress), limit)
            self.assertTrue(len(self.queue.in_progress) == limit or not self.queue.waiting)
            self.assertEqual(self.started, waiting[: len(self.started)])
