"""The interfaces between packages, and the values that pass through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred

from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.topics import TopicAddress

__all__ = [
    "Broker",
    "Grant",
    "Losses",
    "Mark",
    "Member",
    "Message",
    "Place",
    "Receiver",
    "Revocation",
    "Subscription",
    "TokenValidator",
    "TopicLog",
]


@dataclass(frozen=True, slots=True)
class Grant:
    """The rights that a valid token gives on one topic.

    Attributes:
        subject: the subject of the token, as its issuer wrote it; None: unknown.
        expires_at: seconds since the epoch; from then on the grant has expired.
        may_receive: the privilege ``stream-receive``.
        may_send: the privilege ``stream-send``.
        refusal: why a right is missing, for the operator; None: not known, or none is missing.
    """

    subject: str | None
    expires_at: float
    may_receive: bool
    may_send: bool
    refusal: Refusal | None = field(default=None, compare=False)

    def is_expired(self, now: float) -> bool:
        """Whether it has expired at `now`, the time of day in seconds since the epoch."""
        return self.expires_at <= now

    @property
    def refusal_to_receive(self) -> Refusal:
        """Why it does not give the right to receive."""
        if self.refusal is not None:
            return self.refusal
        return Refusal(RefusalReason.MAY_NOT_RECEIVE if self.may_send else RefusalReason.NO_RIGHT)

    @property
    def refusal_to_send(self) -> Refusal:
        """Why it does not give the right to send."""
        if self.refusal is not None:
            return self.refusal
        return Refusal(RefusalReason.MAY_NOT_SEND if self.may_receive else RefusalReason.NO_RIGHT)


class Mark(NamedTuple):
    """The place behind a message in the log that the broker keeps of its topic.

    Attributes:
        lane: the number of the partition; 0 if the log is not divided.
        id: visible ASCII without ``.`` and ``_``; no two places of a lane have the same id. The
            beginning of a lane has the empty id.
    """

    lane: int
    id: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a topic.

    Attributes:
        topic: the topic to which it was sent.
        sender: URL of the cell that sent it; None: the broker's message did not name it.
        body: one JSON value in UTF-8, byte for byte as it was sent.
        mark: its place in the broker's log; None: the broker keeps none.
    """

    topic: TopicAddress
    sender: str | None
    body: bytes
    mark: Mark | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TopicLog:
    """The last part of the log that a broker keeps of a topic.

    Attributes:
        epoch: visible ASCII without ``.`` and ``_``. Another topic, or a log that may have lost
            accepted messages, has another epoch.
        start: for each lane the id of the place before the first of `messages`.
        messages: each with its mark, and its age in seconds; the oldest first.
    """

    epoch: str
    start: tuple[str, ...]
    messages: tuple[tuple[Message, float], ...] = ()


@dataclass(slots=True)
class Losses:
    """How often a broker was lost, and for how long messages may have been missed.

    Attributes:
        reconnects: connections that were made again after they were lost.
        gaps: how often topics with members were without a subscription; with Kafka, how often a
            partition no longer had the next messages.
        seconds: the length of all gaps, from the last data that the broker sent; Kafka's gaps
            are not measured in time.
        misrouted: messages that the broker delivered for another topic than the subscribed one.
    """

    reconnects: int = 0
    gaps: int = 0
    seconds: float = 0
    misrouted: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a session with positions in the messages of its topic.

    Attributes:
        position: the position behind which the data begins; None: positions are off.
        is_missed: whether messages between the client's position and this one may be missing.
        heartbeat: seconds after which the client gets its position if it has got nothing else.
        frames: the frames of the messages that the client has missed, joined.
        count: the number of these messages.
    """

    position: str | None
    is_missed: bool
    heartbeat: float
    frames: bytes = b""
    count: int = 0


class TokenValidator(Protocol):
    """Validates tokens."""

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """Check which rights `token` gives on `topic`. Cancelling the Deferred ends the check.

        A refusal carries its reason for the operator; see `topicsvc.refusals`. A valid token
        without a right is granted, with the reason in `Grant.refusal`.

        Fails with:
            TokenInactive: the token is not valid; `TokenInactive.refusal` is the reason.
            TopicNotFound: the token is valid, but the topic does not exist.
            ValidatorUnavailable: the token could not be checked.
        """
        ...

    def remembered(self, token: str, topic: TopicAddress) -> Grant | None:
        """The grant of a token, if it is known at once and has not expired.

        It is the grant with which `validate` would fire, without a Deferred.

        Returns:
            None: the token is refused, or the grant is not known at once; call `validate`.
        """
        return None


class Subscription(Protocol):
    """A subscription to one topic, which the broker has confirmed."""

    def stop(self) -> Deferred[None]:
        """End the subscription. Idempotent; nothing is delivered after the call returns."""
        ...


class Broker(Protocol):
    """Delivers messages at most once, in its own order for each topic."""

    @property
    def is_up(self) -> bool:
        """Whether it can confirm and accept now, and all subscriptions are active."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether all messages that it accepted from this process are delivered to this process.

        Only topics that are subscribed here count. Messages that are lost with the broker do not
        count.
        """
        ...

    @property
    def losses(self) -> Losses:
        """The losses since the start. Reading them makes no request."""
        ...

    def subscribe(
        self,
        topic: TopicAddress,
        deliver: Callable[[Message], None],
        lost: Callable[[], None] | None = None,
        missed: Callable[[TopicLog | None], None] | None = None,
    ) -> Deferred[Subscription]:
        """Subscribe to `topic`.

        Fires when the broker has confirmed: from then on no message that it accepts is missed.

        Args:
            topic: the topic.
            deliver: called with each message.
            lost: called if a confirmed subscription was lost and the members have to be notified;
                the subscription can then no longer be used.
            missed: called if messages may have been missed, and the subscription goes on. Its
                argument is the log from here on, without messages; None: the broker keeps none.

        Fails with:
            BrokerUnavailable: the broker cannot confirm now.
            TopicNotFound: the broker cannot have a topic of this name.
        """
        ...

    def recall(self, topic: TopicAddress) -> Deferred[TopicLog] | None:
        """Return what the broker has kept of a topic that is subscribed here.

        The log ends with the last message that was passed to `deliver` when the Deferred fires,
        also if the broker has newer ones already: these follow through `deliver`.

        Returns:
            None: the broker keeps nothing, and messages have no marks.

        Fails with:
            BrokerUnavailable: the broker cannot be asked now.
        """
        ...

    def catch_up(self, topic: TopicAddress) -> Deferred[None] | None:
        """Wait for the messages that another process may have delivered already.

        Fires when each message that the broker has accepted before the call was passed to
        `deliver`, or after a few seconds.

        Returns:
            None: there is nothing to wait for.

        Fails with:
            BrokerUnavailable: the broker cannot be asked now.
        """
        ...

    def publish(self, message: Message) -> Deferred[None]:
        """Send `message`. Fires when the broker has accepted it.

        Fails with:
            BrokerUnavailable: the broker has not accepted it, or this is not known.
            TopicNotFound: the broker cannot have a topic of this name.
        """
        ...

    def accept(self, message: Message) -> bool:
        """Send `message` as `publish` does, but without a Deferred.

        Returns:
            False: the broker cannot accept it at once, and it was not sent; call `publish`.
        """
        ...

    def pause(self) -> None:
        """Deliver no more until `resume`, except messages that have been read already.

        Nothing is lost, and the order is kept: messages that are accepted meanwhile wait at the
        broker. Subscribing and publishing continue. May be called while a message is delivered.
        Idempotent.

        A broker that cannot store messages continues to deliver them. Its publishers then have
        to wait.
        """
        ...

    def resume(self) -> None:
        """Deliver messages again, first those that wait. Idempotent."""
        ...


class Member(Protocol):
    """A member of a topic, as the hub sees it."""

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        """Take `count` messages, already framed and joined. Must not raise.

        Args:
            frames: the frames of all messages.
            count: the number of messages.
            now: the time of day, in seconds since the epoch.
        """
        ...

    def broker_lost(self) -> None:
        """Messages may have been missed, and no more follow: close with an error."""
        ...


class Receiver(Member, Protocol):
    """The send queue of a session with positions, as the hub sees it.

    Attributes:
        deliver_until: the time, in seconds since the epoch, from which on no data is delivered.
        has_dropped: whether data that was delivered has been dropped since.
    """

    deliver_until: float
    has_dropped: bool


@dataclass(frozen=True, slots=True)
class Revocation:
    """How revoked tokens of open sessions are noticed.

    Attributes:
        validator: checks the token again, without reading cached grants.
        interval: seconds between two checks of a session.
        at_once: the most sessions that are checked at once.
    """

    validator: TokenValidator
    interval: float
    at_once: int
