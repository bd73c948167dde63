"""The list of topics around a validator."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeValidator
from topicsvc.errors import TokenInactive, TopicNotFound
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress, TopicPattern
from topicsvc.validators.wrappers.topic_filter import TopicFilter

LISTED = TopicAddress("cell1", "box1", ("col",), "name")
UNLISTED = TopicAddress("cell2", "box1", ("col",), "name")


class TopicFilterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.inner = FakeValidator()
        self.validator = TopicFilter(self.inner, [TopicPattern.parse("/cell1/*")])

    def test_a_listed_topic(self) -> None:
        check = self.validator.validate("a", LISTED)
        self.inner.last.grant(2000)
        self.assertTrue(self.successResultOf(check).may_receive)

    def test_an_unlisted_topic_does_not_exist(self) -> None:
        check = self.validator.validate("a", UNLISTED)
        self.inner.last.grant(2000)
        self.failureResultOf(check, TopicNotFound)

    def test_an_invalid_token_does_not_reveal_which_topics_exist(self) -> None:
        check = self.validator.validate("a", UNLISTED)
        self.inner.last.refuse()
        self.assertIs(self.failureResultOf(check).type, TokenInactive)

    def test_a_grant_is_known_without_a_check_for_listed_topics_only(self) -> None:
        grant = Grant("me", 2000, True, True)
        self.assertIsNone(self.validator.remembered("a", LISTED))
        self.inner.known = lambda token, topic: grant
        self.assertIs(self.validator.remembered("a", LISTED), grant)
        self.assertIsNone(self.validator.remembered("a", UNLISTED))
