"""Requests for several topics are put together."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.kafka.batches import Batches


class BatchesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.requests: list[list[str]] = []
        self.running: list[Deferred[None]] = []
        self.batches = Batches(self.clock, self.request, 3)

    def request(self, ids: list[str]) -> Deferred[None]:
        self.requests.append(ids)
        self.running.append(Deferred())
        return self.running[-1]

    def add(self, ids: str) -> None:
        for id_ in ids:
            self.batches.add(id_)

    def test_ids_of_one_iteration_are_requested_together_and_once(self) -> None:
        self.add("aba")
        self.assertEqual(self.requests, [])
        self.clock.advance(0)
        self.assertEqual(self.requests, [["a", "b"]])

    def test_ids_wait_for_the_request_before_them(self) -> None:
        self.add("a")
        self.clock.advance(0)
        self.add("bc")
        self.clock.advance(0)
        self.assertEqual(self.requests, [["a"]])
        self.running[0].callback(None)
        self.clock.advance(0)
        self.assertEqual(self.requests, [["a"], ["b", "c"]])

    def test_the_number_of_ids_in_one_request_is_limited(self) -> None:
        self.add("abcd")
        self.clock.advance(0)
        self.running[0].callback(None)
        self.clock.advance(0)
        self.assertEqual(self.requests, [["a", "b", "c"], ["d"]])

    def test_an_id_can_be_requested_again(self) -> None:
        for _ in range(2):
            self.add("a")
            self.clock.advance(0)
            self.running[-1].callback(None)
        self.assertEqual(self.requests, [["a"], ["a"]])

    def test_a_request_that_fails_is_logged_and_others_follow(self) -> None:
        self.add("a")
        self.clock.advance(0)
        self.add("b")
        self.running[0].errback(RuntimeError("simulated"))
        self.clock.advance(0)
        self.assertEqual(self.requests, [["a"], ["b"]])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_nothing_is_requested_after_stop(self) -> None:
        self.add("a")
        self.batches.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
