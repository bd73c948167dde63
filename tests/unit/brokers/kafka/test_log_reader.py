"""Reading records back, with librdkafka's mock cluster and with a fake client."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import get_ident
from time import time
from types import SimpleNamespace
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from twisted.internet import reactor
from twisted.internet.defer import gatherResults, inlineCallbacks
from twisted.trial.unittest import TestCase

from tests.support.mock_kafka import SENDER, address, bootstrap, send
from tests.support.processes import until
from topicsvc.brokers.kafka import log_reader
from topicsvc.brokers.kafka.lanes import Entry
from topicsvc.brokers.kafka.log_reader import LogReader, LogRequest
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Mark
from topicsvc.settings import HistorySettings


def numbers(entries: list[Entry] | None) -> list[int] | None:
    """The numbers that are the bodies of these records."""
    return None if entries is None else [int(each.message.body.strip(b'"')) for each in entries]


class AllNewEnough:
    """A client for which all records are new enough: the mock cluster does not know their time."""

    def __init__(self, options: Any) -> None:
        self._client = Consumer(options)

    def offsets_for_times(self, wanted: list[TopicPartition], timeout: float) -> Any:
        return [TopicPartition(each.topic, each.partition, 0) for each in wanted]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class MockClusterTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        bootstrap()

    def reader(self, make: Any = Consumer, **history: int) -> LogReader:
        options = connection_options(bootstrap())
        reader = LogReader(options, reactor, HistorySettings(**history), make)
        self.addCleanup(reader.stop)
        return reader

    @inlineCallbacks
    def read(self, reader: LogReader, name: str, floors: dict[int, int]) -> Any:
        """Read; fires with the bodies of each partition."""
        broker_name = address(name).broker_name
        request = LogRequest(address(name), floors)
        found = yield reader.read({broker_name: request}, time() - 120)
        return {partition: numbers(entries) for (_, partition), entries in found.items()}

    def send(self, name: str, count: int, partition: int = 0, size: int = 1) -> None:
        bodies = [b'"%0*d"' % (size, number) for number in range(count)]
        send(address(name).broker_name, partition, *bodies)

    @inlineCallbacks
    def test_records_below_the_floor_of_each_partition_are_read(self) -> Any:
        self.send("floors", 5)
        self.send("floors", 9, partition=2)
        found = yield self.read(self.reader(), "floors", {0: 3, 1: 0, 2: 9})
        self.assertEqual(found, {0: [0, 1, 2], 2: list(range(9))})

    @inlineCallbacks
    def test_each_record_has_its_place_its_time_and_its_sender(self) -> Any:
        producer = Producer({"bootstrap.servers": bootstrap(), "log_level": 0})
        name = address("parts").broker_name
        headers = [("__PERSONIUM_CELL", SENDER.encode())]
        producer.produce(name, b"not JSON", headers=headers, partition=1, timestamp=123456)
        producer.produce(name, None, partition=1)
        producer.flush(5)
        request = LogRequest(address("parts"), {1: 2})
        found = yield self.reader().read({name: request}, 0)
        first, second = found[name, 1]
        self.assertEqual(first.message.mark, Mark(1, "0-0"))
        self.assertEqual((first.partition, first.epoch, first.offset), (1, 0, 0))
        self.assertEqual((first.time, first.message.sender), (123.456, SENDER))
        self.assertEqual(first.message.body, b'{"content":"not JSON"}')
        self.assertEqual((second.message.body, second.message.sender), (b'{"content":""}', None))

    @inlineCallbacks
    def test_without_new_records_only_the_last_ones_are_read(self) -> Any:
        """They name the place at which the log begins."""
        self.send("many", 300)
        found = yield self.read(self.reader(), "many", {0: 300})
        self.assertEqual(found, {0: list(range(300 - log_reader.FIRST_RECORDS, 300))})

    @inlineCallbacks
    def test_many_records_are_read_up_to_one_more_than_the_history_keeps(self) -> Any:
        self.send("more", 300)
        found = yield self.read(self.reader(AllNewEnough, messages=100), "more", {0: 300})
        self.assertEqual(found, {0: list(range(199, 300))})

    @inlineCallbacks
    def test_long_records_are_read_up_to_the_length_that_the_history_keeps(self) -> Any:
        self.send("long", 60, size=1000)
        found = yield self.read(self.reader(AllNewEnough, bytes=20500), "long", {0: 60})
        self.assertEqual(found, {0: [*range(39, 60)]})

    @inlineCallbacks
    def test_several_topics_are_read_together_and_again(self) -> Any:
        reader = self.reader()
        for name in ("one", "two"):
            self.send(name, 3)
        for _ in range(2):
            found = yield gatherResults(
                [self.read(reader, each, {0: 3}) for each in ("one", "two")]
            )
            self.assertEqual(found, [{0: [0, 1, 2]}] * 2)

    @inlineCallbacks
    def test_a_partition_that_ends_below_its_floor_is_not_read(self) -> Any:
        """It was cut, or belongs to another topic of the same name."""
        self.send("cut", 3)
        found = yield self.read(self.reader(), "cut", {0: 9})
        self.assertEqual(found, {0: None})

    @inlineCallbacks
    def test_a_partition_that_does_not_exist_is_not_read(self) -> Any:
        self.send("short", 3)
        found = yield self.read(self.reader(), "short", {0: 3, 77: 3})
        self.assertEqual(found, {0: [0, 1, 2], 77: None})


class FakeClient:
    """A client of librdkafka that returns the messages of the test."""

    def __init__(self) -> None:
        self.messages: SimpleQueue[Any] = SimpleQueue()
        self.assigned: dict[tuple[str, int], int] = {}
        self.assignments: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.fails = False
        self.is_closed = False

    def offsets_for_times(self, wanted: list[TopicPartition], timeout: float) -> Any:
        self.threads.add(get_ident())
        if self.fails:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "simulated"))
        return [TopicPartition(each.topic, each.partition, 0) for each in wanted]

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self.assigned[each.topic, each.partition] = each.offset
            self.assignments.append((each.partition, each.offset))

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            del self.assigned[each.topic, each.partition]

    def poll(self, timeout: float) -> Any:
        try:
            return self.messages.get(timeout=timeout)
        except Empty:
            return None

    def close(self) -> None:
        self.is_closed = True

    def add(self, offset: int, error: int | None = None, partition: int = 0) -> None:
        parts = {
            "topic": NAME,
            "partition": partition,
            "offset": offset,
            "error": None if error is None else KafkaError(error, "simulated"),
            "value": b"%d" % offset,
            "headers": None,
            "leader_epoch": 1,
            "timestamp": (1, 1000 * offset),
        }
        values = {name: lambda value=value: value for name, value in parts.items()}
        self.messages.put(SimpleNamespace(**values))


NAME = address("fake").broker_name


class FakeClientTests(TestCase):
    timeout = 10

    def setUp(self) -> None:
        self.patch(log_reader, "POLL_TIMEOUT", 0.01)
        self.client = FakeClient()
        self.reader = LogReader({}, reactor, HistorySettings(), lambda _: self.client)
        self.addCleanup(self.reader.stop)

    @inlineCallbacks
    def read(self, floor: int, partition: int = 0) -> Any:
        request = LogRequest(address("fake"), {partition: floor})
        found = yield self.reader.read({NAME: request}, 0)
        entries = found[NAME, partition]
        return None if entries is None else [each.offset for each in entries]

    @inlineCallbacks
    def test_no_client_is_made_before_the_first_call(self) -> Any:
        self.assertIsNone(self.reader._client)
        yield self.reader.stop()
        self.assertFalse(self.client.is_closed)

    @inlineCallbacks
    def test_it_reads_in_a_thread_of_its_own(self) -> Any:
        self.client.add(1)
        yield self.read(2)
        self.assertNotIn(get_ident(), self.client.threads)

    @inlineCallbacks
    def test_a_hole_before_the_floor_is_passed(self) -> Any:
        """The marker of a transaction has an offset, but is no record."""
        self.client.add(3)
        self.client.add(9, KafkaError._PARTITION_EOF)
        self.assertEqual((yield self.read(9)), [3])

    @inlineCallbacks
    def test_a_record_behind_the_floor_ends_the_reading_too(self) -> Any:
        self.client.add(3)
        self.client.add(12)
        self.assertEqual((yield self.read(9)), [3])

    @inlineCallbacks
    def test_behind_many_holes_the_last_record_is_searched(self) -> Any:
        self.client.add(5000, KafkaError._PARTITION_EOF)
        self.client.add(4100)
        self.client.add(5000, KafkaError._PARTITION_EOF)
        self.assertEqual((yield self.read(5000)), [4100])
        starts = [5000 - log_reader.FIRST_RECORDS, 5000 - log_reader.MAX_HOLE]
        self.assertEqual(self.client.assignments, [(0, each) for each in starts])

    @inlineCallbacks
    def test_the_search_for_the_last_record_ends(self) -> Any:
        for _ in range(2):
            self.client.add(5000, KafkaError._PARTITION_EOF)
        self.assertEqual((yield self.read(5000)), [])

    @inlineCallbacks
    def test_a_partition_that_is_refused_is_not_read(self) -> Any:
        self.client.add(0, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        self.assertIsNone((yield self.read(9)))
        self.assertEqual(self.client.assigned, {})

    @inlineCallbacks
    def test_messages_of_other_partitions_do_not_matter(self) -> Any:
        self.client.add(8, partition=5)
        self.client.add(0, KafkaError._ALL_BROKERS_DOWN, partition=-1)
        self.client.add(8)
        self.assertEqual((yield self.read(9)), [8])

    @inlineCallbacks
    def test_what_is_not_read_in_time_is_not_returned(self) -> Any:
        self.patch(log_reader, "TIMEOUT", 0.1)
        self.client.add(3)
        self.assertIsNone((yield self.read(9)))
        self.assertEqual(self.client.assigned, {})

    @inlineCallbacks
    def test_it_fails_if_the_broker_does_not_respond(self) -> Any:
        self.client.fails = True
        yield self.assertFailure(self.read(9), BrokerUnavailable)

    @inlineCallbacks
    def test_an_empty_partition_causes_no_request(self) -> Any:
        found = yield self.reader.read({NAME: LogRequest(address("fake"), {0: 0})}, 0)
        self.assertEqual((found, self.client.threads), ({}, set()))

    @inlineCallbacks
    def test_stop_ends_the_reading_and_closes_the_client(self) -> Any:
        reading = self.read(9)
        yield until(lambda: self.client.assigned, "it reads")
        yield self.reader.stop()
        self.assertIsNone((yield reading))
        self.assertTrue(self.client.is_closed)
        yield self.assertFailure(self.read(9), BrokerUnavailable)
