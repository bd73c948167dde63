"""Reads from Kafka. One thread polls librdkafka, and only this thread uses the client.

Partitions are assigned one by one, each from a given offset: no group, no commits, no patterns. The
position in each partition is kept here, so that no record is delivered twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, ClassVar, Protocol

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.brokers.kafka.options import CONSUMER, Options
from topicsvc.brokers.kafka.producer import CELL_HEADER
from topicsvc.brokers.kafka.record_queue import Record, RecordQueue

__all__ = ["Consumer", "ConsumerHandler", "cell_header"]

POLL_TIMEOUT = 0.02
"""Seconds between two checks for new commands without records. Records are processed at once."""

MAX_BATCH = 500
"""Records that are taken from librdkafka at once."""

MAX_SINGLE_REQUESTS = 1
"""Up to this number of new topics, each is requested by itself; otherwise the list of all is."""

RETRY_DELAY = 0.5
"""Seconds that such a request may take, and seconds to wait after an internal error."""

_OFFSET_MISSING = (KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION)
_REFUSED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)


class ConsumerHandler(Protocol):
    """Handles the events of a consumer. All methods are called in the reactor's thread."""

    def on_record(self, record: Record) -> None:
        """A record for a subscription has arrived."""
        ...

    def on_misrouted(self, name: str) -> None:
        """A record of a partition that is not assigned has arrived, and is dropped."""
        ...

    def on_offset_missing(self, id_: str, partition: int, offset: int) -> None:
        """The broker does not have `offset`, which was the next one. Reading has stopped."""
        ...

    def on_topic_refused(self, id_: str, why: str) -> None:
        """The broker does not serve this topic any more."""
        ...

    def on_disconnected(self) -> None:
        """All connections to the broker are lost; it may be down."""
        ...

    def on_error(self, why: str) -> None:
        """An error has occurred, from which librdkafka tries to recover."""
        ...


@dataclass(slots=True)
class _Position:
    """The next offset of a partition, and the id of its subscription."""

    id: str
    next: int


class Consumer:
    """Reads the assigned partitions.

    Args:
        options: see `topicsvc.brokers.kafka.options.connection_options`.
        reactor: in whose thread the handler is called.
        handler: handles the events.
        make: makes librdkafka's client.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        options: Options,
        reactor: Any,
        handler: ConsumerHandler,
        make: Callable[[Options], Any] = KafkaConsumer,
    ) -> None:
        self._options = {**options, **CONSUMER, "error_cb": self._on_error}
        self._reactor = reactor
        self._handler = handler
        self._make = make
        self._client: Any = None
        self._queue = RecordQueue(reactor, handler.on_record)
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._positions: dict[tuple[str, int], _Position] = {}
        self._new_topics: set[str] = set()
        self._is_reading_paused = False
        self._is_dispatching = False
        self._stopping = Event()
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        """Start the client. Its threads do not survive a fork: call this after daemonizing."""
        self._client = self._make(self._options)
        Thread(target=self._serve, name="topicsvc reads from Kafka", daemon=True).start()

    def stop(self) -> Deferred[None]:
        """Stop reading; fires when the client is closed."""
        self._stopping.set()
        self._queue.close()
        return self._stopped

    def assign(self, id_: str, name: str, offsets: Mapping[int, int]) -> None:
        """Read partitions of a topic, each from an offset on.

        Args:
            id_: of the subscription; each record contains it.
            name: of the topic.
            offsets: for each partition the offset of the first record to read. A partition that
                is assigned already continues there.
        """
        self._commands.put(lambda: self._assign(id_, name, offsets))

    def unassign(self, id_: str, name: str) -> None:
        """Stop reading the partitions of a topic. Some of its records may still be delivered."""
        self._commands.put(lambda: self._unassign(id_, name))

    def has_delivered(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        """Whether the records of each partition are delivered up to and including its offset."""
        if not offsets:
            return True  # the records in the queue do not matter
        for partition, offset in offsets.items():
            position = self._positions.get(partition)
            if position is None or position.next <= offset:
                return False
        # Check in this order: the thread moves a position, fills the queue, and resets the flag.
        return not self._is_dispatching and self._queue.is_empty

    def pause(self) -> None:
        """Deliver no records until `resume`."""
        self._queue.pause()

    def resume(self) -> None:
        """Deliver records again."""
        self._queue.resume()

    # In the thread.

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._poll()
            except Exception:
                failed = "internal error in the thread that reads from Kafka"
                self._notify(self._log.failure, failed, Failure())
                self._stopping.wait(RETRY_DELAY)
        self._client.close()
        self._notify(self._stopped.callback, None)

    def _poll(self) -> None:
        while True:
            try:
                self._commands.get_nowait()()
            except Empty:
                break
        self._find_new_topics()
        self._pause_or_resume()
        first = self._client.poll(POLL_TIMEOUT)
        if first is not None:
            self._is_dispatching = True
            try:
                self._dispatch([first, *self._client.consume(MAX_BATCH - 1, 0)])
            finally:
                self._is_dispatching = False

    def _find_new_topics(self) -> None:
        """Request the metadata of new topics.

        librdkafka would request it too, but only once a second.
        """
        topics, self._new_topics = self._new_topics, set()
        try:
            if len(topics) > MAX_SINGLE_REQUESTS:
                self._client.list_topics(timeout=RETRY_DELAY)
            else:
                for name in topics:
                    self._client.list_topics(name, timeout=RETRY_DELAY)
        except KafkaException as error:
            self._on_error(error.args[0])

    def _assign(self, id_: str, name: str, offsets: Mapping[int, int]) -> None:
        known = [TopicPartition(name, each) for each in offsets if (name, each) in self._positions]
        if known:
            self._client.incremental_unassign(known)
        assigned = [TopicPartition(name, *each) for each in offsets.items()]
        self._client.incremental_assign(assigned)
        self._new_topics.add(name)
        for each in assigned:
            self._positions[name, each.partition] = _Position(id_, each.offset)
        if self._is_reading_paused:
            self._client.pause(assigned)

    def _unassign(self, id_: str, name: str) -> None:
        ended = [
            partition
            for partition, position in self._positions.items()
            if partition[0] == name and position.id == id_
        ]
        for partition in ended:
            del self._positions[partition]
        if ended:
            self._client.incremental_unassign([TopicPartition(*each) for each in ended])

    def _pause_or_resume(self) -> None:
        """Pause reading while the queue is full. librdkafka must be polled all the same."""
        if self._is_reading_paused:
            if self._queue.has_room:
                self._is_reading_paused = False
                self._client.resume(self._assigned())
        elif self._queue.is_full:
            self._is_reading_paused = True
            self._client.pause(self._assigned())

    def _assigned(self) -> list[TopicPartition]:
        return [TopicPartition(*each) for each in self._positions]

    def _dispatch(self, messages: Iterable[Any]) -> None:
        """Find the subscription of each message, and put its record into the queue."""
        records = []
        for message in messages:
            error = message.error()
            position = self._positions.get((message.topic(), message.partition()))
            if error is not None:
                self._on_message_error(error, message, position)
            elif position is None:
                self._notify(self._handler.on_misrouted, message.topic())
            elif (offset := message.offset()) >= position.next:
                position.next = offset + 1
                cell = cell_header(message.headers())
                partition, epoch = message.partition(), message.leader_epoch()
                records.append(Record(position.id, message.value(), cell, partition, offset, epoch))
        if records:
            self._queue.put(records)

    def _on_message_error(
        self, error: KafkaError, message: Any, position: _Position | None
    ) -> None:
        if position is None:
            self._on_error(error)
        elif error.code() in _OFFSET_MISSING:
            partition = message.partition()
            self._notify(self._handler.on_offset_missing, position.id, partition, position.next)
        elif error.code() in _REFUSED:
            self._notify(self._handler.on_topic_refused, position.id, error.str())
        else:
            self._on_error(error)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._notify(self._handler.on_disconnected)
        elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:  # no group is needed
            self._notify(self._handler.on_error, error.str())

    def _notify(self, callback: Callable[..., object], *arguments: object) -> None:
        self._reactor.callFromThread(callback, *arguments)


def cell_header(headers: Iterable[tuple[str, bytes | None]] | None) -> bytes | None:
    """The last header with this name, as Java's ``lastHeader`` returns it."""
    found = None
    for name, value in headers or ():
        if name == CELL_HEADER:
            found = value
    return found
