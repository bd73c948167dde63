"""A Kafka that obeys the test, in virtual time: in place of the three clients of librdkafka."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from topicsvc.brokers.kafka.metadata import Ends, NoSuchTopic
from topicsvc.brokers.kafka.producer import Place, Told
from topicsvc.brokers.kafka.record_queue import Record
from topicsvc.errors import BrokerUnavailable


class ScriptedKafka:
    """The broker, and `MetadataClient` of it.

    Attributes:
        is_there: it answers; otherwise every question fails at once.
        makes_topics: one that is asked for and not there is there the next time.
        topics: where each partition of each topic ends.
        lows: where a partition begins; absent: at 0.
        refusals: what is wrong with a topic.
        held: answers wait here while it is a list.
        asked: the names of each question for ends.
        signs: the partitions of each question for a sign of life.
        consumer, producer: the other clients.
    """

    def __init__(self, test: Any, module: Any) -> None:
        self.is_there = True
        self.makes_topics = True
        self.topics: dict[str, Ends] = {}
        self.lows: dict[tuple[str, int], int] = {}
        self.refusals: dict[str, BrokerUnavailable] = {}
        self.held: list[tuple[Deferred[Any], Any]] | None = None
        self.asked: list[list[str]] = []
        self.signs: list[list[tuple[str, int]]] = []
        self.producer = FakeProducer()
        self.consumer = FakeConsumer()
        test.patch(module, "MetadataClient", lambda *_: self)
        test.patch(module, "Producer", lambda *_: self.producer)
        test.patch(module, "Consumer", lambda _options, _reactor, owner: self.consumer.of(owner))

    def start(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def end_offsets(self, names: Sequence[str]) -> Deferred[dict[str, Ends | BrokerUnavailable]]:
        self.asked.append(list(names))
        return self._answer({name: self._end(name) for name in names})

    def alive(self, partitions: Sequence[tuple[str, int]]) -> Deferred[None]:
        self.signs.append(list(partitions))
        return self._answer(None)

    def bounds(self, name: str, partition: int) -> Deferred[tuple[int, int]]:
        low = self.lows.get((name, partition), 0)
        return self._answer((low, self.topics[name][partition]))

    def partitions(self, names: Sequence[str]) -> Deferred[dict[str, list[int]]]:
        there = {name: sorted(self.topics[name]) for name in names if name in self.topics}
        return self._answer(there)

    def let_go(self) -> None:
        """Give the answers that were held, and hold no more."""
        held, self.held = self.held or [], None
        for answered, answer in held:
            answered.callback(answer)

    def _end(self, name: str) -> Ends | BrokerUnavailable:
        if name in self.refusals:
            return self.refusals[name]
        if name in self.topics:
            return dict(self.topics[name])
        if self.makes_topics:
            self.topics[name] = {0: 0}
        return NoSuchTopic("not there")

    def _answer(self, answer: Any) -> Deferred[Any]:
        if not self.is_there:
            return fail(BrokerUnavailable("said the test"))
        if self.held is not None:
            answered: Deferred[Any] = Deferred()
            self.held.append((answered, answer))
            return answered
        return succeed(answer)


@dataclass
class FakeConsumer:
    """Remembers what it is to read, for which subscription and from where.

    Attributes:
        expected: how far it was asked whether it has brought all; it says no to anything.
    """

    owner: Any = None
    is_paused: bool = False
    places: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    expected: dict[tuple[str, int], int] = field(default_factory=dict)

    def of(self, owner: Any) -> FakeConsumer:
        self.owner = owner
        return self

    def start(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def read(self, id_: str, name: str, offsets: Mapping[int, int]) -> None:
        for partition, offset in offsets.items():
            self.places[name, partition] = (id_, offset)

    def forget(self, id_: str, name: str) -> None:
        for place in [each for each in self.places if each[0] == name]:
            if self.places[place][0] == id_:
                del self.places[place]

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def offsets(self, name: str) -> dict[int, int]:
        return {place[1]: offset for place, (_, offset) in self.places.items() if place[0] == name}

    def id(self, name: str, partition: int = 0) -> str:
        return self.places[name, partition][0]

    def bring(self, name: str, value: bytes | None, cell: bytes | None = None) -> None:
        self.owner.record(Record(self.id(name), value, cell))

    def has_brought(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        self.expected = dict(offsets)
        return not offsets


@dataclass
class FakeProducer:
    """Remembers what it was given."""

    sent: list[tuple[str, str | None, bytes]] = field(default_factory=list)
    answers: list[Told] = field(default_factory=list)

    def start(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def send(self, topic: str, sender: str | None, body: bytes, told: Told) -> None:
        self.sent.append((topic, sender, body))
        self.answers.append(told)

    def accept(self, offset: int = 0, partition: int = 0) -> None:
        """The oldest message without an answer stands there."""
        self.answers.pop(0)(Place(partition, offset))
