"""The cache of grants."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.support.validator_cases import OTHER_TOPIC, TOPIC, WrapperTestCase
from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.wrappers.cache import GrantCache
from topicsvc.validators.wrappers.single_flight import SingleFlight


class GrantCacheTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.stats = TokenCheckStats()
        self.validator = GrantCache(
            self.inner, self.clock, self.clock.seconds, 30, self.stats, max_grants=3
        )

    def validate(self, token: str = "a", topic: TopicAddress = TOPIC) -> Deferred[Grant]:
        return self.validator.validate(token, topic)

    def grant(self, token: str = "a", expires_at: float = 9000) -> None:
        check = self.validate(token)
        self.inner.last.grant(expires_at)
        self.successResultOf(check)

    def test_a_grant_is_reused_until_its_time_is_up(self) -> None:
        self.grant(expires_at=9000)
        self.advance(29.999)
        self.assertEqual(self.successResultOf(self.validate()).expires_at, 9000)
        self.assertEqual(len(self.inner.checks), 1)
        self.advance(0.001)
        self.assertNoResult(self.validate())

    def test_hits_and_misses_are_counted(self) -> None:
        self.grant()
        self.validate()
        self.validate("b")
        self.validator.uncached.validate("a", TOPIC)
        self.assertEqual((self.stats.cache_hits, self.stats.cache_misses), (1, 2))

    def test_a_cached_grant_is_known_without_a_check(self) -> None:
        self.assertIsNone(self.validator.remembered("a", TOPIC))
        self.assertEqual((self.stats.cache_hits, self.stats.cache_misses), (0, 0))
        self.grant(expires_at=1010)
        known = self.validator.remembered("a", TOPIC)
        self.assertEqual(known, self.successResultOf(self.validate()))
        self.assertEqual((self.stats.cache_hits, self.stats.cache_misses), (2, 1))
        self.assertIsNone(self.validator.remembered("a", OTHER_TOPIC))
        self.assertIsNone(self.validator.uncached.remembered("a", TOPIC))
        self.advance(10)
        self.assertIsNone(self.validator.remembered("a", TOPIC))

    def test_a_grant_is_not_reused_after_its_expiry(self) -> None:
        self.grant(expires_at=1010)
        self.advance(9.999)
        self.successResultOf(self.validate())
        self.advance(0.001)
        self.assertNoResult(self.validate())

    def test_the_time_runs_from_the_start_of_the_check(self) -> None:
        check = self.validate()
        self.advance(20)
        self.inner.last.grant(9000)
        self.successResultOf(check)
        self.advance(10)
        self.assertNoResult(self.validate())

    def test_a_later_request_for_the_same_check_does_not_extend_the_time(self) -> None:
        self.validator = GrantCache(SingleFlight(self.inner), self.clock, self.clock.seconds, 30)
        checks = [self.validate()]
        self.advance(20)
        checks.append(self.validate())
        self.inner.last.grant(9000)
        for check in checks:
            self.successResultOf(check)
        self.advance(10)
        self.assertNoResult(self.validate())

    def test_a_grant_is_for_one_token_and_topic(self) -> None:
        self.grant()
        self.assertNoResult(self.validate("b"))
        self.assertNoResult(self.validate("a", OTHER_TOPIC))

    def test_a_refusal_and_an_outage_are_not_cached(self) -> None:
        check = self.validate()
        self.inner.last.refuse()
        self.failureResultOf(check, TokenInactive)
        check = self.validate()
        self.inner.last.be_unavailable()
        self.failureResultOf(check, ValidatorUnavailable)
        self.assertNoResult(self.validate())
        self.assertEqual(len(self.validator), 0)

    def test_a_grant_without_rights_replaces_the_cached_one(self) -> None:
        self.grant("a")
        check = self.validator.uncached.validate("a", TOPIC)
        self.inner.last.grant(9000, may_receive=False, may_send=False)
        self.successResultOf(check)
        self.assertEqual(len(self.validator), 0)

    def test_the_oldest_grant_is_evicted_first(self) -> None:
        for token in "abcd":
            self.grant(token)
        self.assertEqual(len(self.validator), 3)
        self.successResultOf(self.validate("b"))
        self.assertNoResult(self.validate("a"))

    def test_old_grants_are_evicted(self) -> None:
        self.grant("a")
        self.advance(30)
        self.grant("b")
        self.assertEqual(len(self.validator), 1)

    def test_no_token_is_in_the_cache(self) -> None:
        self.grant("canary-token")
        [key] = self.validator._cache._entries
        self.assertNotIn(b"canary", key)
        self.assertEqual(len(key), 32)

    def test_each_cache_has_its_own_keys(self) -> None:
        other = GrantCache(self.inner, self.clock, self.clock.seconds, 30)
        self.assertNotEqual(
            self.validator._key("a", TOPIC),
            other._key("a", TOPIC),
        )

    def test_an_uncached_check_is_made_and_its_grant_is_cached(self) -> None:
        self.grant()
        check = self.validator.uncached.validate("a", TOPIC)
        self.assertNoResult(check)
        self.inner.last.grant(5000)
        self.successResultOf(check)
        self.assertEqual(self.successResultOf(self.validate()).expires_at, 5000)

    def test_a_refusal_removes_the_cached_grant(self) -> None:
        self.grant()
        check = self.validator.uncached.validate("a", TOPIC)
        self.inner.last.refuse()
        self.failureResultOf(check, TokenInactive)
        self.assertNoResult(self.validate())
