"""Base classes for tests of validators and of their wrappers."""

from __future__ import annotations

from typing import Any

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fake_unit import FakeUnit, Token
from tests.support.fakes import FakeValidator
from topicsvc.errors import TokenInactive, TopicNotFound, ValidatorUnavailable
from topicsvc.interfaces import Grant
from topicsvc.refusals import Refusal
from topicsvc.topics import TopicAddress
from topicsvc.validators.http_client import HttpClient

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
OTHER_TOPIC = TopicAddress("cell1", "box1", ("col",), "other")

UNIT_TOPIC = TopicAddress("cell1", "box1", ("dir", "col"), "name")
"""The topic of the fake unit."""

NOW = 1544056220.0
EXPIRY = 1544059820


class WrapperTestCase(SynchronousTestCase):
    """A test of a wrapper around a fake validator, in virtual time."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1000.0
        self.inner = FakeValidator()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def assert_no_timers(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StubbornValidator:
    """A validator whose checks ignore that they are cancelled."""

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        stubborn: Deferred[Grant] = Deferred()
        waiting: Deferred[Grant] = Deferred(lambda _: None)
        waiting.addCallback(lambda _: stubborn)
        waiting.callback(None)  # type: ignore[arg-type]
        return waiting


class HttpValidatorTestCase(SynchronousTestCase):
    """A test of a validator that sends requests to a fake unit, over HTTP in memory."""

    host: str | None = None

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.unit = FakeUnit(self.clock, [UNIT_TOPIC], self.host)
        self.unit.tokens["valid-token"] = Token(EXPIRY)
        self.agent = RequestTraversalAgent(self.unit)
        self.validator: Any = self.build(HttpClient(self.agent))

    def build(self, http_client: HttpClient) -> Any:
        """Return the validator; overridden."""
        raise NotImplementedError

    def validate(
        self, token: str = "valid-token", topic: TopicAddress = UNIT_TOPIC
    ) -> Deferred[Grant]:
        check: Deferred[Grant] = self.validator.validate(token, topic)
        self.agent.flush()
        return check

    def assert_granted(self, **expected: Any) -> Grant:
        grant = self.successResultOf(self.validate())
        for name, value in expected.items():
            self.assertEqual(getattr(grant, name), value)
        return grant

    def assert_refused(self, token: str = "valid-token", topic: TopicAddress = UNIT_TOPIC) -> None:
        """The token is refused, and the reason is not a missing topic."""
        failure = self.failureResultOf(self.validate(token, topic), TokenInactive)
        self.assertIs(failure.type, TokenInactive)

    def refusal(self, token: str = "valid-token", topic: TopicAddress = UNIT_TOPIC) -> Refusal:
        """Present a token that is refused; return why."""
        failure = self.failureResultOf(self.validate(token, topic), TokenInactive)
        refusal: Refusal = failure.value.refusal
        return refusal

    def assert_not_found(self, topic: TopicAddress = UNIT_TOPIC) -> None:
        self.failureResultOf(self.validate(topic=topic), TopicNotFound)

    def assert_unavailable(self) -> str:
        failure = self.failureResultOf(self.validate(), ValidatorUnavailable)
        self.assertNotIn("valid-token", str(failure.value))
        return str(failure.value)
