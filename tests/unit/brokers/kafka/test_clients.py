"""The clients of librdkafka, against its own mock cluster: the real protocol, on a port."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as KafkaProducer
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.support.broker_contract import Inbox
from tests.support.processes import until
from topicsvc.brokers.kafka import record_queue
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.consumer import Consumer
from topicsvc.brokers.kafka.metadata import MetadataClient
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.brokers.kafka.producer import Place, Producer
from topicsvc.brokers.kafka.record_queue import Record
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message
from topicsvc.topics import TopicAddress

SENDER = "https://cell2.unit1.example/"
PARTITIONS = 4
"""How many the mock cluster gives to a topic."""

_cluster: list[Any] = []


def bootstrap() -> str:
    """Where the mock cluster is; it lives as long as the test run."""
    if not _cluster:
        options = {"bootstrap.servers": "ignored", "test.mock.num.brokers": 1, "log_level": 0}
        _cluster.append(KafkaProducer(options))
    brokers = _cluster[0].list_topics(timeout=5).brokers.values()
    return ",".join(f"{each.host}:{each.port}" for each in brokers)


def topic(name: str) -> TopicAddress:
    return TopicAddress("cell1", "box1", ("mock",), name)


class BrokerTests(TestCase):
    """All of it together."""

    timeout = 30

    @inlineCallbacks
    def setUp(self) -> Any:
        self.broker = KafkaBroker(connection_options(bootstrap()), reactor)
        self.broker.startService()
        self.addCleanup(self.broker.stopService)
        yield until(lambda: self.broker.is_up, "the broker is up")

    def publish_all(self, name: str, bodies: list[bytes]) -> Deferred[Any]:
        return gatherResults(
            [self.broker.publish(Message(topic(name), SENDER, body)) for body in bodies]
        )

    @inlineCallbacks
    def test_a_topic_of_several_partitions_loses_nothing(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(topic("several"), inbox)
        bodies = [b"%d" % number for number in range(200)]
        for body in bodies:
            yield self.broker.publish(Message(topic("several"), SENDER, body))
        yield inbox.holds(len(bodies))
        self.assertEqual(sorted(inbox.bodies), sorted(bodies))
        watching = KafkaConsumer({"bootstrap.servers": bootstrap(), "group.id": "x"})
        self.addCleanup(watching.close)
        there = watching.list_topics(topic("several").broker_name, timeout=5)
        self.assertEqual(len(there.topics[topic("several").broker_name].partitions), PARTITIONS)

    @inlineCallbacks
    def test_what_was_sent_before_is_not_brought(self) -> Any:
        yield self.publish_all("before", [b"1", b"2", b"3"])
        inbox = Inbox()
        yield self.broker.subscribe(topic("before"), inbox)
        yield self.publish_all("before", [b"4"])
        yield inbox.holds(1)
        self.assertEqual(inbox.bodies, [b"4"])

    @inlineCallbacks
    def test_reading_pauses_and_goes_on_without_loss(self) -> Any:
        self.patch(record_queue, "MOST_RECORDS", 100)
        self.patch(record_queue, "TURN_RECORDS", 5)
        pauses, resumes = [], []
        client = self.broker._consumer._client

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(client, name)

            def pause(self, partitions: list[Any]) -> None:
                pauses.append(len(partitions))
                client.pause(partitions)

            def resume(self, partitions: list[Any]) -> None:
                resumes.append(len(partitions))
                client.resume(partitions)

        self.broker._consumer._client = Watched()
        inbox = Inbox()
        yield self.broker.subscribe(topic("flood"), inbox)
        bodies = [b"%d" % number for number in range(1000)]
        yield self.publish_all("flood", bodies)
        yield inbox.holds(len(bodies))
        self.assertEqual(sorted(inbox.bodies), sorted(bodies))
        self.assertGreater(len(pauses), 0)
        yield until(lambda: len(resumes) == len(pauses), "all is resumed")
        self.assertEqual(set(pauses + resumes), {PARTITIONS})

    @inlineCallbacks
    def test_what_kafka_gets_is_what_a_unit_sends(self) -> Any:
        yield self.broker.publish(Message(topic("wire"), SENDER, '{"a":"\xe9"}'.encode()))
        watching = KafkaConsumer(
            {
                "bootstrap.servers": bootstrap(),
                "group.id": "x",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        self.addCleanup(watching.close)
        watching.subscribe([topic("wire").broker_name])
        seen = []

        def look() -> bool:
            message = watching.poll(0.1)
            if message is not None and message.error() is None:
                seen.append(message)
            return bool(seen)

        yield until(look, "the message is there")
        [message] = seen
        self.assertIsNone(message.key())
        self.assertEqual(message.value(), '{"a":"\xe9"}'.encode())
        self.assertEqual(message.headers(), [("__PERSONIUM_CELL", SENDER.encode())])


class Owner:
    """Remembers what a consumer tells."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.told: list[tuple[Any, ...]] = []

    def record(self, record: Record) -> None:
        self.records.append(record)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, *arguments))


class ConsumerTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.owner = Owner()
        self.consumer = Consumer(connection_options(bootstrap()), reactor, self.owner)
        self.questions = MetadataClient(connection_options(bootstrap()), reactor)
        for each in (self.consumer, self.questions):
            each.start()
            self.addCleanup(each.stop)

    @inlineCallbacks
    def test_an_offset_that_is_not_there_is_told(self) -> Any:
        yield self.questions.end_offsets(["gone"])
        self.consumer.read("1", "gone", {0: 99})
        yield until(lambda: self.owner.told, "it is told")
        self.assertEqual(self.owner.told[0], ("not_there", "1", 0, 99))
        bounds = yield self.questions.bounds("gone", 0)
        self.assertEqual(bounds, (0, 0))

    @inlineCallbacks
    def test_reading_from_another_place_ends_the_reading_from_the_first(self) -> Any:
        producer = _cluster[0]
        yield self.questions.end_offsets(["again"])
        for body in (b"0", b"1", b"2"):
            producer.produce("again", body, partition=0)
        producer.flush(5)
        self.consumer.read("1", "again", {0: 0})
        yield until(lambda: len(self.owner.records) == 3, "all is read")
        self.consumer.read("2", "again", {0: 2})
        yield until(lambda: len(self.owner.records) == 4, "the last is read again")
        self.assertEqual(self.owner.records[-1], Record("2", b"2", None))

    @inlineCallbacks
    def test_what_is_brought_is_known_record_by_record(self) -> Any:
        yield self.questions.end_offsets(["brought"])
        expected = {("brought", 0): 1, ("brought", 1): 0}
        self.assertTrue(self.consumer.has_brought({}))
        self.assertFalse(self.consumer.has_brought(expected), "it is not read yet")
        self.consumer.read("1", "brought", {0: 0, 1: 0})
        self.consumer.pause()
        producer = _cluster[0]
        for partition in (0, 1, 0):
            producer.produce("brought", b"1", partition=partition)
        producer.flush(5)
        yield until(lambda: not self.consumer._queue.is_empty, "it comes and waits")
        yield deferLater(reactor, 0.1)
        self.assertFalse(self.consumer.has_brought(expected), "it waits")
        self.assertTrue(self.consumer.has_brought({}), "what waits is for others")
        self.assertEqual(self.owner.records, [])
        self.consumer.resume()
        yield until(lambda: self.consumer.has_brought(expected), "it is brought")
        self.assertEqual(len(self.owner.records), 3)
        self.assertFalse(self.consumer.has_brought({("brought", 0): 2}), "there is no such yet")

    @inlineCallbacks
    def test_where_a_message_stands_is_told(self) -> Any:
        yield self.questions.end_offsets(["stands"])
        producer = Producer(connection_options(bootstrap()), reactor)
        producer.start()
        self.addCleanup(producer.stop)
        outcome: Deferred[Any] = Deferred()
        producer.send("stands", SENDER, b"1", outcome.callback)
        place = yield outcome
        self.assertEqual(place.offset, 0)
        self.consumer.read("1", "stands", {place.partition: 0})
        brought = {("stands", place.partition): place.offset}
        yield until(lambda: self.consumer.has_brought(brought), "it is brought")
        self.assertEqual(len(self.owner.records), 1)

    @inlineCallbacks
    def test_nothing_comes_of_what_is_forgotten(self) -> Any:
        producer = _cluster[0]
        yield self.questions.end_offsets(["forgotten", "witness"])
        self.consumer.read("1", "forgotten", {0: 0})
        self.consumer.read("2", "witness", {0: 0})
        self.consumer.forget("1", "forgotten")
        self.consumer.forget("3", "witness")  # an older reading of it
        producer.produce("forgotten", b"1", partition=0)
        producer.produce("witness", b"2", partition=0)
        producer.flush(5)
        yield until(lambda: self.owner.records, "the witness has it")
        self.assertEqual(self.owner.records, [Record("2", b"2", None)])

    @inlineCallbacks
    def test_ends_of_several_topics(self) -> Any:
        ends = yield self.questions.end_offsets(["one", "two"])
        self.assertEqual(ends, {name: dict.fromkeys(range(PARTITIONS), 0) for name in ends})
        self.assertEqual((yield self.questions.partitions(["one"])), {"one": [0, 1, 2, 3]})
        yield self.questions.alive([("one", 0), ("two", 3)])
        yield self.questions.alive([])

    @inlineCallbacks
    def test_a_topic_that_is_gone_is_no_sign_of_death(self) -> Any:
        yield self.questions.end_offsets(["there"])
        yield self.questions.alive([("there", 0), ("deleted", 0)])


class FakeMessage:
    """A record that librdkafka brings."""

    def __init__(self, name: str, offset: int, value: bytes = b"", **more: Any) -> None:
        self._parts = {"topic": name, "partition": 0, "offset": offset, "value": value}
        self._parts |= {"headers": None, "error": None, **more}

    def __getattr__(self, name: str) -> Any:
        return lambda: self._parts[name]


class ScriptedClient:
    """A librdkafka client of the consumer's kind that brings what the test says."""

    def __init__(self) -> None:
        self.coming: SimpleQueue[FakeMessage | Exception] = SimpleQueue()
        self.is_closed = False

    def bring(self, *messages: FakeMessage | Exception) -> None:
        for message in messages:
            self.coming.put(message)

    def poll(self, timeout: float) -> FakeMessage | None:
        try:
            message = self.coming.get(timeout=timeout)
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


class UntrustedBrokerTests(TestCase):
    """What a broker brings is not believed."""

    timeout = 10

    def setUp(self) -> Any:
        self.owner = Owner()
        self.client = ScriptedClient()
        self.consumer = Consumer({}, reactor, self.owner, lambda _: self.client)
        self.consumer.start()
        self.addCleanup(self.consumer.stop)
        self.consumer.read("1", "mine", {0: 5})
        return until(lambda: self.consumer._places, "it reads")

    @inlineCallbacks
    def heard(self) -> Any:
        """All that was coming has been sorted."""
        self.client.bring(FakeMessage("mine", 1000, b"last"))
        yield until(lambda: self.owner.records and self.owner.records[-1].value == b"last", "all")
        self.owner.records.pop()

    @inlineCallbacks
    def test_another_topic_s_message_reaches_nobody(self) -> Any:
        self.client.bring(FakeMessage("other", 5, b"1"), FakeMessage("mine", 5, b"2"))
        yield self.heard()
        self.assertEqual(self.owner.records, [Record("1", b"2", None)])
        self.assertEqual(self.owner.told, [("misrouted", "other")])

    @inlineCallbacks
    def test_no_offset_comes_twice_and_none_of_the_past(self) -> Any:
        for offset in (4, 5, 5, 6, 5, 9, 7):
            self.client.bring(FakeMessage("mine", offset, b"%d" % offset))
        yield self.heard()
        self.assertEqual([each.value for each in self.owner.records], [b"5", b"6", b"9"])

    @inlineCallbacks
    def test_the_last_header_of_the_name_counts(self) -> Any:
        headers = [("__PERSONIUM_CELL", b"1"), ("other", b"2"), ("__PERSONIUM_CELL", b"3")]
        self.client.bring(FakeMessage("mine", 5, b"", headers=headers))
        yield self.heard()
        self.assertEqual(self.owner.records[0].cell, b"3")

    @inlineCallbacks
    def test_errors_are_told_by_their_kind(self) -> Any:
        def error(code: int, name: str = "mine") -> FakeMessage:
            return FakeMessage(name, 0, error=KafkaError(code, "said the test"))

        self.client.bring(
            error(KafkaError._AUTO_OFFSET_RESET),
            error(KafkaError.TOPIC_AUTHORIZATION_FAILED),
            error(KafkaError.UNKNOWN_TOPIC_OR_PART),
            error(KafkaError.GROUP_AUTHORIZATION_FAILED),
            error(KafkaError.UNKNOWN_TOPIC_OR_PART, "forgotten"),
            error(KafkaError._ALL_BROKERS_DOWN),
        )
        yield self.heard()
        self.assertEqual(
            self.owner.told,
            [
                ("not_there", "1", 0, 5),
                ("refused", "1", "said the test"),
                ("refused", "1", "said the test"),
                ("complain", "said the test"),
                ("doubted",),
            ],
        )

    @inlineCallbacks
    def test_the_thread_survives_a_bad_turn(self) -> Any:
        self.client.bring(RuntimeError("said the test"))
        yield self.heard()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    @inlineCallbacks
    def test_the_client_is_closed_by_the_thread(self) -> Any:
        yield self.consumer.stop()
        self.assertTrue(self.client.is_closed)


class SilentBrokerTests(TestCase):
    """Nobody answers there."""

    timeout = 30

    @inlineCallbacks
    def test_questions_fail_and_all_stops(self) -> Any:
        self.patch_timeouts()
        questions = MetadataClient(connection_options("127.0.0.1:9"), reactor)
        questions.start()
        for asked in (
            questions.end_offsets(["x"]),
            questions.alive([]),
            questions.bounds("x", 0),
            questions.partitions(["x"]),
        ):
            yield self.assertFailure(asked, BrokerUnavailable)
        yield questions.stop()
        yield questions.stop()
        yield self.assertFailure(questions.alive([]), BrokerUnavailable)

    @inlineCallbacks
    def test_what_is_under_way_when_the_service_stops_is_answered(self) -> Any:
        from topicsvc.brokers.kafka import producer

        self.patch(producer, "LAST_WORDS", 0.1)
        producer = Producer(connection_options("127.0.0.1:9"), reactor)
        producer.start()
        outcomes: list[BrokerUnavailable | None] = []
        producer.send("x", SENDER, b"1", outcomes.append)
        yield producer.stop()
        self.assertEqual([type(each) for each in outcomes], [BrokerUnavailable])

    def patch_timeouts(self) -> None:
        from topicsvc.brokers.kafka import metadata

        self.patch(metadata, "TIMEOUT", 0.2)
        self.patch(metadata, "SHORT_TIMEOUT", 0.2)


class ProducerTests(TestCase):
    timeout = 30

    @inlineCallbacks
    def test_a_message_that_librdkafka_refuses_is_refused(self) -> Any:
        producer = Producer(connection_options(bootstrap()), reactor)
        producer.start()
        self.addCleanup(producer.stop)
        outcome: Deferred[Any] = Deferred()
        producer.send("x", SENDER, bytes(100_000_000), outcome.callback)
        self.assertIsInstance((yield outcome), BrokerUnavailable)

    @inlineCallbacks
    def test_a_producer_that_is_spent_is_made_anew_and_a_bad_turn_is_survived(self) -> Any:
        made: list[Any] = []
        faults: list[Exception] = []

        class Stands:
            partition = staticmethod(lambda: 1)
            offset = staticmethod(lambda: 2)

        class Spent:
            def __init__(self, options: Any) -> None:
                self.is_spent = not made
                made.append(self)
                self.waiting: list[Any] = []

            def produce(self, *_: Any, on_delivery: Any, **__: Any) -> None:
                self.waiting.append(on_delivery)

            def poll(self, timeout: float) -> None:
                if len(made) == 2 and not faults:
                    faults.append(RuntimeError("said the test"))
                    raise faults[0]
                error = None
                if self.is_spent:
                    error = KafkaError(KafkaError._FATAL, "said the test", True)
                while self.waiting:
                    self.waiting.pop()(error, Stands)

            flush = poll

            def purge(self) -> None:
                pass

        producer = Producer({}, reactor, Spent)
        producer.start()
        self.addCleanup(producer.stop)
        outcomes = []
        for _ in range(2):
            outcome: Deferred[Any] = Deferred()
            producer.send("x", SENDER, b"1", outcome.callback)
            outcomes.append((yield outcome))
            yield until(lambda: len(made) == 2, "it is made anew")
        self.assertIsInstance(outcomes[0], BrokerUnavailable)
        self.assertEqual(outcomes[1], Place(1, 2))
        self.assertEqual(self.flushLoggedErrors(RuntimeError)[0].value, faults[0])

    @inlineCallbacks
    def test_one_that_raises_that_it_is_spent_is_made_anew_and_that_is_told_once(self) -> Any:
        made: list[Any] = []
        told: list[Any] = []
        globalLogPublisher.addObserver(told.append)
        self.addCleanup(globalLogPublisher.removeObserver, told.append)

        class Refused:
            def __init__(self, options: Any) -> None:
                made.append(self)

            def poll(self, timeout: float) -> None:
                if len(made) == 1:
                    spent = KafkaError(KafkaError._FATAL, "no right to be exact", True)
                    producer._failed(spent)
                    raise KafkaException(spent)

            def flush(self, timeout: float) -> None:
                pass

            purge = staticmethod(lambda: None)

        producer = Producer({}, reactor, Refused)
        producer.start()
        self.addCleanup(producer.stop)
        yield until(lambda: len(made) == 2, "it is made anew")
        yield until(lambda: "made anew" in repr(told), "that is told")
        self.assertEqual(repr(told).count("made anew"), 1)

    def test_a_failure_to_make_one_is_told(self) -> None:
        producer = Producer({"no.such.option": "1"}, reactor)
        self.assertRaises(KafkaException, producer.start)
