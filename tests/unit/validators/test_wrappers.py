"""What stands around a validator: each wrapper by itself, in virtual time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeValidator, Question
from topicsvc.errors import TokenInactive, TopicNotFound, ValidatorUnavailable
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.verdicts import all_or_first_refusal
from topicsvc.validators.wrappers.cache import GrantCache
from topicsvc.validators.wrappers.concurrency import QUEUE_TIMEOUT, ConcurrencyLimit
from topicsvc.validators.wrappers.measured import MeasuredValidator
from topicsvc.validators.wrappers.outage_log import LOG_INTERVAL, OutageLog
from topicsvc.validators.wrappers.single_flight import SingleFlight
from topicsvc.validators.wrappers.timeout import TimeoutValidator

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
OTHER = TopicAddress("cell1", "box1", ("col",), "other")


class WrapperTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1000.0
        self.judge = FakeValidator()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def assert_no_timers(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StubbornValidator:
    """Takes no notice of being cancelled."""

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        stubborn: Deferred[Grant] = Deferred()
        waiting: Deferred[Grant] = Deferred(lambda _: None)
        waiting.addCallback(lambda _: stubborn)
        waiting.callback(None)  # type: ignore[arg-type]
        return waiting


class InTimeTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator = TimeoutValidator(self.judge, self.clock, 10)

    def test_a_verdict_in_time(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.advance(9.999)
        self.judge.last.grant(2000)
        self.assertEqual(self.successResultOf(check).expires_at, 2000)
        self.assert_no_timers()

    def test_a_refusal_in_time(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.judge.last.refuse()
        self.failureResultOf(check, TokenInactive)
        self.assert_no_timers()

    def test_none_in_time_cannot_be_decided_and_is_asked_no_more(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.advance(10)
        self.failureResultOf(check, ValidatorUnavailable)
        self.assertTrue(self.judge.last.was_cancelled)

    def test_one_that_cannot_be_cancelled_ends_all_the_same(self) -> None:
        check = TimeoutValidator(StubbornValidator(), self.clock, 10).validate("a", TOPIC)
        self.advance(10)
        self.failureResultOf(check, ValidatorUnavailable)

    def test_leaving(self) -> None:
        check = self.validator.validate("a", TOPIC)
        check.cancel()
        self.failureResultOf(check, CancelledError)
        self.assertTrue(self.judge.last.was_cancelled)
        self.assert_no_timers()


class LimitedTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator = ConcurrencyLimit(self.judge, self.clock, concurrency=2, max_waiting=3)

    def ask(self, *tokens: str) -> list[Deferred[Grant]]:
        return [self.validator.validate(token, TOPIC) for token in tokens]

    @property
    def asked(self) -> list[str]:
        return [question.token for question in self.judge.questions]

    def test_so_many_at_once_and_the_rest_in_order(self) -> None:
        checks = self.ask("a", "b", "c", "d")
        self.assertEqual(self.asked, ["a", "b"])
        self.judge.questions[1].grant(2000)
        self.assertEqual(self.asked, ["a", "b", "c"])
        self.successResultOf(checks[1])
        self.judge.questions[0].refuse()
        self.assertEqual(self.asked, ["a", "b", "c", "d"])
        self.failureResultOf(checks[0], TokenInactive)
        for question in self.judge.questions[2:]:
            question.be_unavailable()
        for check in checks[2:]:
            self.failureResultOf(check, ValidatorUnavailable)
        self.assert_no_timers()

    def test_one_more_than_may_wait_cannot_be_decided(self) -> None:
        checks = self.ask(*"abcdef")
        self.failureResultOf(checks[5], ValidatorUnavailable)
        for check in checks[:5]:
            self.assertNoResult(check)

    def test_who_leaves_while_waiting_is_never_asked_about(self) -> None:
        checks = self.ask(*"abcd")
        checks[2].cancel()
        self.failureResultOf(checks[2], CancelledError)
        self.judge.questions[0].refuse()
        self.assertEqual(self.asked, ["a", "b", "d"])
        self.failureResultOf(checks[0])

    def test_who_leaves_while_asked_about_makes_room(self) -> None:
        checks = self.ask(*"abc")
        checks[0].cancel()
        self.failureResultOf(checks[0], CancelledError)
        self.assertTrue(self.judge.questions[0].was_cancelled)
        self.assertEqual(self.asked, ["a", "b", "c"])

    def test_nobody_waits_for_ever(self) -> None:
        checks = self.ask(*"abc")
        self.advance(QUEUE_TIMEOUT - 0.001)
        self.assertNoResult(checks[2])
        self.advance(0.001)
        self.failureResultOf(checks[2], ValidatorUnavailable)
        self.assertNoResult(checks[0])
        self.assertEqual(self.asked, ["a", "b"])
        self.assert_no_timers()

    def test_one_who_has_waited_too_long_may_take_others_along(self) -> None:
        checks = self.ask(*"abcde")
        checks[2].addErrback(lambda _: (checks[3].cancel(), checks[0].cancel()))
        self.advance(QUEUE_TIMEOUT)
        self.failureResultOf(checks[3], CancelledError)
        self.failureResultOf(checks[0], CancelledError)
        self.assertEqual(self.asked, ["a", "b", "e"])
        self.assertNoResult(checks[4])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_verdicts_that_come_at_once_do_not_nest(self) -> None:
        validator = ConcurrencyLimit(self.judge, self.clock, concurrency=1, max_waiting=5000)
        checks = [validator.validate(str(number), TOPIC) for number in range(5000)]
        self.judge.at_once = lambda token, topic: Grant(token, 2000, True, True)
        self.judge.last.grant(2000, subject="0")
        self.assertEqual(
            [self.successResultOf(check).subject for check in checks],
            [str(number) for number in range(5000)],
        )


class SharedTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator = SingleFlight(self.judge)

    def test_the_same_is_asked_once_and_everybody_answered(self) -> None:
        checks = [self.validator.validate("a", TOPIC) for _ in range(1000)]
        self.assertEqual(len(self.judge.questions), 1)
        self.judge.last.grant(2000)
        self.assertEqual({self.successResultOf(check).expires_at for check in checks}, {2000})
        self.assertEqual(len(self.validator), 0)

    def test_a_refusal_is_everybody_s(self) -> None:
        checks = [self.validator.validate("a", TOPIC) for _ in range(3)]
        self.judge.last.refuse()
        for check in checks:
            self.failureResultOf(check, TokenInactive)

    def test_another_token_or_another_topic_is_another_question(self) -> None:
        for token, topic in (("a", TOPIC), ("b", TOPIC), ("a", OTHER)):
            self.validator.validate(token, topic)
        self.assertEqual(len(self.judge.questions), 3)

    def test_once_answered_it_is_asked_anew(self) -> None:
        self.validator.validate("a", TOPIC)
        self.judge.last.grant(2000)
        self.validator.validate("a", TOPIC)
        self.assertEqual(len(self.judge.questions), 2)

    def test_one_who_leaves_does_not_take_the_answer_with_him(self) -> None:
        first, second = (self.validator.validate("a", TOPIC) for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertFalse(self.judge.last.was_cancelled)
        self.judge.last.grant(2000)
        self.successResultOf(second)

    def test_the_last_who_leaves_ends_the_question(self) -> None:
        checks = [self.validator.validate("a", TOPIC) for _ in range(3)]
        for check in checks:
            check.cancel()
            self.failureResultOf(check, CancelledError)
        self.assertTrue(self.judge.last.was_cancelled)
        self.assertEqual(len(self.validator), 0)

    def test_who_comes_after_all_have_left_is_not_lost(self) -> None:
        validator = SingleFlight(StubbornValidator())
        first = validator.validate("a", TOPIC)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertNoResult(validator.validate("a", TOPIC))
        self.assertEqual(len(validator), 1)

    def test_one_who_leaves_because_of_another_s_answer(self) -> None:
        first, second = (self.validator.validate("a", TOPIC) for _ in range(2))
        first.addCallback(lambda _: second.cancel())
        self.judge.last.grant(2000)
        self.failureResultOf(second, CancelledError)

    def test_an_answer_at_once(self) -> None:
        self.judge.at_once = lambda token, topic: Grant(token, 2000, True, True)
        self.successResultOf(self.validator.validate("a", TOPIC))
        self.assertEqual(len(self.validator), 0)


class CachedTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.tally = TokenCheckStats()
        self.validator = GrantCache(
            self.judge, self.clock, self.clock.seconds, 30, self.tally, max_grants=3
        )

    def ask(self, token: str = "a", topic: TopicAddress = TOPIC) -> Deferred[Grant]:
        return self.validator.validate(token, topic)

    def grant(self, token: str = "a", expires_at: float = 9000) -> None:
        check = self.ask(token)
        self.judge.last.grant(expires_at)
        self.successResultOf(check)

    def test_a_grant_is_reused_for_a_while(self) -> None:
        self.grant(expires_at=9000)
        self.advance(29.999)
        self.assertEqual(self.successResultOf(self.ask()).expires_at, 9000)
        self.assertEqual(len(self.judge.questions), 1)
        self.advance(0.001)
        self.assertNoResult(self.ask())

    def test_it_is_counted_what_memory_knew(self) -> None:
        self.grant()
        self.ask()
        self.ask("b")
        self.validator.uncached.validate("a", TOPIC)
        self.assertEqual((self.tally.cache_hits, self.tally.cache_misses), (1, 2))

    def test_never_past_its_expiry(self) -> None:
        self.grant(expires_at=1010)
        self.advance(9.999)
        self.successResultOf(self.ask())
        self.advance(0.001)
        self.assertNoResult(self.ask())

    def test_its_time_runs_from_the_question(self) -> None:
        check = self.ask()
        self.advance(20)
        self.judge.last.grant(9000)
        self.successResultOf(check)
        self.advance(10)
        self.assertNoResult(self.ask())

    def test_one_who_asks_later_and_shares_the_answer_makes_it_no_younger(self) -> None:
        self.validator = GrantCache(SingleFlight(self.judge), self.clock, self.clock.seconds, 30)
        checks = [self.ask()]
        self.advance(20)
        checks.append(self.ask())
        self.judge.last.grant(9000)
        for check in checks:
            self.successResultOf(check)
        self.advance(10)
        self.assertNoResult(self.ask())

    def test_for_the_same_token_and_topic_only(self) -> None:
        self.grant()
        self.assertNoResult(self.ask("b"))
        self.assertNoResult(self.ask("a", OTHER))

    def test_a_refusal_and_an_outage_are_not_kept(self) -> None:
        check = self.ask()
        self.judge.last.refuse()
        self.failureResultOf(check, TokenInactive)
        check = self.ask()
        self.judge.last.be_unavailable()
        self.failureResultOf(check, ValidatorUnavailable)
        self.assertNoResult(self.ask())
        self.assertEqual(len(self.validator), 0)

    def test_a_grant_of_no_right_is_not_kept(self) -> None:
        self.grant("a")
        check = self.validator.uncached.validate("a", TOPIC)
        self.judge.last.grant(9000, may_receive=False, may_send=False)
        self.successResultOf(check)
        self.assertEqual(len(self.validator), 0)

    def test_what_is_kept_is_bounded_and_the_oldest_goes_first(self) -> None:
        for token in "abcd":
            self.grant(token)
        self.assertEqual(len(self.validator), 3)
        self.successResultOf(self.ask("b"))
        self.assertNoResult(self.ask("a"))

    def test_what_has_run_out_is_dropped(self) -> None:
        self.grant("a")
        self.advance(30)
        self.grant("b")
        self.assertEqual(len(self.validator), 1)

    def test_no_token_is_kept(self) -> None:
        self.grant("canary-token")
        [key] = self.validator._cache._entries
        self.assertNotIn(b"canary", key)
        self.assertEqual(len(key), 32)

    def test_keys_differ_between_processes(self) -> None:
        other = GrantCache(self.judge, self.clock, self.clock.seconds, 30)
        self.assertNotEqual(
            self.validator._key("a", TOPIC),
            other._key("a", TOPIC),
        )

    def test_who_must_know_what_holds_now_is_not_answered_from_memory(self) -> None:
        self.grant()
        check = self.validator.uncached.validate("a", TOPIC)
        self.assertNoResult(check)
        self.judge.last.grant(5000)
        self.successResultOf(check)
        self.assertEqual(self.successResultOf(self.ask()).expires_at, 5000)

    def test_a_revoked_token_is_forgotten(self) -> None:
        self.grant()
        check = self.validator.uncached.validate("a", TOPIC)
        self.judge.last.refuse()
        self.failureResultOf(check, TokenInactive)
        self.assertNoResult(self.ask())


class CountedTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.tally = TokenCheckStats()
        self.validator = MeasuredValidator(self.judge, self.clock, self.tally)

    def ended(self, check: Deferred[Grant]) -> dict[str, int]:
        """How checks ended so far, once this one has."""
        check.addErrback(lambda _: None)
        self.successResultOf(check)
        self.assertEqual(self.tally.in_flight, 0)
        return {outcome: count for outcome, count in self.tally.outcomes.items() if count}

    def test_each_outcome_has_its_name_and_its_time(self) -> None:
        for number, (outcome, answer) in enumerate(
            (
                ("granted", lambda question: question.grant(2000)),
                ("refused", Question.refuse),
                ("unavailable", Question.be_unavailable),
                ("failed", lambda question: question.answer.errback(ZeroDivisionError())),
            ),
            1,
        ):
            check = self.validator.validate("a", TOPIC)
            self.assertEqual(self.tally.in_flight, 1)
            self.advance(0.5)
            answer(self.judge.last)
            self.assertEqual(self.ended(check)[outcome], 1)
            self.assertEqual((sum(self.tally.seconds.counts), self.tally.seconds.sum),
                             (number, number * 0.5))  # fmt: skip

    def test_a_topic_that_does_not_exist_is_a_no(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.judge.last.answer.errback(TopicNotFound("said the test"))
        self.assertEqual(self.ended(check), {"refused": 1})

    def test_who_leaves_makes_no_time(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.advance(9)
        check.cancel()
        self.assertEqual(self.ended(check), {"cancelled": 1})
        self.assertEqual(self.tally.seconds.sum, 0)

    def test_a_verdict_that_takes_a_while_though_it_comes_at_once_is_timed(self) -> None:
        def works(token: str, topic: TopicAddress) -> Grant:
            self.clock.rightNow += 0.25
            return Grant("me", 2000, True, True)

        self.judge.at_once = works
        self.assertEqual(self.ended(self.validator.validate("a", TOPIC)), {"granted": 1})
        self.assertEqual(self.tally.seconds.sum, 0.25)


class OutagesTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator = OutageLog(self.judge, self.clock)

    def logged(self, *answers: str) -> list[str]:
        with capturedLogs() as events:
            for answer in answers:
                check = self.validator.validate("canary-token", TOPIC)
                getattr(self.judge.last, answer)(*([2000] if answer == "grant" else []))
                check.addErrback(lambda _: None)
        return [formatEvent(event) for event in events]

    def test_one_line_when_it_begins_and_one_when_it_is_over(self) -> None:
        self.assertEqual(self.logged("grant", "refuse"), [])
        [line] = self.logged("be_unavailable", "be_unavailable", "be_unavailable")
        self.assertEqual(line, "tokens cannot be validated: said the test")
        self.advance(LOG_INTERVAL)
        self.assertEqual(self.logged("refuse"), ["tokens can be validated again"])
        self.assertEqual(self.logged("grant"), [])

    def test_a_line_now_and_then_while_it_lasts(self) -> None:
        self.assertEqual(len(self.logged("be_unavailable")), 1)
        self.advance(LOG_INTERVAL - 1)
        self.assertEqual(len(self.logged("be_unavailable", "grant")), 0)
        self.advance(1)
        self.assertEqual(len(self.logged("be_unavailable")), 1)


class TogetherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.left: list[int] = []
        self.questions: list[Deferred[Any]] = [
            Deferred(lambda _, place=place: self.left.append(place)) for place in range(3)
        ]
        self.verdict = all_or_first_refusal(self.questions)

    def test_all_answers_in_the_order_of_the_questions(self) -> None:
        for place in (2, 0, 1):
            self.assertNoResult(self.verdict)
            self.questions[place].callback(place)
        self.assertEqual(self.successResultOf(self.verdict), [0, 1, 2])

    def test_the_first_no_ends_the_rest(self) -> None:
        self.questions[1].errback(TopicNotFound("said the test"))
        self.failureResultOf(self.verdict, TopicNotFound)
        self.assertEqual(self.left, [0, 2])

    def test_a_no_that_is_there_already(self) -> None:
        later: Deferred[Any] = Deferred(lambda _: self.left.append(9))
        verdict = all_or_first_refusal([fail(TokenInactive("said the test")), succeed(1), later])
        self.failureResultOf(verdict, TokenInactive)

    def test_what_cannot_be_decided_waits_for_the_rest(self) -> None:
        self.questions[0].errback(ValidatorUnavailable("said the test"))
        self.questions[1].callback(1)
        self.assertNoResult(self.verdict)
        self.questions[2].callback(2)
        self.failureResultOf(self.verdict, ValidatorUnavailable)

    def test_a_no_counts_for_more_than_what_cannot_be_decided(self) -> None:
        self.questions[0].errback(ValidatorUnavailable("said the test"))
        self.questions[2].errback(TokenInactive("said the test"))
        self.failureResultOf(self.verdict, TokenInactive)
        self.assertEqual(self.left, [1])

    def test_leaving_ends_all(self) -> None:
        self.verdict.cancel()
        self.failureResultOf(self.verdict, CancelledError)
        self.assertEqual(self.left, [0, 1, 2])
