"""The timeout of a check."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from tests.support.validator_cases import TOPIC, StubbornValidator, WrapperTestCase
from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.validators.wrappers.timeout import TimeoutValidator


class TimeoutValidatorTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator = TimeoutValidator(self.inner, self.clock, 10)

    def test_a_grant_in_time(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.advance(9.999)
        self.inner.last.grant(2000)
        self.assertEqual(self.successResultOf(check).expires_at, 2000)
        self.assert_no_timers()

    def test_a_refusal_in_time(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.inner.last.refuse()
        self.failureResultOf(check, TokenInactive)
        self.assert_no_timers()

    def test_a_check_that_takes_too_long_fails_and_is_cancelled(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.advance(10)
        self.failureResultOf(check, ValidatorUnavailable)
        self.assertTrue(self.inner.last.was_cancelled)

    def test_a_check_that_cannot_be_cancelled_fails_in_time(self) -> None:
        check = TimeoutValidator(StubbornValidator(), self.clock, 10).validate("a", TOPIC)
        self.advance(10)
        self.failureResultOf(check, ValidatorUnavailable)

    def test_cancelling_cancels_the_check_and_the_timer(self) -> None:
        check = self.validator.validate("a", TOPIC)
        check.cancel()
        self.failureResultOf(check, CancelledError)
        self.assertTrue(self.inner.last.was_cancelled)
        self.assert_no_timers()
