"""Decides which partitions are read from which offset, and watches over the broker.

The start of a topic is the end offsets that Kafka reports. When the broker is back after an outage,
reading continues where it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.brokers.kafka.consumer import Consumer
from topicsvc.brokers.kafka.lanes import Lane
from topicsvc.brokers.kafka.liveness import LivenessProbe
from topicsvc.brokers.kafka.log_reader import LogReader, make_message
from topicsvc.brokers.kafka.metadata import EndOffsets, MetadataClient, NoSuchTopic
from topicsvc.brokers.kafka.producer import Position
from topicsvc.brokers.kafka.recall import Recall
from topicsvc.brokers.kafka.record_queue import Record
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

__all__ = ["Reader"]

TOPIC_RETRY_DELAY = 0.1
"""Seconds after which a topic that the broker does not have yet is requested again."""

MAX_TOPIC_RETRIES = 50
"""Retries for such a topic; after them the broker is taken not to create topics itself."""

MAX_PER_REQUEST = 200
"""Topics in one request for offsets, and partitions in one probe."""

PARTITION_CHECK_INTERVAL = 60.0
"""Seconds between two checks for new partitions."""

MAX_ERRORS_LOGGED = 20
"""Different errors that are logged during one outage."""

_DETAILS = re.compile(r" \(.*\)$")


class Reader:
    """The subscriptions, and the partitions that are read for them.

    Args:
        clock: the time and timers.
        now: the time of day, in seconds since the epoch.
        history: see `topicsvc.brokers.kafka.broker.KafkaBroker`.
        closes_on_loss: see there.
        losses: the counters of losses.

    Attributes:
        last_error: the last known reason why the broker is not up; empty if there is none.
    """

    _log: ClassVar[Logger] = Logger()
    _consumer: Consumer
    _metadata: MetadataClient

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        history: HistorySettings,
        closes_on_loss: bool,
        losses: Losses,
    ) -> None:
        self._clock = clock
        self._closes_on_loss = closes_on_loss
        self._losses = losses
        self._subscriptions = Subscriptions(
            clock, broker_name, self._request_topic, self._unsubscribe
        )
        self._recall = Recall(clock, now, history, self._subscriptions, self)
        self._watched = self._recall.watched
        self._partitions: dict[tuple[str, int], Lane] = {}  # assigned ones
        self._lanes: dict[str, dict[int, Lane]] = {}  # the same, by their ids
        self._expected_offsets: dict[tuple[str, int], int] = {}  # of the last accepted messages
        self._liveness = LivenessProbe(
            clock, self._probe, self._on_up, self._on_down, self.on_error
        )
        self._down_since: float | None = None
        self._probed = 0
        self.last_error = ""
        self._throttle = LogThrottle(max_keys=MAX_ERRORS_LOGGED)
        self._queued: dict[str, int] = {}  # ids to request, and the retries of each
        self._is_requesting = False
        self._delayed_calls: set[IDelayedCall] = set()
        self._partition_check = LoopingCall(self._check_partitions)
        self._partition_check.clock = clock

    def __len__(self) -> int:
        return len(self._subscriptions)

    @property
    def is_up(self) -> bool:
        return self._liveness.is_up

    @property
    def is_settled(self) -> bool:
        is_delivered = self._consumer.has_delivered(self._expected_offsets)
        return is_delivered and not self._recall.is_holding

    def expect_echo(self, name: str, position: Position) -> None:
        """A message sent from here is at this position: if the topic is read, it comes back."""
        partition = name, position.partition
        if partition in self._partitions:
            expected = self._expected_offsets.get(partition, 0)
            self._expected_offsets[partition] = max(position.offset, expected)

    def subscribe(
        self,
        address: TopicAddress,
        deliver: Deliver,
        lost: OnLost | None,
        missed: OnMissed | None = None,
    ) -> Deferred[Subscription]:
        return self._subscriptions.subscribe(address, deliver, lost, missed)

    def recall(self, address: TopicAddress) -> Deferred[TopicLog] | None:
        topic = self._subscriptions.confirmed(address)
        if topic is None:
            return fail(BrokerUnavailable("the topic is not subscribed"))
        return self._recall.recall(topic, self.is_up)

    def catch_up(self, address: TopicAddress) -> Deferred[None] | None:
        topic = self._subscriptions.confirmed(address)
        return None if topic is None or not self.is_up else self._recall.catch_up(topic)

    def start(self, consumer: Consumer, metadata: MetadataClient, log_reader: LogReader) -> None:
        self._consumer, self._metadata = consumer, metadata
        self._recall.start(metadata, log_reader)
        self._liveness.start()
        self._partition_check.start(PARTITION_CHECK_INTERVAL, now=False).addErrback(
            lambda failure: self._log.failure(
                "internal error: the checks for new partitions have ended", failure
            )
        )

    def stop(self) -> None:
        self._liveness.stop()
        self._recall.stop()
        self._subscriptions.fail(self._subscriptions, BrokerUnavailable("stopping"))
        self._partition_check.stop()
        for call in self._delayed_calls:
            call.cancel()
        self._delayed_calls.clear()

    # Requests for topics.

    def _request_topic(self, topic: TopicSubscription) -> None:
        self._enqueue(self._subscriptions.new_id(topic), 0)

    def _enqueue(self, id_: str, retries: int) -> None:
        """Request the offsets of a topic.

        All topics that are enqueued in one reactor iteration, or while a request is running, are
        requested together.
        """
        self._queued[id_] = retries
        if not self._is_requesting:
            self._is_requesting = True
            self._call_later(0, self._request_offsets)

    def _request_offsets(self) -> None:
        retries = {id_: self._queued.pop(id_) for id_ in list(self._queued)[:MAX_PER_REQUEST]}
        topics = {id_: topic for id_ in retries if (topic := self._subscriptions.by_id(id_))}
        if not topics:
            self._request_next()
            return
        requested = self._metadata.end_offsets([topic.name for topic in topics.values()])

        def succeeded(ends: dict[str, EndOffsets | BrokerUnavailable]) -> None:
            for id_, topic in topics.items():
                if topic.id == id_:
                    self._on_end_offsets(topic, ends[topic.name], retries[id_])

        def failed(failure: Failure) -> None:
            if not failure.check(BrokerUnavailable):
                self._log.failure("internal error: topics could not be requested", failure)
            self._liveness.suspect()
            why = BrokerUnavailable(failure.getErrorMessage())
            for id_, topic in topics.items():
                if topic.id == id_:
                    self._refuse(topic, why)

        requested.addCallback(succeeded)
        requested.addErrback(failed)
        requested.addBoth(lambda _: self._request_next())

    def _request_next(self) -> None:
        self._is_requesting = bool(self._queued)
        if self._is_requesting:
            self._call_later(0, self._request_offsets)

    def _on_end_offsets(
        self, topic: TopicSubscription, ends: EndOffsets | BrokerUnavailable, retries: int
    ) -> None:
        if isinstance(ends, NoSuchTopic) and retries < MAX_TOPIC_RETRIES:
            self._call_later(TOPIC_RETRY_DELAY, self._enqueue, topic.id, retries + 1)
        elif isinstance(ends, BrokerUnavailable):
            self._refuse(topic, ends)
        else:
            self._assign(topic, ends)
            self._subscriptions.confirm(topic)

    def _assign(self, topic: TopicSubscription, offsets: EndOffsets) -> None:
        lanes = self._lanes.setdefault(topic.id, {})
        for partition, offset in offsets.items():
            lane = lanes.get(partition)
            if lane is None:
                lanes[partition] = self._partitions[topic.name, partition] = Lane(offset)
            else:
                lane.next = offset
        self._consumer.assign(topic.id, topic.name, offsets)

    def _refuse(self, topic: TopicSubscription, why: BrokerUnavailable) -> None:
        self._log.warn("the broker does not serve {topic}: {why}", topic=topic.name, why=why)
        self._subscriptions.refuse(topic, why)

    def _unsubscribe(self, topic: TopicSubscription) -> None:
        self._recall.forget(topic.id)
        ended = self._lanes.pop(topic.id, {})
        for partition in ended:
            del self._partitions[topic.name, partition]
            self._expected_offsets.pop((topic.name, partition), None)
        if ended:
            self._consumer.unassign(topic.id, topic.name)

    def _check_partitions(self) -> None:
        """Read new partitions of the topics, from offset 0."""
        topics = [topic for topic in self._subscriptions if topic.is_confirmed]
        if not topics or not self.is_up:
            return
        requested = self._metadata.partitions([topic.name for topic in topics])

        def succeeded(partitions: dict[str, list[int]]) -> None:
            for topic in topics:
                known = self._partitions
                existing = partitions.get(topic.name, ())
                new = [each for each in existing if (topic.name, each) not in known]
                if new and topic.is_confirmed:
                    self.add(topic, new)

        self._recall.check_topics()
        requested.addCallbacks(succeeded, lambda failure: failure.trap(BrokerUnavailable))

    def _call_later(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function after some seconds, unless the service has stopped by then."""

        def run() -> None:
            self._delayed_calls.discard(call)
            function(*arguments)

        call = self._clock.callLater(seconds, run)
        self._delayed_calls.add(call)

    # Whether the broker is up.

    def _probe(self) -> Deferred[None]:
        """Probe the leaders of the assigned partitions; if there are many, of a part at a time."""
        partitions = list(self._partitions)
        if self._probed >= len(partitions):
            self._probed = 0
        sample = partitions[self._probed : self._probed + MAX_PER_REQUEST]
        self._probed += MAX_PER_REQUEST
        return self._metadata.probe(sample)

    def _on_up(self) -> None:
        self.last_error = ""
        self._throttle.reset()
        if self._down_since is None:
            self._log.info("connected to Kafka")
            return
        self._losses.reconnects += 1
        self._log.warn(
            "the broker is back after {seconds:.1f} s: reading of {topics} continues "
            "where it stopped",
            seconds=self._clock.seconds() - self._down_since,
            topics=counted(len(self), "topic", "topics"),
            count=len(self),
        )
        self._down_since = None

    def _on_down(self, why: str) -> None:
        self._down_since = self._clock.seconds()
        topics = tuple(self._subscriptions)
        self._subscriptions.fail(
            [topic for topic in topics if not topic.is_confirmed],
            BrokerUnavailable("the broker was lost"),
        )
        self._log.warn(
            "the broker is lost: {why}; {topics} until it is back",
            why=why,
            topics=counted(len(self), "topic waits", "topics wait"),
            count=len(self),
        )
        if self._closes_on_loss:
            self._subscriptions.notify_lost(topics)

    # Called by `Recall`.

    def lanes(self, topic: TopicSubscription) -> dict[int, Lane]:
        return self._lanes[topic.id]

    def add(self, topic: TopicSubscription, partitions: Iterable[int]) -> None:
        self._assign(topic, dict.fromkeys(partitions, 0))
        self._recall.on_new_partitions(topic)

    def deliver(self, topic: TopicSubscription, record: Record) -> Message:
        """Deliver a record, and move the place in its partition."""
        _, value, cell, partition, offset, epoch = record
        place = self._lanes[record.id][partition].advance(epoch, offset)
        message = make_message(topic.address, value, cell, Mark(partition, place))
        topic.deliver(message)
        return message

    # Called by the consumer.

    def on_disconnected(self) -> None:
        self._liveness.suspect()

    def on_error(self, why: str) -> None:
        """Log an error, each one once until the broker is up again."""
        why = self.last_error = _DETAILS.sub("", why)
        if self._throttle.allow(why, self._clock.seconds()):
            self._log.warn("Kafka error: {why}", why=why)

    def on_record(self, record: Record) -> None:
        topic = self._subscriptions.by_id(record.id)
        if topic is None:
            return  # it was in the queue when the topic was unsubscribed
        watched = self._watched.get(record.id)
        if watched is None:
            self.deliver(topic, record)
        else:
            self._recall.take(watched, self._lanes[record.id][record.partition], record)

    def on_misrouted(self, name: str) -> None:
        self._losses.misrouted += 1
        self._log.error("the broker sent a message of {topic}: dropped", topic=name)

    def on_topic_refused(self, id_: str, why: str) -> None:
        topic = self._subscriptions.by_id(id_)
        if topic is not None:
            self._refuse(topic, BrokerUnavailable(why))

    def on_offset_missing(self, id_: str, partition: int, offset: int) -> None:
        """The broker has lost or deleted the next messages: continue with the first available."""
        topic = self._subscriptions.by_id(id_)
        if topic is None:
            return
        name = topic.name

        def read_on(watermarks: tuple[int, int]) -> None:
            if topic.id != id_:
                return
            low, high = watermarks
            self._losses.gaps += 1
            self._log.warn(
                "messages of {topic} are missing: the broker has partition {partition} from "
                "offset {low} to {high}, and {offset} was next",
                topic=name,
                partition=partition,
                low=low,
                high=high,
                offset=offset,
            )
            self._recall.on_missed(topic, partition)
            self._assign(topic, {partition: min(max(offset, low), high)})
            if self._closes_on_loss:
                self._subscriptions.notify_lost([topic])

        def retry(failure: Failure) -> None:
            failure.trap(BrokerUnavailable)
            self._call_later(TOPIC_RETRY_DELAY, self.on_offset_missing, id_, partition, offset)

        self._metadata.watermarks(name, partition).addCallbacks(read_on, retry)


def broker_name(topic: TopicAddress) -> str:
    """Return Kafka's name of a topic."""
    return topic.broker_name
