"""Reads records back that were written before, for clients that return.

A client of its own reads them in a thread of its own. It exists from the first call on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, TopicPartition
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from topicsvc.brokers.kafka.consumer import cell_header
from topicsvc.brokers.kafka.lanes import Entry, place_id
from topicsvc.brokers.kafka.metadata import to_unavailable
from topicsvc.brokers.kafka.options import CONSUMER, Options
from topicsvc.brokers.message_text import json_body
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Mark, Message
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

__all__ = ["LogReader", "LogRequest", "make_message"]

TIMEOUT = 5.0
"""Seconds for all partitions of one request. What is not read by then is not returned."""

POLL_TIMEOUT = 0.1
"""Seconds between two checks of the time."""

FIRST_RECORDS = 16
"""Records of a partition that are read first. Their length tells how many more are needed."""

MAX_HOLE = 1024
"""How many offsets without a record are passed in the search for the last record."""

_OPTIONS: Options = {
    **CONSUMER,
    "auto.offset.reset": "earliest",
    "allow.auto.create.topics": False,
    "enable.partition.eof": True,
    # A new assignment waits for the response to the last fetch.
    "fetch.wait.max.ms": 10,
}

Partition = tuple[str, int]


class LogRequest(NamedTuple):
    """What to read of one topic.

    Attributes:
        address: of the topic.
        floors: for each partition the offset below which its records are read.
    """

    address: TopicAddress
    floors: Mapping[int, int]


class LogReader:
    """Reads the last records of topics.

    Args:
        options: see `topicsvc.brokers.kafka.options.connection_options`.
        reactor: in whose thread the Deferreds fire.
        history: how many records are needed at most.
        make: makes librdkafka's client.
    """

    def __init__(
        self,
        options: Options,
        reactor: Any,
        history: HistorySettings,
        make: Callable[[Options], Any] = KafkaConsumer,
    ) -> None:
        self._options = {**options, **_OPTIONS}
        self._reactor = reactor
        self._history = history
        self._make = make
        self._pool: ThreadPool | None = None
        self._client: Any = None
        self._is_stopping = False

    def read(
        self, requests: Mapping[str, LogRequest], since: float
    ) -> Deferred[dict[Partition, list[Entry] | None]]:
        """Read the last records of topics.

        Fires with the records of each partition below its floor, the oldest first. If possible,
        there is one more than needed: it names the place at which the others begin. None: they
        could not be read in time.

        Args:
            requests: by the broker's name of each topic.
            since: records before this time of day, in seconds, are not needed.

        Fails with:
            BrokerUnavailable: the broker does not respond.
        """
        if self._is_stopping:
            return fail(BrokerUnavailable("stopping"))
        if self._pool is None:
            self._pool = ThreadPool(0, 1, "topicsvc reads back from Kafka")
            self._pool.start()
        running: Deferred[dict[Partition, list[Entry] | None]] = deferToThreadPool(
            self._reactor, self._pool, self._read, requests, since
        )
        return running.addErrback(to_unavailable)

    def stop(self) -> Deferred[None]:
        """Stop reading; fires when the client is closed."""
        self._is_stopping = True
        if self._pool is None:
            return succeed(None)
        pool, self._pool = self._pool, None

        def close() -> None:
            pool.stop()
            if self._client is not None:
                self._client.close()

        closing_pool = self._reactor.getThreadPool()
        stopping: Deferred[None] = deferToThreadPool(self._reactor, closing_pool, close)
        return stopping

    # In the thread.

    def _read(
        self, requests: Mapping[str, LogRequest], since: float
    ) -> dict[Partition, list[Entry] | None]:
        deadline = self._reactor.seconds() + TIMEOUT
        if self._client is None:
            self._client = self._make(self._options)
        lanes = {
            (name, partition): _LaneReading(request.address, partition, floor, self._history)
            for name, request in requests.items()
            for partition, floor in request.floors.items()
            if floor > 0
        }
        readable = self._find_firsts(lanes, since) if lanes else {}
        if readable:
            self._read_all(readable, deadline)
        return {each: lane.result() for each, lane in lanes.items()}

    def _find_firsts(
        self, lanes: Mapping[Partition, _LaneReading], since: float
    ) -> dict[Partition, _LaneReading]:
        """Find the first needed record of each partition by its time.

        Returns:
            The partitions that can be read.
        """
        milliseconds = max(0, int(since * 1000))
        wanted = [TopicPartition(*each, milliseconds) for each in lanes]
        readable = {}
        for found in self._client.offsets_for_times(wanted, timeout=TIMEOUT):
            if found.error is not None:
                continue
            partition = found.topic, found.partition
            lane = readable[partition] = lanes[partition]
            if found.offset >= 0:  # otherwise no record is new enough
                lane.first = min(lane.first, found.offset)
        return readable

    def _read_all(self, lanes: Mapping[Partition, _LaneReading], deadline: float) -> None:
        assigned = dict.fromkeys(lanes)
        starts = [TopicPartition(*each, lane.first_round()) for each, lane in lanes.items()]
        self._client.incremental_assign(starts)
        try:
            while assigned and not self._is_stopping and self._reactor.seconds() < deadline:
                message = self._client.poll(POLL_TIMEOUT)
                if message is not None:
                    self._take(lanes, assigned, message)
        finally:
            if assigned:
                self._client.incremental_unassign([TopicPartition(*each) for each in assigned])

    def _take(
        self,
        lanes: Mapping[Partition, _LaneReading],
        assigned: dict[Partition, None],
        message: Any,
    ) -> None:
        partition = message.topic(), message.partition()
        lane = lanes.get(partition)
        if lane is None or partition not in assigned or not _feed(lane, message):
            return
        del assigned[partition]
        self._client.incremental_unassign([TopicPartition(*partition)])
        start = lane.next_round()
        if start is not None:
            self._client.incremental_assign([TopicPartition(*partition, start)])
            assigned[partition] = None


class _LaneReading:
    """What was read of one partition.

    Attributes:
        floor: the offset below which records are read.
        first: the offset of the first needed record.
        records: the last records, at most one more than `history` keeps.
        is_complete: whether all records up to the floor were read.
    """

    def __init__(
        self, address: TopicAddress, partition: int, floor: int, history: HistorySettings
    ) -> None:
        self.floor = self.first = floor
        self.records: deque[Entry] = deque()
        self.is_complete = False
        self._address = address
        self._partition = partition
        self._history = history
        self._size = 0
        self._start = floor
        self._is_last_round = False

    def first_round(self) -> int:
        """Begin; return the offset from which on to read."""
        self._start = max(0, self.floor - FIRST_RECORDS)
        return self._start

    def next_round(self) -> int | None:
        """A round has ended. Return the offset from which on to read again, if more is needed."""
        if self._is_last_round or not self.is_complete or self._start == 0:
            return None
        self._is_last_round = True
        start = self.floor - self._needed()
        # One record more: it names the place before the first needed one.
        start = max(0, start if not self.records else max(start, self.first - 1))
        if start >= self._start:
            return None
        self._start = start
        self.records.clear()
        self._size = 0
        self.is_complete = False
        return start

    def _needed(self) -> int:
        """How many offsets below the floor `history` needs, by the length of those read."""
        if not self.records:
            return MAX_HOLE
        average = self._size / len(self.records) + 1
        return 1 + min(self._history.messages, int(self._history.bytes / average) + 1)

    def add(self, message: Any) -> None:
        """Keep a record, as long as `history` needs it."""
        offset, epoch = message.offset(), message.leader_epoch()
        mark = Mark(self._partition, place_id(epoch, offset))
        kept = make_message(self._address, message.value(), cell_header(message.headers()), mark)
        time = message.timestamp()[1] / 1000
        self.records.append(Entry(self._partition, epoch, offset, time, kept))
        self._size += len(kept.body)
        history, records = self._history, self.records
        while len(records) > 1 and (
            len(records) > history.messages + 1
            or self._size - len(records[0].message.body) > history.bytes
        ):
            self._size -= len(records.popleft().message.body)

    def result(self) -> list[Entry] | None:
        return list(self.records) if self.is_complete else None


def _feed(lane: _LaneReading, message: Any) -> bool:
    """Take a message of librdkafka; return whether the round of this partition has ended."""
    error = message.error()
    if error is not None:
        is_end = error.code() == KafkaError._PARTITION_EOF
        lane.is_complete = is_end and message.offset() >= lane.floor
        return is_end or not error.retriable()
    if message.offset() < lane.floor:
        lane.add(message)
    lane.is_complete = message.offset() >= lane.floor - 1
    return lane.is_complete


def make_message(
    address: TopicAddress, value: bytes | None, cell: bytes | None, mark: Mark
) -> Message:
    """Make the message of a record."""
    sender = (cell or b"").decode("utf-8", "replace") or None
    return Message(address, sender, json_body(value or b""), mark)
