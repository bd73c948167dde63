"""`TokenAttempts`: concurrent checks and failed tokens of one address."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import INJECTED, FakeCheck, FakeValidator
from topicsvc.admission.token_attempts import (
    ABANDONED_CHECK_TTL,
    MAX_ADDRESSES,
    POLL_INTERVAL,
    QUEUE_TIMEOUT,
    TokenAttempts,
)
from topicsvc.errors import (
    TokenInactive,
    TooManyFailedTokens,
    TopicNotFound,
    ValidatorUnavailable,
)
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
ANN, BOB = "192.0.2.1", "192.0.2.2"


class TokenAttemptsTestCase(SynchronousTestCase):
    max_failures = 30

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1518612600.0
        self.validator = FakeValidator()
        self.refused = 0
        self.attempts = TokenAttempts(
            self.clock, self.clock.seconds, lambda: self.max_failures, self.count_refusal
        )

    def count_refusal(self, address: str) -> None:
        self.assertIn(address, (ANN, BOB))
        self.refused += 1

    def check(self, token: str = "a-token", address: str = ANN) -> Deferred[Grant]:
        return self.attempts.run(address, lambda: self.validator.validate(token, TOPIC))

    def grant(self, check: FakeCheck) -> None:
        check.grant(self.clock.seconds() + 60)

    @property
    def checks(self) -> list[FakeCheck]:
        return self.validator.checks

    @property
    def in_flight(self) -> list[FakeCheck]:
        return [each for each in self.checks if not each.result.called]

    def assert_checked(self, *tokens: str) -> None:
        self.assertEqual([each.token for each in self.checks], list(tokens))

    def assert_too_many(self, result: Deferred[Grant]) -> float:
        return float(self.failureResultOf(result, TooManyFailedTokens).value.seconds)

    def assert_nothing_kept(self) -> None:
        """Nothing waits and, after a minute and one more check, nothing is kept."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(60)
        self.check(address="the next client")
        self.grant(self.checks[-1])
        self.assertEqual((self.attempts._failures, self.attempts._queues), ({}, {}))
        self.assertEqual((len(self.attempts._abandoned), self.clock.getDelayedCalls()), (0, []))


class ConcurrencyTests(TokenAttemptsTestCase):
    def test_of_a_hundred_failing_tokens_at_once_thirty_are_checked(self) -> None:
        results = [self.check(f"bad-{number}") for number in range(100)]
        while self.in_flight:
            self.in_flight[0].refuse()
        self.assert_checked(*(f"bad-{number}" for number in range(30)))
        for result in results[:30]:
            self.failureResultOf(result, TokenInactive)
        for result in results[30:]:
            self.assertEqual(self.assert_too_many(result), 60)
        self.assertEqual(self.refused, 70)
        self.assert_nothing_kept()

    def test_two_hundred_valid_tokens_at_once_are_granted_in_order(self) -> None:
        results = [self.check(f"good-{number}") for number in range(200)]
        while self.in_flight:
            self.assertLessEqual(len(self.in_flight), 30)
            self.clock.advance(0.1)
            self.grant(self.in_flight[0])
        self.assert_checked(*(f"good-{number}" for number in range(200)))
        for result in results:
            self.successResultOf(result)
        self.assertEqual(self.refused, 0)
        self.assert_nothing_kept()

    def test_failures_and_checks_in_progress_count_together(self) -> None:
        self.max_failures = 3
        results = [self.check(f"token-{number}") for number in range(6)]
        self.assert_checked("token-0", "token-1", "token-2")
        self.checks[0].refuse()
        self.assert_checked("token-0", "token-1", "token-2")
        self.checks[2].refuse()
        self.assertEqual(len(self.checks), 3)
        for number in (1, 3, 4, 5):
            self.grant(self.checks[number])
        self.assertEqual(len(self.checks), 6)
        for number in (1, 3, 4, 5):
            self.successResultOf(results[number])
        self.failureResultOf(results[0], TokenInactive)
        self.failureResultOf(results[2], TokenInactive)
        self.assert_nothing_kept()

    def test_a_check_without_a_result_does_not_count(self) -> None:
        self.max_failures = 1
        results = [self.check() for _ in range(3)]
        self.checks[0].be_unavailable()
        self.checks[1].result.errback(TopicNotFound(INJECTED))
        self.grant(self.checks[2])
        self.failureResultOf(results[0], ValidatorUnavailable)
        self.failureResultOf(results[1], TopicNotFound)
        self.successResultOf(results[2])
        self.assert_nothing_kept()

    def test_each_address_is_counted_separately(self) -> None:
        self.max_failures = 1
        ann, waiting, bob = self.check("ann"), self.check("unauthenticated"), self.check("bob", BOB)
        self.assert_checked("ann", "bob")
        self.checks[0].refuse()
        self.failureResultOf(ann, TokenInactive)
        self.assert_too_many(waiting)
        self.grant(self.checks[1])
        self.successResultOf(bob)
        self.assert_nothing_kept()

    def test_instant_results_do_not_recurse(self) -> None:
        self.max_failures = 1
        first = self.check()
        results = [self.check() for _ in range(2000)]
        self.validator.at_once = lambda *_: Grant("me", self.clock.seconds() + 60, True, True)
        self.grant(self.checks[0])
        for result in (first, *results):
            self.successResultOf(result)
        self.validator.at_once = None
        self.assert_nothing_kept()

    def test_a_check_that_a_result_starts_waits_behind_the_others(self) -> None:
        self.max_failures = 1
        again: list[Deferred[Grant]] = []
        self.check("first").addCallback(lambda _: again.append(self.check("again")))
        second = self.check("second")
        for _ in range(3):
            self.grant(self.in_flight[0])
        self.assert_checked("first", "second", "again")
        self.successResultOf(second)
        self.successResultOf(again[0])
        self.assert_nothing_kept()

    def test_0_means_no_limit(self) -> None:
        self.max_failures = 0
        for _ in range(100):
            self.check()
        self.assertEqual(len(self.in_flight), 100)


class QueueTests(TokenAttemptsTestCase):
    max_failures = 1

    def test_a_cancelled_waiting_token_is_never_checked(self) -> None:
        first, second, third = self.check("first"), self.check("second"), self.check("third")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.grant(self.checks[0])
        self.assert_checked("first", "third")
        self.grant(self.checks[1])
        self.successResultOf(first)
        self.successResultOf(third)
        self.assert_nothing_kept()

    def test_without_waiting_tokens_there_is_no_timer(self) -> None:
        first, *others = [self.check() for _ in range(3)]
        for each in others:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.grant(self.checks[0])
        self.successResultOf(first)
        self.assert_nothing_kept()

    def test_a_token_waits_for_a_limited_time(self) -> None:
        first, second = self.check(), self.check()
        self.clock.pump([1] * int(QUEUE_TIMEOUT - 1))
        self.assertNoResult(second)
        self.clock.pump([1] * 2)
        self.failureResultOf(second, ValidatorUnavailable)
        self.assertEqual(self.refused, 0)
        self.grant(self.checks[0])
        self.successResultOf(first)
        self.assert_nothing_kept()

    def test_a_new_limit_applies_to_waiting_tokens(self) -> None:
        results = [self.check() for _ in range(5)]
        self.max_failures = 3
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual(len(self.in_flight), 3)
        self.max_failures = 0
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual(len(self.in_flight), 5)
        self.max_failures = 1
        waiting = self.check()
        self.checks[0].refuse()
        self.failureResultOf(results[0], TokenInactive)
        self.assert_too_many(waiting)

    def test_failures_are_forgotten_after_a_minute(self) -> None:
        self.max_failures = 2
        bad = self.check()
        self.checks[0].refuse()
        self.failureResultOf(bad, TokenInactive)
        self.clock.advance(59)
        results = [self.check(), self.check()]
        self.assertEqual(len(self.in_flight), 1)
        self.clock.advance(1)
        self.assertEqual(len(self.in_flight), 2)
        for each in self.in_flight:
            self.grant(each)
        for result in results:
            self.successResultOf(result)
        self.assert_nothing_kept()


class DisconnectTests(TokenAttemptsTestCase):
    def check_and_cancel(self, token: str = "a-token") -> None:
        result = self.check(token)
        result.cancel()
        self.failureResultOf(result, CancelledError)

    def test_the_check_is_cancelled(self) -> None:
        self.check_and_cancel()
        self.assertTrue(self.checks[0].was_cancelled)
        self.assert_nothing_kept()

    def test_disconnecting_does_not_raise_the_number_of_checks(self) -> None:
        for number in range(1000):
            self.check_and_cancel(f"token-{number}")
        self.assertEqual(len(self.checks), 30)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for second in range(1, 61):
            self.clock.advance(1)
            self.check_and_cancel(f"later-{second}")
        self.assertLessEqual(len(self.checks), 30 * (1 + 60 / ABANDONED_CHECK_TTL))
        self.assert_nothing_kept()

    def test_a_valid_token_behind_abandoned_checks_waits(self) -> None:
        for _ in range(50):
            self.check_and_cancel()
        good = self.check("good")
        self.clock.pump([1] * int(ABANDONED_CHECK_TTL - 1))
        self.assertEqual(len(self.in_flight), 0)
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual([each.token for each in self.in_flight], ["good"])
        self.grant(self.in_flight[0])
        self.successResultOf(good)
        self.assert_nothing_kept()


class FailureTests(TokenAttemptsTestCase):
    def fail(self, address: str) -> None:
        result = self.check(address=address)
        self.checks.pop().refuse()
        self.failureResultOf(result, TokenInactive)

    def test_a_limited_number_of_addresses_is_kept_for_a_minute(self) -> None:
        for number in range(MAX_ADDRESSES + 5):
            self.fail(f"address{number}")
        self.assertEqual(len(self.attempts._failures), MAX_ADDRESSES)
        self.assertNotIn("address4", self.attempts._failures)
        self.assertIn("address5", self.attempts._failures)
        self.clock.advance(30)
        self.fail("later")
        self.clock.advance(30)
        self.assertEqual(self.attempts.blocked_for("later"), 0)
        self.assertEqual(list(self.attempts._failures), ["later"])
        self.assert_nothing_kept()


events = st.lists(
    st.tuples(
        st.sampled_from(
            ["check", "check", "check", "grant", "refuse", "undecided", "cancel", "wait"]
        ),
        st.integers(0, 20),
    ),
    max_size=80,
)


class InvariantTests(TokenAttemptsTestCase):
    max_failures = 4

    @given(events)
    def test_the_limit_holds_and_every_check_has_a_result(
        self, events: list[tuple[str, int]]
    ) -> None:
        self.setUp()
        results: list[Deferred[Grant]] = []
        fates: list[str] = []
        failed_since, failed = 0.0, 0
        for event, at in events:
            now = self.clock.seconds()
            if now - failed_since >= 60:
                failed = 0
            open_ = [each for each in self.in_flight if not each.was_cancelled]
            if event == "check":
                results.append(self.check())
                results[-1].addErrback(lambda failure: fates.append(failure.type.__name__))
            elif event == "cancel" and results:
                results[at % len(results)].cancel()
            elif event == "wait":
                self.clock.advance(at / 4)
            elif open_:
                check = open_[at % len(open_)]
                if event == "grant":
                    self.grant(check)
                elif event == "refuse":
                    failed_since, failed = (failed_since, failed + 1) if failed else (now, 1)
                    check.refuse()
                else:
                    check.be_unavailable()
            self.assertLessEqual(failed + len(self.in_flight), 4)
        # The tokens that still wait are checked or refused in the end.
        for _ in range(int(QUEUE_TIMEOUT) + 2):
            for each in self.in_flight:
                self.grant(each)
            self.clock.advance(1)
        self.assertTrue(all(each.called for each in results))
        self.assert_nothing_kept()
