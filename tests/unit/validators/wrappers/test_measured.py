"""The statistics of checks."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.support.fakes import INJECTED, FakeCheck
from tests.support.validator_cases import TOPIC, WrapperTestCase
from topicsvc.errors import CollectionUnreadable, TopicNotFound
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.wrappers.measured import MeasuredValidator


class MeasuredValidatorTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.stats = TokenCheckStats()
        self.validator = MeasuredValidator(self.inner, self.clock, self.stats)

    def outcomes(self, check: Deferred[Grant]) -> dict[str, int]:
        """The outcomes so far; `check` has ended, and is the last one."""
        check.addErrback(lambda _: None)
        self.successResultOf(check)
        self.assertEqual(self.stats.in_flight, 0)
        return {outcome: count for outcome, count in self.stats.outcomes.items() if count}

    def test_each_outcome_is_counted_and_timed(self) -> None:
        for number, (outcome, end) in enumerate(
            (
                ("granted", lambda check: check.grant(2000)),
                ("refused", FakeCheck.refuse),
                ("unavailable", FakeCheck.be_unavailable),
                (
                    "unreadable",
                    lambda check: check.result.errback(CollectionUnreadable("PROPFIND: not XML")),
                ),
                ("failed", lambda check: check.result.errback(ZeroDivisionError())),
            ),
            1,
        ):
            check = self.validator.validate("a", TOPIC)
            self.assertEqual(self.stats.in_flight, 1)
            self.advance(0.5)
            end(self.inner.last)
            self.assertEqual(self.outcomes(check)[outcome], 1)
            self.assertEqual((sum(self.stats.seconds.counts), self.stats.seconds.sum),
                             (number, number * 0.5))  # fmt: skip

    def test_a_missing_topic_counts_as_refused(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.inner.last.result.errback(TopicNotFound(INJECTED))
        self.assertEqual(self.outcomes(check), {"refused": 1})

    def test_a_cancelled_check_is_not_timed(self) -> None:
        check = self.validator.validate("a", TOPIC)
        self.advance(9)
        check.cancel()
        self.assertEqual(self.outcomes(check), {"cancelled": 1})
        self.assertEqual(self.stats.seconds.sum, 0)

    def test_a_grant_that_is_known_without_a_check_is_counted_and_timed(self) -> None:
        grant = Grant("me", 2000, True, True)
        self.assertIsNone(self.validator.remembered("a", TOPIC))
        self.assertEqual(sum(self.stats.outcomes.values()), 0)
        self.inner.known = lambda token, topic: grant
        self.assertIs(self.validator.remembered("a", TOPIC), grant)
        self.assertEqual((self.stats.outcomes["granted"], self.stats.in_flight), (1, 0))
        self.assertEqual(sum(self.stats.seconds.counts), 1)

    def test_a_check_that_blocks_is_timed(self) -> None:
        def block(token: str, topic: TopicAddress) -> Grant:
            self.clock.rightNow += 0.25
            return Grant("me", 2000, True, True)

        self.inner.at_once = block
        self.assertEqual(self.outcomes(self.validator.validate("a", TOPIC)), {"granted": 1})
        self.assertEqual(self.stats.seconds.sum, 0.25)
