"""Adapter: reads from Kafka. One thread polls librdkafka, and nobody else touches its client.

Partitions are assigned one by one, each from an offset that is told: no group, no commits, no
patterns. Where reading stands is kept here, so that no record comes twice.
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
from topicsvc.brokers.kafka.producer import CELL
from topicsvc.brokers.kafka.record_queue import Record, RecordQueue

__all__ = ["Consumer", "ConsumerOwner"]

TURN = 0.02
"""Seconds between two looks for new orders while nothing comes; what comes is seen at once."""

BATCH = 500
"""Most records that are taken from librdkafka at once."""

FEW = 1
"""Topics up to which each is asked for by itself, and not the list of all."""

RETRY_DELAY = 0.5
"""Seconds that such a question may take, and before a new turn after one that failed."""

_NOT_THERE = (KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION)
_REFUSED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)


class ConsumerOwner(Protocol):
    """Who a consumer belongs to. All is called in the reactor's thread."""

    def record(self, record: Record) -> None:
        """A record came for a subscription."""
        ...

    def misrouted(self, name: str) -> None:
        """A record came for a partition that nobody reads; it is dropped."""
        ...

    def not_there(self, id_: str, partition: int, offset: int) -> None:
        """The broker has no record of this offset, which was the next, and reading stands."""
        ...

    def refused(self, id_: str, why: str) -> None:
        """The broker does not serve this topic any more."""
        ...

    def doubted(self) -> None:
        """All connections to the broker are gone; it may be, too."""
        ...

    def complain(self, why: str) -> None:
        """Something is wrong that librdkafka tries to mend."""
        ...


@dataclass(slots=True)
class _Place:
    """Where reading stands in a partition."""

    id: str
    next: int


class Consumer:
    """Reads what it is told to.

    Args:
        options: how to reach the broker.
        reactor: where its owner lives.
        owner: hears what comes.
        make: makes librdkafka's client.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        options: Options,
        reactor: Any,
        owner: ConsumerOwner,
        make: Callable[[Options], Any] = KafkaConsumer,
    ) -> None:
        self._options = {**options, **CONSUMER, "error_cb": self._failed}
        self._reactor = reactor
        self._owner = owner
        self._make = make
        self._client: Any = None
        self._queue = RecordQueue(reactor, owner.record)
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._places: dict[tuple[str, int], _Place] = {}
        self._strangers: set[str] = set()
        self._is_held = False
        self._is_sorting = False
        self._stopping = Event()
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        """Begin; the threads of librdkafka are made here, and live in this process alone."""
        self._client = self._make(self._options)
        Thread(target=self._serve, name="topicsvc reads from Kafka", daemon=True).start()

    def stop(self) -> Deferred[None]:
        """Read no more; fires when the client is closed."""
        self._stopping.set()
        self._queue.close()
        return self._stopped

    def read(self, id_: str, name: str, offsets: Mapping[int, int]) -> None:
        """Read partitions of a topic, each from an offset on.

        Args:
            id_: goes with every record.
            name: the topic.
            offsets: for each partition the offset of the first record that is wanted; one
                that is read already goes on there.
        """
        self._orders.put(lambda: self._read(id_, name, offsets))

    def forget(self, id_: str, name: str) -> None:
        """Read the partitions of a topic no more. Some records may still be on their way."""
        self._orders.put(lambda: self._forget(id_, name))

    def has_brought(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        """Whether each of these partitions was brought as far as to its offset, that included."""
        if not offsets:
            return True  # what waits is for others
        for partition, offset in offsets.items():
            place = self._places.get(partition)
            if place is None or place.next <= offset:
                return False
        # In this order: the thread moves a place, hands over, and is done with sorting.
        return not self._is_sorting and self._queue.is_empty

    def pause(self) -> None:
        """Bring no records until `resume`."""
        self._queue.pause()

    def resume(self) -> None:
        """Bring records again."""
        self._queue.resume()

    # On the thread.

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:
                self._tell(self._log.failure, "a turn of the thread that reads failed", Failure())
                self._stopping.wait(RETRY_DELAY)
        self._client.close()
        self._tell(self._stopped.callback, None)

    def _turn(self) -> None:
        while True:
            try:
                self._orders.get_nowait()()
            except Empty:
                break
        self._meet()
        self._hold()
        first = self._client.poll(TURN)
        if first is not None:
            self._is_sorting = True
            try:
                self._sort([first, *self._client.consume(BATCH - 1, 0)])
            finally:
                self._is_sorting = False

    def _meet(self) -> None:
        """Learn where new topics are.

        librdkafka would find out by itself, but looks for what it does not know once a second.
        """
        strangers, self._strangers = self._strangers, set()
        try:
            if len(strangers) > FEW:
                self._client.list_topics(timeout=RETRY_DELAY)
            else:
                for name in strangers:
                    self._client.list_topics(name, timeout=RETRY_DELAY)
        except KafkaException as error:
            self._failed(error.args[0])

    def _read(self, id_: str, name: str, offsets: Mapping[int, int]) -> None:
        read = [TopicPartition(name, each) for each in offsets if (name, each) in self._places]
        if read:
            self._client.incremental_unassign(read)
        assigned = [TopicPartition(name, *each) for each in offsets.items()]
        self._client.incremental_assign(assigned)
        self._strangers.add(name)
        for each in assigned:
            self._places[name, each.partition] = _Place(id_, each.offset)
        if self._is_held:
            self._client.pause(assigned)

    def _forget(self, id_: str, name: str) -> None:
        mine = [each for each, place in self._places.items() if each[0] == name and place.id == id_]
        for each in mine:
            del self._places[each]
        if mine:
            self._client.incremental_unassign([TopicPartition(*each) for each in mine])

    def _hold(self) -> None:
        """Stop reading while the reactor has enough; librdkafka must be polled all the same."""
        if self._is_held:
            if self._queue.has_room:
                self._is_held = False
                self._client.resume(self._assigned())
        elif self._queue.is_full:
            self._is_held = True
            self._client.pause(self._assigned())

    def _assigned(self) -> list[TopicPartition]:
        return [TopicPartition(*each) for each in self._places]

    def _sort(self, messages: Iterable[Any]) -> None:
        """Which subscription is each message for?"""
        records = []
        for message in messages:
            error = message.error()
            place = self._places.get((message.topic(), message.partition()))
            if error is not None:
                self._error(error, message, place)
            elif place is None:
                self._tell(self._owner.misrouted, message.topic())
            elif message.offset() >= place.next:
                place.next = message.offset() + 1
                records.append(Record(place.id, message.value(), _cell(message.headers())))
        if records:
            self._queue.put(records)

    def _error(self, error: KafkaError, message: Any, place: _Place | None) -> None:
        if place is None:
            self._failed(error)
        elif error.code() in _NOT_THERE:
            self._tell(self._owner.not_there, place.id, message.partition(), place.next)
        elif error.code() in _REFUSED:
            self._tell(self._owner.refused, place.id, error.str())
        else:
            self._failed(error)

    def _failed(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._tell(self._owner.doubted)
        elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:  # we need no group
            self._tell(self._owner.complain, error.str())

    def _tell(self, hears: Callable[..., object], *arguments: object) -> None:
        self._reactor.callFromThread(hears, *arguments)


def _cell(headers: Iterable[tuple[str, bytes | None]] | None) -> bytes | None:
    """The last header of the name counts, as with Java's ``lastHeader``."""
    found = None
    for name, value in headers or ():
        if name == CELL:
            found = value
    return found
