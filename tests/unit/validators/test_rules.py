"""The rights that rules give to tokens."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.settings import Rule
from topicsvc.topics import SubjectPattern, TopicAddress, TopicPattern
from topicsvc.validators.rules import Facts, condition, meets, rights_of, rights_on

RECEIVE, SEND = frozenset({"receive"}), frozenset({"send"})
ALL = (TopicPattern.parse("/*"),)


def facts(subject: str | None = None, scopes: str = "", **claims: Any) -> Facts:
    return Facts(subject, frozenset(scopes.split()), claims)


def by_claim(value: str, *path: str) -> Rule:
    return Rule(None, ALL, RECEIVE, path, value)


class ConditionTests(SynchronousTestCase):
    def test_a_scope_is_one_of_the_scopes(self) -> None:
        rule = Rule("news", ALL, RECEIVE)
        self.assertTrue(meets(rule, facts(scopes="mail news")))
        for scopes in ("", "new", "newsletter", "NEWS"):
            self.assertFalse(meets(rule, facts(scopes=scopes, scope="news", news="news")))

    def test_a_claim_is_the_value_or_holds_it(self) -> None:
        for claim, expected in (
            ("admin", True),
            (["user", "admin"], True),
            ("administrator", False),
            ("user admin", False),
            (["administrator"], False),
            ([["admin"]], False),
            ({"admin": True}, False),
            ({"admin": "admin"}, False),
            (True, False),
            (None, False),
            ([], False),
        ):
            self.assertEqual(meets(by_claim("admin", "groups"), facts(groups=claim)), expected)
        self.assertFalse(meets(by_claim("admin", "groups"), facts(scopes="admin")))

    def test_numbers_and_booleans_are_not_text(self) -> None:
        for claim in (1, [1], True, [True], 1.0):
            self.assertFalse(meets(by_claim("1", "level"), facts(level=claim)))

    def test_a_path_leads_into_nested_claims(self) -> None:
        rule = by_claim("editor", "realm_access", "roles")
        self.assertTrue(meets(rule, facts(realm_access={"roles": ["editor", "x"]})))
        for claims in (
            {"realm_access": {"roles": []}},
            {"realm_access": {"role": ["editor"]}},
            {"realm_access": ["roles", "editor"]},
            {"realm_access": "roles"},
            {"roles": ["editor"]},
            {"realm_access.roles": ["editor"]},
        ):
            self.assertFalse(meets(rule, Facts(None, frozenset(), claims)))

    def test_a_name_may_have_dots_and_slashes(self) -> None:
        name = "https://push.example/groups"
        self.assertTrue(
            meets(by_claim("a", name), Facts(None, frozenset(), {name: ["a"], "https:": "a"}))
        )

    def test_everybody_meets_the_rule_for_everybody(self) -> None:
        self.assertTrue(meets(Rule(None, ALL, RECEIVE), facts()))

    def test_conditions_in_words(self) -> None:
        self.assertEqual(condition(Rule("news", ALL, SEND)), 'scope "news"')
        self.assertEqual(condition(by_claim("a", "x", "y")), 'claim x.y "a"')
        self.assertEqual(condition(Rule(None, ALL, SEND)), "everybody")


class RightsTests(SynchronousTestCase):
    def test_rules_add_up_and_without_one_there_is_no_right(self) -> None:
        rules = [Rule("news", ALL, RECEIVE), by_claim("editor", "role"), Rule("write", ALL, SEND)]
        topic = TopicAddress("cell1", "box1", ("col",), "name")
        for token, expected in (
            (facts(), frozenset()),
            (facts(scopes="news"), RECEIVE),
            (facts(scopes="write"), SEND),
            (facts(scopes="write", role="editor"), RECEIVE | SEND),
        ):
            self.assertEqual(rights_on(topic, rights_of(rules, token)), expected)
        self.assertEqual(rights_of([], facts(scopes="news")), ())

    def test_a_rule_covers_its_topics_only(self) -> None:
        rights = rights_of([Rule("a", (TopicPattern.parse("/cell1/*"),), SEND)], facts(scopes="a"))
        self.assertEqual(rights_on(TopicAddress("cell1", "b", ("c",), "n"), rights), SEND)
        self.assertEqual(rights_on(TopicAddress("cell11", "b", ("c",), "n"), rights), frozenset())

    def test_each_subject_has_topics_of_its_own(self) -> None:
        rules = [Rule(None, (SubjectPattern.parse("/{sub}/inbox/*"),), RECEIVE)]
        own = TopicAddress("alice", "inbox", ("col",), "name")
        self.assertEqual(rights_on(own, rights_of(rules, facts("alice"))), RECEIVE)
        for subject in ("bob", "ALICE", "alice/inbox", "*", "", None):
            self.assertEqual(rights_on(own, rights_of(rules, facts(subject))), frozenset())
