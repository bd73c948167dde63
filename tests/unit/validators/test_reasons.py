"""Each validator says why it refuses a token, and which rights a valid token lacks."""

from __future__ import annotations

from typing import Any

import jwt
from jwt.api_jws import PyJWS
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fake_unit import PASSWORD, USERNAME, answers, claims
from tests.support.fakes import FakeValidator
from tests.support.validator_cases import (
    EXPIRY,
    NOW,
    TOPIC,
    HttpValidatorTestCase,
)
from topicsvc.errors import TokenInactive
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.settings import Rule
from topicsvc.topics import TopicAddress, TopicPattern, Unit
from topicsvc.validators.http_client import HttpClient
from topicsvc.validators.introspection import IntrospectionValidator
from topicsvc.validators.local import LocalValidator, make_key
from topicsvc.validators.personium import PersoniumValidator
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.wrappers.cache import GrantCache
from topicsvc.validators.wrappers.concurrency import ConcurrencyLimit
from topicsvc.validators.wrappers.measured import MeasuredValidator
from topicsvc.validators.wrappers.outage_log import OutageLog
from topicsvc.validators.wrappers.single_flight import SingleFlight
from topicsvc.validators.wrappers.timeout import TimeoutValidator
from topicsvc.validators.wrappers.topic_filter import TopicFilter

KEY = make_key()


class LocalReasonTests(SynchronousTestCase):
    """The key file."""

    def setUp(self) -> None:
        self.validator = LocalValidator(KEY, lambda: 1000.0)

    def sign(self, key: bytes = KEY, algorithm: str = "HS256", **changes: Any) -> str:
        members = {"exp": 2000, "topics": [TOPIC.path], "may": ["receive"], **changes}
        return jwt.encode(members, key, algorithm=algorithm)

    def test_each_refused_token_has_its_reason(self) -> None:
        for token, expected in (
            ("AA~91WT0GNoVGFHJFQ.......e", Refusal(RefusalReason.MALFORMED, "not a JWT")),
            (PyJWS().encode(b"exp", KEY, "HS256"), Refusal(RefusalReason.MALFORMED, "not a JWT")),
            (
                PyJWS().encode(b"[1]", KEY, "HS256"),
                Refusal(RefusalReason.CLAIMS, "the claims are not an object"),
            ),
            (self.sign(may="receive"), Refusal(RefusalReason.CLAIMS, '"may" is not a list')),
            (
                self.sign(topics=["*"]),
                Refusal(RefusalReason.CLAIMS, '"topics" has an invalid topic'),
            ),
            (
                self.sign(topics="/*"),
                Refusal(RefusalReason.CLAIMS, '"topics" is not a list of strings'),
            ),
            (
                self.sign(exp="soon"),
                Refusal(RefusalReason.CLAIMS, '"exp" or "nbf" is not a time'),
            ),
            (self.sign(sub=[]), Refusal(RefusalReason.CLAIMS, '"sub" is not a string')),
            (self.sign(exp=1000), Refusal(RefusalReason.EXPIRED)),
            (self.sign(nbf=1001), Refusal(RefusalReason.NOT_YET_VALID)),
            (
                self.sign(KEY * 2, "HS512"),
                Refusal(RefusalReason.ALGORITHM, "HS256 is required"),
            ),
        ):
            with self.subTest(expected=expected):
                failure = self.failureResultOf(self.validator.validate(token, TOPIC))
                self.assertEqual(failure.value.refusal, expected)

    def test_another_key_is_named_with_the_setting(self) -> None:
        token = self.sign(make_key())
        refusal = self.failureResultOf(self.validator.validate(token, TOPIC)).value.refusal
        self.assertIs(refusal.reason, RefusalReason.SIGNATURE)
        self.assertIn("validator.key_file", refusal.advice)

    def test_a_missing_right_has_its_reason(self) -> None:
        for changes, detail in (
            (
                {"topics": ["/cell1/box1/*", "/cell1/box2/col/topic/name"]},
                'its topics are "/cell1/box1/*", "/cell1/box2/col/topic/name"',
            ),
            ({"topics": []}, "its topics are none"),
            ({"topics": ["/*"], "may": []}, '"may" has no right'),
        ):
            elsewhere = TopicAddress("cell9", "box1", ("col",), "name")
            grant = self.successResultOf(self.validator.validate(self.sign(**changes), elsewhere))
            refusal = grant.refusal
            assert refusal is not None
            with self.subTest(changes=changes):
                self.assertEqual((refusal.reason, refusal.detail), (RefusalReason.NO_RIGHT, detail))
                self.assertIn('"topics"', refusal.advice)

    def test_a_token_with_both_rights_has_no_reason(self) -> None:
        token = self.sign(may=["receive", "send"])
        self.assertIsNone(self.successResultOf(self.validator.validate(token, TOPIC)).refusal)


class IntrospectionReasonTests(HttpValidatorTestCase):
    """An OAuth 2.0 server."""

    def build(self, http_client: HttpClient) -> Any:
        rule = Rule("news", (TopicPattern.parse("/cell1/*"),), frozenset({"receive"}))
        return IntrospectionValidator(
            http_client, "http://as.example/introspect", USERNAME, PASSWORD, [rule],
            self.clock.seconds, "https://as.example/", "https://push.example/",
        )  # fmt: skip

    def respond(self, **members: Any) -> None:
        known = {"active": True, "exp": EXPIRY, "iss": "https://as.example/",
                 "aud": "https://push.example/", "scope": "news"}  # fmt: skip
        self.unit.inject(claims(**{**known, **members}))

    def test_each_refused_token_has_its_reason(self) -> None:
        for members, expected in (
            ({"active": False}, Refusal(RefusalReason.NOT_ACTIVE)),
            ({"exp": int(NOW)}, Refusal(RefusalReason.EXPIRED)),
            ({"nbf": int(NOW) + 61}, Refusal(RefusalReason.NOT_YET_VALID)),
            (
                {"aud": ["https://b.example/", "https://a.example/\n"]},
                Refusal(
                    RefusalReason.AUDIENCE,
                    '"https://push.example/" is required, '
                    'the token has "https://a.example/\\n", "https://b.example/"',
                ),
            ),
            (
                {"aud": None},
                Refusal(
                    RefusalReason.AUDIENCE,
                    '"https://push.example/" is required, the token has none',
                ),
            ),
            (
                {"iss": "https://other.example/"},
                Refusal(
                    RefusalReason.ISSUER,
                    '"https://as.example/" is required, the token has "https://other.example/"',
                ),
            ),
            (
                {"iss": None},
                Refusal(
                    RefusalReason.ISSUER,
                    '"https://as.example/" is required, the token has none',
                ),
            ),
        ):
            self.respond(**members)
            with self.subTest(members=members):
                self.assertEqual(self.refusal(), expected)

    def test_a_token_that_no_header_can_carry_is_malformed(self) -> None:
        self.assertEqual(self.refusal("a b"), Refusal(RefusalReason.MALFORMED, "not visible ASCII"))

    def test_a_missing_rule_is_named_with_the_scopes(self) -> None:
        self.respond(scope="openid mail")
        refusal = self.assert_granted(may_receive=False, may_send=False).refusal
        assert refusal is not None
        self.assertIs(refusal.reason, RefusalReason.NO_RIGHT)
        self.assertEqual(refusal.detail, 'it meets no rule; its scopes: "mail", "openid"')
        self.respond()
        self.assertIsNone(self.assert_granted(may_receive=True, may_send=False).refusal)


class PersoniumReasonTests(HttpValidatorTestCase):
    """A Personium unit."""

    def build(self, http_client: HttpClient) -> Any:
        unit = Unit("http://unit1.example/", cell_urls="path")
        return PersoniumValidator(http_client, unit, USERNAME, PASSWORD, self.clock.seconds)

    def test_each_refused_token_has_its_reason(self) -> None:
        for method, fault, expected in (
            (
                "PROPFIND",
                answers(403),
                Refusal(RefusalReason.UNIT_REFUSED, "PROPFIND: status 403"),
            ),
            (  # as from introspection: which response is the first must not change the advice
                "PROPFIND",
                answers(401),
                Refusal(RefusalReason.NOT_ACTIVE, "PROPFIND: status 401"),
            ),
            (
                "PROPFIND",
                answers(404),
                Refusal(RefusalReason.NO_COLLECTION, "PROPFIND: status 404"),
            ),
            (
                "OPTIONS",
                answers(401),
                Refusal(RefusalReason.NOT_ACTIVE, "OPTIONS: status 401"),
            ),
            (
                "OPTIONS",
                answers(404),
                Refusal(RefusalReason.NOT_REGISTERED, "OPTIONS: status 404"),
            ),
            (
                "POST",
                answers(404),
                Refusal(RefusalReason.NO_CELL, "introspection: status 404"),
            ),
            ("POST", claims(active=False), Refusal(RefusalReason.NOT_ACTIVE)),
            ("POST", claims(active=True, exp=1), Refusal(RefusalReason.EXPIRED)),
        ):
            self.unit.recover()
            self.unit.inject(fault, method)
            with self.subTest(expected=expected):
                self.assertEqual(self.refusal(), expected)

    def test_a_topic_that_is_not_registered(self) -> None:
        other = TopicAddress("cell1", "box1", ("dir", "col"), "other")
        self.assertEqual(self.refusal(topic=other), Refusal(RefusalReason.NOT_REGISTERED))

    def test_a_missing_privilege_has_its_reason(self) -> None:
        self.unit.tokens["valid-token"].may = "OPTIONS, PROPFIND"
        refusal = self.assert_granted(may_receive=False, may_send=False).refusal
        assert refusal is not None
        self.assertIs(refusal.reason, RefusalReason.NO_RIGHT)
        self.assertIn("stream-receive", refusal.advice)

    def test_a_cell_whose_name_no_host_can_have(self) -> None:
        self.validator._unit = Unit("http://unit1.example/", cell_urls="host")
        topic = TopicAddress("cell-", "box1", ("col",), "name")
        self.assertEqual(
            self.refusal(topic=topic), Refusal(RefusalReason.NO_CELL, "no host can have its name")
        )


class WrapperReasonTests(SynchronousTestCase):
    """The wrappers around a validator."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.inner = FakeValidator()
        limited = ConcurrencyLimit(TimeoutValidator(self.inner, self.clock, 10), self.clock, 8)
        measured = MeasuredValidator(OutageLog(limited, self.clock), self.clock, TokenCheckStats())
        cached = GrantCache(SingleFlight(measured), self.clock, self.clock.seconds, 5)
        self.validator: TokenValidator = TopicFilter(cached, [TopicPattern.parse("/cell1/*")])

    def validate(self, topic: TopicAddress = TOPIC) -> Deferred[Grant]:
        return self.validator.validate("a-token", topic)

    def test_all_clients_of_one_check_get_its_reason(self) -> None:
        refusal = Refusal(RefusalReason.AUDIENCE, "another")
        checks = [self.validate(), self.validate()]
        [inner] = self.inner.checks
        inner.result.errback(TokenInactive(refusal))
        for check in checks:
            self.assertIs(self.failureResultOf(check, TokenInactive).value.refusal, refusal)

    def test_a_grant_without_a_right_keeps_its_reason(self) -> None:
        refusal = Refusal(RefusalReason.NO_RIGHT, "no rule")
        check = self.validate()
        self.inner.last.result.callback(Grant("me", 2000, False, False, refusal))
        self.assertIs(self.successResultOf(check).refusal, refusal)

    def test_a_topic_that_is_not_listed(self) -> None:
        check = self.validate(TopicAddress("cell2", "box1", ("col",), "name"))
        self.inner.last.grant(2000)
        self.assertEqual(
            self.failureResultOf(check).value.refusal, Refusal(RefusalReason.NOT_LISTED)
        )
