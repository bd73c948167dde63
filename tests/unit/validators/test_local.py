"""Local validation with a key file."""

from __future__ import annotations

import os
from pathlib import Path

import jwt
from hypothesis import given
from hypothesis import strategies as st
from jwt.api_jws import PyJWS as _PyJWS
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.errors import TokenInactive
from topicsvc.interfaces import Grant
from topicsvc.refusals import RefusalReason
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import LocalValidator, make_key, read_key, sign_token, write_key

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
SUBJECT = "https://cell1.unit1.example/"
KEY = make_key()


class LocalValidatorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1000.0
        self.validator = LocalValidator(KEY, self.clock.seconds)

    def validate(self, token: str) -> Deferred[Grant]:
        return self.validator.validate(token, TOPIC)

    def sign(self, **changes: object) -> str:
        claims = {"sub": SUBJECT, "exp": 2000, "topics": [TOPIC.path], "may": ["receive"]}
        kept = {name: value for name, value in {**claims, **changes}.items() if value != "absent"}
        return jwt.encode(kept, KEY, algorithm="HS256")

    def test_a_signed_token_is_granted(self) -> None:
        token = sign_token(KEY, SUBJECT, [TOPIC.path], ["receive", "send"], 2000)
        self.assertEqual(
            self.successResultOf(self.validate(token)), Grant(SUBJECT, 2000, True, True)
        )

    def test_the_rights_are_those_in_the_token(self) -> None:
        for may, receive, send in (
            (["receive"], True, False),
            (["send"], False, True),
            ([], False, False),
            (["Receive", "read"], False, False),
        ):
            grant = self.successResultOf(self.validate(self.sign(may=may)))
            self.assertEqual((grant.may_receive, grant.may_send), (receive, send))

    def test_the_advice_about_a_missing_right_is_that_of_signed_tokens(self) -> None:
        """Their rights stand in the token alone: there is nothing to grant to its owner."""
        for may, to_receive, to_send in (
            (["receive"], None, RefusalReason.MAY_NOT_SEND),
            (["send"], RefusalReason.MAY_NOT_RECEIVE, None),
            ([], RefusalReason.NO_RIGHT, RefusalReason.NO_RIGHT),
        ):
            grant = self.successResultOf(self.validate(self.sign(may=may)))
            for reason, refusal in (
                (to_receive, grant.refusal_to_receive),
                (to_send, grant.refusal_to_send),
            ):
                if reason is not None:
                    self.assertIs(refusal.reason, reason)
                    self.assertIn('sign a token whose "topics" and "may"', refusal.advice)

    def test_topics_may_be_patterns(self) -> None:
        for topics in (["/cell1/box1/*"], ["/*"], ["/other/*", TOPIC.path]):
            grant = self.successResultOf(self.validate(self.sign(topics=topics)))
            self.assertTrue(grant.may_receive, topics)

    def test_a_token_for_other_topics_is_valid_and_grants_no_right(self) -> None:
        for topics in ([], ["/cell1/box1/col/topic/name2"], ["/cell2/*"]):
            grant = self.successResultOf(self.validate(self.sign(topics=topics)))
            with self.subTest(topics=topics):
                self.assertEqual((grant.may_receive, grant.may_send), (False, False))
                self.assertEqual(grant.expires_at, 2000)

    def test_a_token_may_have_no_subject(self) -> None:
        self.assertIsNone(self.successResultOf(self.validate(self.sign(sub="absent"))).subject)
        token = sign_token(KEY, None, [TOPIC.path], ["receive"], 2000)
        self.assertIsNone(self.successResultOf(self.validate(token)).subject)

    def test_a_token_expires(self) -> None:
        token = self.sign()
        self.clock.advance(999.999)
        self.successResultOf(self.validate(token))
        self.clock.advance(0.001)
        self.failureResultOf(self.validate(token), TokenInactive)

    def test_tokens_that_are_refused(self) -> None:
        table = {
            "topics absent": self.sign(topics="absent"),
            "topics a string": self.sign(topics=TOPIC.path),
            "topics of wrong types": self.sign(topics=[1, None]),
            "an invalid pattern": self.sign(topics=["*"]),
            "an invalid pattern beside a valid one": self.sign(topics=[TOPIC.path, "*"]),
            "claims not an object": _PyJWS().encode(b"[1]", KEY, algorithm="HS256"),
            "claims not JSON": _PyJWS().encode(b"exp", KEY, algorithm="HS256"),
            "may absent": self.sign(may="absent"),
            "may a string": self.sign(may="receive"),
            "exp absent": self.sign(exp="absent"),
            "exp a string": self.sign(exp="soon"),
            "exp a boolean": self.sign(exp=True),
            "exp in the past": self.sign(exp=999),
            "exp infinite": self.sign(exp=float("inf")),
            "exp not a number": self.sign(exp=float("nan")),
            "exp huge": self.sign(exp=10**400),
            "nbf in the future": self.sign(nbf=1001),
            "nbf a string": self.sign(nbf="x"),
            "sub a list": self.sign(sub=["x"]),
            "another key": jwt.encode({"exp": 2000}, make_key(), algorithm="HS256"),
            "another algorithm": jwt.encode(
                {"exp": 2000, "topics": ["/*"], "may": ["receive"]}, KEY * 2, algorithm="HS512"
            ),
            "no signature": jwt.encode(
                {"exp": 2000, "topics": ["/*"], "may": ["receive"]}, None, algorithm="none"
            ),
            "not a JWT": "AA~91WT0GNoVGFHJFQ.......e",
            "dots": "..",
            "long": "x" * 32768,
        }
        for name, token in table.items():
            with self.subTest(name=name):
                self.failureResultOf(self.validate(token), TokenInactive)

    def test_a_token_of_sign_token_is_verified_without_pyjwt(self) -> None:
        self.patch(self.validator, "_signatures", None)
        token = sign_token(KEY, SUBJECT, ["/*"], ["receive"], 2000)
        self.assertTrue(self.successResultOf(self.validate(token)).may_receive)

    def test_other_spellings_of_a_token_are_left_to_pyjwt(self) -> None:
        token = sign_token(KEY, SUBJECT, ["/*"], ["receive"], 2000)
        header, payload, signature = token.split(".")
        for other in (
            jwt.encode({"exp": 2000, "topics": ["/*"], "may": ["receive"]}, KEY,
                       algorithm="HS256", headers={"kid": "1"}),
            f"{header}.{payload}.{signature}=",
        ):  # fmt: skip
            self.assertIsNone(self.validator._signed_payload(other))
            self.assertTrue(self.successResultOf(self.validate(other)).may_receive)
        for wrong in (
            f"{header}.{payload}.{signature[:-1]}",
            f"{header}.{payload}.",
            f"{header}.{payload}A.{signature}",
            f"{header}..{signature}",
            f"{payload}.{signature}",
            token + "\u0101",
            jwt.encode({"exp": 2000, "topics": ["/*"], "may": ["receive"]}, KEY + b"1",
                       algorithm="HS256"),
        ):  # fmt: skip
            self.assertIsNone(self.validator._signed_payload(wrong))
            self.failureResultOf(self.validate(wrong), TokenInactive)

    def test_a_cached_token_is_checked_again_at_each_use(self) -> None:
        token = self.sign(nbf=1000, topics=["/cell1/box1/*"])
        self.successResultOf(self.validate(token))
        elsewhere = TopicAddress("cell1", "box2", ("col",), "name")
        grant = self.successResultOf(self.validator.validate(token, elsewhere))
        self.assertEqual((grant.may_receive, grant.may_send), (False, False))
        self.clock.rightNow = 999.0
        self.failureResultOf(self.validate(token), TokenInactive)
        self.clock.rightNow = 2000.0
        self.failureResultOf(self.validate(token), TokenInactive)

    def test_the_grant_of_a_valid_token_is_known_at_once(self) -> None:
        token = self.sign(nbf=1000, topics=["/cell1/box1/*"])
        grant = self.validator.remembered(token, TOPIC)
        self.assertEqual(self.successResultOf(self.validate(token)), grant)
        self.assertEqual(self.validator.remembered(token, TOPIC), grant)
        self.assertIsNone(self.validator.remembered(token + "A", TOPIC))
        elsewhere = TopicAddress("cell1", "box2", ("col",), "name")
        self.assertEqual(
            self.validator.remembered(token, elsewhere), Grant(SUBJECT, 2000, False, False)
        )
        for now in (999.0, 2000.0):
            self.clock.rightNow = now
            self.assertIsNone(self.validator.remembered(token, TOPIC))

    def test_the_cache_is_bounded_and_holds_no_token(self) -> None:
        validator = LocalValidator(KEY, self.clock.seconds, max_tokens=3)
        tokens = [self.sign(exp=1500 + number) for number in range(5)]
        for token in [*tokens, *tokens]:
            self.successResultOf(validator.validate(token, TOPIC))
            self.assertLessEqual(len(validator._cache), 3)
        self.failureResultOf(validator.validate("x.y.z", TOPIC), TokenInactive)
        self.assertEqual(len(validator._cache), 3)
        for token in tokens:
            self.assertNotIn(token, repr(validator._cache._entries))

    @given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
    def test_any_other_text_is_refused(self, text: str) -> None:
        self.failureResultOf(self.validate(text), TokenInactive)

    @given(st.integers(0, 200), st.characters(min_codepoint=0x21, max_codepoint=0x7E))
    def test_a_token_with_a_character_changed_is_refused(self, at: int, char: str) -> None:
        token = self.sign()
        at %= len(token)
        changed = token[:at] + char + token[at + 1 :]
        # Some bits of the last base64 character are not part of the signature.
        if changed != token and at != len(token) - 1:
            self.failureResultOf(self.validate(changed), TokenInactive)


class KeyFileTests(SynchronousTestCase):
    def test_a_key_is_read_as_written_and_only_its_owner_may_read_it(self) -> None:
        path = Path(self.mktemp())
        write_key(path, KEY)
        self.assertEqual(read_key(path), KEY)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_an_existing_key_is_not_overwritten(self) -> None:
        path = Path(self.mktemp())
        write_key(path, KEY)
        with self.assertRaises(FileExistsError):
            write_key(path, make_key())
        self.assertEqual(read_key(path), KEY)

    def test_a_file_without_a_key(self) -> None:
        path = Path(self.mktemp())
        for content in (b"", b"short\n", b"\xff" * 60, b"no base64 !" * 10):
            path.write_bytes(content)
            with self.subTest(content=content), self.assertRaises(ValueError):
                read_key(path)
