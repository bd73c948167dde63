"""Reads back what Kafka has kept of a topic, and notices where messages may have been lost.

A topic is watched from the first call of `recall` on. If the leader of one of its partitions has
changed, its records wait until the cluster has said whether the election may have lost some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar, Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.brokers.kafka.batches import Batches
from topicsvc.brokers.kafka.lanes import (
    Description,
    Entry,
    Lane,
    fits,
    is_short,
    join_log,
    longer_from,
    place_id,
)
from topicsvc.brokers.kafka.log_reader import LogReader, LogRequest
from topicsvc.brokers.kafka.metadata import EndOffsets, MetadataClient
from topicsvc.brokers.kafka.record_queue import Record
from topicsvc.brokers.subscriptions import Subscriptions, TopicSubscription
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message, TopicLog
from topicsvc.scheduling.call_queue import CallQueue
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.settings import HistorySettings

__all__ = ["Lanes", "Recall"]

MAX_TOPICS_READ = 32
"""Topics that are read back together. Each may take `history.bytes` for each partition."""

MAX_TOPICS_DESCRIBED = 100
"""Topics that are described together."""

MAX_HELD_BYTES = 4194304
MAX_HELD_RECORDS = 2000
"""Most records of all topics that wait for a description; above this, none is waited for."""

RECALLS_PER_ITERATION = 4
"""Topics whose log is made in one reactor iteration: some milliseconds each."""

CATCH_UP_INTERVAL = 0.02
"""Seconds between two checks whether all records that were accepted are delivered."""

CATCH_UP_CHECKS = 100
"""The most of these checks: 2 s."""

_WARNING_INTERVAL = 60.0
_RECORD_OVERHEAD = 200


class Lanes(Protocol):
    """What reads the topics. See `topicsvc.brokers.kafka.reader`."""

    def lanes(self, topic: TopicSubscription) -> dict[int, Lane]:
        """The partitions of a topic that are read."""
        ...

    def add(self, topic: TopicSubscription, partitions: Iterable[int]) -> None:
        """Read new partitions of a topic too, from their beginning on."""
        ...

    def deliver(self, topic: TopicSubscription, record: Record) -> Message:
        """Deliver a record to the subscribers, and return its message."""
        ...


class _Recall:
    """One call of `recall`, or several at the same time.

    Attributes:
        waiting: the results.
        floors: for each partition the offset of the first record that belongs to `live`.
        read: what was read back; None: not yet.
        live: the records that were delivered meanwhile.
        size: their bytes.
        is_void: whether messages may have been missed meanwhile: the log begins behind them.
    """

    __slots__ = ("floors", "is_void", "live", "read", "size", "waiting")

    def __init__(self, floors: dict[int, int]) -> None:
        self.waiting: list[Deferred[TopicLog]] = []
        self.floors = floors
        self.read: dict[int, list[Entry] | None] | None = None
        self.live: list[Entry] = []
        self.size = 0
        self.is_void = False


class _Watched:
    """A topic that is watched.

    Attributes:
        topic: its subscription.
        description: the last one; None: it was not described yet.
        recall: the call in progress.
        held: records that wait for a description; None: none waits.
        is_missed: whether messages are missing before the held records.
        behind: calls of `catch_up` that wait for a request.
    """

    __slots__ = ("behind", "description", "held", "is_missed", "recall", "topic")

    def __init__(self, topic: TopicSubscription) -> None:
        self.topic = topic
        self.description: Description | None = None
        self.recall: _Recall | None = None
        self.held: list[Record] | None = None
        self.is_missed = False
        self.behind: list[Deferred[None]] = []


class Recall:
    """The watched topics.

    Args:
        clock: the time and timers.
        now: the time of day, in seconds since the epoch.
        history: what to read back.
        subscriptions: all topics.
        lanes: reads them.

    Attributes:
        watched: for each subscription id its watched topic, for `take`.
    """

    _log: ClassVar[Logger] = Logger()
    _metadata: MetadataClient
    _log_reader: LogReader

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        history: HistorySettings,
        subscriptions: Subscriptions,
        lanes: Lanes,
    ) -> None:
        self._clock = clock
        self._now = now
        self._history = history
        self._subscriptions = subscriptions
        self._lanes = lanes
        self.watched: dict[str, _Watched] = {}
        self._held_size = 0
        self._held_records = 0
        self._reads = Batches(clock, self._read_some, MAX_TOPICS_READ)
        self._descriptions = Batches(clock, self._describe_some, MAX_TOPICS_DESCRIBED)
        self._ends = Batches(clock, self._request_ends, MAX_TOPICS_DESCRIBED)
        self._delayed_calls: set[IDelayedCall] = set()
        self._finishing = CallQueue(clock, RECALLS_PER_ITERATION)
        self._warnings = LogThrottle(_WARNING_INTERVAL)

    def start(self, metadata: MetadataClient, log_reader: LogReader) -> None:
        self._metadata, self._log_reader = metadata, log_reader

    def stop(self) -> None:
        """Fail all calls in progress."""
        self._reads.stop()
        self._descriptions.stop()
        self._ends.stop()
        for call in self._delayed_calls:
            call.cancel()
        self._delayed_calls.clear()
        for id_ in list(self.watched):
            self.forget(id_)

    @property
    def is_holding(self) -> bool:
        """Whether records wait for a description."""
        return self._held_records > 0

    def recall(self, topic: TopicSubscription, is_up: bool) -> Deferred[TopicLog] | None:
        """See `topicsvc.interfaces.Broker`.

        Args:
            topic: a confirmed subscription.
            is_up: whether the broker is up.
        """
        lanes = self._lanes.lanes(topic)
        if self._history.seconds == 0:
            return None
        if not fits(lane.next for lane in lanes.values()):
            self._warn_of_partitions(topic)
            return None
        if not is_up:
            return fail(BrokerUnavailable("the broker is not connected"))
        watched = self.watched.get(topic.id)
        if watched is None:
            watched = self.watched[topic.id] = _Watched(topic)
        if watched.recall is None:
            watched.recall = _Recall({each: lane.next for each, lane in lanes.items()})
            self._reads.add(topic.id)
        result: Deferred[TopicLog] = Deferred()
        watched.recall.waiting.append(result)
        return result

    def catch_up(self, topic: TopicSubscription) -> Deferred[None] | None:
        """See `topicsvc.interfaces.Broker`. Topics are requested together."""
        watched = self.watched.get(topic.id)
        if watched is None:
            return None
        result: Deferred[None] = Deferred()
        watched.behind.append(result)
        self._ends.add(topic.id)
        return result

    def forget(self, id_: str) -> None:
        """A topic is not subscribed any more."""
        watched = self.watched.pop(id_, None)
        if watched is not None:
            behind, watched.behind = watched.behind, []
            for result in behind:
                result.callback(None)
            self._fail(watched, BrokerUnavailable("the topic is not subscribed any more"))
            self._take_held(watched)

    # Called by the reader.

    def take(self, watched: _Watched, lane: Lane, record: Record) -> None:
        """Deliver a record of a watched topic, or let it wait for a description."""
        if watched.held is not None:
            self._hold(watched, watched.held, record)
        elif watched.recall is None and record.epoch != lane.epoch:
            watched.held = []
            self._hold(watched, watched.held, record)
            self._descriptions.add(watched.topic.id)
        else:
            self._deliver(watched, lane, record)

    def on_new_partitions(self, topic: TopicSubscription) -> None:
        """Partitions of a topic are read from their beginning on."""
        watched = self.watched.get(topic.id)
        if watched is None:
            return
        lanes = self._lanes.lanes(topic)
        if not fits(lane.next for lane in lanes.values()):
            self._give_up(topic)
        elif watched.recall is not None:
            for partition, lane in lanes.items():
                watched.recall.floors.setdefault(partition, lane.next)

    def on_missed(self, topic: TopicSubscription, partition: int) -> None:
        """The next records of a partition are missing, and those behind them follow."""
        watched = self.watched.get(topic.id)
        if watched is None:
            self._subscriptions.notify_missed(topic, None)  # positions are those of the process
            return
        lane = self._lanes.lanes(topic)[partition]
        lane.place = lane.epoch = None
        watched.is_missed = True
        if watched.held is None:
            watched.held = []
        self._descriptions.add(topic.id)

    def check_topics(self) -> None:
        """Find topics that were deleted and created again."""
        for id_ in self.watched:
            self._descriptions.add(id_)

    # Reading back.

    def _read_some(self, ids: list[str]) -> Deferred[None]:
        recalls = {
            id_: (watched.topic, watched.recall)
            for id_ in ids
            if (watched := self.watched.get(id_)) and watched.recall
        }
        if not recalls:
            return succeed(None)
        requests = {
            topic.name: LogRequest(topic.address, recall.floors)
            for topic, recall in recalls.values()
        }
        since = self._now() - self._history.seconds
        reading = self._log_reader.read(requests, since)

        def succeeded(records: Mapping[tuple[str, int], list[Entry] | None]) -> None:
            for id_, (topic, recall) in recalls.items():
                recall.read = {
                    partition: records.get((topic.name, partition)) for partition in recall.floors
                }
                if id_ in self.watched:
                    self._descriptions.add(id_)

        def failed(failure: Failure) -> None:
            why = self._unavailable(failure, "topics could not be read back")
            for id_ in recalls:
                if id_ in self.watched:
                    self._fail(self.watched[id_], why)

        return reading.addCallbacks(succeeded, failed)

    def _describe_some(self, ids: list[str]) -> Deferred[None]:
        topics = {watched.topic.name: watched for id_ in ids if (watched := self.watched.get(id_))}
        if not topics:
            return succeed(None)

        def succeeded(descriptions: Mapping[str, Description]) -> None:
            missing = BrokerUnavailable("the broker does not have the topic")
            self._finishing.run(
                partial(self._described, watched, descriptions.get(name), missing)
                for name, watched in topics.items()
            )

        def failed(failure: Failure) -> None:
            why = self._unavailable(failure, "topics could not be described")
            for watched in topics.values():
                self._described(watched, None, why)

        return self._metadata.describe(list(topics)).addCallbacks(succeeded, failed)

    def _described(
        self, watched: _Watched, description: Description | None, why: BrokerUnavailable
    ) -> None:
        """A topic was described; or it was not, for the reason `why`."""
        if not self._is_watched(watched):
            return
        before = watched.description
        if description is not None:
            watched.description = description
            if before is not None and before.epoch != description.epoch:
                self._on_another_topic(watched)
        self._release(watched, description)
        recall = watched.recall
        if not self._is_watched(watched) or recall is None or recall.read is None:
            return
        if description is None:
            self._fail(watched, why)
        else:
            self._finish(watched, recall, recall.read, description)

    def _on_another_topic(self, watched: _Watched) -> None:
        """The topic was deleted and created again."""
        self._log.warn(
            "{topic} was deleted and created again: messages may be missing",
            topic=watched.topic.name,
        )
        for lane in self._lanes.lanes(watched.topic).values():
            lane.place = lane.epoch = None
        watched.is_missed = True
        if watched.held is None:
            watched.held = []

    def _finish(
        self,
        watched: _Watched,
        recall: _Recall,
        read: Mapping[int, list[Entry] | None],
        description: Description,
    ) -> None:
        topic, watched.recall = watched.topic, None
        for partition, lane in self._lanes.lanes(topic).items():
            records = read.get(partition)
            if lane.place is None and records:  # nothing was delivered yet
                lane.place, lane.epoch = records[-1].place, records[-1].epoch
        if recall.is_void:
            log = self._log_from_here(topic, description)
        else:
            now = self._now()
            log = join_log(description, recall.floors, read, recall.live, self._history, now)
            for partition, lane in self._lanes.lanes(topic).items():
                if lane.place is None:
                    lane.place = log.start[partition]
        for waiting in recall.waiting:
            waiting.callback(log)

    def _fail(self, watched: _Watched, why: BrokerUnavailable) -> None:
        recall, watched.recall = watched.recall, None
        for waiting in recall.waiting if recall is not None else ():
            waiting.errback(why)

    def _unavailable(self, failure: Failure, what: str) -> BrokerUnavailable:
        if not failure.check(BrokerUnavailable):
            self._log.failure("internal error: {what}", failure, what=what)
        return BrokerUnavailable(failure.getErrorMessage())

    # Catching up.

    def _request_ends(self, ids: list[str]) -> Deferred[None]:
        behind = {}
        for id_ in ids:
            watched = self.watched.get(id_)
            if watched is not None:
                behind[watched.topic.name] = watched, watched.behind
                watched.behind = []  # later calls need a later end
        if not behind:
            return succeed(None)

        def succeeded(ends: Mapping[str, EndOffsets | BrokerUnavailable]) -> None:
            for name, (watched, results) in behind.items():
                end = ends[name]
                known = {} if isinstance(end, BrokerUnavailable) else end
                self._read_new_partitions(watched, known)
                self._wait_for(watched, known, results, CATCH_UP_CHECKS)

        def failed(failure: Failure) -> None:
            why = self._unavailable(failure, "the ends of topics could not be requested")
            for _, results in behind.values():
                for result in results:
                    result.errback(why)

        return self._metadata.end_offsets(list(behind)).addCallbacks(succeeded, failed)

    def _read_new_partitions(self, watched: _Watched, ends: Mapping[int, int]) -> None:
        """Another process may have found these partitions, and delivered their records."""
        if not self._is_watched(watched):
            return
        new = sorted(ends.keys() - self._lanes.lanes(watched.topic).keys())
        if new:
            self._descriptions.add(watched.topic.id)  # it may be another topic
            self._lanes.add(watched.topic, new)

    def _wait_for(
        self,
        watched: _Watched,
        ends: Mapping[int, int],
        results: list[Deferred[None]],
        checks: int,
    ) -> None:
        """Fire when the records before these ends are delivered, or after so many checks.

        If the last record before an end is the marker of a transaction, it is never delivered.
        """
        if checks and self._is_watched(watched):
            lanes = self._lanes.lanes(watched.topic)
            if any(lanes[each].next < end for each, end in ends.items() if each in lanes):

                def check() -> None:
                    self._delayed_calls.discard(call)
                    self._wait_for(watched, ends, results, checks - 1)

                call = self._clock.callLater(CATCH_UP_INTERVAL, check)
                self._delayed_calls.add(call)
                return
        for result in results:
            result.callback(None)

    # Records that wait.

    def _deliver(self, watched: _Watched, lane: Lane, record: Record) -> None:
        if record.offset >= lane.longer_from or record.epoch != lane.epoch:
            self._check_length(watched, lane, record)
        recall = watched.recall  # a subscriber may call `recall` while it gets the message
        message = self._lanes.deliver(watched.topic, record)
        if recall is None:
            return
        time = self._now()
        recall.live.append(Entry(record.partition, record.epoch, record.offset, time, message))
        recall.size += len(message.body)
        if len(recall.live) > self._history.messages or recall.size > self._history.bytes:
            # More has arrived than is kept: what was read back is not needed.
            recall.is_void = True
            recall.live.clear()
            recall.size = 0

    def _check_length(self, watched: _Watched, lane: Lane, record: Record) -> None:
        """Give up the positions of a topic that would become too long with a record."""
        lane.longer_from = longer_from(record.offset)
        others = [each for each in self._lanes.lanes(watched.topic).values() if each is not lane]
        places = [each.named_place() for each in others]
        if self._is_watched(watched) and not is_short(
            [*places, place_id(record.epoch, record.offset)]
        ):
            self._give_up(watched.topic)

    def _give_up(self, topic: TopicSubscription) -> None:
        """Positions are too long from now on: they become those of the process."""
        self.forget(topic.id)
        self._warn_of_partitions(topic)
        self._subscriptions.notify_missed(topic, None)

    def _warn_of_partitions(self, topic: TopicSubscription) -> None:
        if self._warnings.allow(topic.name, self._clock.seconds()):
            self._log.warn(
                "{topic} has too many partitions for positions of other processes: {count}",
                topic=topic.name,
                count=len(self._lanes.lanes(topic)),
            )

    def _is_watched(self, watched: _Watched) -> bool:
        return self.watched.get(watched.topic.id) is watched

    def _hold(self, watched: _Watched, held: list[Record], record: Record) -> None:
        held.append(record)
        self._held_records += 1
        self._held_size += _size(record)
        if self._held_records > MAX_HELD_RECORDS or self._held_size > MAX_HELD_BYTES:
            self._release(watched, None)

    def _take_held(self, watched: _Watched) -> list[Record]:
        held, watched.held = watched.held or [], None
        self._held_records -= len(held)
        self._held_size -= sum(map(_size, held))
        return held

    def _release(self, watched: _Watched, description: Description | None) -> None:
        """Deliver the records that wait; tell before each where messages may be missing."""
        if watched.held is None:
            return
        held = self._take_held(watched)
        is_clean = description is not None and description.is_clean
        if watched.is_missed:
            self._tell_missed(watched)
        for record in held:
            lane = self._lanes.lanes(watched.topic)[record.partition]
            if record.epoch != lane.epoch and not is_clean and self._is_watched(watched):
                lane.place = None
                self._tell_missed(watched)
            self._deliver(watched, lane, record)

    def _tell_missed(self, watched: _Watched) -> None:
        topic, watched.is_missed = watched.topic, False
        if watched.recall is not None:
            watched.recall.is_void = True
            watched.recall.live.clear()
        if watched.description is not None:
            self._log.warn(
                "{topic}: messages may be missing; sessions with positions are told",
                topic=topic.name,
            )
            log = self._log_from_here(topic, watched.description)
            self._subscriptions.notify_missed(topic, log)

    def _log_from_here(self, topic: TopicSubscription, description: Description) -> TopicLog:
        lanes = self._lanes.lanes(topic)
        places = [lanes[partition].named_place() for partition in sorted(lanes)]
        return TopicLog(description.epoch, tuple(places))


def _size(record: Record) -> int:
    return _RECORD_OVERHEAD + len(record.value or b"")
