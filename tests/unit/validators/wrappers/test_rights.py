"""Both rights of a token, from two validators."""

from __future__ import annotations

from tests.support.fakes import FakeValidator
from tests.support.validator_cases import TOPIC, WrapperTestCase
from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.validators.wrappers.rights import RightsValidator


class RightsValidatorTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.receiving = FakeValidator()
        self.validator = RightsValidator(self.inner, self.receiving)

    def test_the_right_to_receive_is_checked_if_it_may_exist(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.inner.last.grant(2000, may_receive=False)
        self.assertFalse(self.successResultOf(check).may_receive)
        self.assertEqual(self.receiving.checks, [])

    def test_the_receiving_validator_decides_about_receiving_only(self) -> None:
        for may_receive in (True, False):
            check = self.validator.validate("a", TOPIC)
            self.inner.last.grant(2000)
            self.receiving.last.grant(2000, may_receive=may_receive, may_send=False)
            grant = self.successResultOf(check)
            self.assertEqual((grant.may_receive, grant.may_send), (may_receive, True))

    def test_a_token_that_is_refused_for_receiving_may_send(self) -> None:
        for may_send in (True, False):
            check = self.validator.validate("a", TOPIC)
            self.inner.last.grant(2000, may_send=may_send)
            self.receiving.last.refuse()
            grant = self.successResultOf(check)
            self.assertEqual((grant.may_receive, grant.may_send), (False, may_send))
            self.assertEqual(grant.refusal is None, may_send)

    def test_other_failures_are_passed_on(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.inner.last.refuse()
        self.failureResultOf(check, TokenInactive)
        check = self.validator.validate("a", TOPIC)
        self.inner.last.grant(2000)
        self.receiving.last.be_unavailable()
        self.failureResultOf(check, ValidatorUnavailable)
