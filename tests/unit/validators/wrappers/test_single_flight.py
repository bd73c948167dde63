"""One check for concurrent requests."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from tests.support.validator_cases import OTHER_TOPIC, TOPIC, StubbornValidator, WrapperTestCase
from topicsvc.errors import TokenInactive
from topicsvc.interfaces import Grant
from topicsvc.validators.wrappers.single_flight import SingleFlight


class SingleFlightTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator = SingleFlight(self.inner)

    def test_concurrent_requests_share_one_check(self) -> None:
        checks = [self.validator.validate("a", TOPIC) for _ in range(1000)]
        self.assertEqual(len(self.inner.checks), 1)
        self.inner.last.grant(2000)
        self.assertEqual({self.successResultOf(check).expires_at for check in checks}, {2000})
        self.assertEqual(len(self.validator), 0)

    def test_a_refusal_is_shared(self) -> None:
        checks = [self.validator.validate("a", TOPIC) for _ in range(3)]
        self.inner.last.refuse()
        for check in checks:
            self.failureResultOf(check, TokenInactive)

    def test_another_token_or_topic_is_another_check(self) -> None:
        for token, topic in (("a", TOPIC), ("b", TOPIC), ("a", OTHER_TOPIC)):
            self.validator.validate(token, topic)
        self.assertEqual(len(self.inner.checks), 3)

    def test_a_later_request_makes_a_new_check(self) -> None:
        self.validator.validate("a", TOPIC)
        self.inner.last.grant(2000)
        self.validator.validate("a", TOPIC)
        self.assertEqual(len(self.inner.checks), 2)

    def test_a_cancelled_request_does_not_cancel_the_check_of_others(self) -> None:
        first, second = (self.validator.validate("a", TOPIC) for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertFalse(self.inner.last.was_cancelled)
        self.inner.last.grant(2000)
        self.successResultOf(second)

    def test_the_last_cancelled_request_cancels_the_check(self) -> None:
        checks = [self.validator.validate("a", TOPIC) for _ in range(3)]
        for check in checks:
            check.cancel()
            self.failureResultOf(check, CancelledError)
        self.assertTrue(self.inner.last.was_cancelled)
        self.assertEqual(len(self.validator), 0)

    def test_a_request_after_all_others_were_cancelled_makes_a_new_check(self) -> None:
        validator = SingleFlight(StubbornValidator())
        first = validator.validate("a", TOPIC)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertNoResult(validator.validate("a", TOPIC))
        self.assertEqual(len(validator), 1)

    def test_a_request_that_is_cancelled_by_the_callback_of_another(self) -> None:
        first, second = (self.validator.validate("a", TOPIC) for _ in range(2))
        first.addCallback(lambda _: second.cancel())
        self.inner.last.grant(2000)
        self.failureResultOf(second, CancelledError)

    def test_an_immediate_result(self) -> None:
        self.inner.at_once = lambda token, topic: Grant(token, 2000, True, True)
        self.successResultOf(self.validator.validate("a", TOPIC))
        self.assertEqual(len(self.validator), 0)
