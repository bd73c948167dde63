"""Redis or Valkey: any number of processes share the messages, and an outage loses none.

One connection reads and one sends, so a flood in one direction does not delay the other. A topic
has one subscription at Redis for all its subscribers here.

A topic's stream keeps its newest messages for some time. When the reading connection was lost, the
messages that were sent meanwhile are read from the streams, before `is_up` is true. Each message
names the one before it. Where this chain breaks, messages may be missing: this is logged and
counted, and the subscribers are notified. The same happens if Redis was restarted or replaced,
because it may have lost messages that it had accepted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from topicsvc.brokers.in_flight import InFlightLimit, OnResult
from topicsvc.brokers.message_text import json_body
from topicsvc.brokers.reader_and_sender import ReaderAndSender
from topicsvc.brokers.redis import scripts
from topicsvc.brokers.redis.client import Command, OnReply, RedisClient, Session
from topicsvc.brokers.redis.identity import Identity
from topicsvc.brokers.redis.reads import OnHistory, Since, StreamReads
from topicsvc.brokers.redis.scripts import (
    BEGINNING,
    EntryId,
    History,
    InvalidReply,
    Step,
    StreamPlace,
)
from topicsvc.brokers.subscriptions import (
    Deliver,
    OnLost,
    OnMissed,
    Subscriptions,
    TopicSubscription,
)
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Losses, Mark, Message, Subscription, TopicLog
from topicsvc.printable import counted
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

__all__ = ["RedisBroker"]

_INVALID_INTERVAL = 60.0
"""Seconds between two lines of the log about messages that are not from topicsvc."""

_LOST_READS_INTERVAL = 60.0
"""Seconds between two lines of the log about reads without a reply."""

PLACE_LIFETIME = 86400
"""Seconds for which the key with the newest place of a topic is kept."""

UNUSED_PLACE_LIFETIME = 3600
"""The same for a topic without any message: each subscription makes such a key."""

REFRESH_INTERVAL = 1200.0
"""Seconds after which the key of a subscribed topic is kept for its whole time again."""

REFRESH_TICK = 10.0
"""Seconds between two looks for such keys."""

MAX_REFRESHED = 200
"""The most keys for each look: this is enough for 24,000 topics."""

MAX_RECALLS = 5
"""Attempts to read the log of a topic that changes in ways that only other programs can cause."""


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
        where: the broker's address, for the log.
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
        where: str = "",
    ) -> None:
        random = random or Random()  # noqa: S311 - jitter, no secret
        losses = Losses()
        names = _Names(prefix)
        kept = _Kept(history)
        reader = _Reader(clock, names, kept, closes_on_loss, losses)
        sender = _Sender(names, kept, reader)
        reader.client = RedisClient("reader", endpoint, clock, session, reader, random, where)
        sender.client = RedisClient("sender", endpoint, clock, session, sender, random, where)
        reader.sender = sender.client
        super().__init__(reader, sender, losses)


class _Kept:
    """What Redis keeps of a topic, and for how long.

    Attributes:
        messages: most messages of a stream.
        bytes: most bytes of a stream.
        seconds: how long a stream keeps a message. Without positions this is the default, so that
            an outage is bridged.
        place_ms: milliseconds for which the key with the newest place is kept: far longer.
        unused_place_ms: the same for a topic without any message.
        new_generations: numbers that no other generation of any topic has had.
    """

    __slots__ = ("bytes", "messages", "new_generations", "place_ms", "seconds",
                 "unused_place_ms")  # fmt: skip

    def __init__(self, history: HistorySettings) -> None:
        self.messages = history.messages
        self.bytes = history.bytes
        self.seconds = history.seconds or HistorySettings().seconds
        self.place_ms = max(PLACE_LIFETIME, 2 * self.seconds) * 1000
        self.unused_place_ms = UNUSED_PLACE_LIFETIME * 1000
        self.new_generations = count(secrets.randbits(62))


class _Names:
    """The names of keys and channels.

    The braces make all names of a topic belong to one slot of a cluster. The grammar of topic
    addresses excludes braces.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def stream(self, topic: TopicAddress) -> str:
        return f"{self._prefix}stream:{{{topic.broker_name}}}"

    def newest(self, topic: TopicAddress) -> str:
        return f"{self._prefix}newest:{{{topic.broker_name}}}"

    def channel(self, topic: TopicAddress) -> str:
        return f"{self._prefix}channel:{{{topic.broker_name}}}"


class _Sender:
    """The connection that sends."""

    client: RedisClient

    def __init__(self, names: _Names, kept: _Kept, reader: _Reader) -> None:
        self._names = names
        self._kept = kept
        self._reader = reader
        self._in_flight = InFlightLimit()

    def publish(self, message: Message) -> Deferred[None]:
        topic, body, kept, names = message.topic, message.body, self._kept, self._names
        # EVAL, not EVALSHA: if Redis forgets its scripts, requests that are repeated one by one
        # would change places.
        command: Command = (
            *("EVAL", scripts.SEND, 2, names.stream(topic), names.newest(topic)),
            *(names.channel(topic), message.sender or "", body),
            *(kept.messages, kept.bytes, kept.seconds * 1000),
            *(next(kept.new_generations), kept.place_ms),
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
        _leave_other(self.client, self._reader.client)

    def on_message(self, channel: bytes, payload: bytes) -> None:
        pass

    def on_lost(self, last_heard: float) -> None:
        pass


class _Position:
    """How far a topic has been read.

    Attributes:
        id: that of the newest message that was delivered, as text; empty: not known yet.
        generation: see `StreamPlace`.
        is_read: whether the stream has been read up to the messages that arrive now.
        is_proved: whether Redis is the one that has given `place`.
        refreshed_at: when the key with the newest place was last kept, by the clock.
    """

    __slots__ = ("generation", "id", "is_proved", "is_read", "refreshed_at")

    def __init__(self) -> None:
        self.id = b""
        self.generation = 0
        self.is_read = False
        self.is_proved = True
        self.refreshed_at = 0.0

    @property
    def place(self) -> StreamPlace | None:
        """Behind the newest message that was delivered; None: not known yet."""
        return StreamPlace(self.generation, scripts.parse_id(self.id)) if self.id else None

    def move(self, place: StreamPlace) -> None:
        """The messages up to `place` were delivered, or are lost."""
        self.generation = place.generation
        self.id = str(place.id).encode("ascii")


class _Reader:
    """The connection that reads, and the subscriptions."""

    _log: ClassVar[Logger] = Logger()
    client: RedisClient
    sender: RedisClient

    def __init__(
        self,
        clock: IReactorTime,
        names: _Names,
        kept: _Kept,
        closes_on_loss: bool,
        losses: Losses,
    ) -> None:
        self._clock = clock
        self._names = names
        self._kept = kept
        self._closes_on_loss = closes_on_loss
        self._losses = losses
        self._subscriptions = Subscriptions(
            clock, names.channel, self._request_topic, self._unsubscribe, self._forget
        )
        self._topics: dict[bytes, TopicSubscription] = {}
        self._positions: dict[TopicAddress, _Position] = {}
        self._restoring: set[str] = set()
        self._down_since: float | None = None
        self._gaps = 0
        self._expected: dict[TopicAddress, EntryId] = {}
        self._invalid = LogThrottle(_INVALID_INTERVAL)
        self._identity: Identity | None = None
        self._is_limited = False
        self._reads = StreamReads(self._request)
        self._lost_reads = LogThrottle(_LOST_READS_INTERVAL)
        self._refreshing = LoopingCall(self._refresh_keys)
        self._refreshing.clock = clock

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

    def recall(self, address: TopicAddress) -> Deferred[TopicLog]:
        recalled: Deferred[TopicLog] = Deferred()
        self._recall(address, recalled, MAX_RECALLS)
        return recalled

    def expect(self, address: TopicAddress, id_: EntryId) -> None:
        """Redis has accepted a message: if the topic is subscribed here, it comes back."""
        position = self._positions.get(address)
        place = None if position is None else position.place
        if place is not None and place.id < id_:
            self._expected[address] = id_

    # Reading.

    def _request(self, command: Command, on_reply: OnReply) -> None:
        self.client.request(command, on_reply)

    def _request_topic(self, topic: TopicSubscription) -> None:
        """Subscribe the channel, then read the stream: no message lies between them."""
        id_ = self._subscriptions.new_id(topic)
        position = self._positions.setdefault(topic.address, _Position())
        self._topics[topic.name.encode("utf-8")] = topic

        def on_subscribed(reply: Any) -> None:
            if topic.id == id_ and isinstance(reply, BrokerUnavailable):
                self._refuse(topic, reply)

        self.client.request(("SUBSCRIBE", topic.name), on_subscribed)
        self._catch_up(topic, position)

    def _catch_up(self, topic: TopicSubscription, position: _Position) -> None:
        """Deliver what the stream has behind `position`, then what the channel brings.

        Until the stream was read, messages of the channel are dropped. They are in the stream,
        because Redis reads it later.
        """
        id_ = topic.id
        position.is_read = False

        def on_history(history: History | BrokerUnavailable) -> None:
            if topic.id != id_:
                return
            if isinstance(history, BrokerUnavailable):
                self._refuse(topic, history)
            else:
                self._on_history(topic, position, history)

        since = position.place
        if since is None:
            self._read_place(topic.address, position, on_history)
        else:
            place = (str(since.id), since.generation)
            self._read(topic.address, position, place, on_history, lambda: topic.id == id_)

    def _read(
        self,
        address: TopicAddress,
        position: _Position,
        since: Since,
        on_history: OnHistory,
        is_wanted: Callable[[], bool],
    ) -> None:
        """Read what the stream has behind `since`; see `StreamReads.read`."""

        def command(since: Since, limit: int) -> Command:
            position.refreshed_at = self._clock.seconds()
            return self._read_command(address, since, limit)

        self._reads.read(command, since, on_history, is_wanted)

    def _read_place(
        self, address: TopicAddress, position: _Position, on_history: OnHistory
    ) -> None:
        """Read the newest place only. The reply is short, so this waits for no other read."""
        position.refreshed_at = self._clock.seconds()

        def on_reply(reply: Any) -> None:
            history: History | BrokerUnavailable
            try:
                if isinstance(reply, BrokerUnavailable):
                    raise reply
                history = scripts.parse_history(reply)
            except (BrokerUnavailable, InvalidReply) as error:
                history = BrokerUnavailable(str(error))
            on_history(history)

        self.client.request(self._read_command(address, ("", ""), 0), on_reply)

    def _read_command(self, address: TopicAddress, since: Since, limit: int) -> Command:
        kept, names = self._kept, self._names
        return (
            *("EVAL", scripts.READ, 2, names.stream(address), names.newest(address), *since),
            *(next(kept.new_generations), kept.place_ms, kept.unused_place_ms, limit),
        )

    def _on_history(self, topic: TopicSubscription, position: _Position, history: History) -> None:
        is_restoring = topic.id in self._restoring
        is_told = is_broken = False
        since = position.place
        if since is None:
            position.move(history.newest)
        else:
            is_told = not position.is_proved
            steps, is_cut = history.after(since)
            is_broken = is_cut or any(step.is_gap for step in steps)
            self._deliver_steps(topic, position, steps, is_cut, history.newest)
        position.is_read = True
        if self._expected.get(topic.address, history.newest.id) <= history.newest.id:
            self._expected.pop(topic.address, None)
        self._restored(topic.id)
        self._subscriptions.confirm(topic)
        if is_broken:
            self._log.warn(
                "{topic}: Redis no longer has all messages behind {id}; some may be missing",
                topic=topic.address.path,
                id=since and str(since.id),
            )
        if is_broken or is_told:
            if is_restoring:
                self._gaps += 1
            else:
                self._losses.gaps += 1
        self._log_restored()

    def _deliver_steps(
        self,
        topic: TopicSubscription,
        position: _Position,
        steps: list[Step],
        is_cut: bool,
        newest: StreamPlace,
    ) -> None:
        """Deliver messages of the stream, and notify the subscribers of gaps before them."""
        is_told, position.is_proved = position.is_proved, True
        for step in steps:
            if step.is_gap or not is_told:
                is_told = True
                before = StreamPlace(step.place.generation, step.entry.previous)
                self._notify_missed(topic, before)
            position.move(step.place)
            self._deliver(topic, position, step.entry.sender, step.entry.body)
        position.move(newest)
        if is_cut or not is_told:
            self._notify_missed(topic, newest)

    def _deliver(
        self, topic: TopicSubscription, position: _Position, sender: str | None, body: bytes
    ) -> None:
        """Deliver the message that `position` has reached."""
        mark = Mark(0, position.id.decode("ascii"))
        topic.deliver(Message(topic.address, sender, json_body(body), mark))
        expected = self._expected
        if expected and topic.address in expected:
            place = position.place
            if place is not None and expected[topic.address] <= place.id:
                del expected[topic.address]

    def _notify_missed(self, topic: TopicSubscription, place: StreamPlace) -> None:
        """Messages may be missing; others follow behind `place`."""
        epoch = self._epoch(topic.address, place)
        self._subscriptions.notify_missed(topic, TopicLog(epoch, (str(place.id),)))

    def _epoch(self, address: TopicAddress, place: StreamPlace) -> str:
        identity = self._identity or Identity.unknown()
        return identity.epoch(self._names.stream(address), place.generation)

    def _recall(self, address: TopicAddress, recalled: Deferred[TopicLog], attempts: int) -> None:
        """Read the whole stream: the reply comes in order with the messages of the channel."""
        topic = self._topics.get(self._names.channel(address).encode("utf-8"))
        if topic is None:
            recalled.errback(BrokerUnavailable("the topic is not subscribed"))
            return
        id_ = topic.id
        position = self._positions[address]

        def on_history(history: History | BrokerUnavailable) -> None:
            if recalled.called:
                return  # cancelled
            if isinstance(history, BrokerUnavailable):
                recalled.errback(history)
            elif topic.id != id_:
                recalled.errback(BrokerUnavailable("the topic was unsubscribed"))
            elif (
                position.is_read
                and (place := position.place) is not None
                and (place == history.newest or not history.is_kept)
            ):
                recalled.callback(self._log_until(topic.address, place, history))
            elif not position.is_read:
                self._recall(address, recalled, attempts)  # behind the pages that are read now
            elif not attempts:
                recalled.errback(BrokerUnavailable("the keys of the topic do not stay"))
            else:
                self._catch_up(topic, position)
                self._recall(address, recalled, attempts - 1)

        def is_wanted() -> bool:
            return topic.id == id_ and not recalled.called

        self._read(address, position, (str(BEGINNING), ""), on_history, is_wanted)

    def _log_until(self, address: TopicAddress, place: StreamPlace, history: History) -> TopicLog:
        """Make the log of a topic; `place` is its end."""
        if place != history.newest:
            return TopicLog(self._epoch(address, place), (str(place.id),))
        start, entries = history.last(self._kept.seconds)
        messages = tuple(
            (
                Message(address, each.sender, json_body(each.body), Mark(0, str(each.id))),
                max(0.0, (history.time - each.id.milliseconds) / 1000),
            )
            for each in entries
        )
        return TopicLog(self._epoch(address, place), (str(start),), messages)

    def _refresh_keys(self) -> None:
        """Keep the keys of subscribed topics, and compare them with what was delivered."""
        due = self._clock.seconds() - REFRESH_INTERVAL
        refreshed = 0
        for topic in tuple(self._topics.values()):
            position = self._positions[topic.address]
            if position.is_read and position.refreshed_at <= due:
                self._refresh(topic, position)
                refreshed += 1
                if refreshed == MAX_REFRESHED:
                    return

    def _refresh(self, topic: TopicSubscription, position: _Position) -> None:
        id_ = topic.id

        def on_history(history: History | BrokerUnavailable) -> None:
            if topic.id != id_ or isinstance(history, BrokerUnavailable):
                return
            if position.is_read and history.is_kept and position.place != history.newest:
                self._catch_up(topic, position)

        self._read_place(topic.address, position, on_history)

    # Topics.

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
            "{topics} subscribed again after {seconds:.1f} s; "
            "{gaps} of them may have missed messages",
            topics=counted(len(self._subscriptions), "topic is", "topics are"),
            count=len(self._subscriptions),
            seconds=seconds,
            gaps=self._gaps,
        )
        self._gaps = 0

    # Called by the client.

    def on_connected(self) -> None:
        """Request all topics again, before any new one."""
        identity = self.client.identity or Identity.unknown()
        if self._identity is not None and self._identity != identity:
            for position in self._positions.values():
                position.is_proved = False
            if self.client.identity is not None:
                self._log.warn(
                    "Redis was restarted or replaced: it may have lost messages, "
                    "and earlier positions are void"
                )
        self._identity = identity
        if self.client.limitation and not self._is_limited:
            self._log.warn("{why}", why=self.client.limitation)
        self._is_limited = bool(self.client.limitation)
        _leave_other(self.client, self.sender)
        self._refreshing.start(REFRESH_TICK, now=False)
        for topic in self._subscriptions:
            self._request_topic(topic)
            self._restoring.add(topic.id)
        self._log_restored()

    def on_message(self, channel: bytes, payload: bytes) -> None:
        topic = self._topics.get(channel)
        if topic is None:
            return  # sent before Redis read the UNSUBSCRIBE
        position = self._positions[topic.address]
        try:
            previous, id_, sender, body = scripts.split_payload(payload)
        except InvalidReply as error:
            self._losses.misrouted += 1
            if self._invalid.allow(topic.name, self._clock.seconds()):
                self._log.error(
                    "a message on the channel of {topic} is dropped: {why}",
                    topic=topic.address.path,
                    why=error,
                )
            return
        if not position.is_read:
            return  # it is in the stream, which is read behind it
        if previous == position.id:
            position.id = id_
            self._deliver(topic, position, sender, body)
        else:
            self._catch_up(topic, position)

    def on_lost(self, last_heard: float) -> None:
        """Fail pending requests and keep the topics: they are requested again."""
        self._refreshing.stop()
        self._log_lost_reads()
        self._restoring.clear()
        self._expected.clear()
        topics = tuple(self._subscriptions)
        self._subscriptions.fail(topics, BrokerUnavailable("the connection was lost"))
        kept = len(self._subscriptions)
        if self.client.running and kept and self._down_since is None:
            self._down_since = last_heard
            self._log.warn(
                "{topics} nothing until Redis is back",
                topics=counted(kept, "topic gets", "topics get"),
                count=kept,
            )
        if self.client.running and self._closes_on_loss:
            self._subscriptions.notify_lost(topics)

    def _log_lost_reads(self) -> None:
        """If reads waited for a reply, Redis may have closed the connection because of them."""
        reads = len(self._reads)
        if self.client.running and reads and self._lost_reads.allow("", self._clock.seconds()):
            self._log.warn(
                "the reader was lost while {reads} waited for a reply; if this happens again, "
                "raise client-output-buffer-limit pubsub of Redis",
                reads=counted(reads, "read of a stream", "reads of streams"),
                count=reads,
            )


def _leave_other(client: RedisClient, other: RedisClient) -> None:
    """Abort the other connection if it leads to another Redis than that of `client`."""
    mine, theirs = client.identity, other.identity
    if other.is_up and mine is not None and theirs is not None and mine != theirs:
        other.abort("the other connection leads to another server")


def _ignore(_: Any) -> None:
    """The reply changes nothing."""
