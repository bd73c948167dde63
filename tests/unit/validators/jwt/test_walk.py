"""The walk through all rules, for an operator."""

from __future__ import annotations

from dataclasses import replace

from tests.support.jwt_issuer import AUDIENCE, ISSUER, jwk, jwks
from tests.support.jwt_issuer import private_key as key
from tests.unit.validators.jwt.test_tokens import (
    ALGORITHMS,
    CLAIMS,
    FORMS,
    HEADERS,
    INBOX,
    KEYS,
    NOW,
    OTHER,
    OTHER_PUBLISHED,
    PUBLISHED,
    RULES,
    SETTINGS,
    TIMES,
    TOPIC,
    TableTestCase,
)
from topicsvc.refusals import RefusalReason
from topicsvc.settings import JwtSettings
from topicsvc.topics import TopicAddress
from topicsvc.validators.jwt.keys import KeySet, read_keys
from topicsvc.validators.jwt.walk import Step, walk

LOADED = {ISSUER: read_keys(PUBLISHED), OTHER: read_keys(OTHER_PUBLISHED)}


class WalkTests(TableTestCase):
    def walk(
        self,
        token: str,
        topic: TopicAddress | None = TOPIC,
        keys: dict[str, KeySet] | None = None,
    ) -> list[Step]:
        settings = JwtSettings((SETTINGS, replace(SETTINGS, issuer=OTHER)), RULES)
        return list(walk(token, settings, LOADED if keys is None else keys, NOW, topic))

    def failed(self, token: str, topic: TopicAddress | None = TOPIC) -> dict[str, str]:
        return {step.name: step.text for step in self.walk(token, topic) if not step.is_met}

    def test_each_rule_has_a_step(self) -> None:
        steps = {step.name: step.text for step in self.walk(self.issuer.token())}
        self.assertEqual(
            steps,
            {
                "form": "it is a JWT",
                "iss": f'iss is "{ISSUER}", as the setting',
                "header": "it has none of crit, jku, jwk, x5u",
                "typ": 'typ is "at+jwt"; allowed (token_types): "at+jwt"',
                "alg": f'alg is "RS256"; allowed: {", ".join(SETTINGS.algorithms)}',
                "kid": 'kid is "a"',
                "signature": 'signed with the key "a", RS256',
                "exp": "exp is 3600 s in the future",
                "nbf": "nbf is missing, which is allowed",
                "aud": f'aud is "{AUDIENCE}"; allowed: "{AUDIENCE}", "second"',
                "sub": "sub is given",
                "scope": 'its scopes: "news"',
                "authorization_details": (
                    "authorization_details are not used: details_type is not set"
                ),
                'rule scope "news"': "met; may receive: /cell1/*",
                'rule scope "write"': "not met; may send: /cell1/*",
                'rule claim groups "staff"': "not met; may send: /cell1/*",
                'rule claim realm.roles "editor"': "not met; may send: /cell1/*",
                "rule everybody": "met; may receive: /{sub}/inbox/*",
                "rights": "on /cell1/box1/col/topic/name it may receive",
            },
        )
        self.assertEqual(self.failed(self.issuer.token()), {})

    def test_all_rules_that_are_not_met_are_shown(self) -> None:
        token = self.issuer.token(
            key("RSA2048", "pinned"), header={"typ": "JWT"}, aud=["account"], exp=int(NOW) - 60
        )
        failed = self.failed(token)
        self.assertEqual(set(failed), {"typ", "signature", "exp", "aud"})
        self.assertIn('aud is ["account"]; allowed: "https://push.example/", "second"',
                      failed["aud"])  # fmt: skip
        self.assertIn("token_types", failed["typ"])
        self.assertEqual(failed["signature"], 'it is not that of the key "a", RS256')

    def test_a_token_without_a_right_on_the_topic(self) -> None:
        token = self.issuer.token(scope="mail")
        self.assertEqual(
            self.failed(token),
            {"rights": "on /cell1/box1/col/topic/name it may neither receive from it nor send "
                       "to it"},
        )  # fmt: skip
        self.assertEqual(self.failed(token, INBOX), {})
        self.assertEqual(self.failed(token, None), {})
        self.assertEqual(
            self.failed(self.issuer.token(scope="mail", sub=None), None),
            {"rights": "it gives rights by 0 patterns"},
        )

    def test_an_unknown_key_and_keys_that_were_not_loaded(self) -> None:
        token = self.issuer.token(header={"kid": "z"})
        self.assertIn('kid is "z"; keys of the issuer: "a"', self.failed(token)["signature"])
        [step] = [step for step in self.walk(token, keys={}) if not step.is_met]
        self.assertEqual(step.text, "not verified: the keys of the issuer were not loaded")

    def test_the_walk_agrees_with_the_validator_about_every_token_of_the_table(self) -> None:
        for table in (ALGORITHMS, KEYS, HEADERS, TIMES, CLAIMS, FORMS):
            for name, make, expected in table:
                with self.subTest(name):
                    token = make(self.issuer)
                    failed = self.failed(token, None)
                    if isinstance(expected, RefusalReason):
                        self.assertTrue(failed)
                    elif expected:
                        self.assertEqual(failed, {})
                    else:
                        self.assertLessEqual(set(failed), {"rights"})

    def test_no_step_has_the_subject_or_the_token(self) -> None:
        for changes in ({}, {"scope": "canary-no", "aud": "x"}, {"exp": 1}):
            token = self.issuer.token(sub="canary", **changes)
            for topic in (TOPIC, None):
                for step in self.walk(token, topic):
                    self.assertNotIn("canary", step.text.replace("canary-no", ""))
                    for piece in token.split("."):
                        self.assertNotIn(piece[:20], step.text)

    def test_a_key_without_a_name(self) -> None:
        keys = {ISSUER: read_keys(jwks(jwk(key("RSA2048"), None)))}
        token = self.issuer.token(header={"kid": None})
        [step] = [step for step in self.walk(token, keys=keys) if step.name == "signature"]
        self.assertEqual(step.text, "signed with the only key that fits, RS256")
