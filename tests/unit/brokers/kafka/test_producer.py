"""Sending, with librdkafka's mock cluster and with fake clients."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError, KafkaException
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.support.mock_kafka import SENDER, bootstrap
from tests.support.processes import until
from topicsvc.brokers.kafka import producer
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.brokers.kafka.producer import Position, Producer
from topicsvc.errors import BrokerUnavailable


class ProducerTests(TestCase):
    timeout = 30

    @inlineCallbacks
    def test_a_message_that_librdkafka_refuses_fails(self) -> Any:
        producer = Producer(connection_options(bootstrap()), reactor)
        producer.start()
        self.addCleanup(producer.stop)
        result: Deferred[Any] = Deferred()
        producer.send("x", SENDER, bytes(100_000_000), result.callback)
        self.assertIsInstance((yield result), BrokerUnavailable)

    @inlineCallbacks
    def test_unconfirmed_messages_fail_when_the_service_stops(self) -> Any:
        self.patch(producer, "FLUSH_TIMEOUT", 0.1)
        client = Producer(connection_options("127.0.0.1:9"), reactor)
        client.start()
        results: list[Any] = []
        client.send("x", SENDER, b"1", results.append)
        yield client.stop()
        self.assertEqual([type(each) for each in results], [BrokerUnavailable])

    @inlineCallbacks
    def test_the_client_is_replaced_after_a_fatal_error_and_the_thread_survives_errors(self) -> Any:
        made: list[Any] = []
        errors: list[Exception] = []

        class Accepted:
            partition = staticmethod(lambda: 1)
            offset = staticmethod(lambda: 2)

        class FirstFails:
            def __init__(self, options: Any) -> None:
                self.is_first = not made
                made.append(self)
                self.waiting: list[Any] = []

            def produce(self, *_: Any, on_delivery: Any, **__: Any) -> None:
                self.waiting.append(on_delivery)

            def poll(self, timeout: float) -> None:
                if len(made) == 2 and not errors:
                    errors.append(RuntimeError("simulated"))
                    raise errors[0]
                error = None
                if self.is_first:
                    error = KafkaError(KafkaError._FATAL, "simulated", True)
                while self.waiting:
                    self.waiting.pop()(error, Accepted)

            flush = poll

            def purge(self) -> None:
                pass

        producer = Producer({}, reactor, FirstFails)
        producer.start()
        self.addCleanup(producer.stop)
        results = []
        for _ in range(2):
            result: Deferred[Any] = Deferred()
            producer.send("x", SENDER, b"1", result.callback)
            results.append((yield result))
            yield until(lambda: len(made) == 2, "the client is replaced")
        self.assertIsInstance(results[0], BrokerUnavailable)
        self.assertEqual(results[1], Position(1, 2))
        self.assertEqual(self.flushLoggedErrors(RuntimeError)[0].value, errors[0])

    @inlineCallbacks
    def test_a_fatal_error_that_is_raised_and_reported_is_logged_once(self) -> Any:
        made: list[Any] = []
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)

        class FirstFails:
            def __init__(self, options: Any) -> None:
                made.append(self)

            def poll(self, timeout: float) -> None:
                if len(made) == 1:
                    fatal = KafkaError(KafkaError._FATAL, "not authorized", True)
                    producer._on_error(fatal)
                    raise KafkaException(fatal)

            def flush(self, timeout: float) -> None:
                pass

            purge = staticmethod(lambda: None)

        producer = Producer({}, reactor, FirstFails)
        producer.start()
        self.addCleanup(producer.stop)
        yield until(lambda: len(made) == 2, "the client is replaced")
        yield until(lambda: "is replaced" in repr(events), "the error is logged")
        self.assertEqual(repr(events).count("is replaced"), 1)

    def test_start_fails_with_wrong_options(self) -> None:
        producer = Producer({"no.such.option": "1"}, reactor)
        self.assertRaises(KafkaException, producer.start)
