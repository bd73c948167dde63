"""The combined result of several requests."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import INJECTED
from topicsvc.errors import TokenInactive, TopicNotFound, ValidatorUnavailable
from topicsvc.validators.verdicts import all_or_first_refusal


class AllOrFirstRefusalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.cancelled: list[int] = []
        self.requests: list[Deferred[Any]] = [
            Deferred(lambda _, index=index: self.cancelled.append(index)) for index in range(3)
        ]
        self.result = all_or_first_refusal(self.requests)

    def test_the_results_are_in_the_order_of_the_requests(self) -> None:
        for index in (2, 0, 1):
            self.assertNoResult(self.result)
            self.requests[index].callback(index)
        self.assertEqual(self.successResultOf(self.result), [0, 1, 2])

    def test_the_first_refusal_cancels_the_others(self) -> None:
        self.requests[1].errback(TopicNotFound(INJECTED))
        self.failureResultOf(self.result, TopicNotFound)
        self.assertEqual(self.cancelled, [0, 2])

    def test_a_request_that_has_failed_already(self) -> None:
        later: Deferred[Any] = Deferred(lambda _: self.cancelled.append(9))
        result = all_or_first_refusal([fail(TokenInactive(INJECTED)), succeed(1), later])
        self.failureResultOf(result, TokenInactive)

    def test_another_failure_waits_for_the_others(self) -> None:
        self.requests[0].errback(ValidatorUnavailable("injected by the test"))
        self.requests[1].callback(1)
        self.assertNoResult(self.result)
        self.requests[2].callback(2)
        self.failureResultOf(self.result, ValidatorUnavailable)

    def test_a_refusal_takes_precedence_over_another_failure(self) -> None:
        self.requests[0].errback(ValidatorUnavailable("injected by the test"))
        self.requests[2].errback(TokenInactive(INJECTED))
        self.failureResultOf(self.result, TokenInactive)
        self.assertEqual(self.cancelled, [1])

    def test_cancelling_cancels_all(self) -> None:
        self.result.cancel()
        self.failureResultOf(self.result, CancelledError)
        self.assertEqual(self.cancelled, [0, 1, 2])
