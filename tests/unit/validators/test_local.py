"""Tokens that are judged here, and the list of topics around any validator."""

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

from tests.support.fakes import FakeValidator
from topicsvc.errors import TokenInactive, TopicNotFound
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress, TopicPattern
from topicsvc.validators.local import LocalValidator, make_key, read_key, sign_token, write_key
from topicsvc.validators.wrappers.topic_filter import TopicFilter

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
SUBJECT = "https://cell1.unit1.example/"
KEY = make_key()


class LocalValidatorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1000.0
        self.validator = LocalValidator(KEY, self.clock.seconds)

    def ask(self, token: str) -> Deferred[Grant]:
        return self.validator.validate(token, TOPIC)

    def sign(self, **changes: object) -> str:
        claims = {"sub": SUBJECT, "exp": 2000, "topics": [TOPIC.path], "may": ["receive"]}
        kept = {name: value for name, value in {**claims, **changes}.items() if value != "absent"}
        return jwt.encode(kept, KEY, algorithm="HS256")

    def test_a_token_of_ours_is_granted(self) -> None:
        token = sign_token(KEY, SUBJECT, [TOPIC.path], ["receive", "send"], 2000)
        self.assertEqual(self.successResultOf(self.ask(token)), Grant(SUBJECT, 2000, True, True))

    def test_it_grants_what_it_says_and_no_more(self) -> None:
        for may, receive, send in (
            (["receive"], True, False),
            (["send"], False, True),
            ([], False, False),
            (["Receive", "read"], False, False),
        ):
            grant = self.successResultOf(self.ask(self.sign(may=may)))
            self.assertEqual((grant.may_receive, grant.may_send), (receive, send))

    def test_patterns(self) -> None:
        for topics in (["/cell1/box1/*"], ["/*"], ["/other/*", TOPIC.path]):
            grant = self.successResultOf(self.ask(self.sign(topics=topics)))
            self.assertTrue(grant.may_receive, topics)

    def test_a_token_for_other_topics_lives_and_has_no_right_here(self) -> None:
        for topics in ([], ["/cell1/box1/col/topic/name2"], ["/cell2/*"]):
            grant = self.successResultOf(self.ask(self.sign(topics=topics)))
            with self.subTest(topics=topics):
                self.assertEqual((grant.may_receive, grant.may_send), (False, False))
                self.assertEqual(grant.expires_at, 2000)

    def test_a_token_without_a_subject_is_nobody_s(self) -> None:
        self.assertIsNone(self.successResultOf(self.ask(self.sign(sub="absent"))).subject)
        token = sign_token(KEY, None, [TOPIC.path], ["receive"], 2000)
        self.assertIsNone(self.successResultOf(self.ask(token)).subject)

    def test_it_expires_by_our_clock(self) -> None:
        token = self.sign()
        self.clock.advance(999.999)
        self.successResultOf(self.ask(token))
        self.clock.advance(0.001)
        self.failureResultOf(self.ask(token), TokenInactive)

    def test_tokens_that_are_refused(self) -> None:
        table = {
            "topics absent": self.sign(topics="absent"),
            "topics a text": self.sign(topics=TOPIC.path),
            "topics odd": self.sign(topics=[1, None]),
            "topic no pattern": self.sign(topics=["*"]),
            "one of the topics no pattern": self.sign(topics=[TOPIC.path, "*"]),
            "claims no object": _PyJWS().encode(b"[1]", KEY, algorithm="HS256"),
            "claims no JSON": _PyJWS().encode(b"exp", KEY, algorithm="HS256"),
            "may absent": self.sign(may="absent"),
            "may a text": self.sign(may="receive"),
            "exp absent": self.sign(exp="absent"),
            "exp a text": self.sign(exp="soon"),
            "exp a boolean": self.sign(exp=True),
            "exp past": self.sign(exp=999),
            "exp infinite": self.sign(exp=float("inf")),
            "exp not a number": self.sign(exp=float("nan")),
            "exp huge": self.sign(exp=10**400),
            "nbf to come": self.sign(nbf=1001),
            "nbf odd": self.sign(nbf="x"),
            "sub odd": self.sign(sub=["x"]),
            "another key": jwt.encode({"exp": 2000}, make_key(), algorithm="HS256"),
            "another algorithm": jwt.encode(
                {"exp": 2000, "topics": ["/*"], "may": ["receive"]}, KEY * 2, algorithm="HS512"
            ),
            "no signature": jwt.encode(
                {"exp": 2000, "topics": ["/*"], "may": ["receive"]}, None, algorithm="none"
            ),
            "no JWT": "AA~91WT0GNoVGFHJFQ.......e",
            "dots": "..",
            "long": "x" * 32768,
        }
        for name, token in table.items():
            with self.subTest(name=name):
                self.failureResultOf(self.ask(token), TokenInactive)

    def test_a_token_that_is_known_is_judged_anew(self) -> None:
        token = self.sign(nbf=1000, topics=["/cell1/box1/*"])
        self.successResultOf(self.ask(token))
        elsewhere = TopicAddress("cell1", "box2", ("col",), "name")
        grant = self.successResultOf(self.validator.validate(token, elsewhere))
        self.assertEqual((grant.may_receive, grant.may_send), (False, False))
        self.clock.rightNow = 999.0
        self.failureResultOf(self.ask(token), TokenInactive)
        self.clock.rightNow = 2000.0
        self.failureResultOf(self.ask(token), TokenInactive)

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
    def test_any_text_is_refused(self, text: str) -> None:
        self.failureResultOf(self.ask(text), TokenInactive)

    @given(st.integers(0, 200), st.characters(min_codepoint=0x21, max_codepoint=0x7E))
    def test_a_token_with_a_character_changed_is_refused(self, at: int, char: str) -> None:
        token = self.sign()
        at %= len(token)
        changed = token[:at] + char + token[at + 1 :]
        # The last character of a base64 text has bits that say nothing.
        if changed != token and at != len(token) - 1:
            self.failureResultOf(self.ask(changed), TokenInactive)


class KeyFileTests(SynchronousTestCase):
    def test_a_key_is_read_as_it_was_written_and_only_by_its_owner(self) -> None:
        path = Path(self.mktemp())
        write_key(path, KEY)
        self.assertEqual(read_key(path), KEY)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_a_key_is_never_overwritten(self) -> None:
        path = Path(self.mktemp())
        write_key(path, KEY)
        with self.assertRaises(FileExistsError):
            write_key(path, make_key())
        self.assertEqual(read_key(path), KEY)

    def test_files_that_hold_no_key(self) -> None:
        path = Path(self.mktemp())
        for content in (b"", b"short\n", b"\xff" * 60, b"no base64 !" * 10):
            path.write_bytes(content)
            with self.subTest(content=content), self.assertRaises(ValueError):
                read_key(path)


class ExistingTopicsTests(SynchronousTestCase):
    def test_only_listed_topics_exist_and_only_live_tokens_learn_so(self) -> None:
        fake = FakeValidator()
        validator = TopicFilter(fake, [TopicPattern.parse("/cell1/*")])
        granted = validator.validate("x", TOPIC)
        fake.last.grant(2000)
        self.assertTrue(self.successResultOf(granted).may_receive)
        missing = validator.validate("x", TopicAddress("cell2", "box1", ("col",), "name"))
        fake.last.grant(2000)
        self.failureResultOf(missing, TopicNotFound)
        refused = validator.validate("x", TopicAddress("cell2", "box1", ("col",), "name"))
        fake.last.refuse()
        self.assertIs(self.failureResultOf(refused).type, TokenInactive)
