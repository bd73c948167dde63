"""Validation of JWTs whose issuer is a server, in memory and in virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fake_unit import (
    adds_header,
    answers,
    answers_after,
    drops_every_connection,
    never_answers,
    redirects_to,
    sends_gzip_bomb,
)
from tests.support.jwt_issuer import AUDIENCE, ISSUER, FakeIssuer, b64, jwk, jwks
from tests.support.jwt_issuer import private_key as key
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.admission.limits import Limits
from topicsvc.errors import TokenInactive, TooManyFailedTokens, ValidatorUnavailable
from topicsvc.interfaces import Grant
from topicsvc.refusals import RefusalReason
from topicsvc.settings import IssuerSettings, JwtSettings, LimitSettings, Rule
from topicsvc.topics import TopicAddress, TopicPattern
from topicsvc.validators.http_client import HttpClient
from topicsvc.validators.jwt.discovery import Discovery
from topicsvc.validators.jwt.key_source import FETCH_INTERVAL, KeySource
from topicsvc.validators.jwt.validator import MAX_REMEMBERED_RIGHTS, JwtValidator

NOW = 1544056220.0
TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
RULES = (Rule("news", (TopicPattern.parse("/cell1/*"),), frozenset({"receive"})),)
MAX_AGE, STALE, TIMEOUT = 3600.0, 7200.0, 10.0


class ValidatorTestCase(SynchronousTestCase):
    """A validator with one issuer, whose server is in memory.

    Attributes:
        issuer: the issuer, with its server.
        lines: the lines of the log about keys.
    """

    settings = IssuerSettings(ISSUER, (AUDIENCE,), max_age=MAX_AGE, stale=STALE)

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.issuer = FakeIssuer(NOW)
        self.agent = RequestTraversalAgent(self.issuer)
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        discovery = Discovery(HttpClient(self.agent), self.settings)
        self.source = KeySource(
            ISSUER, discovery.fetch_keys, self.clock, MAX_AGE, STALE, TIMEOUT, self.counts
        )
        self.validator = JwtValidator(
            JwtSettings((self.settings,), RULES), {ISSUER: self.source}, self.clock.seconds
        )

    def observe(self, event: Any) -> None:
        if event["log_namespace"].endswith("KeySource"):
            self.lines.append(str(formatEvent(event)))

    def start(self) -> None:
        self.source.start()
        self.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass; requests are sent and answered before and after it."""
        self.clock.advance(0)
        self.agent.flush()
        self.clock.advance(seconds)
        for _ in range(4):  # description, key set, and the tokens that wait
            self.agent.flush()
            self.clock.advance(0)

    def check(self, token: str | None = None) -> Deferred[Grant]:
        return self.validator.validate(token or self.issuer.token(), TOPIC)

    def assert_granted(self, token: str | None = None) -> None:
        self.assertTrue(self.successResultOf(self.check(token)).may_receive)

    def assert_refused(self, reason: RefusalReason, token: str) -> None:
        failure = self.failureResultOf(self.check(token), TokenInactive)
        self.assertIs(failure.value.refusal.reason, reason)

    def assert_unavailable(self) -> str:
        failure = self.failureResultOf(self.check(), ValidatorUnavailable)
        return str(failure.value)

    def roll_over(self, name: str = "b", keep: bool = True) -> str:
        """Publish another key; return a token that it has signed."""
        new = jwk(key("RSA2048", name), name)
        self.issuer.published = [*self.issuer.published * keep, new]
        return self.issuer.token(key("RSA2048", name), header={"kid": name})


class DiscoveryTests(ValidatorTestCase):
    def test_the_keys_are_found_by_the_name_of_the_issuer(self) -> None:
        self.start()
        self.assert_granted()
        self.assertEqual(
            self.issuer.requests, ["/realms/main/.well-known/openid-configuration", "/jwks"]
        )

    def test_the_place_of_rfc_8414_is_asked_if_the_first_has_no_description(self) -> None:
        for fault in (answers(404), answers(200, b"<html>", "text/html"), answers(200, b"[]")):
            self.setUp()
            self.issuer.inject(fault, "openid-configuration")
            self.issuer.inject(
                answers(200, b'{"issuer":"%s","jwks_uri":"https://as.example/jwks"}'
                        % ISSUER.encode()),
                "/.well-known/oauth-authorization-server/realms/main",
            )  # fmt: skip
            self.start()
            self.assert_granted()
            self.assertEqual(
                self.issuer.requests,
                [
                    "/realms/main/.well-known/openid-configuration",
                    "/.well-known/oauth-authorization-server/realms/main",
                    "/jwks",
                ],
            )

    def assert_no_keys(self, *words: str) -> None:
        self.start()
        reason = self.assert_unavailable()
        for word in words:
            self.assertIn(word, reason)
        self.assertEqual(self.issuer.fetches, 0)

    def test_another_issuer_in_the_description(self) -> None:
        self.issuer.members["issuer"] = ISSUER + "/"
        self.assert_no_keys(f'its issuer is "{ISSUER}/"; set exactly this')

    def test_no_issuer_in_the_description(self) -> None:
        self.issuer.members["issuer"] = [ISSUER]
        self.assert_no_keys("its issuer is missing")

    def test_no_description_at_either_place(self) -> None:
        self.issuer.inject(answers(404))
        self.assert_no_keys(
            "openid-configuration: status 404", "oauth-authorization-server/realms/main: status"
        )

    def test_a_key_set_must_be_at_https(self) -> None:
        for url in ("http://as.example/jwks", "http://127.0.0.1/jwks", "file:///etc/passwd",
                    "//as.example/jwks", "https://a:b@as.example/jwks", "https://as.example/#x",
                    "https:///jwks", "https://as.example:0/jwks", ""):  # fmt: skip
            self.issuer.members["jwks_uri"] = url
            self.start()
            self.assertIn("its jwks_uri is not https", self.assert_unavailable())
            self.advance(FETCH_INTERVAL)
        self.assertEqual(self.issuer.fetches, 0)

    def test_a_description_without_a_key_set_names_the_setting_for_it(self) -> None:
        for url in (None, 1):
            self.issuer.members["jwks_uri"] = url
            self.start()
            self.assertIn("it has no jwks_uri; set jwks_url", self.assert_unavailable())
            self.advance(FETCH_INTERVAL)


class LoopbackTests(ValidatorTestCase):
    settings = IssuerSettings("http://localhost:8080/realms/main", (AUDIENCE,))

    def setUp(self) -> None:
        super().setUp()
        self.issuer.issuer = self.settings.issuer
        self.validator = JwtValidator(
            JwtSettings((self.settings,), RULES),
            {self.settings.issuer: self.source},
            self.clock.seconds,
        )

    def test_an_issuer_on_a_loopback_address_may_use_http(self) -> None:
        self.start()
        self.assert_granted()

    def test_its_keys_may_not_be_elsewhere_without_tls(self) -> None:
        self.issuer.members["jwks_uri"] = "http://as.example/jwks"
        self.start()
        self.assertIn("its jwks_uri is not https", self.assert_unavailable())


class FixedUrlTests(ValidatorTestCase):
    settings = replace(ValidatorTestCase.settings, jwks_url="https://as.example/jwks")

    def test_a_configured_url_needs_no_discovery(self) -> None:
        self.start()
        self.assert_granted()
        self.assertEqual(self.issuer.requests, ["/jwks"])


class RollOverTests(ValidatorTestCase):
    def test_a_token_of_a_new_key_waits_and_is_granted(self) -> None:
        self.start()
        self.advance(60)
        check = self.check(self.roll_over())
        self.assertNoResult(check)
        self.advance(0)
        self.assertTrue(self.successResultOf(check).may_receive)
        self.assertEqual(self.issuer.fetches, 2)

    def test_a_made_up_key_is_refused_after_one_fetch(self) -> None:
        self.start()
        self.advance(60)
        check = self.check(self.issuer.token(header={"kid": "made up"}))
        self.advance(0)
        failure = self.failureResultOf(check, TokenInactive)
        self.assertIs(failure.value.refusal.reason, RefusalReason.UNKNOWN_KEY)
        self.assertEqual(self.issuer.fetches, 2)

    def test_a_failed_fetch_does_not_refuse_the_token(self) -> None:
        self.start()
        self.advance(60)
        check = self.check(self.roll_over())
        self.issuer.inject(answers(503))
        self.advance(0)
        self.failureResultOf(check, ValidatorUnavailable)
        self.assert_granted()

    def test_an_expired_token_of_an_unknown_key_does_not_wait(self) -> None:
        self.start()
        token = self.issuer.token(header={"kid": "made up"}, exp=int(NOW) - 1)
        self.assert_refused(RefusalReason.EXPIRED, token)
        self.advance(60)
        self.assertEqual(self.issuer.fetches, 1)

    def test_a_withdrawn_key_refuses_its_tokens_remembered_ones_too(self) -> None:
        self.start()
        token = self.issuer.token()
        self.assert_granted(token)
        self.assertIsNotNone(self.validator.remembered(token, TOPIC))
        self.roll_over(keep=False)
        self.advance(MAX_AGE - 1)
        self.assert_granted(self.issuer.token(exp=int(NOW) + 9999))
        self.advance(1)
        late = self.issuer.token(exp=int(NOW) + 9999)
        self.assertIsNone(self.validator.remembered(token, TOPIC))
        self.assert_refused(RefusalReason.UNKNOWN_KEY, late)

    def test_tokens_of_a_withdrawn_key_do_not_wait_and_are_refused_in_an_outage_too(self) -> None:
        """A recheck of many sessions would take 10 s for each few of them."""
        self.start()
        token = self.issuer.token(exp=int(NOW) + 9999)
        self.roll_over(keep=False)
        self.advance(MAX_AGE)
        self.issuer.inject(answers(503))
        self.assert_refused(RefusalReason.UNKNOWN_KEY, token)
        self.advance(FETCH_INTERVAL)
        self.assertEqual(self.counts, {"fetched": 2, "failed": 1})
        self.assert_refused(RefusalReason.UNKNOWN_KEY, token)

    def test_a_withdrawn_key_that_is_published_again_is_found_by_the_next_fetch(self) -> None:
        self.start()
        token, published = self.issuer.token(exp=int(NOW) + 9999), self.issuer.published
        self.roll_over(keep=False)
        self.advance(MAX_AGE)
        self.issuer.published = published
        self.assert_refused(RefusalReason.UNKNOWN_KEY, token)
        self.advance(FETCH_INTERVAL)
        self.assert_granted(token)

    def test_remembered_tokens_of_keys_that_stay_are_kept(self) -> None:
        self.start()
        token = self.issuer.token(exp=int(NOW) + 9999)
        self.assert_granted(token)
        self.roll_over()
        self.advance(MAX_AGE)
        self.assertIsNotNone(self.validator.remembered(token, TOPIC))

    def test_a_key_without_a_name_that_is_replaced_is_found_by_the_next_fetch(self) -> None:
        self.issuer.published = [jwk(key("RSA2048"), None)]
        self.start()
        self.assert_granted(self.issuer.token(header={"kid": None}))
        self.advance(60)
        self.issuer.published = [jwk(key("RSA2048", "b"), None)]
        token = self.issuer.token(key("RSA2048", "b"), header={"kid": None})
        self.assert_refused(RefusalReason.SIGNATURE, token)
        self.advance(0)
        self.assert_granted(token)

    def test_a_key_that_is_replaced_under_its_name_is_found_by_the_next_fetch(self) -> None:
        replaced = (
            ("RSA2048", "RS256", RefusalReason.SIGNATURE),
            ("ES256", "ES256", RefusalReason.ALGORITHM),
        )
        for kind, algorithm, reason in replaced:
            self.setUp()
            self.start()
            self.advance(60)
            self.issuer.published = [jwk(key(kind, "b"), "a")]
            token = self.issuer.token(key(kind, "b"), algorithm)
            self.assert_refused(reason, token)
            self.advance(0)
            self.assert_granted(token)

    def test_made_up_signatures_cost_one_fetch_in_10_seconds(self) -> None:
        self.start()
        for _ in range(20):
            for _ in range(5):
                self.assert_refused(RefusalReason.SIGNATURE, self.issuer.token(key("RSA2048", "b")))
            self.advance(1)
        self.assertEqual(self.issuer.fetches, 3)

    def test_tokens_wait_for_the_first_keys(self) -> None:
        self.source.start()
        check = self.check()
        self.assertNoResult(check)
        self.advance(0)
        self.assertTrue(self.successResultOf(check).may_receive)

    def test_a_check_that_waits_can_be_cancelled(self) -> None:
        self.start()
        check = self.check(self.issuer.token(header={"kid": "made up"}))
        check.addErrback(lambda _: None)
        check.cancel()
        self.assertEqual(len(self.source._waiting), 0)


class RememberedTests(ValidatorTestCase):
    def test_a_verified_token_is_remembered_until_it_expires(self) -> None:
        self.start()
        token = self.issuer.token(exp=int(NOW) + 60)
        self.assertIsNone(self.validator.remembered(token, TOPIC))
        self.assert_granted(token)
        grant = self.validator.remembered(token, TOPIC)
        assert grant is not None
        self.assertEqual((grant.may_receive, grant.may_send), (True, False))
        self.advance(60)
        self.assertIsNone(self.validator.remembered(token, TOPIC))
        self.assert_refused(RefusalReason.EXPIRED, token)

    def test_the_topic_is_checked_at_each_use(self) -> None:
        self.start()
        token = self.issuer.token()
        self.assert_granted(token)
        other = TopicAddress("cell2", "box1", ("col",), "name")
        grant = self.validator.remembered(token, other)
        assert grant is not None
        self.assertFalse(grant.may_receive)
        assert grant.refusal is not None
        self.assertIs(grant.refusal.reason, RefusalReason.NO_RIGHT)

    def test_a_refused_token_is_not_remembered(self) -> None:
        self.start()
        token = self.issuer.token(aud="x")
        self.assert_refused(RefusalReason.AUDIENCE, token)
        self.assertIsNone(self.validator.remembered(token, TOPIC))

    def test_a_token_that_takes_much_memory_is_not_remembered(self) -> None:
        self.start()
        token = self.issuer.token(sub="x" * 2000)
        self.assert_granted(token)
        self.assertIsNone(self.validator.remembered(token, TOPIC))


class DetailsMemoryTests(ValidatorTestCase):
    settings = replace(ValidatorTestCase.settings, details_type="t")

    def test_a_token_with_many_patterns_is_not_remembered(self) -> None:
        self.start()
        for number, is_remembered in ((MAX_REMEMBERED_RIGHTS - 1, True), (128, False)):
            topics = [f"/cell{place}/*" for place in range(number)]
            entry = {"type": "t", "actions": ["send"], "topics": topics}
            token = self.issuer.token(authorization_details=[entry])
            self.assert_granted(token)
            self.assertEqual(self.validator.remembered(token, TOPIC) is not None, is_remembered)


class FaultTests(ValidatorTestCase):
    """Faults of the issuer's server, each by name: at the start, and when keys are in use."""

    def faults(self) -> list[tuple[str, Any, str]]:
        """Return each fault with its name and a part of its reason."""
        odd = jwks(*[{"kty": "RSA", "e": "AQAB"}] * 10000)
        return [
            ("down", drops_every_connection, "the connection was lost"),
            ("slow", answers_after(self.clock, 60), "no result within 10 s"),
            ("silent", never_answers, "no result within 10 s"),
            ("500", answers(500), "status 500"),
            ("503", answers(503), "status 503"),
            ("204", answers(204), "status 204"),
            ("redirect", redirects_to("https://evil.example/jwks"), "status 307"),
            ("10 MB", answers(200, b" " * 10 * 2**20), "a body of more than 262144 bytes"),
            ("gzip bomb", sends_gzip_bomb, "an encoded response"),
            ("10,000 keys", answers(200, odd), "a body of more than 262144 bytes"),
            ("101 keys", answers(200, jwks(*[{}] * 101)), "more than 100 keys"),
            ("no JSON", answers(200, b"<html>"), "not JSON"),
            ("a list", answers(200, b"[]"), 'without a list "keys"'),
            ("duplicate keys", answers(200, b'{"keys":[],"keys":[]}'), "a key occurs twice"),
        ]

    def let_fail(self, fault: Any) -> None:
        self.issuer.inject(fault, "/jwks")
        for _ in range(3):
            self.advance(TIMEOUT)

    def test_at_the_start_clients_see_unavailable_and_the_log_has_the_reason(self) -> None:
        for name, fault, reason in self.faults():
            with self.subTest(name):
                self.setUp()
                self.source.start()
                self.let_fail(fault)
                self.assertIn(reason, self.assert_unavailable())
                self.assertIn(reason, self.lines[0])
                self.assertIn("its tokens cannot be validated", self.lines[0])
                self.assertFalse(self.source.was_loaded)
                self.issuer.recover()
                self.advance(FETCH_INTERVAL)
                self.assert_granted()
                self.assertTrue(self.source.was_loaded)
                self.flushLoggedErrors()

    def test_later_good_tokens_go_on_and_the_log_has_the_reason(self) -> None:
        for name, fault, reason in self.faults():
            with self.subTest(name):
                self.setUp()
                self.start()
                self.assert_granted()
                self.lines.clear()
                self.advance(MAX_AGE - 1)
                self.let_fail(fault)
                self.assert_granted(self.issuer.token(exp=int(NOW) + 9999))
                self.assertIn(reason, self.lines[0])
                self.assertIn("the last keys are used for 7200 s", self.lines[0])
                self.assertTrue(self.source.was_loaded)
                self.flushLoggedErrors()

    def test_one_odd_key_does_not_disturb_the_others(self) -> None:
        for name, entry in (
            ("ML-DSA", {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA", "kid": "x"}),
            ("RSA without n", {"kty": "RSA", "e": "AQAB", "kid": "x"}),
            ("private members", {**jwk(key("RSA2048", "b"), "x"), "d": "AQAB"}),
            ("1024-bit RSA", jwk(key("RSA1024"), "x")),
            ("not an object", None),
        ):
            with self.subTest(name):
                self.setUp()
                self.issuer.published = [entry, *self.issuer.published]
                self.start()
                self.assert_granted()
                self.assertEqual(sum("not used" in line for line in self.lines), 1)

    def test_cache_control_changes_nothing(self) -> None:
        for value in (b"no-store", b"max-age=0", b"max-age=31536000, immutable"):
            with self.subTest(value):
                self.setUp()
                self.issuer.inject(adds_header("Cache-Control", value), "/jwks")
                self.start()
                self.assert_granted()
                self.advance(MAX_AGE - 1)
                self.assertEqual(self.issuer.fetches, 1)
                self.advance(1)
                self.assertEqual(self.issuer.fetches, 2)

    def test_after_stale_clients_see_unavailable(self) -> None:
        self.start()
        self.issuer.inject(answers(503))
        token = self.issuer.token(exp=int(NOW + MAX_AGE + STALE) + 99)
        self.advance(MAX_AGE)
        self.advance(STALE - 1)
        self.assert_granted(token)
        self.advance(1)
        self.failureResultOf(self.check(token), ValidatorUnavailable)
        self.assertIsNone(self.validator.remembered(token, TOPIC))


class FloodTests(ValidatorTestCase):
    def test_10000_made_up_keys_cost_one_fetch_in_10_seconds(self) -> None:
        """100 addresses present 10,000 tokens in a minute; meanwhile the issuer rolls over."""
        self.start()
        limits = Limits(self.clock, self.clock.seconds, LimitSettings(), 65536)
        quotas = [ClientQuota.admit(limits, f"192.0.2.{number}") for number in range(100)]
        good = ClientQuota.admit(limits, "198.51.100.1")
        made_up: list[Deferred[Any]] = []
        fetched_at: list[float] = []
        token = self.issuer.token()
        rolled: Deferred[Any] | None = None
        rolled_at, seen_after = 0.0, -1.0
        for second in range(60):
            for number in range(10000 * second // 60, 10000 * (second + 1) // 60):
                head = f'{{"alg":"RS256","typ":"at+jwt","kid":"made up {number}"}}'
                forged = ".".join([b64(head.encode()), *token.split(".")[1:]])
                quota = quotas[number % 100]
                made_up.append(quota.validate(self.validator, forged, TOPIC))
            if second == 31:
                rolled_at = self.clock.seconds()
                rolled = good.validate(self.validator, self.roll_over(), TOPIC)
            # A token of a known key gets its result at once.
            grant = self.successResultOf(good.validate(self.validator, token, TOPIC))
            self.assertTrue(grant.may_receive)
            before = self.issuer.fetches
            self.advance(1)
            if self.issuer.fetches > before:
                fetched_at.append(self.clock.seconds())
            if rolled is not None and rolled.called and seen_after < 0:
                seen_after = self.clock.seconds() - rolled_at
        assert rolled is not None
        self.assertTrue(self.successResultOf(rolled).may_receive)
        self.assertLessEqual(seen_after, FETCH_INTERVAL)
        self.assertLessEqual(len(fetched_at), 6)
        gaps = [later - at for at, later in pairwise(fetched_at)]
        self.assertGreaterEqual(min(gaps), FETCH_INTERVAL)
        self.advance(120)
        outcomes = Counter(self.outcome(each) for each in made_up)
        self.assertEqual(set(outcomes), {TokenInactive, TooManyFailedTokens})
        self.assertEqual(outcomes.total(), 10000)
        self.assertEqual(len(self.source._waiting), 0)

    def outcome(self, check: Deferred[Any]) -> type[BaseException]:
        return self.failureResultOf(check).type  # type: ignore[no-any-return]
