"""Adapter: ActiveMQ over STOMP 1.2, as Personium units use it.

One connection reads, one sends, so that a flood one way never delays the other. A topic has
one subscription at the broker however many listen.

When the reading connection is lost, what is sent meanwhile is gone: ActiveMQ keeps nothing
for a subscription that is not there. All topics are subscribed again before `is_up` is true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import ClassVar
from uuid import uuid4

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from topicsvc.brokers.activemq.echoes import PendingEchoes
from topicsvc.brokers.activemq.stomp_client import Link
from topicsvc.brokers.activemq.stomp_frames import Frame
from topicsvc.brokers.in_flight import Answered, InFlightLimit
from topicsvc.brokers.message_text import ascii_json, json_body
from topicsvc.brokers.subscriptions import Deliver, Lost, Subscriptions, TopicSubscription
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Losses, Message, Subscription
from topicsvc.settings import Login
from topicsvc.topics import TopicAddress

__all__ = ["TIME_TO_LIVE", "ActiveMQBroker"]

TIME_TO_LIVE = 3600
"""Seconds after which the broker drops what it could not deliver, as Personium has it."""

_CELL = "__PERSONIUM_CELL"
_MESSAGE_ID = "__PERSONIUM_MESSAGE_ID"


class ActiveMQBroker(Service):
    """A broker outside, shared by any number of processes and by the unit itself.

    Args:
        endpoint: where its STOMP 1.2 transport is.
        clock: tells and keeps the time.
        now: the time of day, in seconds since the epoch: what the broker measures expiry by.
        login: who we are; None: nobody in particular.
        closes_on_loss: whether listeners are told when the reading connection is lost;
            otherwise they stay, with a gap that is logged and counted.
        random: spreads the attempts to connect.
    """

    name = "activemq broker"

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        now: Callable[[], float],
        login: Login | None = None,
        closes_on_loss: bool = False,
        random: Random | None = None,
    ) -> None:
        random = random or Random()  # noqa: S311 - no secret, only spread
        self._losses = Losses()
        self._reader = _Reader(clock, closes_on_loss, self._losses)
        self._sender = _Sender(now, self._reader)
        self._reader.link = Link("reader", endpoint, clock, login, self._reader, random)
        self._sender.link = Link("sender", endpoint, clock, login, self._sender, random)

    @property
    def is_up(self) -> bool:
        """See `topicsvc.interfaces.Broker`."""
        return self._reader.is_up and self._sender.link.is_up

    @property
    def is_settled(self) -> bool:
        """See `topicsvc.interfaces.Broker`."""
        return self._reader.is_settled

    @property
    def losses(self) -> Losses:
        """See `topicsvc.interfaces.Broker`."""
        reconnects = self._reader.link.reconnects + self._sender.link.reconnects
        return replace(self._losses, reconnects=reconnects)

    @property
    def last_error(self) -> str:
        """Why it is not up, as far as it can be told."""
        return self._reader.link.last_error or self._sender.link.last_error

    def subscribe(
        self, topic: TopicAddress, deliver: Deliver, lost: Lost | None = None
    ) -> Deferred[Subscription]:
        """See `topicsvc.interfaces.Broker`. While the broker is down it fails at once."""
        if not self.is_up:
            return fail(BrokerUnavailable("the broker is not there"))
        return self._reader.subscribe(topic, deliver, lost)

    def publish(self, message: Message) -> Deferred[None]:
        """See `topicsvc.interfaces.Broker`. While the broker is down it fails at once."""
        return self._sender.publish(message)

    def pause(self) -> None:
        """See `topicsvc.interfaces.Broker`. What is not read waits at the broker."""
        self._reader.link.pause()

    def resume(self) -> None:
        """See `topicsvc.interfaces.Broker`."""
        self._reader.link.resume()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._reader.link.startService()
        self._sender.link.startService()

    def stopService(self) -> Deferred[None]:
        """Close both connections; fires when they are closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        links = (self._reader.link, self._sender.link)
        closing = gatherResults([link.stopService() for link in links])
        return closing.addCallback(lambda _: None)


def _destination(topic: TopicAddress) -> str:
    """A topic's name in STOMP.

    The grammar of addresses keeps out what ActiveMQ would read as a wildcard, a list or an
    option: ``> * , ?``.
    """
    return f"/topic/{topic.broker_name}"


class _Sender:
    """The connection that sends, and what is under way on it."""

    link: Link

    def __init__(self, now: Callable[[], float], reader: _Reader) -> None:
        self._now = now
        self._reader = reader
        self._in_flight = InFlightLimit()

    def publish(self, message: Message) -> Deferred[None]:
        body = ascii_json(message.body)
        id_ = str(uuid4())
        frame = Frame("SEND", self._headers(message, id_), body)

        def hand_over(answered: Answered) -> None:
            # Before the outcome: the message may be back before it.
            self._reader.expect(message.topic, id_)

            def told(outcome: BrokerUnavailable | None) -> None:
                if outcome is None:
                    self._reader.expected.accepted(message.topic, id_)
                else:
                    self._reader.expected.refused(message.topic, id_)
                answered(outcome)

            self.link.request(frame, told)

        return self._in_flight.send(len(body), hand_over)

    def _headers(self, message: Message, id_: str) -> dict[str, str]:
        # No content-length: with one, ActiveMQ makes a BytesMessage of it, and Personium
        # takes only a TextMessage, with both properties.
        return {
            "destination": _destination(message.topic),
            "persistent": "false",
            "expires": str(int((self._now() + TIME_TO_LIVE) * 1000)),
            _CELL: message.sender or "",
            _MESSAGE_ID: id_,
        }

    # What the link tells.

    def connected(self) -> None:
        pass

    def message(self, frame: Frame) -> None:
        pass

    def lost(self, heard_at: float) -> None:
        pass


class _Reader:
    """The connection that reads, and who listens to what."""

    _log: ClassVar[Logger] = Logger()
    link: Link

    def __init__(self, clock: IReactorTime, closes_on_loss: bool, losses: Losses) -> None:
        self._clock = clock
        self._closes_on_loss = closes_on_loss
        self._losses = losses
        self._listeners = Subscriptions(clock, _destination, self._ask, self._let_go)
        self._restoring: set[str] = set()
        self._down_since: float | None = None
        self.expected = PendingEchoes()

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def is_up(self) -> bool:
        return self.link.is_up and not self._restoring

    @property
    def is_settled(self) -> bool:
        return not self.expected

    def expect(self, address: TopicAddress, id_: str) -> None:
        """We send this to `address`: if somebody listens, it comes back."""
        if self._listeners.is_live(address):
            self.expected.sent(address, id_)

    def subscribe(
        self, address: TopicAddress, deliver: Deliver, lost: Lost | None
    ) -> Deferred[Subscription]:
        return self._listeners.subscribe(address, deliver, lost)

    def _ask(self, topic: TopicSubscription) -> None:
        """Send a SUBSCRIBE."""
        asked = self._listeners.new_id(topic)

        def answered(outcome: BrokerUnavailable | None) -> None:
            if topic.id == asked:
                self._answered(topic, outcome)

        headers = {"id": asked, "destination": topic.name, "ack": "auto"}
        self.link.request(Frame("SUBSCRIBE", headers), answered)

    def _answered(self, topic: TopicSubscription, outcome: BrokerUnavailable | None) -> None:
        if outcome is None:
            self._settled(topic.id)
            self._listeners.confirm(topic)
            return
        self._log.warn("the broker did not confirm {topic}: {why}", topic=topic.name, why=outcome)
        self._listeners.refuse(topic, outcome)

    def _let_go(self, topic: TopicSubscription) -> None:
        self.link.send(Frame("UNSUBSCRIBE", {"id": topic.id}))
        self.expected.forget(topic.address)
        self._settled(topic.id)

    def _settled(self, id_: str) -> None:
        """What became of this subscription is known: was it the last to be restored?"""
        self._restoring.discard(id_)
        if not self._restoring and self._down_since is not None:
            seconds = self._clock.seconds() - self._down_since
            self._down_since = None
            self._losses.seconds += seconds
            self._log.warn(
                "{count} topics are subscribed again; what was sent to them in {seconds:.1f} s "
                "is lost",
                count=len(self),
                seconds=seconds,
            )

    # What the link tells.

    def connected(self) -> None:
        """All that is listened to is asked for again, before anything new is."""
        for topic in self._listeners:
            self._ask(topic)
            self._restoring.add(topic.id)
        if not self._restoring:
            self._settled("")

    def message(self, frame: Frame) -> None:
        topic = self._listeners.by_id(frame.headers.get("subscription", ""))
        if topic is None:
            return  # sent before the broker read our UNSUBSCRIBE
        if frame.headers.get("destination") != topic.name:
            self._losses.misrouted += 1
            self._log.error(
                "the broker brought a message of another topic for {topic}: dropped",
                topic=topic.name,
            )
            return
        sender = frame.headers.get(_CELL) or None
        topic.deliver(Message(topic.address, sender, json_body(frame.body)))
        if self.expected:
            self.expected.brought(topic.address, frame.headers.get(_MESSAGE_ID, ""))

    def lost(self, heard_at: float) -> None:
        """The subscriptions are gone, the wishes stay."""
        self._restoring.clear()
        self.expected.clear()
        topics = tuple(self._listeners)
        self._listeners.fail(topics, BrokerUnavailable("the connection was lost"))
        if not self.link.running:
            return
        if len(self) and self._down_since is None:
            self._down_since = heard_at
            self._losses.gaps += 1
            self._log.warn("{count} topics get nothing until the broker is back", count=len(self))
        if self._closes_on_loss:
            self._listeners.tell_lost(topics)
