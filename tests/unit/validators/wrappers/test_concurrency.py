"""The limit of concurrent checks."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from tests.support.fakes import FakeValidator
from tests.support.validator_cases import TOPIC, WrapperTestCase
from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant
from topicsvc.validators.wrappers.concurrency import QUEUE_TIMEOUT, ConcurrencyLimit


class ConcurrencyLimitTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator = ConcurrencyLimit(self.inner, self.clock, concurrency=2, max_waiting=3)

    def validate(self, *tokens: str) -> list[Deferred[Grant]]:
        return [self.validator.validate(token, TOPIC) for token in tokens]

    @property
    def started(self) -> list[str]:
        """The tokens of the checks that were started."""
        return [check.token for check in self.inner.checks]

    def test_some_checks_at_once_and_the_others_in_order(self) -> None:
        checks = self.validate("a", "b", "c", "d")
        self.assertEqual(self.started, ["a", "b"])
        self.inner.checks[1].grant(2000)
        self.assertEqual(self.started, ["a", "b", "c"])
        self.successResultOf(checks[1])
        self.inner.checks[0].refuse()
        self.assertEqual(self.started, ["a", "b", "c", "d"])
        self.failureResultOf(checks[0], TokenInactive)
        for check in self.inner.checks[2:]:
            check.be_unavailable()
        for check in checks[2:]:
            self.failureResultOf(check, ValidatorUnavailable)
        self.assert_no_timers()

    def test_another_validator_under_the_same_limit(self) -> None:
        other = FakeValidator()
        beside = self.validator.beside(other)
        checks = [*self.validate("a"), beside.validate("b", TOPIC), beside.validate("c", TOPIC),
                  *self.validate("d")]  # fmt: skip
        self.assertEqual((self.started, [check.token for check in other.checks]), (["a"], ["b"]))
        self.inner.checks[0].grant(2000)
        self.assertEqual([check.token for check in other.checks], ["b", "c"])
        checks[2].addErrback(lambda _: None)
        checks[2].cancel()
        self.assertTrue(other.checks[1].was_cancelled)
        self.assertEqual(self.started, ["a", "d"])
        waiting = [*self.validate("e", "f"), beside.validate("g", TOPIC)]
        self.failureResultOf(beside.validate("h", TOPIC), ValidatorUnavailable)
        self.advance(QUEUE_TIMEOUT)
        for each in waiting:
            self.failureResultOf(each, ValidatorUnavailable)

    def test_a_check_fails_if_too_many_wait(self) -> None:
        checks = self.validate(*"abcdef")
        self.failureResultOf(checks[5], ValidatorUnavailable)
        for check in checks[:5]:
            self.assertNoResult(check)

    def test_a_check_that_is_cancelled_while_it_waits_is_not_started(self) -> None:
        checks = self.validate(*"abcd")
        checks[2].cancel()
        self.failureResultOf(checks[2], CancelledError)
        self.inner.checks[0].refuse()
        self.assertEqual(self.started, ["a", "b", "d"])
        self.failureResultOf(checks[0])

    def test_a_check_that_is_cancelled_in_progress_makes_room(self) -> None:
        checks = self.validate(*"abc")
        checks[0].cancel()
        self.failureResultOf(checks[0], CancelledError)
        self.assertTrue(self.inner.checks[0].was_cancelled)
        self.assertEqual(self.started, ["a", "b", "c"])

    def test_a_check_that_waits_too_long_fails(self) -> None:
        checks = self.validate(*"abc")
        self.advance(QUEUE_TIMEOUT - 0.001)
        self.assertNoResult(checks[2])
        self.advance(0.001)
        self.failureResultOf(checks[2], ValidatorUnavailable)
        self.assertNoResult(checks[0])
        self.assertEqual(self.started, ["a", "b"])
        self.assert_no_timers()

    def test_a_check_that_fails_may_cancel_others(self) -> None:
        checks = self.validate(*"abcde")
        checks[2].addErrback(lambda _: (checks[3].cancel(), checks[0].cancel()))
        self.advance(QUEUE_TIMEOUT)
        self.failureResultOf(checks[3], CancelledError)
        self.failureResultOf(checks[0], CancelledError)
        self.assertEqual(self.started, ["a", "b", "e"])
        self.assertNoResult(checks[4])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_immediate_results_do_not_nest(self) -> None:
        validator = ConcurrencyLimit(self.inner, self.clock, concurrency=1, max_waiting=5000)
        checks = [validator.validate(str(number), TOPIC) for number in range(5000)]
        self.inner.at_once = lambda token, topic: Grant(token, 2000, True, True)
        self.inner.last.grant(2000, subject="0")
        self.assertEqual(
            [self.successResultOf(check).subject for check in checks],
            [str(number) for number in range(5000)],
        )
