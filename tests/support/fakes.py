"""Readable stand-ins for what the service depends on, steered by the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger

from topicsvc.errors import BrokerUnavailable, TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant, Losses, Message, TokenValidator
from topicsvc.topics import TopicAddress

_log = Logger()


class Wall:
    """The time of day beside a clock that nobody can set.

    Args:
        clock: what goes on.
        now: what time of day it is.
    """

    def __init__(self, clock: Clock, now: float) -> None:
        self._clock = clock
        self._ahead = now - clock.seconds()

    def __call__(self) -> float:
        return self._clock.seconds() + self._ahead

    def jump(self, seconds: float) -> None:
        """Somebody sets it."""
        self._ahead += seconds


@dataclass(eq=False)
class Question:
    """One question that a `FakeValidator` was asked."""

    token: str
    topic: TopicAddress
    answer: Deferred[Grant]
    was_cancelled: bool = False

    def grant(
        self,
        expires_at: float,
        subject: str | None = "https://cell2.unit1.example/#me",
        may_receive: bool = True,
        may_send: bool = True,
    ) -> None:
        self.answer.callback(Grant(subject, expires_at, may_receive, may_send))

    def refuse(self) -> None:
        self.answer.errback(TokenInactive("said the test"))

    def be_unavailable(self) -> None:
        self.answer.errback(ValidatorUnavailable("said the test"))


class FakeValidator(TokenValidator):
    """Keeps every question until the test answers it, or answers at once if told how.

    Attributes:
        questions: all that was asked.
        at_once: grants or refuses each question when it is asked; None: the test answers.
        known: the grants that need no check; None: all need one.
    """

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.at_once: Callable[[str, TopicAddress], Grant] | None = None
        self.known: Callable[[str, TopicAddress], Grant | None] | None = None

    def remembered(self, token: str, topic: TopicAddress) -> Grant | None:
        return None if self.known is None else self.known(token, topic)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        if self.at_once is not None:
            try:
                return succeed(self.at_once(token, topic))
            except (TokenInactive, ValidatorUnavailable) as no:
                return fail(no)

        def cancelled(_: object) -> None:
            question.was_cancelled = True

        question = Question(token, topic, Deferred(cancelled))
        self.questions.append(question)
        return question.answer

    @property
    def last(self) -> Question:
        return self.questions[-1]


@dataclass(eq=False)
class FakeSubscription:
    """One subscription at a `FakeBroker`."""

    topic: TopicAddress
    deliver: Callable[[Message], None]
    answer: Deferred[FakeSubscription]
    lost: Callable[[], None] | None = None
    stops: int = 0

    def stop(self) -> Deferred[None]:
        self.stops += 1
        return succeed(None)


@dataclass(eq=False)
class FakeBroker:
    """A broker whose confirmations wait for the test.

    Attributes:
        confirms_at_once: subscriptions are confirmed when they are asked for.
        is_down: subscribing and publishing fail.
        is_paused: what comes waits.
        accepts_at_once: messages are accepted without a Deferred.
        waiting: for `resume`.
    """

    confirms_at_once: bool = False
    is_down: bool = False
    is_paused: bool = False
    accepts_at_once: bool = False
    losses: Losses = field(default_factory=Losses)
    subscriptions: list[FakeSubscription] = field(default_factory=list)
    published: list[Message] = field(default_factory=list)
    waiting: list[Message] = field(default_factory=list)

    @property
    def is_up(self) -> bool:
        return not self.is_down

    @property
    def is_settled(self) -> bool:
        return not self.waiting

    def subscribe(
        self,
        topic: TopicAddress,
        deliver: Callable[[Message], None],
        lost: Callable[[], None] | None = None,
    ) -> Deferred[FakeSubscription]:
        if self.is_down:
            return fail(BrokerUnavailable("said the test"))
        subscription = FakeSubscription(topic, deliver, Deferred(), lost)
        self.subscriptions.append(subscription)
        if self.confirms_at_once:
            self.confirm()
        return subscription.answer

    def publish(self, message: Message) -> Deferred[None]:
        if self.is_down:
            return fail(BrokerUnavailable("said the test"))
        self.published.append(message)
        self.bring(message)
        return succeed(None)

    def accept(self, message: Message) -> bool:
        if not self.accepts_at_once or self.is_down:
            return False
        self.publish(message)
        return True

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        while self.waiting and not self.is_paused:
            self.bring(self.waiting.pop(0))

    def confirm(self) -> None:
        """Confirm the newest subscription."""
        newest = self.subscriptions[-1]
        newest.answer.callback(newest)

    def deny(self, why: Exception | None = None) -> None:
        """Say that the newest subscription cannot be confirmed."""
        self.subscriptions[-1].answer.errback(why or BrokerUnavailable("said the test"))

    def break_promises(self) -> None:
        """Say of every live subscription that messages may have been missed."""
        for subscription in self.live:
            assert subscription.lost is not None
            subscription.lost()

    def bring(self, message: Message) -> None:
        """Deliver `message` to whoever is subscribed."""
        if self.is_paused:
            self.waiting.append(message)
            return
        for subscription in self.live:
            if subscription.topic == message.topic:
                try:
                    subscription.deliver(message)
                except Exception:
                    _log.failure("a subscriber failed")

    @property
    def live(self) -> list[FakeSubscription]:
        return [each for each in self.subscriptions if not each.stops]
