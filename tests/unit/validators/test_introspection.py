"""Validation at an OAuth 2.0 server."""

from __future__ import annotations

from typing import Any

from tests.support.fake_unit import PASSWORD, USERNAME, answers, claims
from tests.support.validator_cases import EXPIRY, NOW, UNIT_TOPIC, HttpValidatorTestCase
from topicsvc.settings import Rule
from topicsvc.topics import SubjectPattern, TopicAddress, TopicPattern
from topicsvc.validators.http_client import HttpClient, basic
from topicsvc.validators.introspection import IntrospectionValidator

RULES = [
    Rule("news", (TopicPattern.parse("/cell1/box1/*"),), frozenset({"receive"})),
    Rule("editor", (TopicPattern.parse(UNIT_TOPIC.path),), frozenset({"send"})),
    Rule("all", (TopicPattern.parse("/*"),), frozenset({"receive", "send"})),
    Rule(
        None, (TopicPattern.parse("/cell2/*"),), frozenset({"send"}), ("realm", "roles"), "editor"
    ),
    Rule(None, (SubjectPattern.parse("/{sub}/inbox/*"),), frozenset({"receive"})),
]


class IntrospectionTests(HttpValidatorTestCase):
    """An OAuth 2.0 server, with rules in the settings."""

    issuer: str | None = None
    audience: str | None = None

    def build(self, http_client: HttpClient) -> Any:
        return IntrospectionValidator(
            http_client, "http://as.example/introspect?x=1", USERNAME, PASSWORD, RULES,
            self.clock.seconds, self.issuer, self.audience,
        )  # fmt: skip

    def respond(self, **members: Any) -> None:
        self.unit.inject(claims(**{"active": True, "exp": EXPIRY, **members}))

    def assert_rights(self, scope: str, receive: bool, send: bool) -> None:
        self.respond(scope=scope)
        self.assert_granted(may_receive=receive, may_send=send)

    def test_one_request(self) -> None:
        self.respond(scope="news", sub="me")
        self.assert_granted(subject="me", expires_at=EXPIRY)
        [(method, path, headers)] = self.unit.requests
        self.assertEqual((method, path), ("POST", "/introspect"))
        self.assertEqual(headers["authorization"], basic(USERNAME, PASSWORD))
        self.assertEqual(headers["content-type"], "application/x-www-form-urlencoded")
        self.assertEqual(headers["accept"], "application/json")

    def test_rules_add_up(self) -> None:
        self.assert_rights("news", True, False)
        self.assert_rights("editor", False, True)
        self.assert_rights("openid news  editor", True, True)
        self.assert_rights("all", True, True)

    def test_without_a_rule_there_is_no_right(self) -> None:
        for scope in ("", "new", "newsletter", "NEWS", "new s"):
            self.assert_rights(scope, False, False)
        self.unit.inject(claims(active=True, exp=EXPIRY))
        self.assert_granted(may_receive=False, may_send=False)

    def test_a_rule_covers_its_topics_only(self) -> None:
        self.respond(scope="news editor")
        grant = self.successResultOf(
            self.validate(topic=TopicAddress("cell1", "box2", ("c",), "n"))
        )
        self.assertEqual((grant.may_receive, grant.may_send), (False, False))
        grant = self.successResultOf(
            self.validate(topic=TopicAddress("cell1", "box1", ("c",), "n"))
        )
        self.assertEqual((grant.may_receive, grant.may_send), (True, False))

    def test_a_rule_may_name_a_claim_of_the_response(self) -> None:
        topic = TopicAddress("cell2", "box1", ("c",), "n")
        for realm, may_send in (({"roles": ["user", "editor"]}, True), ({"roles": "user"}, False)):
            self.respond(realm=realm)
            grant = self.successResultOf(self.validate(topic=topic))
            self.assertEqual((grant.may_receive, grant.may_send), (False, may_send))

    def test_a_rule_may_give_each_subject_its_own_topics(self) -> None:
        topic = TopicAddress("alice", "inbox", ("c",), "n")
        for subject, may_receive in (("alice", True), ("bob", False), (None, False), (1, False)):
            self.respond(sub=subject)
            grant = self.successResultOf(self.validate(topic=topic))
            self.assertEqual((grant.may_receive, grant.may_send), (may_receive, False))

    def test_a_refused_token(self) -> None:
        self.respond(active=False)
        self.assert_refused()
        self.respond(exp=int(NOW))
        self.assert_refused()
        self.respond(nbf=int(NOW) + 61)
        self.assert_refused()

    def test_any_status_but_200_is_no_result(self) -> None:
        for status in (204, 301, 307, 400, 401, 403, 404, 405, 429, 500, 503):
            self.unit.inject(answers(status, b'{"active":false}'))
            self.assert_unavailable()

    def test_issuer_and_audience_are_checked_only_if_they_are_set(self) -> None:
        self.respond(iss="them", aud="others")
        self.assert_granted()


class IssuerAndAudienceTests(IntrospectionTests):
    issuer = "https://as.example/"
    audience = "topicsvc"

    def respond(self, **members: Any) -> None:
        super().respond(**{"iss": self.issuer, "aud": ["others", self.audience], **members})

    def test_issuer_and_audience_are_checked_only_if_they_are_set(self) -> None:
        for members in (
            {"iss": "https://as.example"},
            {"iss": None},
            {"iss": [self.issuer]},
            {"aud": "others"},
            {"aud": []},
            {"aud": None},
            {"aud": "topicsvc2"},
        ):
            self.respond(**members)
            self.assert_refused()
        self.respond(aud=self.audience)
        self.assert_granted()

    def test_without_a_rule_there_is_no_right(self) -> None:
        self.respond(scope="new")
        self.assert_granted(may_receive=False, may_send=False)
