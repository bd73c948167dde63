"""Fakes of the service's dependencies, controlled by the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger

from topicsvc.errors import BrokerUnavailable, TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant, Losses, Message, TokenValidator, TopicLog
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.topics import TopicAddress

_log = Logger()

INJECTED = Refusal(RefusalReason.OTHER, "injected by the test")
"""A refusal for tests that do not depend on its reason."""


class WallClock:
    """The time of day, which can be set; the clock of the test is monotonic.

    Args:
        clock: the clock of the test.
        now: the time of day, in seconds since the epoch.
    """

    def __init__(self, clock: Clock, now: float) -> None:
        self._clock = clock
        self._offset = now - clock.seconds()

    def __call__(self) -> float:
        return self._clock.seconds() + self._offset

    def jump(self, seconds: float) -> None:
        """Set the time of day forward; back, if `seconds` is negative."""
        self._offset += seconds


@dataclass(eq=False)
class FakeCheck:
    """A check in progress at a `FakeValidator`."""

    token: str
    topic: TopicAddress
    result: Deferred[Grant]
    was_cancelled: bool = False

    def grant(
        self,
        expires_at: float,
        subject: str | None = "https://cell2.unit1.example/#me",
        may_receive: bool = True,
        may_send: bool = True,
    ) -> None:
        self.result.callback(Grant(subject, expires_at, may_receive, may_send))

    def refuse(self) -> None:
        self.result.errback(TokenInactive(INJECTED))

    def be_unavailable(self) -> None:
        self.result.errback(ValidatorUnavailable("injected by the test"))


class FakeValidator(TokenValidator):
    """A validator whose checks end when the test ends them.

    Attributes:
        checks: all checks, in their order.
        at_once: returns the grant of a check immediately, or raises the error; None: the test
            ends the check.
        known: returns the grant, if it is known without a check; None: no grant is known.
    """

    def __init__(self) -> None:
        self.checks: list[FakeCheck] = []
        self.at_once: Callable[[str, TopicAddress], Grant] | None = None
        self.known: Callable[[str, TopicAddress], Grant | None] | None = None

    def remembered(self, token: str, topic: TopicAddress) -> Grant | None:
        return None if self.known is None else self.known(token, topic)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        if self.at_once is not None:
            try:
                return succeed(self.at_once(token, topic))
            except (TokenInactive, ValidatorUnavailable) as error:
                return fail(error)

        def cancelled(_: object) -> None:
            check.was_cancelled = True

        check = FakeCheck(token, topic, Deferred(cancelled))
        self.checks.append(check)
        return check.result

    @property
    def last(self) -> FakeCheck:
        return self.checks[-1]


@dataclass(eq=False)
class FakeSubscription:
    """A subscription at a `FakeBroker`."""

    topic: TopicAddress
    deliver: Callable[[Message], None]
    result: Deferred[FakeSubscription]
    lost: Callable[[], None] | None = None
    missed: Callable[[TopicLog | None], None] | None = None
    stops: int = 0

    def stop(self) -> Deferred[None]:
        self.stops += 1
        return succeed(None)


@dataclass(eq=False)
class FakeBroker:
    """A broker whose subscriptions are confirmed by the test.

    Attributes:
        confirms_at_once: subscriptions are confirmed immediately.
        is_down: subscribing and publishing fail.
        is_paused: messages wait in `waiting`.
        accepts_at_once: messages are accepted without a Deferred.
        waiting: messages that are delivered after `resume`.
        log: what `recall` returns; None: nothing is kept.
        catching_up: what `catch_up` returns; None: there is nothing to wait for.
    """

    confirms_at_once: bool = False
    is_down: bool = False
    is_paused: bool = False
    accepts_at_once: bool = False
    losses: Losses = field(default_factory=Losses)
    subscriptions: list[FakeSubscription] = field(default_factory=list)
    published: list[Message] = field(default_factory=list)
    waiting: list[Message] = field(default_factory=list)
    log: Callable[[TopicAddress], Deferred[TopicLog]] | None = None
    catching_up: Callable[[TopicAddress], Deferred[None]] | None = None

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
        missed: Callable[[TopicLog | None], None] | None = None,
    ) -> Deferred[FakeSubscription]:
        if self.is_down:
            return fail(BrokerUnavailable("injected by the test"))
        subscription = FakeSubscription(topic, deliver, Deferred(), lost, missed)
        self.subscriptions.append(subscription)
        if self.confirms_at_once:
            self.confirm()
        return subscription.result

    def recall(self, topic: TopicAddress) -> Deferred[TopicLog] | None:
        """What `log` returns; None, as from a broker that keeps nothing, if there is no `log`."""
        return None if self.log is None else self.log(topic)

    def catch_up(self, topic: TopicAddress) -> Deferred[None] | None:
        """What `catching_up` returns; None, if there is no `catching_up`."""
        return None if self.catching_up is None else self.catching_up(topic)

    def publish(self, message: Message) -> Deferred[None]:
        if self.is_down:
            return fail(BrokerUnavailable("injected by the test"))
        self.published.append(message)
        self.deliver(message)
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
            self.deliver(self.waiting.pop(0))

    def confirm(self) -> None:
        """Confirm the newest subscription."""
        newest = self.subscriptions[-1]
        newest.result.callback(newest)

    def reject(self, why: Exception | None = None) -> None:
        """Fail the newest subscription."""
        self.subscriptions[-1].result.errback(why or BrokerUnavailable("injected by the test"))

    def lose_subscriptions(self) -> None:
        """Report to every active subscription that messages may have been missed."""
        for subscription in self.active:
            assert subscription.lost is not None
            subscription.lost()

    def deliver(self, message: Message) -> None:
        """Deliver `message` to the subscriptions of its topic."""
        if self.is_paused:
            self.waiting.append(message)
            return
        for subscription in self.active:
            if subscription.topic == message.topic:
                try:
                    subscription.deliver(message)
                except Exception:
                    _log.failure("a subscriber failed")

    @property
    def active(self) -> list[FakeSubscription]:
        return [each for each in self.subscriptions if not each.stops]
