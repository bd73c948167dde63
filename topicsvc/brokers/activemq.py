"""Adapter: ActiveMQ over STOMP 1.2, as Personium units use it.

One connection reads, one sends, so that a flood one way never delays the other. A topic has
one subscription at the broker however many listen; it is let go a few seconds after the
last, so that who comes back at once costs nothing.

When the reading connection is lost, what is sent meanwhile is gone: ActiveMQ keeps nothing
for a subscription that is not there. All topics are subscribed again before `is_up` is true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from random import Random
from typing import ClassVar
from uuid import uuid4

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from topicsvc.address import TopicAddress
from topicsvc.brokers.link import Link, Login
from topicsvc.brokers.stomp import Frame
from topicsvc.brokers.textmessage import ascii_json, json_body
from topicsvc.deadlines import Deadlines
from topicsvc.errors import BrokerUnavailable
from topicsvc.ports import Losses, Message, Subscription

__all__ = [
    "LINGER",
    "MAX_BYTES_UNDER_WAY",
    "MAX_UNDER_WAY",
    "TIME_TO_LIVE",
    "ActiveMQBroker",
]

LINGER = 5.0
"""Seconds for which a topic stays subscribed after its last listener."""

TIME_TO_LIVE = 3600
"""Seconds after which the broker drops what it could not deliver, as Personium has it."""

MAX_UNDER_WAY = 2000
"""Most messages that the broker has not confirmed."""

MAX_BYTES_UNDER_WAY = 67108864
"""Most bytes of them; one message alone may be longer."""

_CELL = "__PERSONIUM_CELL"
_MESSAGE_ID = "__PERSONIUM_MESSAGE_ID"

_Deliver = Callable[[Message], None]
_Lost = Callable[[], None]


class ActiveMQBroker(Service):
    """A broker outside, shared by any number of processes and by the unit itself.

    Args:
        endpoint: where its STOMP 1.2 transport is.
        clock: tells and keeps the time.
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
        login: Login | None = None,
        closes_on_loss: bool = False,
        random: Random | None = None,
    ) -> None:
        random = random or Random()  # noqa: S311 - no secret, only spread
        self._losses = Losses()
        self._reader = _Reader(clock, closes_on_loss, self._losses)
        self._sender = _Sender(clock)
        self._reader.link = Link("reader", endpoint, clock, login, self._reader, random)
        self._sender.link = Link("sender", endpoint, clock, login, self._sender, random)

    @property
    def is_up(self) -> bool:
        """See `topicsvc.ports.Broker`."""
        return self._reader.is_up and self._sender.link.is_up

    @property
    def losses(self) -> Losses:
        """See `topicsvc.ports.Broker`."""
        reconnects = self._reader.link.reconnects + self._sender.link.reconnects
        return replace(self._losses, reconnects=reconnects)

    @property
    def complaint(self) -> str:
        """Why it is not up, as far as it can be told."""
        return self._reader.link.complaint or self._sender.link.complaint

    @property
    def topics(self) -> int:
        """Topics that are subscribed, or would be if the broker were there."""
        return len(self._reader)

    def subscribe(
        self, topic: TopicAddress, deliver: _Deliver, lost: _Lost | None = None
    ) -> Deferred[Subscription]:
        """See `topicsvc.ports.Broker`. While the broker is down it fails at once."""
        if not self.is_up:
            return fail(BrokerUnavailable("the broker is not there"))
        return self._reader.subscribe(topic, deliver, lost)

    def publish(self, message: Message) -> Deferred[None]:
        """See `topicsvc.ports.Broker`. While the broker is down it fails at once."""
        return self._sender.publish(message)

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

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._messages = 0
        self._bytes = 0

    def publish(self, message: Message) -> Deferred[None]:
        body = ascii_json(message.body)
        size = len(body)
        if self._messages >= MAX_UNDER_WAY or (
            self._messages and self._bytes + size > MAX_BYTES_UNDER_WAY
        ):
            return fail(BrokerUnavailable("too much is waiting for the broker"))
        accepted: Deferred[None] = Deferred()

        def answered(outcome: BrokerUnavailable | None) -> None:
            self._messages -= 1
            self._bytes -= size
            if outcome is None:
                accepted.callback(None)
            else:
                accepted.errback(outcome)

        self._messages += 1
        self._bytes += size
        self.link.request(Frame("SEND", self._headers(message), body), answered)
        return accepted

    def _headers(self, message: Message) -> dict[str, str]:
        # No content-length: with one, ActiveMQ makes a BytesMessage of it, and Personium
        # takes only a TextMessage, with both properties.
        return {
            "destination": _destination(message.topic),
            "persistent": "false",
            "expires": str(int((self._clock.seconds() + TIME_TO_LIVE) * 1000)),
            _CELL: message.sender or "",
            _MESSAGE_ID: str(uuid4()),
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
        self._numbers = count(1)
        self._topics: dict[TopicAddress, _Topic] = {}
        self._by_id: dict[str, _Topic] = {}
        self._restoring: set[str] = set()
        self._down_since: float | None = None
        self._idle = Deadlines[_Topic](clock, LINGER, self._drop)

    def __len__(self) -> int:
        return len(self._topics)

    @property
    def is_up(self) -> bool:
        return self.link.is_up and not self._restoring

    def subscribe(
        self, address: TopicAddress, deliver: _Deliver, lost: _Lost | None
    ) -> Deferred[Subscription]:
        topic = self._topics.get(address)
        if topic is None:
            topic = self._topics[address] = _Topic(address)
            self._ask(topic)
        self._idle.cancel(topic)
        subscription = _Subscription(self, topic, deliver, lost)
        if topic.is_live:
            topic.listeners[subscription] = None
            return succeed(subscription)

        def withdraw(_: Deferred[Subscription]) -> None:
            subscription.stop()

        confirmed: Deferred[Subscription] = Deferred(withdraw)
        topic.waiting[subscription] = confirmed
        return confirmed

    def leave(self, topic: _Topic, subscription: _Subscription) -> None:
        topic.listeners.pop(subscription, None)
        topic.waiting.pop(subscription, None)
        if topic.listeners or topic.waiting:
            return
        if topic.id:
            self._idle.start(topic)
        elif self._topics.get(topic.address) is topic:
            del self._topics[topic.address]

    def _ask(self, topic: _Topic) -> None:
        """Send a SUBSCRIBE.

        Its id is new each time, so that what was sent for an older one is told apart.
        """
        asked = topic.id = str(next(self._numbers))
        self._by_id[asked] = topic

        def answered(outcome: BrokerUnavailable | None) -> None:
            if topic.id == asked:
                self._answered(topic, outcome)

        headers = {"id": asked, "destination": topic.destination, "ack": "auto"}
        self.link.request(Frame("SUBSCRIBE", headers), answered)

    def _answered(self, topic: _Topic, outcome: BrokerUnavailable | None) -> None:
        waiting, topic.waiting = topic.waiting, {}
        if outcome is None:
            topic.is_live = True
            self._settled(topic.id)
            topic.listeners.update(dict.fromkeys(waiting))
            for subscription, confirmed in waiting.items():
                confirmed.callback(subscription)
            return
        self._log.warn(
            "the broker did not confirm {topic}: {why}", topic=topic.destination, why=outcome
        )
        listeners = tuple(topic.listeners)
        self._idle.cancel(topic)
        self._drop(topic)
        for confirmed in waiting.values():
            confirmed.errback(outcome)
        for subscription in listeners:
            subscription.tell_lost()

    def _drop(self, topic: _Topic) -> None:
        """Nobody listens to `topic` any more, or nobody can."""
        del self._topics[topic.address]
        del self._by_id[topic.id]
        self.link.send(Frame("UNSUBSCRIBE", {"id": topic.id}))
        self._settled(topic.id)
        topic.forget()

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
                count=len(self._topics),
                seconds=seconds,
            )

    # What the link tells.

    def connected(self) -> None:
        """All that is listened to is asked for again, before anything new is."""
        for topic in self._topics.values():
            self._ask(topic)
            self._restoring.add(topic.id)
        if not self._topics:
            self._settled("")

    def message(self, frame: Frame) -> None:
        topic = self._by_id.get(frame.headers.get("subscription", ""))
        if topic is None:
            return  # sent before the broker read our UNSUBSCRIBE
        if frame.headers.get("destination") != topic.destination:
            self._losses.misrouted += 1
            self._log.error(
                "the broker brought a message of another topic for {topic}: dropped",
                topic=topic.destination,
            )
            return
        sender = frame.headers.get(_CELL) or None
        message = Message(topic.address, sender, json_body(frame.body))
        for subscription in tuple(topic.listeners):
            try:
                subscription.deliver(message)
            except Exception:
                self._log.failure("a subscriber of {topic} failed", topic=topic.address.path)

    def lost(self, heard_at: float) -> None:
        """The subscriptions are gone, the wishes stay."""
        self._by_id.clear()
        self._restoring.clear()
        topics = tuple(self._topics.values())
        for topic in topics:
            self._idle.cancel(topic)
            waiting = topic.forget()
            if not topic.listeners:
                del self._topics[topic.address]
            for confirmed in waiting.values():
                confirmed.errback(BrokerUnavailable("the connection was lost"))
        if not self.link.running:
            return
        if self._topics and self._down_since is None:
            self._down_since = heard_at
            self._losses.gaps += 1
            self._log.warn(
                "{count} topics get nothing until the broker is back", count=len(self._topics)
            )
        if self._closes_on_loss:
            for subscription in [each for topic in topics for each in topic.listeners]:
                subscription.tell_lost()


class _Topic:
    """One topic: those who listen, those who wait for the broker's word."""

    __slots__ = ("address", "destination", "id", "is_live", "listeners", "waiting")

    def __init__(self, address: TopicAddress) -> None:
        self.address = address
        self.destination = _destination(address)
        self.id = ""  # of the subscription; none while it is not asked for
        self.is_live = False
        self.listeners: dict[_Subscription, None] = {}
        self.waiting: dict[_Subscription, Deferred[Subscription]] = {}

    def forget(self) -> dict[_Subscription, Deferred[Subscription]]:
        """The broker knows nothing of it; returns those who waited."""
        self.id = ""
        self.is_live = False
        waiting, self.waiting = self.waiting, {}
        return waiting


class _Subscription:
    __slots__ = ("_deliver", "_lost", "_reader", "_topic")

    def __init__(
        self, reader: _Reader, topic: _Topic, deliver: _Deliver, lost: _Lost | None
    ) -> None:
        self._reader = reader
        self._topic = topic
        self._deliver: _Deliver | None = deliver
        self._lost = lost

    def deliver(self, message: Message) -> None:
        if self._deliver is not None:
            self._deliver(message)

    def tell_lost(self) -> None:
        if self._deliver is not None and self._lost is not None:
            self._lost()

    def stop(self) -> Deferred[None]:
        """See `topicsvc.ports.Subscription`."""
        if self._deliver is not None:
            self._deliver = None
            self._reader.leave(self._topic, self)
        return succeed(None)
