"""Reading, with librdkafka's mock cluster and with a fake client."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any

from confluent_kafka import KafkaError
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tests.support.mock_kafka import SENDER, bootstrap, send
from tests.support.processes import until
from topicsvc.brokers.kafka.consumer import Consumer
from topicsvc.brokers.kafka.metadata import MetadataClient
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.brokers.kafka.producer import Producer
from topicsvc.brokers.kafka.record_queue import Record


class RecordingHandler:
    """Records the events of a consumer."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.events: list[tuple[Any, ...]] = []

    def on_record(self, record: Record) -> None:
        self.records.append(record)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.events.append((name, *arguments))


class ConsumerTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.handler = RecordingHandler()
        self.consumer = Consumer(connection_options(bootstrap()), reactor, self.handler)
        self.metadata = MetadataClient(connection_options(bootstrap()), reactor)
        for each in (self.consumer, self.metadata):
            each.start()
            self.addCleanup(each.stop)

    @inlineCallbacks
    def test_a_missing_offset_is_reported(self) -> Any:
        yield self.metadata.end_offsets(["gone"])
        self.consumer.assign("1", "gone", {0: 99})
        yield until(lambda: self.handler.events, "it is reported")
        self.assertEqual(self.handler.events[0], ("on_offset_missing", "1", 0, 99))
        watermarks = yield self.metadata.watermarks("gone", 0)
        self.assertEqual(watermarks, (0, 0))

    @inlineCallbacks
    def test_a_new_assignment_replaces_the_first(self) -> Any:
        yield self.metadata.end_offsets(["again"])
        send("again", 0, b"0", b"1", b"2")
        self.consumer.assign("1", "again", {0: 0})
        yield until(lambda: len(self.handler.records) == 3, "all records are read")
        self.consumer.assign("2", "again", {0: 2})
        yield until(lambda: len(self.handler.records) == 4, "the last record is read again")
        self.assertEqual(self.handler.records[-1], Record("2", b"2", None, 0, 2, 0))

    @inlineCallbacks
    def test_has_delivered_is_exact_to_the_record(self) -> Any:
        yield self.metadata.end_offsets(["delivered"])
        expected = {("delivered", 0): 1, ("delivered", 1): 0}
        self.assertTrue(self.consumer.has_delivered({}))
        self.assertFalse(self.consumer.has_delivered(expected), "they are not read yet")
        self.consumer.assign("1", "delivered", {0: 0, 1: 0})
        self.consumer.pause()
        for partition in (0, 1, 0):
            send("delivered", partition, b"1")
        yield until(lambda: not self.consumer._queue.is_empty, "records wait in the queue")
        yield deferLater(reactor, 0.1)
        self.assertFalse(self.consumer.has_delivered(expected), "records wait in the queue")
        self.assertTrue(self.consumer.has_delivered({}), "other records do not matter")
        self.assertEqual(self.handler.records, [])
        self.consumer.resume()
        yield until(lambda: self.consumer.has_delivered(expected), "they are delivered")
        self.assertEqual(len(self.handler.records), 3)
        self.assertFalse(self.consumer.has_delivered({("delivered", 0): 2}), "it does not exist")

    @inlineCallbacks
    def test_the_position_that_the_producer_reports_is_the_position_that_is_read(self) -> Any:
        yield self.metadata.end_offsets(["stands"])
        producer = Producer(connection_options(bootstrap()), reactor)
        producer.start()
        self.addCleanup(producer.stop)
        result: Deferred[Any] = Deferred()
        producer.send("stands", SENDER, b"1", result.callback)
        position = yield result
        self.assertEqual(position.offset, 0)
        self.consumer.assign("1", "stands", {position.partition: 0})
        expected = {("stands", position.partition): position.offset}
        yield until(lambda: self.consumer.has_delivered(expected), "it is delivered")
        self.assertEqual(len(self.handler.records), 1)

    @inlineCallbacks
    def test_no_record_arrives_after_unassign(self) -> Any:
        yield self.metadata.end_offsets(["forgotten", "other"])
        self.consumer.assign("1", "forgotten", {0: 0})
        self.consumer.assign("2", "other", {0: 0})
        self.consumer.unassign("1", "forgotten")
        self.consumer.unassign("3", "other")  # the id of an earlier subscription
        send("forgotten", 0, b"1")
        send("other", 0, b"2")
        yield until(lambda: self.handler.records, "the other topic's record is delivered")
        self.assertEqual(self.handler.records, [Record("2", b"2", None, 0, 0, 0)])


class FakeMessage:
    """A message as librdkafka returns it."""

    def __init__(self, name: str, offset: int, value: bytes = b"", **more: Any) -> None:
        self._parts = {"topic": name, "partition": 0, "offset": offset, "value": value}
        self._parts |= {"headers": None, "error": None, "leader_epoch": 3, **more}

    def __getattr__(self, name: str) -> Any:
        return lambda: self._parts[name]


class FakeClient:
    """A consumer client of librdkafka that returns the messages of the test."""

    def __init__(self) -> None:
        self.messages: SimpleQueue[FakeMessage | Exception] = SimpleQueue()
        self.is_closed = False

    def add(self, *messages: FakeMessage | Exception) -> None:
        for message in messages:
            self.messages.put(message)

    def poll(self, timeout: float) -> FakeMessage | None:
        try:
            message = self.messages.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(message, Exception):
            raise message
        return message

    def consume(self, _count: int, _timeout: float) -> list[FakeMessage]:
        return []

    def close(self) -> None:
        self.is_closed = True

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


class UnexpectedMessageTests(TestCase):
    """Messages of the broker are checked."""

    timeout = 10

    def setUp(self) -> Any:
        self.handler = RecordingHandler()
        self.client = FakeClient()
        self.consumer = Consumer({}, reactor, self.handler, lambda _: self.client)
        self.consumer.start()
        self.addCleanup(self.consumer.stop)
        self.consumer.assign("1", "mine", {0: 5})
        return until(lambda: self.consumer._positions, "it reads")

    @inlineCallbacks
    def process_all(self) -> Any:
        """Wait until all messages are processed."""
        self.client.add(FakeMessage("mine", 1000, b"last"))
        yield until(
            lambda: self.handler.records and self.handler.records[-1].value == b"last", "all"
        )
        self.handler.records.pop()

    @inlineCallbacks
    def test_a_message_of_another_topic_is_dropped(self) -> Any:
        self.client.add(FakeMessage("other", 5, b"1"), FakeMessage("mine", 5, b"2"))
        yield self.process_all()
        self.assertEqual(self.handler.records, [Record("1", b"2", None, 0, 5, 3)])
        self.assertEqual(self.handler.events, [("on_misrouted", "other")])

    @inlineCallbacks
    def test_each_offset_is_delivered_once_and_in_order(self) -> Any:
        for offset in (4, 5, 5, 6, 5, 9, 7):
            self.client.add(FakeMessage("mine", offset, b"%d" % offset))
        yield self.process_all()
        self.assertEqual([each.value for each in self.handler.records], [b"5", b"6", b"9"])

    @inlineCallbacks
    def test_the_last_header_with_the_name_is_used(self) -> Any:
        headers = [("__PERSONIUM_CELL", b"1"), ("other", b"2"), ("__PERSONIUM_CELL", b"3")]
        self.client.add(FakeMessage("mine", 5, b"", headers=headers))
        yield self.process_all()
        self.assertEqual(self.handler.records[0].cell, b"3")

    @inlineCallbacks
    def test_errors_are_reported_by_their_kind(self) -> Any:
        def error(code: int, name: str = "mine") -> FakeMessage:
            return FakeMessage(name, 0, error=KafkaError(code, "simulated"))

        self.client.add(
            error(KafkaError._AUTO_OFFSET_RESET),
            error(KafkaError.TOPIC_AUTHORIZATION_FAILED),
            error(KafkaError.UNKNOWN_TOPIC_OR_PART),
            error(KafkaError.GROUP_AUTHORIZATION_FAILED),
            error(KafkaError.UNKNOWN_TOPIC_OR_PART, "forgotten"),
            error(KafkaError._ALL_BROKERS_DOWN),
        )
        yield self.process_all()
        self.assertEqual(
            self.handler.events,
            [
                ("on_offset_missing", "1", 0, 5),
                ("on_topic_refused", "1", "simulated"),
                ("on_topic_refused", "1", "simulated"),
                ("on_error", "simulated"),
                ("on_disconnected",),
            ],
        )

    @inlineCallbacks
    def test_the_thread_survives_an_internal_error(self) -> Any:
        self.client.add(RuntimeError("simulated"))
        yield self.process_all()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    @inlineCallbacks
    def test_stop_closes_the_client(self) -> Any:
        yield self.consumer.stop()
        self.assertTrue(self.client.is_closed)
