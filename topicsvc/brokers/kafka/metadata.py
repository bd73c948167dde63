"""Adapter: what is asked of Kafka besides its messages, each answered by a Deferred.

librdkafka's questions block. They are asked on a thread of their own and through a client that
reads nothing, since on a connection that reads they would wait behind what it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from topicsvc.brokers.kafka.options import CONSUMER, Options
from topicsvc.errors import BrokerUnavailable

__all__ = ["Ends", "MetadataClient", "NoSuchTopic"]

TIMEOUT = 4.0
"""Seconds that one question may take."""

SHORT_TIMEOUT = 1.0
"""Seconds that a question may take where there is a reason to think that nobody answers."""

MANY = 10
"""Topics from which on the broker is asked for all that it has, in one question."""

Ends = dict[int, int]
"""Of each partition of a topic: the offset that its next message will have."""

T = TypeVar("T")

_NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE)
_SILENCE = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
_NO_PARTITION = (KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART)


class NoSuchTopic(BrokerUnavailable):
    """The broker does not have the topic, or not yet: it may just be making it."""


class MetadataClient:
    """Asks.

    Args:
        options: how to reach the broker.
        reactor: where answers are heard.
        make: makes librdkafka's client.
    """

    def __init__(
        self, options: Options, reactor: Any, make: Callable[[Options], Any] = Consumer
    ) -> None:
        self._options = {**options, **CONSUMER}
        self._reactor = reactor
        self._make = make
        self._pool: ThreadPool | None = None
        self._client: Any = None

    def start(self) -> None:
        """Begin; the threads of librdkafka are made here, and live in this process alone."""
        self._client = self._make(self._options)
        # One thread: a client of confluent-kafka does one thing at a time.
        self._pool = ThreadPool(0, 1, "topicsvc asks Kafka")
        self._pool.start()

    def stop(self) -> Deferred[None]:
        """Ask no more; fires when what was asked is answered and the client is closed."""
        if self._pool is None:
            return succeed(None)
        pool, self._pool = self._pool, None
        client = self._client

        def close() -> None:
            pool.stop()
            client.close()

        waits = self._reactor.getThreadPool()
        stopping: Deferred[None] = deferToThreadPool(self._reactor, waits, close)
        return stopping

    def end_offsets(self, names: Sequence[str]) -> Deferred[dict[str, Ends | BrokerUnavailable]]:
        """Where each topic ends now, or why nobody knows.

        A message that the broker had accepted before stands before this end, one that it
        accepts from now on does not. Asking for a topic makes it, where the broker does that.

        Fails with:
            BrokerUnavailable: the broker does not answer.
        """
        return self._ask(self._end_offsets, names)

    def alive(self, partitions: Sequence[tuple[str, int]]) -> Deferred[None]:
        """Whether the leader of each of `partitions` answers; without any, whether somebody does.

        Fails with:
            BrokerUnavailable: it does not.
        """
        return self._ask(self._alive, partitions)

    def bounds(self, name: str, partition: int) -> Deferred[tuple[int, int]]:
        """The offsets of the first message that is there and of the next that will be.

        Fails with:
            BrokerUnavailable: the broker does not answer.
        """
        return self._ask(self._bounds, name, partition)

    def partitions(self, names: Sequence[str]) -> Deferred[dict[str, list[int]]]:
        """Which partitions each topic has; one that is not there is left out.

        Fails with:
            BrokerUnavailable: the broker does not answer.
        """
        return self._ask(self._partitions, names)

    def _ask(self, question: Callable[..., T], *arguments: Any) -> Deferred[T]:
        if self._pool is None:
            return fail(BrokerUnavailable("stopping"))
        asked: Deferred[T] = deferToThreadPool(self._reactor, self._pool, question, *arguments)
        return asked.addErrback(_unavailable)

    # On the thread.

    def _end_offsets(self, names: Sequence[str]) -> dict[str, Ends | BrokerUnavailable]:
        found: dict[str, Ends | BrokerUnavailable] = {}
        good: dict[str, list[int]] = {}
        for name, topic in self._topics(names).items():
            why = _wrong_with(topic)
            if why is None:
                good[name] = list(topic.partitions)
            else:
                found[name] = why
        try:
            return found | self._offsets(good)
        except KafkaException as error:
            if error.args[0].code() in _SILENCE:
                raise
        # One of them is being made or moved; it takes no other with it.
        for name, partitions in good.items():
            try:
                found |= self._offsets({name: partitions})
            except KafkaException as error:
                found[name] = NoSuchTopic(error.args[0].str())
        return found

    def _offsets(self, topics: Mapping[str, Iterable[int]]) -> dict[str, Ends]:
        asked = [
            TopicPartition(name, each, OFFSET_END)
            for name, partitions in topics.items()
            for each in partitions
        ]
        ends: dict[str, Ends] = {name: {} for name in topics}
        for answer in self._client.offsets_for_times(asked, timeout=TIMEOUT) if asked else ():
            if answer.error is not None:
                raise KafkaException(answer.error)
            ends[answer.topic][answer.partition] = answer.offset
        return ends

    def _alive(self, partitions: Sequence[tuple[str, int]]) -> None:
        if not partitions:
            self._client.list_topics(_EVERYBODYS, timeout=TIMEOUT)
            return
        asked = [TopicPartition(*each, OFFSET_END) for each in partitions]
        try:
            for answer in self._client.offsets_for_times(asked, timeout=TIMEOUT):
                if answer.error is not None and answer.error.code() not in _NO_PARTITION:
                    raise KafkaException(answer.error)
        except KafkaException as error:
            if error.args[0].code() not in _NO_PARTITION:
                raise
            # A topic that was deleted takes no other with it.
            there = self._client.list_topics(timeout=SHORT_TIMEOUT).topics
            if all(each.topic in there for each in asked):
                raise

    def _bounds(self, name: str, partition: int) -> tuple[int, int]:
        place = TopicPartition(name, partition)
        low, high = self._client.get_watermark_offsets(place, timeout=TIMEOUT)
        return low, high

    def _partitions(self, names: Sequence[str]) -> dict[str, list[int]]:
        topics = self._client.list_topics(timeout=TIMEOUT).topics
        return {name: sorted(topics[name].partitions) for name in names if name in topics}

    def _topics(self, names: Sequence[str]) -> dict[str, Any]:
        """What the broker says of each topic."""
        known: dict[str, Any] = {}
        if len(names) >= MANY:
            known = self._client.list_topics(timeout=TIMEOUT).topics
        return {name: known.get(name) or self._topic(name) for name in names}

    def _topic(self, name: str) -> Any:
        return self._client.list_topics(name, timeout=TIMEOUT).topics[name]


_EVERYBODYS = "__consumer_offsets"
"""Kafka's own topic, asked for when there is nothing else to ask for."""


def _wrong_with(topic: Any) -> BrokerUnavailable | None:
    """Why nothing can be promised of a topic; None: nothing is wrong."""
    if topic.error is not None and topic.error.code() not in _NO_TOPIC:
        return BrokerUnavailable(topic.error.str())
    if topic.error is not None or not topic.partitions:
        return NoSuchTopic("the broker does not have it")
    if any(each.leader < 0 for each in topic.partitions.values()):
        return NoSuchTopic("a partition has no leader")
    return None


def _unavailable(failure: Failure) -> NoReturn:
    failure.trap(KafkaException)
    error: KafkaError = failure.value.args[0]  # type: ignore[union-attr]
    raise BrokerUnavailable(error.str())
