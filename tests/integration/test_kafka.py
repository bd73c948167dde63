"""A real Kafka, and whole topicsvc processes."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.broker_contract import BrokerContract
from tests.integration.broker_cases import (
    CELL,
    CloseOnLossCases,
    HostileNamesCases,
    KeepOnLossCases,
    RightAfterSuccessCases,
    figure,
)
from tests.integration.kafka_server import Kafka
from tests.integration.processes import Shared, until
from topicsvc.address import TopicAddress
from topicsvc.brokers.kafka import KafkaBroker
from topicsvc.brokers.kafka_options import connection_options

shared = Shared(Kafka)


class AdapterTests(TestCase):
    """Fixture: the adapter in this process, beside the shared broker."""

    timeout = 60

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server: Kafka = yield shared.get()
        self.broker = KafkaBroker(connection_options(self.server.bootstrap), reactor)
        self.broker.startService()
        self.addCleanup(self.broker.stopService)
        yield until(lambda: self.broker.is_up, "the broker is up", 15)


class KafkaContractTests(BrokerContract, AdapterTests):
    name = "contract"


class OtherSender:
    """Somebody else who sends numbered messages, and does not give up before they are accepted."""

    def __init__(self, server: Kafka, topic: TopicAddress) -> None:
        self._name = topic.broker_name
        self._client = Producer(
            {
                "bootstrap.servers": server.bootstrap,
                "enable.idempotence": True,
                "message.timeout.ms": 120000,
                "reconnect.backoff.max.ms": 200,
                "linger.ms": 0,
                "log_level": 0,
            }
        )
        self.accepted: list[int] = []

    def send(self, number: int) -> None:
        def delivered(error: object, _: object) -> None:
            assert error is None, error
            self.accepted.append(number)

        while True:
            try:
                self._client.produce(
                    self._name,
                    b'{"number":%d}' % number,
                    headers=[("__PERSONIUM_CELL", CELL.encode())],
                    on_delivery=delivered,
                )
            except BufferError:
                self._client.poll(0.1)
            else:
                break
        self._client.poll(0)

    def finish(self) -> None:
        assert self._client.flush(60) == 0


class KeepOnLossTests(KeepOnLossCases, TestCase):
    """Nothing that the broker accepts is missed, however it goes and comes."""

    def make_server(self) -> Kafka:
        return Kafka()

    @inlineCallbacks
    def send_many(self, count: int) -> Any:
        sender = OtherSender(self.server, self.topic)

        def send() -> None:
            for number in range(count):
                sender.send(number)
            sender.finish()

        yield deferToThread(send)

    def during_outage(self) -> None:
        self.sender = OtherSender(self.server, self.topic)
        self.numbers = iter(range(100, 1000000))
        self.sending = LoopingCall(lambda: self.sender.send(next(self.numbers)))
        self.sending.start(0.02)

    @inlineCallbacks
    def after_outage(self) -> Any:
        self.sending.stop()
        yield deferToThread(self.sender.finish)
        self.assertGreater(len(self.sender.accepted), 50)
        figure(f"{len(self.sender.accepted)} messages sent over the outage", 0)

    def check_numbers(self, numbers: list[int]) -> None:
        # Number 2 was under way when the broker stopped: nobody knows, so it may come.
        if 2 in numbers:
            numbers.remove(2)
        self.assertEqual(numbers, [1, *self.sender.accepted, 4])

    def check_log(self, log: str) -> None:
        self.assertEqual(log.count("the broker is lost"), 1)
        self.assertEqual(log.count("the broker is back"), 1)


class CloseOnLossTests(CloseOnLossCases, TestCase):
    def make_server(self) -> Kafka:
        return Kafka()


class RightAfterSuccessTests(RightAfterSuccessCases, AdapterTests):
    at_once = 100


class HostileNamesTests(HostileNamesCases, AdapterTests):
    @inlineCallbacks
    def names_at_the_broker(self) -> Any:
        asking = AdminClient({"bootstrap.servers": self.server.bootstrap, "log_level": 0})
        listing = yield deferToThread(asking.list_topics, timeout=5)
        return list(listing.topics)
