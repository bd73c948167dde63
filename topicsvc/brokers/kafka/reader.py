"""Adapter: what of Kafka's topics is read, and how far.

Kafka's own words for where reading may begin and end are asked for; when the broker comes
back, reading goes on where it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.brokers.kafka.consumer import Consumer
from topicsvc.brokers.kafka.liveness import LivenessProbe
from topicsvc.brokers.kafka.metadata import Ends, MetadataClient, NoSuchTopic
from topicsvc.brokers.kafka.producer import Place
from topicsvc.brokers.kafka.record_queue import Record
from topicsvc.brokers.message_text import json_body
from topicsvc.brokers.subscriptions import Deliver, Lost, Subscriptions, TopicSubscription
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Losses, Message, Subscription
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.topics import TopicAddress

__all__ = ["Reader"]

CREATION = 0.1
"""Seconds after which a topic that the broker did not have is asked for again."""

CREATION_TRIES = 50
"""Times that it is; then the broker does not make topics by itself."""

AT_ONCE = 200
"""Topics that are asked for in one question, and partitions whose leaders give signs of life."""

GROWTH = 60.0
"""Seconds between two looks whether topics have new partitions."""

MAX_ERRORS_LOGGED = 20
"""Different errors that are logged during one outage."""

_DETAIL = re.compile(r" \(.*\)$")


class Reader:
    """Who listens to what, and how far it is read.

    Args:
        clock: tells and keeps the time.
        closes_on_loss: see `topicsvc.brokers.kafka.broker.KafkaBroker`.
        losses: counted here.

    Attributes:
        last_error: why it is not up, as far as it can be told.
    """

    _log: ClassVar[Logger] = Logger()
    _consumer: Consumer
    _metadata: MetadataClient

    def __init__(self, clock: IReactorTime, closes_on_loss: bool, losses: Losses) -> None:
        self._clock = clock
        self._closes_on_loss = closes_on_loss
        self._losses = losses
        self._listeners = Subscriptions(clock, broker_name, self._ask, self._let_go)
        self._partitions: dict[tuple[str, int], str] = {}  # what is read, for which id
        self._expected: dict[tuple[str, int], int] = {}  # how far it must be, for all of ours
        self._life = LivenessProbe(
            clock, self._ask_for_life, self._on_up, self._on_down, self.complain
        )
        self._down_since: float | None = None
        self._sampled = 0
        self.last_error = ""
        self._throttle = LogThrottle(max_keys=MAX_ERRORS_LOGGED)
        self._wishes: dict[str, int] = {}  # ids, and how often each was asked for in vain
        self._is_asking = False
        self._due: set[IDelayedCall] = set()
        self._growth = LoopingCall(self._look_for_growth)
        self._growth.clock = clock

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def is_up(self) -> bool:
        return self._life.is_up

    @property
    def is_settled(self) -> bool:
        return self._consumer.has_brought(self._expected)

    def expect(self, name: str, place: Place) -> None:
        """A message of ours stands there: if somebody listens, it will be brought."""
        partition = name, place.partition
        if partition in self._partitions:
            self._expected[partition] = max(place.offset, self._expected.get(partition, 0))

    def subscribe(
        self, address: TopicAddress, deliver: Deliver, lost: Lost | None
    ) -> Deferred[Subscription]:
        return self._listeners.subscribe(address, deliver, lost)

    def start(self, consumer: Consumer, questions: MetadataClient) -> None:
        self._consumer, self._metadata = consumer, questions
        self._life.start()
        self._growth.start(GROWTH, now=False).addErrback(
            lambda failure: self._log.failure("no look for new partitions any more", failure)
        )

    def stop(self) -> None:
        self._life.stop()
        self._listeners.fail(self._listeners, BrokerUnavailable("stopping"))
        self._growth.stop()
        for each in self._due:
            each.cancel()
        self._due.clear()

    # Topics that are asked for.

    def _ask(self, topic: TopicSubscription) -> None:
        self._wish(self._listeners.new_id(topic), 0)

    def _wish(self, id_: str, tries: int) -> None:
        """What is wished for in one turn, or while an answer is awaited, is one question."""
        self._wishes[id_] = tries
        if not self._is_asking:
            self._is_asking = True
            self._later(0, self._ask_for_ends)

    def _ask_for_ends(self) -> None:
        wishes = {id_: self._wishes.pop(id_) for id_ in list(self._wishes)[:AT_ONCE]}
        topics = {id_: topic for id_ in wishes if (topic := self._listeners.by_id(id_))}
        if not topics:
            self._asked()
            return
        asked = self._metadata.end_offsets([topic.name for topic in topics.values()])

        def answered(ends: dict[str, Ends | BrokerUnavailable]) -> None:
            for id_, topic in topics.items():
                if topic.id == id_:
                    self._answered(topic, ends[topic.name], wishes[id_])

        def failed(failure: Failure) -> None:
            if not failure.check(BrokerUnavailable):
                self._log.failure("topics could not be asked for", failure)
            self._life.suspect()
            why = BrokerUnavailable(failure.getErrorMessage())
            for id_, topic in topics.items():
                if topic.id == id_:
                    self._refuse(topic, why)

        asked.addCallback(answered)
        asked.addErrback(failed)
        asked.addBoth(lambda _: self._asked())

    def _asked(self) -> None:
        self._is_asking = bool(self._wishes)
        if self._is_asking:
            self._later(0, self._ask_for_ends)

    def _answered(
        self, topic: TopicSubscription, ends: Ends | BrokerUnavailable, tries: int
    ) -> None:
        if isinstance(ends, NoSuchTopic) and tries < CREATION_TRIES:
            self._later(CREATION, self._wish, topic.id, tries + 1)
        elif isinstance(ends, BrokerUnavailable):
            self._refuse(topic, ends)
        else:
            self._read(topic, ends)
            self._listeners.confirm(topic)

    def _read(self, topic: TopicSubscription, offsets: Ends) -> None:
        self._partitions |= {(topic.name, each): topic.id for each in offsets}
        self._consumer.read(topic.id, topic.name, offsets)

    def _refuse(self, topic: TopicSubscription, why: BrokerUnavailable) -> None:
        self._log.warn("the broker does not serve {topic}: {why}", topic=topic.name, why=why)
        self._listeners.refuse(topic, why)

    def _let_go(self, topic: TopicSubscription) -> None:
        mine = [each for each, id_ in self._partitions.items() if id_ == topic.id]
        for each in mine:
            del self._partitions[each]
            self._expected.pop(each, None)
        if mine:
            self._consumer.forget(topic.id, topic.name)

    def _look_for_growth(self) -> None:
        """A topic may be given more partitions: they are read from their beginning."""
        topics = [topic for topic in self._listeners if topic.is_live]
        if not topics or not self.is_up:
            return
        asked = self._metadata.partitions([topic.name for topic in topics])

        def answered(partitions: dict[str, list[int]]) -> None:
            for topic in topics:
                there = partitions.get(topic.name, ())
                new = {each: 0 for each in there if (topic.name, each) not in self._partitions}
                if new and topic.is_live:
                    self._read(topic, new)

        asked.addCallbacks(answered, lambda failure: failure.trap(BrokerUnavailable))

    def _later(self, seconds: float, do: Callable[..., None], *arguments: Any) -> None:
        """Do something soon, unless the service has stopped by then."""

        def run() -> None:
            self._due.discard(call)
            do(*arguments)

        call = self._clock.callLater(seconds, run)
        self._due.add(call)

    # Whether the broker is there.

    def _ask_for_life(self) -> Deferred[None]:
        """Of the leaders of what is read; where that is much, of one part after the other."""
        partitions = list(self._partitions)
        if self._sampled >= len(partitions):
            self._sampled = 0
        sample = partitions[self._sampled : self._sampled + AT_ONCE]
        self._sampled += AT_ONCE
        return self._metadata.alive(sample)

    def _on_up(self) -> None:
        self.last_error = ""
        self._throttle.reset()
        if self._down_since is None:
            self._log.info("connected to Kafka")
            return
        self._losses.reconnects += 1
        self._log.warn(
            "the broker is back after {seconds:.1f} s: {count} topics are read on from where "
            "they were",
            seconds=self._clock.seconds() - self._down_since,
            count=len(self),
        )
        self._down_since = None

    def _on_down(self, why: str) -> None:
        self._down_since = self._clock.seconds()
        topics = tuple(self._listeners)
        self._listeners.fail(
            [topic for topic in topics if not topic.is_live],
            BrokerUnavailable("the broker was lost"),
        )
        self._log.warn(
            "the broker is lost: {why}; {count} topics wait for its return",
            why=why,
            count=len(self),
        )
        if self._closes_on_loss:
            self._listeners.tell_lost(topics)

    # What the consumer tells.

    def doubted(self) -> None:
        self._life.suspect()

    def complain(self, why: str) -> None:
        """Say what is wrong, each thing once until the broker is there again."""
        why = self.last_error = _DETAIL.sub("", why)
        if self._throttle.allow(why, self._clock.seconds()):
            self._log.warn("trouble with the broker: {why}", why=why)

    def record(self, record: Record) -> None:
        topic = self._listeners.by_id(record.id)
        if topic is None:
            return  # on its way when the topic was let go
        sender = (record.cell or b"").decode("utf-8", "replace") or None
        topic.deliver(Message(topic.address, sender, json_body(record.value or b"")))

    def misrouted(self, name: str) -> None:
        self._losses.misrouted += 1
        self._log.error("the broker brought a message of {topic}: dropped", topic=name)

    def refused(self, id_: str, why: str) -> None:
        topic = self._listeners.by_id(id_)
        if topic is not None:
            self._refuse(topic, BrokerUnavailable(why))

    def not_there(self, id_: str, partition: int, offset: int) -> None:
        """The broker has lost messages, or they were too old for it: read on behind the gap."""
        topic = self._listeners.by_id(id_)
        if topic is None:
            return
        name = topic.name

        def read_on(bounds: tuple[int, int]) -> None:
            if topic.id != id_:
                return
            low, high = bounds
            self._losses.gaps += 1
            self._log.warn(
                "messages of {topic} are missing: the broker has partition {partition} from "
                "{low} to {high}, and {offset} was next",
                topic=name,
                partition=partition,
                low=low,
                high=high,
                offset=offset,
            )
            self._read(topic, {partition: min(max(offset, low), high)})
            if self._closes_on_loss:
                self._listeners.tell_lost([topic])

        def try_again(failure: Failure) -> None:
            failure.trap(BrokerUnavailable)
            self._later(CREATION, self.not_there, id_, partition, offset)

        self._metadata.bounds(name, partition).addCallbacks(read_on, try_again)


def broker_name(topic: TopicAddress) -> str:
    """A topic's name in Kafka."""
    return topic.broker_name
