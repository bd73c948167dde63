"""Requests offsets and other metadata from Kafka; each method returns a Deferred.

The requests of librdkafka block, so they run in a thread of their own. They use a client that reads
no records: on a connection that reads, they would wait for the response to a fetch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from confluent_kafka import (
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from topicsvc.brokers.kafka.lanes import Description, topic_epoch
from topicsvc.brokers.kafka.options import CONSUMER, Options
from topicsvc.errors import BrokerUnavailable

__all__ = ["EndOffsets", "MetadataClient", "NoSuchTopic", "to_unavailable"]

TIMEOUT = 4.0
"""Seconds that one request may take."""

SHORT_TIMEOUT = 1.0
"""Seconds that a request may take if the broker is probably down."""

LIST_ALL_FROM = 10
"""From this number of topics on, one request for all topics of the broker is sent."""

EndOffsets = dict[int, int]
"""For each partition of a topic, the offset that its next message will have."""

T = TypeVar("T")

_NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE)
_NO_RESPONSE = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
_NO_PARTITION = (KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART)

_INTERNAL_TOPIC = "__consumer_offsets"
"""Kafka's own topic. It is requested if there is no other topic to request."""


class NoSuchTopic(BrokerUnavailable):
    """The broker does not have the topic, or is still creating it."""


class MetadataClient:
    """Requests metadata.

    Args:
        options: see `topicsvc.brokers.kafka.options.connection_options`.
        reactor: in whose thread the Deferreds fire.
        make: makes librdkafka's client.
        make_admin: makes the client that describes topics, when it is needed first.
    """

    def __init__(
        self,
        options: Options,
        reactor: Any,
        make: Callable[[Options], Any] = Consumer,
        make_admin: Callable[[Options], Any] = AdminClient,
    ) -> None:
        self._connection = options
        self._options = {**options, **CONSUMER}
        self._reactor = reactor
        self._make = make
        self._make_admin = make_admin
        self._admin: Any = None
        self._pool: ThreadPool | None = None
        self._client: Any = None

    def start(self) -> None:
        """Start the client. Its threads do not survive a fork: call this after daemonizing."""
        self._client = self._make(self._options)
        # One thread: a client of confluent-kafka runs one request at a time.
        self._pool = ThreadPool(0, 1, "topicsvc asks Kafka")
        self._pool.start()

    def stop(self) -> Deferred[None]:
        """Send no more requests; fires when all have finished and the client is closed."""
        if self._pool is None:
            return succeed(None)
        pool, self._pool = self._pool, None
        client = self._client

        def close() -> None:
            pool.stop()
            client.close()

        closing_pool = self._reactor.getThreadPool()
        stopping: Deferred[None] = deferToThreadPool(self._reactor, closing_pool, close)
        return stopping

    def end_offsets(
        self, names: Sequence[str]
    ) -> Deferred[dict[str, EndOffsets | BrokerUnavailable]]:
        """The current end of each topic, or an error.

        A message that the broker has accepted before is before this end; a message that it
        accepts later is not. The request creates a missing topic if the broker allows it.

        Fails with:
            BrokerUnavailable: the broker does not respond.
        """
        return self._run(self._end_offsets, names)

    def probe(self, partitions: Sequence[tuple[str, int]]) -> Deferred[None]:
        """Fire when the leader of each partition responds; without partitions, any server.

        Fails with:
            BrokerUnavailable: there is no response.
        """
        return self._run(self._probe, partitions)

    def watermarks(self, name: str, partition: int) -> Deferred[tuple[int, int]]:
        """The offsets of the first available message and of the next new message.

        Fails with:
            BrokerUnavailable: the broker does not respond.
        """
        return self._run(self._watermarks, name, partition)

    def partitions(self, names: Sequence[str]) -> Deferred[dict[str, list[int]]]:
        """The partitions of each topic, without the topics that do not exist.

        Fails with:
            BrokerUnavailable: the broker does not respond.
        """
        return self._run(self._partitions, names)

    def describe(self, names: Sequence[str]) -> Deferred[dict[str, Description]]:
        """The descriptions of topics, without those that do not exist.

        The settings of a topic need the right `DescribeConfigs`. Without it, Kafka is taken to
        lose records.

        Fails with:
            BrokerUnavailable: the broker does not respond.
        """
        return self._run(self._describe, names)

    def _run(self, request: Callable[..., T], *arguments: Any) -> Deferred[T]:
        if self._pool is None:
            return fail(BrokerUnavailable("stopping"))
        running: Deferred[T] = deferToThreadPool(self._reactor, self._pool, request, *arguments)
        return running.addErrback(to_unavailable)

    # In the thread.

    def _end_offsets(self, names: Sequence[str]) -> dict[str, EndOffsets | BrokerUnavailable]:
        found: dict[str, EndOffsets | BrokerUnavailable] = {}
        usable: dict[str, list[int]] = {}
        for name, topic in self._topics(names).items():
            error = _topic_error(topic)
            if error is None:
                usable[name] = list(topic.partitions)
            else:
                found[name] = error
        try:
            return found | self._offsets(usable)
        except KafkaException as error:
            if error.args[0].code() in _NO_RESPONSE:
                raise
        # One topic is being created or moved. Request each by itself, so that only this one fails.
        for name, partitions in usable.items():
            try:
                found |= self._offsets({name: partitions})
            except KafkaException as error:
                found[name] = NoSuchTopic(error.args[0].str())
        return found

    def _offsets(self, topics: Mapping[str, Iterable[int]]) -> dict[str, EndOffsets]:
        requested = [
            TopicPartition(name, each, OFFSET_END)
            for name, partitions in topics.items()
            for each in partitions
        ]
        ends: dict[str, EndOffsets] = {name: {} for name in topics}
        for end in self._client.offsets_for_times(requested, timeout=TIMEOUT) if requested else ():
            if end.error is not None:
                raise KafkaException(end.error)
            ends[end.topic][end.partition] = end.offset
        return ends

    def _probe(self, partitions: Sequence[tuple[str, int]]) -> None:
        if not partitions:
            self._client.list_topics(_INTERNAL_TOPIC, timeout=TIMEOUT)
            return
        requested = [TopicPartition(*each, OFFSET_END) for each in partitions]
        try:
            for end in self._client.offsets_for_times(requested, timeout=TIMEOUT):
                if end.error is not None and end.error.code() not in _NO_PARTITION:
                    raise KafkaException(end.error)
        except KafkaException as error:
            if error.args[0].code() not in _NO_PARTITION:
                raise
            # If a topic was deleted, the broker is not down.
            existing = self._client.list_topics(timeout=SHORT_TIMEOUT).topics
            if all(each.topic in existing for each in requested):
                raise

    def _watermarks(self, name: str, partition: int) -> tuple[int, int]:
        requested = TopicPartition(name, partition)
        low, high = self._client.get_watermark_offsets(requested, timeout=TIMEOUT)
        return low, high

    def _partitions(self, names: Sequence[str]) -> dict[str, list[int]]:
        topics = self._client.list_topics(timeout=TIMEOUT).topics
        return {name: sorted(topics[name].partitions) for name in names if name in topics}

    def _describe(self, names: Sequence[str]) -> dict[str, Description]:
        if self._admin is None:
            self._admin = self._make_admin(self._connection)
        # librdkafka asks the server that is named as the controller. With KRaft, Kafka names any
        # server, also one that was lost some seconds ago: ask again, and get another name.
        deadline = self._reactor.seconds() + TIMEOUT
        while True:
            try:
                return self._describe_once(names)
            except KafkaException as error:
                if error.args[0].code() not in _NO_RESPONSE:
                    raise
                if self._reactor.seconds() > deadline - 2 * SHORT_TIMEOUT:
                    raise

    def _describe_once(self, names: Sequence[str]) -> dict[str, Description]:
        cluster = self._admin.list_topics(names[0], timeout=SHORT_TIMEOUT).cluster_id
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        topics = self._admin.describe_topics(
            TopicCollection(list(names)), request_timeout=SHORT_TIMEOUT
        )
        settings = self._admin.describe_configs(resources, request_timeout=SHORT_TIMEOUT)
        found: dict[str, Description] = {}
        for name, resource in zip(names, resources, strict=True):
            topic = _result(topics[name])
            if topic is not None:
                known = _result(settings[resource]) or {}
                found[name] = Description(
                    _epoch(topic.topic_id, cluster, name),
                    _setting(known, "unclean.leader.election.enable") == "false",
                    "compact" not in _setting(known, "cleanup.policy", "compact"),
                )
        return found

    def _topics(self, names: Sequence[str]) -> dict[str, Any]:
        """The broker's description of each topic."""
        known: dict[str, Any] = {}
        if len(names) >= LIST_ALL_FROM:
            known = self._client.list_topics(timeout=TIMEOUT).topics
        return {name: known.get(name) or self._topic(name) for name in names}

    def _topic(self, name: str) -> Any:
        return self._client.list_topics(name, timeout=TIMEOUT).topics[name]


def _result(request: Any) -> Any:
    """The result of a request for one topic; None: the broker refuses it."""
    try:
        return request.result(timeout=TIMEOUT)
    except KafkaException as error:
        if error.args[0].code() in _NO_RESPONSE:
            raise
        return None


def _epoch(topic_id: Any, cluster: str, name: str) -> str:
    """Name a topic. A broker before Kafka 2.8 has no topic ids."""
    bits = topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits()
    return topic_epoch(str(topic_id) if any(bits) else f"{cluster}/{name}")


def _setting(settings: Mapping[str, Any], name: str, default: str = "") -> str:
    value = settings[name].value if name in settings else None
    return default if value is None else str(value)


def _topic_error(topic: Any) -> BrokerUnavailable | None:
    """Why a topic cannot be read; None: it can."""
    if topic.error is not None and topic.error.code() not in _NO_TOPIC:
        return BrokerUnavailable(topic.error.str())
    if topic.error is not None or not topic.partitions:
        return NoSuchTopic("the broker does not have the topic")
    if any(each.leader < 0 for each in topic.partitions.values()):
        return NoSuchTopic("a partition has no leader")
    return None


def to_unavailable(failure: Failure) -> NoReturn:
    """Raise BrokerUnavailable for an error of librdkafka."""
    failure.trap(KafkaException)
    error: KafkaError = failure.value.args[0]  # type: ignore[union-attr]
    raise BrokerUnavailable(error.str())
