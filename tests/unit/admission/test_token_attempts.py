"""How many tokens of one address are tried, and how many of them may fail."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeValidator, Question
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


class TriesTestCase(SynchronousTestCase):
    most = 30

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1518612600.0
        self.validator = FakeValidator()
        self.refused = 0
        self.attempts = TokenAttempts(
            self.clock, self.clock.seconds, lambda: self.most, self.refuse
        )

    def refuse(self) -> None:
        self.refused += 1

    def ask(self, token: str = "a-token", address: str = ANN) -> Deferred[Grant]:
        return self.attempts.run(address, lambda: self.validator.validate(token, TOPIC))

    def grant(self, question: Question) -> None:
        question.grant(self.clock.seconds() + 60)

    @property
    def questions(self) -> list[Question]:
        return self.validator.questions

    @property
    def in_flight(self) -> list[Question]:
        return [each for each in self.questions if not each.answer.called]

    def assert_asked(self, *tokens: str) -> None:
        self.assertEqual([each.token for each in self.questions], list(tokens))

    def assert_too_many(self, answer: Deferred[Grant]) -> float:
        return float(self.failureResultOf(answer, TooManyFailedTokens).value.seconds)

    def assert_nothing_kept(self) -> None:
        """Nobody waits and, once time has passed and somebody has come, nothing is kept."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(60)
        self.ask(address="whoever comes next")
        self.grant(self.questions[-1])
        self.assertEqual((self.attempts._failures, self.attempts._queues), ({}, {}))
        self.assertEqual((len(self.attempts._abandoned), self.clock.getDelayedCalls()), (0, []))


class FloodTests(TriesTestCase):
    def test_of_a_hundred_bad_tokens_at_once_thirty_are_questions(self) -> None:
        answers = [self.ask(f"bad-{number}") for number in range(100)]
        while self.in_flight:
            self.in_flight[0].refuse()
        self.assert_asked(*(f"bad-{number}" for number in range(30)))
        for answer in answers[:30]:
            self.failureResultOf(answer, TokenInactive)
        for answer in answers[30:]:
            self.assertEqual(self.assert_too_many(answer), 60)
        self.assertEqual(self.refused, 70)
        self.assert_nothing_kept()

    def test_two_hundred_good_ones_at_once_are_all_granted_in_their_order(self) -> None:
        answers = [self.ask(f"good-{number}") for number in range(200)]
        while self.in_flight:
            self.assertLessEqual(len(self.in_flight), 30)
            self.clock.advance(0.1)
            self.grant(self.in_flight[0])
        self.assert_asked(*(f"good-{number}" for number in range(200)))
        for answer in answers:
            self.successResultOf(answer)
        self.assertEqual(self.refused, 0)
        self.assert_nothing_kept()

    def test_failures_and_questions_under_way_are_never_more_together(self) -> None:
        self.most = 3
        answers = [self.ask(f"token-{number}") for number in range(6)]
        self.assert_asked("token-0", "token-1", "token-2")
        self.questions[0].refuse()
        self.assert_asked("token-0", "token-1", "token-2")
        self.questions[2].refuse()
        self.assertEqual(len(self.questions), 3)
        for number in (1, 3, 4, 5):
            self.grant(self.questions[number])
        self.assertEqual(len(self.questions), 6)
        for number in (1, 3, 4, 5):
            self.successResultOf(answers[number])
        self.failureResultOf(answers[0], TokenInactive)
        self.failureResultOf(answers[2], TokenInactive)
        self.assert_nothing_kept()

    def test_what_cannot_be_told_makes_room(self) -> None:
        self.most = 1
        answers = [self.ask() for _ in range(3)]
        self.questions[0].be_unavailable()
        self.questions[1].answer.errback(TopicNotFound("said the test"))
        self.grant(self.questions[2])
        self.failureResultOf(answers[0], ValidatorUnavailable)
        self.failureResultOf(answers[1], TopicNotFound)
        self.successResultOf(answers[2])
        self.assert_nothing_kept()

    def test_each_address_has_its_own(self) -> None:
        self.most = 1
        ann, waiting, bob = self.ask("ann"), self.ask("unauthenticated"), self.ask("bob", BOB)
        self.assert_asked("ann", "bob")
        self.questions[0].refuse()
        self.failureResultOf(ann, TokenInactive)
        self.assert_too_many(waiting)
        self.grant(self.questions[1])
        self.successResultOf(bob)
        self.assert_nothing_kept()

    def test_answers_that_come_at_once_do_not_nest(self) -> None:
        self.most = 1
        first = self.ask()
        answers = [self.ask() for _ in range(2000)]
        self.validator.at_once = lambda *_: Grant("me", self.clock.seconds() + 60, True, True)
        self.grant(self.questions[0])
        for answer in (first, *answers):
            self.successResultOf(answer)
        self.validator.at_once = None
        self.assert_nothing_kept()

    def test_who_acts_on_an_answer_and_asks_again_stands_behind_the_others(self) -> None:
        self.most = 1
        again: list[Deferred[Grant]] = []
        self.ask("first").addCallback(lambda _: again.append(self.ask("again")))
        second = self.ask("second")
        for _ in range(3):
            self.grant(self.in_flight[0])
        self.assert_asked("first", "second", "again")
        self.successResultOf(second)
        self.successResultOf(again[0])
        self.assert_nothing_kept()

    def test_0_is_no_bound(self) -> None:
        self.most = 0
        for _ in range(100):
            self.ask()
        self.assertEqual(len(self.in_flight), 100)


class WaitingTests(TriesTestCase):
    most = 1

    def test_who_leaves_before_its_turn_is_never_asked_about(self) -> None:
        first, second, third = self.ask("first"), self.ask("second"), self.ask("third")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.grant(self.questions[0])
        self.assert_asked("first", "third")
        self.grant(self.questions[1])
        self.successResultOf(first)
        self.successResultOf(third)
        self.assert_nothing_kept()

    def test_when_all_who_wait_leave_nothing_is_timed(self) -> None:
        first, *others = [self.ask() for _ in range(3)]
        for each in others:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.grant(self.questions[0])
        self.successResultOf(first)
        self.assert_nothing_kept()

    def test_nobody_waits_for_ever(self) -> None:
        first, second = self.ask(), self.ask()
        self.clock.pump([1] * int(QUEUE_TIMEOUT - 1))
        self.assertNoResult(second)
        self.clock.pump([1] * 2)
        self.failureResultOf(second, ValidatorUnavailable)
        self.assertEqual(self.refused, 0)
        self.grant(self.questions[0])
        self.successResultOf(first)
        self.assert_nothing_kept()

    def test_other_bounds_hold_for_those_who_wait(self) -> None:
        answers = [self.ask() for _ in range(5)]
        self.most = 3
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual(len(self.in_flight), 3)
        self.most = 0
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual(len(self.in_flight), 5)
        self.most = 1
        waiting = self.ask()
        self.questions[0].refuse()
        self.failureResultOf(answers[0], TokenInactive)
        self.assert_too_many(waiting)

    def test_a_minute_that_is_over_makes_room(self) -> None:
        self.most = 2
        bad = self.ask()
        self.questions[0].refuse()
        self.failureResultOf(bad, TokenInactive)
        self.clock.advance(59)
        answers = [self.ask(), self.ask()]
        self.assertEqual(len(self.in_flight), 1)
        self.clock.advance(1)
        self.assertEqual(len(self.in_flight), 2)
        for each in self.in_flight:
            self.grant(each)
        for answer in answers:
            self.successResultOf(answer)
        self.assert_nothing_kept()


class LeavingTests(TriesTestCase):
    def leave(self, token: str = "a-token") -> None:
        answer = self.ask(token)
        answer.cancel()
        self.failureResultOf(answer, CancelledError)

    def test_the_question_ends(self) -> None:
        self.leave()
        self.assertTrue(self.questions[0].was_cancelled)
        self.assert_nothing_kept()

    def test_who_shows_tokens_and_runs_is_not_asked_about_without_end(self) -> None:
        for number in range(1000):
            self.leave(f"token-{number}")
        self.assertEqual(len(self.questions), 30)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for second in range(1, 61):
            self.clock.advance(1)
            self.leave(f"later-{second}")
        self.assertLessEqual(len(self.questions), 30 * (1 + 60 / ABANDONED_CHECK_TTL))
        self.assert_nothing_kept()

    def test_a_good_token_behind_them_waits_a_little(self) -> None:
        for _ in range(50):
            self.leave()
        good = self.ask("good")
        self.clock.pump([1] * int(ABANDONED_CHECK_TTL - 1))
        self.assertEqual(len(self.in_flight), 0)
        self.clock.advance(POLL_INTERVAL)
        self.assertEqual([each.token for each in self.in_flight], ["good"])
        self.grant(self.in_flight[0])
        self.successResultOf(good)
        self.assert_nothing_kept()


class FailureTests(TriesTestCase):
    def fail(self, address: str) -> None:
        answer = self.ask(address=address)
        self.questions.pop().refuse()
        self.failureResultOf(answer, TokenInactive)

    def test_only_so_many_addresses_are_remembered_and_none_for_long(self) -> None:
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
        st.sampled_from(["ask", "ask", "ask", "grant", "refuse", "undecided", "leave", "wait"]),
        st.integers(0, 20),
    ),
    max_size=80,
)


class PromiseTests(TriesTestCase):
    most = 4

    @given(events)
    def test_whatever_happens(self, events: list[tuple[str, int]]) -> None:
        self.setUp()
        answers: list[Deferred[Grant]] = []
        fates: list[str] = []
        failed_since, failed = 0.0, 0
        for event, at in events:
            now = self.clock.seconds()
            if now - failed_since >= 60:
                failed = 0
            open_ = [each for each in self.in_flight if not each.was_cancelled]
            if event == "ask":
                answers.append(self.ask())
                answers[-1].addErrback(lambda failure: fates.append(failure.type.__name__))
            elif event == "leave" and answers:
                answers[at % len(answers)].cancel()
            elif event == "wait":
                self.clock.advance(at / 4)
            elif open_:
                question = open_[at % len(open_)]
                if event == "grant":
                    self.grant(question)
                elif event == "refuse":
                    failed_since, failed = (failed_since, failed + 1) if failed else (now, 1)
                    question.refuse()
                else:
                    question.be_unavailable()
            self.assertLessEqual(failed + len(self.in_flight), 4)
        # Whoever still waits is decided, one way or the other.
        for _ in range(int(QUEUE_TIMEOUT) + 2):
            for each in self.in_flight:
                self.grant(each)
            self.clock.advance(1)
        self.assertTrue(all(each.called for each in answers))
        self.assert_nothing_kept()
