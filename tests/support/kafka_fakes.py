"""A Kafka that the test controls, in virtual time, instead of the three clients of librdkafka."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from topicsvc.brokers.kafka.lanes import Description, Entry
from topicsvc.brokers.kafka.log_reader import LogRequest
from topicsvc.brokers.kafka.metadata import EndOffsets, NoSuchTopic
from topicsvc.brokers.kafka.producer import OnDelivery, Position
from topicsvc.brokers.kafka.record_queue import Record
from topicsvc.errors import BrokerUnavailable

CLEAN = Description("k1", is_clean=True, is_whole=True)
"""A topic of which Kafka keeps all accepted records."""


class ScriptedKafka:
    """The broker, and its `MetadataClient`.

    Attributes:
        is_responding: otherwise every request fails at once.
        creates_topics: a missing topic that is requested exists from the next request on.
        topics: the end offset of each partition of each topic.
        lows: the first offset of a partition; 0 if absent.
        refusals: the error for a topic.
        held: while it is a list, responses wait in it.
        requested: the names in each request for end offsets.
        probes: the partitions of each probe.
        described: the description of each topic; others are described as `CLEAN`.
        descriptions: the names in each request for descriptions.
        consumer, producer, log: the other clients.
    """

    def __init__(self, test: Any, module: Any) -> None:
        self.is_responding = True
        self.creates_topics = True
        self.topics: dict[str, EndOffsets] = {}
        self.lows: dict[tuple[str, int], int] = {}
        self.refusals: dict[str, BrokerUnavailable] = {}
        self.held: list[tuple[Deferred[Any], Any]] | None = None
        self.requested: list[list[str]] = []
        self.probes: list[list[tuple[str, int]]] = []
        self.described: dict[str, Description] = {}
        self.descriptions: list[list[str]] = []
        self.producer = FakeProducer()
        self.log = FakeLogReader()
        self.consumer = FakeConsumer()
        test.patch(module, "MetadataClient", lambda *_: self)
        test.patch(module, "Producer", lambda *_: self.producer)
        test.patch(module, "LogReader", lambda *_: self.log)
        test.patch(
            module, "Consumer", lambda _options, _reactor, handler: self.consumer.of(handler)
        )

    def start(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def end_offsets(
        self, names: Sequence[str]
    ) -> Deferred[dict[str, EndOffsets | BrokerUnavailable]]:
        self.requested.append(list(names))
        return self._respond({name: self._end(name) for name in names})

    def probe(self, partitions: Sequence[tuple[str, int]]) -> Deferred[None]:
        self.probes.append(list(partitions))
        return self._respond(None)

    def watermarks(self, name: str, partition: int) -> Deferred[tuple[int, int]]:
        low = self.lows.get((name, partition), 0)
        return self._respond((low, self.topics[name][partition]))

    def partitions(self, names: Sequence[str]) -> Deferred[dict[str, list[int]]]:
        existing = {name: sorted(self.topics[name]) for name in names if name in self.topics}
        return self._respond(existing)

    def describe(self, names: Sequence[str]) -> Deferred[dict[str, Description]]:
        self.descriptions.append(list(names))
        existing = {name: self.described.get(name, CLEAN) for name in names if name in self.topics}
        return self._respond(existing)

    def release(self) -> None:
        """Send the responses that were held, and hold no more."""
        held, self.held = self.held or [], None
        for responded, response in held:
            responded.callback(response)

    def _end(self, name: str) -> EndOffsets | BrokerUnavailable:
        if name in self.refusals:
            return self.refusals[name]
        if name in self.topics:
            return dict(self.topics[name])
        if self.creates_topics:
            self.topics[name] = {0: 0}
        return NoSuchTopic("the topic does not exist")

    def _respond(self, response: Any) -> Deferred[Any]:
        if not self.is_responding:
            return fail(BrokerUnavailable("simulated"))
        if self.held is not None:
            responded: Deferred[Any] = Deferred()
            self.held.append((responded, response))
            return responded
        return succeed(response)


@dataclass
class FakeConsumer:
    """Records the assigned partitions.

    Attributes:
        positions: the id of the subscription and the offset of each assigned partition.
        expected: the offsets of the last call of `has_delivered`, which returns False for any.
    """

    handler: Any = None
    is_paused: bool = False
    positions: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    expected: dict[tuple[str, int], int] = field(default_factory=dict)

    def of(self, handler: Any) -> FakeConsumer:
        self.handler = handler
        return self

    def start(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def assign(self, id_: str, name: str, offsets: Mapping[int, int]) -> None:
        for partition, offset in offsets.items():
            self.positions[name, partition] = (id_, offset)

    def unassign(self, id_: str, name: str) -> None:
        for partition in [each for each in self.positions if each[0] == name]:
            if self.positions[partition][0] == id_:
                del self.positions[partition]

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def offsets(self, name: str) -> dict[int, int]:
        return {
            partition: offset
            for (topic, partition), (_, offset) in self.positions.items()
            if topic == name
        }

    def id(self, name: str, partition: int = 0) -> str:
        return self.positions[name, partition][0]

    def deliver(
        self,
        name: str,
        value: bytes | None,
        cell: bytes | None = None,
        partition: int = 0,
        offset: int = 7,
        epoch: int | None = 0,
    ) -> None:
        id_ = self.id(name, partition)
        self.handler.on_record(Record(id_, value, cell, partition, offset, epoch))

    def has_delivered(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        self.expected = dict(offsets)
        return not offsets


@dataclass
class FakeProducer:
    """Records the messages that are sent."""

    sent: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    callbacks: list[OnDelivery] = field(default_factory=list)

    def start(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def send(self, topic: str, sender: str | None, body: bytes, on_delivery: OnDelivery) -> None:
        self.sent.append((topic, sender, body))
        self.callbacks.append(on_delivery)

    def accept(self, offset: int = 0, partition: int = 0) -> None:
        """Accept the oldest message without a result, at this position."""
        self.callbacks.pop(0)(Position(partition, offset))


@dataclass
class FakeLogReader:
    """Returns the records of the test.

    Attributes:
        records: those of each partition; None: they cannot be read in time.
        held: while it is a list, responses wait in it.
        requests: each call: the floors of each topic, and the time.
        is_responding: otherwise every request fails at once.
    """

    records: dict[tuple[str, int], list[Entry] | None] = field(default_factory=dict)
    held: list[tuple[Deferred[Any], Any]] | None = None
    requests: list[tuple[dict[str, dict[int, int]], float]] = field(default_factory=list)
    is_responding: bool = True

    def read(self, requests: Mapping[str, LogRequest], since: float) -> Deferred[Any]:
        floors = {name: dict(request.floors) for name, request in requests.items()}
        self.requests.append((floors, since))
        if not self.is_responding:
            return fail(BrokerUnavailable("simulated"))
        if self.held is None:
            return succeed(self.records)
        result: Deferred[Any] = Deferred()
        self.held.append((result, self.records))
        return result

    def release(self) -> None:
        """Send the responses that were held, and hold no more."""
        held, self.held = self.held or [], None
        for result, records in held:
            result.callback(records)

    def stop(self) -> Deferred[None]:
        return succeed(None)
