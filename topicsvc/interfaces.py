"""The doors between the floors: a few interfaces and the values that pass through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred

from topicsvc.topics import TopicAddress

__all__ = [
    "Broker",
    "Grant",
    "Losses",
    "Member",
    "Message",
    "Revocation",
    "Subscription",
    "TokenValidator",
]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a live token allows on one topic.

    Attributes:
        subject: whose token it is, as its issuer wrote it; None: not told.
        expires_at: seconds since the epoch; from then on the grant is void.
        may_receive: the privilege ``stream-receive``.
        may_send: the privilege ``stream-send``.
    """

    subject: str | None
    expires_at: float
    may_receive: bool
    may_send: bool

    def is_expired(self, now: float) -> bool:
        """Whether it is void at `now`, the time of day in seconds since the epoch."""
        return self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Message:
    """Data on its way through a topic.

    Attributes:
        topic: where it was sent.
        sender: URL of the cell that sent it; None: the broker's message did not say.
        body: one JSON value in UTF-8, byte for byte as it was sent.
    """

    topic: TopicAddress
    sender: str | None
    body: bytes


@dataclass(slots=True)
class Losses:
    """How often a broker was lost, and for how long messages may have been missed.

    Attributes:
        reconnects: connections that were made again after they were lost.
        gaps: times that topics with listeners were without a subscription; with Kafka, times
            that a partition no longer had the messages that came next.
        seconds: how long in all, from the last sign of the broker's life; Kafka's gaps are not
            measured in time.
        misrouted: messages that the broker brought for another topic than was subscribed.
    """

    reconnects: int = 0
    gaps: int = 0
    seconds: float = 0
    misrouted: int = 0


class TokenValidator(Protocol):
    """Judges tokens."""

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """Ask what `token` allows on `topic`. Cancelling the Deferred ends the question.

        Fails with:
            TokenInactive: a plain no; TopicNotFound, where the token lives.
            ValidatorUnavailable: could not tell.
        """
        ...


class Subscription(Protocol):
    """A broker's promise to deliver."""

    def stop(self) -> Deferred[None]:
        """End it. Idempotent; nothing is delivered after the call returns."""
        ...


class Broker(Protocol):
    """Carries messages: at most once, in its own order for each topic."""

    @property
    def is_up(self) -> bool:
        """Whether it can confirm and accept now, and all that is subscribed is live."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether all is brought that it has accepted from here for whoever listens here.

        What is lost with it is not waited for.
        """
        ...

    @property
    def losses(self) -> Losses:
        """What went wrong since the start. Known at any time: nobody is asked."""
        ...

    def subscribe(
        self,
        topic: TopicAddress,
        deliver: Callable[[Message], None],
        lost: Callable[[], None] | None = None,
    ) -> Deferred[Subscription]:
        """Ask for the messages of `topic`.

        Fires when the broker has confirmed: from then on nothing that it accepts is missed.

        Args:
            topic: whose messages.
            deliver: takes each message.
            lost: called if that promise is broken after it was given and whoever listens
                is to be told; the subscription is then of no more use.

        Fails with:
            BrokerUnavailable: it cannot confirm now.
            TopicNotFound: it can have no topic of this name.
        """
        ...

    def publish(self, message: Message) -> Deferred[None]:
        """Send `message`. Fires when the broker has accepted it.

        Fails with:
            BrokerUnavailable: it has not, or nobody knows.
            TopicNotFound: it can have no topic of this name.
        """
        ...

    def pause(self) -> None:
        """Bring no more until `resume`, except what has been read already.

        Nothing is lost by it, and the order stays: what is accepted meanwhile waits where it
        was sent to. All else goes on. May be called while a message is delivered. Idempotent.

        A broker with nowhere to keep messages goes on bringing them: then it is for those
        who publish to wait.
        """
        ...

    def resume(self) -> None:
        """Bring messages again, those that wait first. Idempotent."""
        ...


class Member(Protocol):
    """What the hub sees of a connection."""

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        """Take `count` messages, already framed and joined. Must not raise.

        Args:
            frames: all of them.
            count: how many.
            now: the time of day, in seconds since the epoch.
        """
        ...

    def broker_lost(self) -> None:
        """Messages may have been missed, and nothing more will come: tell the client."""
        ...


@dataclass(frozen=True, slots=True)
class Revocation:
    """How it is noticed that the token of a live session was revoked.

    Attributes:
        validator: says what holds now.
        interval: seconds between two checks of a session.
        at_once: sessions that are checked at the same time.
    """

    validator: TokenValidator
    interval: float
    at_once: int
