"""Redis or Valkey: any number of processes share the messages, and an outage loses none.

One connection reads and one sends, so a flood in one direction does not delay the other. A topic
has one subscription at Redis for all its subscribers here.

A topic's stream keeps its newest messages for some time. When the reading connection was lost, the
messages that were sent meanwhile are read from the streams, before `is_up` is true. What a stream
no longer has is a gap, which is logged and counted.
"""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from topicsvc.brokers.in_flight import InFlightLimit, OnResult
from topicsvc.brokers.message_text import json_body
from topicsvc.brokers.reader_and_sender import ReaderAndSender
from topicsvc.brokers.redis import scripts
from topicsvc.brokers.redis.client import Command, RedisClient, Session
from topicsvc.brokers.redis.scripts import NONE, Entry, EntryId, History, InvalidReply
from topicsvc.brokers.subscriptions import (
    Deliver,
    OnLost,
    OnMissed,
    Subscriptions,
    TopicSubscription,
)
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Losses, Message, Subscription, TopicLog
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

__all__ = ["RedisBroker"]

_INVALID_INTERVAL = 60.0
"""Seconds between two lines of the log about messages that are not from topicsvc."""


class RedisBroker(ReaderAndSender):
    """A Redis server, shared by any number of processes.

    Args:
        endpoint: of Redis.
        clock: the time and timers.
        session: login and database.
        prefix: begins the name of each key and channel.
        history: what a stream keeps.
        closes_on_loss: whether subscribers are notified when the reading connection is lost;
            otherwise they stay subscribed, and get the messages of the outage that the streams
            have kept.
        random: for the jitter of the retry delays.
    """

    name = "redis broker"

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        session: Session,
        prefix: str,
        history: HistorySettings,
        closes_on_loss: bool = False,
        random: Random | None = None,
    ) -> None:
        random = random or Random()  # noqa: S311 - jitter, no secret
        losses = Losses()
        names = _Names(prefix)
        reader = _Reader(clock, names, history, closes_on_loss, losses)
        sender = _Sender(names, history, reader)
        reader.client = RedisClient("reader", endpoint, clock, session, reader, random)
        sender.client = RedisClient("sender", endpoint, clock, session, sender, random)
        super().__init__(reader, sender, losses)


class _Names:
    """The names of streams and channels.

    The braces make both names of a topic belong to one slot of a cluster. The grammar of topic
    addresses excludes braces.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def stream(self, topic: TopicAddress) -> str:
        return f"{self._prefix}stream:{{{topic.broker_name}}}"

    def channel(self, topic: TopicAddress) -> str:
        return f"{self._prefix}channel:{{{topic.broker_name}}}"


class _Sender:
    """The connection that sends."""

    client: RedisClient

    def __init__(self, names: _Names, history: HistorySettings, reader: _Reader) -> None:
        self._names = names
        self._history = history
        self._reader = reader
        self._in_flight = InFlightLimit()

    def publish(self, message: Message) -> Deferred[None]:
        topic, body, history = message.topic, message.body, self._history
        # EVAL, not EVALSHA: if Redis forgets its scripts, requests that are repeated one by one
        # would change places.
        command: Command = (
            *("EVAL", scripts.SEND, 1, self._names.stream(topic), self._names.channel(topic)),
            *(message.sender or "", body),
            *(history.messages, history.bytes, history.seconds * 1000),
        )

        def send(on_result: OnResult) -> None:
            def on_reply(reply: Any) -> None:
                on_result(self._result(topic, reply))

            self.client.request(command, on_reply)

        return self._in_flight.send(len(body), send)

    def _result(self, topic: TopicAddress, reply: Any) -> BrokerUnavailable | None:
        try:
            if isinstance(reply, BrokerUnavailable):
                raise reply
            self._reader.expect(topic, scripts.parse_id(reply))
        except (BrokerUnavailable, InvalidReply) as error:
            if self.client.is_up:
                self.client.log_error("Redis refuses a request of the {name}: {why}", str(error))
            return BrokerUnavailable(str(error))
        return None

    # Called by the client.

    def on_connected(self) -> None:
        pass

    def on_message(self, channel: bytes, payload: bytes) -> None:
        pass

    def on_lost(self, last_heard: float) -> None:
        pass


class _Position:
    """How far a topic has been read.

    Attributes:
        newest: id of the newest message that was delivered; None: not known yet.
        held: messages that arrived before the stream was read; None: it has been read.
    """

    __slots__ = ("held", "newest")

    def __init__(self) -> None:
        self.newest: EntryId | None = None
        self.held: list[Entry] | None = []


class _Reader:
    """The connection that reads, and the subscriptions."""

    _log: ClassVar[Logger] = Logger()
    client: RedisClient

    def __init__(
        self,
        clock: IReactorTime,
        names: _Names,
        history: HistorySettings,
        closes_on_loss: bool,
        losses: Losses,
    ) -> None:
        self._clock = clock
        self._names = names
        self._history = history
        self._closes_on_loss = closes_on_loss
        self._losses = losses
        self._subscriptions = Subscriptions(
            clock, names.channel, self._request_topic, self._unsubscribe
        )
        self._topics: dict[bytes, TopicSubscription] = {}
        self._positions: dict[TopicAddress, _Position] = {}
        self._restoring: set[str] = set()
        self._down_since: float | None = None
        self._gaps = 0
        self._expected: dict[TopicAddress, EntryId] = {}
        self._invalid = LogThrottle(_INVALID_INTERVAL)

    @property
    def is_up(self) -> bool:
        return self.client.is_up and not self._restoring

    @property
    def is_settled(self) -> bool:
        return not self._expected

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

    def expect(self, address: TopicAddress, id_: EntryId) -> None:
        """Redis has accepted a message: if the topic is subscribed here, it comes back."""
        position = self._positions.get(address)
        if position is not None and position.newest is not None and position.newest < id_:
            self._expected[address] = id_

    def _request_topic(self, topic: TopicSubscription) -> None:
        """Subscribe the channel, then read the stream: no message lies between them."""
        id_ = self._subscriptions.new_id(topic)
        position = self._positions.setdefault(topic.address, _Position())
        position.held = []
        self._topics[topic.name.encode("utf-8")] = topic

        def on_subscribed(reply: Any) -> None:
            if topic.id == id_ and isinstance(reply, BrokerUnavailable):
                self._refuse(topic, reply)

        def on_history(reply: Any) -> None:
            if topic.id == id_:
                self._on_history(topic, position, reply)

        since = "" if position.newest is None else str(position.newest)
        stream = self._names.stream(topic.address)
        self.client.request(("SUBSCRIBE", topic.name), on_subscribed)
        self.client.request(("EVAL", scripts.READ, 1, stream, since), on_history)

    def _on_history(self, topic: TopicSubscription, position: _Position, reply: Any) -> None:
        try:
            if isinstance(reply, BrokerUnavailable):
                raise reply
            history = scripts.parse_history(reply)
        except (BrokerUnavailable, InvalidReply) as error:
            self._refuse(topic, BrokerUnavailable(str(error)))
            return
        is_missing = False
        if position.newest is None:
            position.newest = history.newest
        else:
            is_missing = not self._is_complete(history, position.newest)
            if history.newest < position.newest:
                position.newest = NONE  # another stream begins
        held, position.held = position.held or [], None
        for entry in (*history.entries, *held):
            self._deliver(topic, position, entry)
        self._restored(topic.id)
        self._subscriptions.confirm(topic)
        if is_missing:
            self._gaps += 1
            self._log.warn(
                "{topic}: Redis no longer has all messages of the outage; some may be missing",
                topic=topic.address.path,
            )
        self._log_restored()

    def _is_complete(self, history: History, position: EntryId) -> bool:
        down_since = self._clock.seconds() if self._down_since is None else self._down_since
        outage = self._clock.seconds() - down_since
        return history.is_complete_after(position, outage, self._history.seconds)

    def _refuse(self, topic: TopicSubscription, why: BrokerUnavailable) -> None:
        self._log.warn("Redis refuses {topic}: {why}", topic=topic.address.path, why=why)
        self._subscriptions.refuse(topic, why)

    def _unsubscribe(self, topic: TopicSubscription) -> None:
        self._forget(topic)
        if self.client.is_up:
            self.client.request(("UNSUBSCRIBE", topic.name), _ignore)
        self._restored(topic.id)
        self._log_restored()

    def _forget(self, topic: TopicSubscription) -> None:
        self._topics.pop(topic.name.encode("utf-8"), None)
        self._positions.pop(topic.address, None)
        self._expected.pop(topic.address, None)

    def _deliver(self, topic: TopicSubscription, position: _Position, entry: Entry) -> None:
        if position.newest is not None and entry.id <= position.newest:
            return  # it was read from the stream already
        position.newest = entry.id
        topic.deliver(Message(topic.address, entry.sender, json_body(entry.body)))
        if self._expected and self._expected.get(topic.address, entry.id) <= entry.id:
            self._expected.pop(topic.address, None)

    def _restored(self, id_: str) -> None:
        self._restoring.discard(id_)

    def _log_restored(self) -> None:
        """After the last topic of an outage, log its end."""
        if self._restoring or self._down_since is None:
            return
        seconds = self._clock.seconds() - self._down_since
        self._down_since = None
        if self._gaps:
            self._losses.gaps += 1
            self._losses.seconds += seconds
        self._log.warn(
            "{count} topics are subscribed again after {seconds:.1f} s; "
            "{gaps} of them may have missed messages",
            count=len(self._subscriptions),
            seconds=seconds,
            gaps=self._gaps,
        )
        self._gaps = 0

    # Called by the client.

    def on_connected(self) -> None:
        """Request all topics again, before any new one."""
        for topic in self._subscriptions:
            self._request_topic(topic)
            self._restoring.add(topic.id)
        self._log_restored()

    def on_message(self, channel: bytes, payload: bytes) -> None:
        topic = self._topics.get(channel)
        if topic is None:
            return  # sent before Redis read the UNSUBSCRIBE
        try:
            entry = scripts.parse_payload(payload)
        except InvalidReply as error:
            self._losses.misrouted += 1
            if self._invalid.allow(topic.name, self._clock.seconds()):
                self._log.error(
                    "a message on the channel of {topic} is dropped: {why}",
                    topic=topic.address.path,
                    why=error,
                )
            return
        position = self._positions[topic.address]
        if position.held is None:
            self._deliver(topic, position, entry)
        else:
            position.held.append(entry)

    def on_lost(self, last_heard: float) -> None:
        """Fail pending requests and keep the topics: they are requested again."""
        self._restoring.clear()
        self._expected.clear()
        topics = tuple(self._subscriptions)
        self._subscriptions.fail(topics, BrokerUnavailable("the connection was lost"))
        kept = set(self._subscriptions)
        for topic in topics:
            if topic not in kept:
                self._forget(topic)
        if self.client.running and kept and self._down_since is None:
            self._down_since = last_heard
            self._log.warn("{count} topics get nothing until Redis is back", count=len(kept))
        if self.client.running and self._closes_on_loss:
            self._subscriptions.notify_lost(topics)


def _ignore(_: Any) -> None:
    """The reply changes nothing."""
