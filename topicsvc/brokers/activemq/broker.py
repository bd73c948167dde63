"""ActiveMQ over STOMP 1.2, as Personium units use it.

One connection reads and one sends, so a flood in one direction does not delay the other. A topic
has one subscription at the broker for all its subscribers here.

While the reading connection is lost, messages are lost too: ActiveMQ keeps none for a subscription
that does not exist. All topics are subscribed again before `is_up` is true.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import ClassVar
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from topicsvc.brokers.activemq.echoes import PendingEchoes
from topicsvc.brokers.activemq.stomp_client import StompClient
from topicsvc.brokers.activemq.stomp_frames import Frame
from topicsvc.brokers.in_flight import InFlightLimit, OnResult
from topicsvc.brokers.message_text import ascii_json, json_body
from topicsvc.brokers.reader_and_sender import ReaderAndSender
from topicsvc.brokers.subscriptions import (
    Deliver,
    OnLost,
    OnMissed,
    Subscriptions,
    TopicSubscription,
)
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Losses, Message, Subscription, TopicLog
from topicsvc.printable import counted
from topicsvc.settings import Login
from topicsvc.topics import TopicAddress

__all__ = ["TIME_TO_LIVE", "ActiveMQBroker"]

TIME_TO_LIVE = 3600
"""Seconds after which the broker drops an undelivered message, the same as in Personium."""

_CELL = "__PERSONIUM_CELL"
_MESSAGE_ID = "__PERSONIUM_MESSAGE_ID"


class ActiveMQBroker(ReaderAndSender):
    """An ActiveMQ broker, shared by any number of processes and by the unit itself.

    Args:
        endpoint: of its STOMP 1.2 connector.
        clock: the time and timers.
        now: returns the time of day in seconds since the epoch; used for the expiry of messages.
        login: username and password; None: no login.
        closes_on_loss: whether subscribers are notified when the reading connection is lost;
            otherwise they stay subscribed, with a gap that is logged and counted.
        random: for the jitter of the retry delays.
        where: the broker's address, for the log.
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
        where: str = "",
    ) -> None:
        random = random or Random()  # noqa: S311 - jitter, no secret
        losses = Losses()
        reader = _Reader(clock, closes_on_loss, losses)
        sender = _Sender(now, reader)
        reader.client = StompClient("reader", endpoint, clock, login, reader, random, where)
        sender.client = StompClient("sender", endpoint, clock, login, sender, random, where)
        super().__init__(reader, sender, losses)


def _destination(topic: TopicAddress) -> str:
    """Return the STOMP destination of a topic.

    The grammar of topic addresses excludes the characters ``> * , ?``, which ActiveMQ would read
    as a wildcard, a list or an option.
    """
    return f"/topic/{topic.broker_name}"


class _Sender:
    """The connection that sends, and its unconfirmed messages."""

    client: StompClient

    def __init__(self, now: Callable[[], float], reader: _Reader) -> None:
        self._now = now
        self._reader = reader
        self._in_flight = InFlightLimit()

    def publish(self, message: Message) -> Deferred[None]:
        body = ascii_json(message.body)
        id_ = str(uuid4())
        frame = Frame("SEND", self._headers(message, id_), body)

        def send(on_result: OnResult) -> None:
            # Expect the echo now: the message may come back before its receipt.
            self._reader.expect_echo(message.topic, id_)

            def on_receipt(result: BrokerUnavailable | None) -> None:
                if result is None:
                    self._reader.echoes.accepted(message.topic, id_)
                else:
                    self._reader.echoes.refused(message.topic, id_)
                on_result(result)

            self.client.request(frame, on_receipt)

        return self._in_flight.send(len(body), send)

    def _headers(self, message: Message, id_: str) -> dict[str, str]:
        # Without content-length: with it, ActiveMQ makes a BytesMessage of the frame. Personium
        # accepts only a TextMessage with both properties.
        return {
            "destination": _destination(message.topic),
            "persistent": "false",
            "expires": str(int((self._now() + TIME_TO_LIVE) * 1000)),
            _CELL: message.sender or "",
            _MESSAGE_ID: id_,
        }

    # Called by the STOMP client.

    def on_connected(self) -> None:
        pass

    def on_message(self, frame: Frame) -> None:
        pass

    def on_lost(self, last_heard: float) -> None:
        pass


class _Reader:
    """The connection that reads, and the subscriptions."""

    _log: ClassVar[Logger] = Logger()
    client: StompClient

    def __init__(self, clock: IReactorTime, closes_on_loss: bool, losses: Losses) -> None:
        self._clock = clock
        self._closes_on_loss = closes_on_loss
        self._losses = losses
        self._subscriptions = Subscriptions(
            clock, _destination, self._request_topic, self._unsubscribe
        )
        self._restoring: set[str] = set()
        self._down_since: float | None = None
        self.echoes = PendingEchoes()

    def __len__(self) -> int:
        return len(self._subscriptions)

    @property
    def is_up(self) -> bool:
        return self.client.is_up and not self._restoring

    @property
    def is_settled(self) -> bool:
        return not self.echoes

    def expect_echo(self, address: TopicAddress, id_: str) -> None:
        """A message is sent to `address`: if the topic is subscribed here, it comes back."""
        if self._subscriptions.is_confirmed(address):
            self.echoes.sent(address, id_)

    def subscribe(
        self,
        address: TopicAddress,
        deliver: Deliver,
        lost: OnLost | None,
        missed: OnMissed | None = None,
    ) -> Deferred[Subscription]:
        return self._subscriptions.subscribe(address, deliver, lost, missed)

    def recall(self, address: TopicAddress) -> Deferred[TopicLog] | None:
        return None

    def _request_topic(self, topic: TopicSubscription) -> None:
        """Send a SUBSCRIBE frame."""
        id_ = self._subscriptions.new_id(topic)

        def on_receipt(result: BrokerUnavailable | None) -> None:
            if topic.id == id_:
                self._on_receipt(topic, result)

        headers = {"id": id_, "destination": topic.name, "ack": "auto"}
        self.client.request(Frame("SUBSCRIBE", headers), on_receipt)

    def _on_receipt(self, topic: TopicSubscription, result: BrokerUnavailable | None) -> None:
        if result is None:
            was_lost = topic.id in self._restoring
            self._restored(topic.id)
            self._subscriptions.confirm(topic)
            if was_lost:
                self._subscriptions.notify_missed(topic, None)
            return
        self._log.warn("the broker did not confirm {topic}: {why}", topic=topic.name, why=result)
        self._subscriptions.refuse(topic, result)

    def _unsubscribe(self, topic: TopicSubscription) -> None:
        self.client.notify(Frame("UNSUBSCRIBE", {"id": topic.id}))
        self.echoes.forget(topic.address)
        self._restored(topic.id)

    def _restored(self, id_: str) -> None:
        """The subscription is confirmed or ended. After the last one, log the end of the gap."""
        self._restoring.discard(id_)
        if not self._restoring and self._down_since is not None:
            seconds = self._clock.seconds() - self._down_since
            self._down_since = None
            self._losses.seconds += seconds
            self._log.warn(
                "{topics} subscribed again after {seconds:.1f} s; messages sent to them "
                "meanwhile are lost",
                topics=counted(len(self), "topic is", "topics are"),
                count=len(self),
                seconds=seconds,
            )

    # Called by the STOMP client.

    def on_connected(self) -> None:
        """Request all topics again, before any new one."""
        for topic in self._subscriptions:
            self._request_topic(topic)
            self._restoring.add(topic.id)
        if not self._restoring:
            self._restored("")

    def on_message(self, frame: Frame) -> None:
        topic = self._subscriptions.by_id(frame.headers.get("subscription", ""))
        if topic is None:
            return  # sent before the broker read the UNSUBSCRIBE frame
        if frame.headers.get("destination") != topic.name:
            self._losses.misrouted += 1
            self._log.error(
                "the broker sent a message of another topic for {topic}: dropped",
                topic=topic.name,
            )
            return
        sender = frame.headers.get(_CELL) or None
        topic.deliver(Message(topic.address, sender, json_body(frame.body)))
        if self.echoes:
            self.echoes.received(topic.address, frame.headers.get(_MESSAGE_ID, ""))

    def on_lost(self, last_heard: float) -> None:
        """Fail pending requests and keep the topics: they are requested again."""
        self._restoring.clear()
        self.echoes.clear()
        topics = tuple(self._subscriptions)
        self._subscriptions.fail(topics, BrokerUnavailable("the connection was lost"))
        if not self.client.running:
            return
        if len(self) and self._down_since is None:
            self._down_since = last_heard
            self._losses.gaps += 1
            self._log.warn(
                "{topics} nothing until the broker is back",
                topics=counted(len(self), "topic gets", "topics get"),
                count=len(self),
            )
        if self._closes_on_loss:
            self._subscriptions.notify_lost(topics)
