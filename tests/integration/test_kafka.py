"""The Kafka broker with a real Kafka and topicsvc processes."""

from __future__ import annotations

import json
from itertools import pairwise
from time import time
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.integration.support.broker_cases import (
    CELL,
    CloseOnLossCases,
    HostileNamesCases,
    KeepOnLossCases,
    PressureCases,
    RightAfterSuccessCases,
    directory,
    figure,
)
from tests.integration.support.kafka_server import Kafka, need_kafka
from tests.support.broker_contract import BrokerContract, Inbox, LogContract
from tests.support.certificates import Authority
from tests.support.processes import Deployment, Shared, TopicsvcServer, until
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.options import Options, connection_options
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message
from topicsvc.settings import HistorySettings, Login
from topicsvc.topics import TopicAddress

shared = Shared(Kafka)


def make_broker(options: Options) -> KafkaBroker:
    """Make the broker under test, in this process."""
    return KafkaBroker(options, reactor, time, HistorySettings())


class KafkaTestCase(TestCase):
    """Fixture: a `KafkaBroker` in this process, connected to a server that all tests share."""

    timeout = 60

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server: Kafka = yield shared.get()
        self.broker = make_broker(connection_options(self.server.bootstrap))
        self.broker.startService()
        self.addCleanup(self.broker.stopService)
        yield until(lambda: self.broker.is_up, "the broker is up", 15)


class KafkaContractTests(BrokerContract, KafkaTestCase):
    name = "contract"


class KafkaLogTests(LogContract, KafkaTestCase):
    @inlineCallbacks
    def make_other(self) -> Any:
        broker = make_broker(connection_options(self.server.bootstrap))
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the broker is up", 15)
        return broker


class PressureTests(PressureCases, KafkaTestCase):
    pass


class OtherSender:
    """Another client of the broker; it sends numbered messages until they are accepted."""

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

    def send(self, number: int, partition: int = -1) -> None:
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
                    partition=partition,
                )
            except BufferError:
                self._client.poll(0.1)
            else:
                break
        self._client.poll(0)

    def finish(self) -> None:
        assert self._client.flush(60) == 0


class KeepOnLossTests(KeepOnLossCases, TestCase):
    """No accepted message is missed, in whichever way the broker stops and returns."""

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
        figure("sent during the outage", len(self.sender.accepted), "messages")

    def check_numbers(self, numbers: list[int]) -> None:
        # The broker stopped while number 2 was being sent, so it may have accepted it.
        if 2 in numbers:
            numbers.remove(2)
        self.assertEqual(numbers, [1, *self.sender.accepted, 4])

    def check_log(self, log: str) -> None:
        self.assertEqual(log.count("the broker is lost"), 1)
        self.assertEqual(log.count("the broker is back"), 1)


class CloseOnLossTests(CloseOnLossCases, TestCase):
    def make_server(self) -> Kafka:
        return Kafka()


class RightAfterSuccessTests(RightAfterSuccessCases, KafkaTestCase):
    at_once = 100


class HostileNamesTests(HostileNamesCases, KafkaTestCase):
    @inlineCallbacks
    def names_at_the_broker(self) -> Any:
        admin = AdminClient({"bootstrap.servers": self.server.bootstrap, "log_level": 0})
        listing = yield deferToThread(admin.list_topics, timeout=5)
        return list(listing.topics)

    @inlineCallbacks
    def test_a_name_that_kafka_does_not_allow_is_not_a_topic(self) -> Any:
        service = TopicsvcServer(Deployment(directory(self), self.server.settings))
        self.addCleanup(service.program.stop)
        yield service.start()
        topic = TopicAddress("cell1", "box1", ("\u65e5\u672c",), "name")
        subscriber = yield service.connect(topic.websocket_path)
        self.assertFalse((yield subscriber.subscribed))
        self.assertEqual(subscriber.replies[0]["Reason"], "Token inactive")
        self.assertEqual(subscriber.close_code, 1008)
        self.assertEqual(service.send(topic.send_path, b"1"), 404)
        names = yield self.names_at_the_broker()
        self.assertEqual([name for name in names if not name.isascii()], [])


class TopicsTests(KafkaTestCase):
    """Topics that are deleted or have several partitions."""

    @inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        self.admin = AdminClient({"bootstrap.servers": self.server.bootstrap, "log_level": 0})

    def topic(self, name: str) -> TopicAddress:
        return TopicAddress("cell1", "box1", ("topics",), name)

    @inlineCallbacks
    def create(self, topic: TopicAddress, partitions: int) -> Any:
        [made] = self.admin.create_topics([NewTopic(topic.broker_name, partitions, 1)]).values()
        yield deferToThread(made.result)

    def publish(self, topic: TopicAddress, number: int) -> Any:
        return self.broker.publish(Message(topic, CELL, b"%d" % number))

    @inlineCallbacks
    def test_several_partitions(self) -> Any:
        topic = self.topic("several")
        yield self.create(topic, 3)
        inbox = Inbox()
        yield self.broker.subscribe(topic, inbox)
        sender = OtherSender(self.server, topic)
        for number in range(3000):
            sender.send(number, partition=number % 3)
        yield deferToThread(sender.finish)
        yield inbox.holds(3000)
        numbers = [json.loads(body)["number"] for body in inbox.bodies]
        for partition in range(3):
            expected = list(range(partition, 3000, 3))
            received = [number for number in numbers if number % 3 == partition]
            self.assertEqual(received, expected)

    @inlineCallbacks
    def test_a_topic_that_is_deleted_and_created_again_has_a_gap(self) -> Any:
        topic = self.topic("again")
        inbox = Inbox()
        yield self.broker.subscribe(topic, inbox)
        for number in range(5):
            yield self.publish(topic, number)
        yield inbox.holds(5)
        [deleted] = self.admin.delete_topics([topic.broker_name]).values()
        yield deferToThread(deleted.result)
        yield self.create(topic, 1)
        yield until(lambda: self.broker.losses.gaps, "the gap is noticed")
        inbox.messages.clear()
        yield self.publish(topic, 5)
        yield inbox.holds(1)
        self.assertEqual(inbox.bodies, [b"5"])
        self.assertTrue(self.broker.is_up)


class NoTopicsTests(TestCase):
    """A broker that does not create topics by itself, and then stops responding."""

    timeout = 90

    @inlineCallbacks
    def test_missing_topics_and_a_frozen_broker(self) -> Any:
        server = Kafka({"auto.create.topics.enable": "false"})
        self.addCleanup(server.remove)
        yield server.start()
        broker = make_broker(connection_options(server.bootstrap))
        broker.startService()
        yield until(lambda: broker.is_up, "the broker is up", 15)
        topic = TopicAddress("cell1", "box1", ("missing",), "name")
        sent = broker.publish(Message(topic, CELL, b"1"))
        yield self.assertFailure(broker.subscribe(topic, print), BrokerUnavailable)
        yield self.assertFailure(sent, BrokerUnavailable)
        self.assertEqual(len(broker._reader), 0)
        self.assertTrue(broker.is_up)
        server.program.pause()
        ticks: list[float] = []
        ticking = LoopingCall(lambda: ticks.append(reactor.seconds()))
        ticking.start(0.02)
        began = reactor.seconds()
        yield broker.stopService()
        ticking.stop()
        ticks.append(reactor.seconds())
        figure("stopping with a frozen broker", ticks[-1] - began)
        longest = max(after - before for before, after in pairwise(ticks))
        self.assertLess(longest, 1, "the reactor was blocked")


class TlsAndLoginTests(TestCase):
    """A broker with TLS, logins and access control lists."""

    timeout = 90

    @inlineCallbacks
    def setUp(self) -> Any:
        need_kafka()
        authority = Authority(directory(self))
        key_file, cert_file = authority.issue("127.0.0.1")
        key_store = authority.directory / "server.pem"
        key_store.write_text(key_file.read_text() + cert_file.read_text())
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        users = 'user_topicsvc="open:sesame" user_admin="admin"'
        self.server = Kafka(
            {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(key_store),
                "sasl.enabled.mechanisms": "PLAIN",
                "sasl.mechanism.inter.broker.protocol": "PLAIN",
                "listener.name.client.plain.sasl.jaas.config": (
                    f'{plain} username="admin" password="admin" {users};'
                ),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(authority.ca_file),
                "authorizer.class.name": (
                    "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
                ),
                "super.users": "User:admin;User:ANONYMOUS",
            },
            "SASL_SSL",
        )
        self.addCleanup(self.server.remove)
        yield self.server.start()
        self.pem = authority.ca_file.read_text()
        self.other_pem = Authority(directory(self), "another").ca_file.read_text()

    def broker(self, password: str, pem: str | None) -> KafkaBroker:
        login = Login("topicsvc", password)
        broker = make_broker(connection_options(self.server.bootstrap, login, pem))
        broker.startService()
        self.addCleanup(broker.stopService)
        return broker

    @inlineCallbacks
    def allow(self, prefix: str) -> Any:
        """Grant the rights that docs/brokers.md names, on topics with this prefix."""
        admin = AdminClient(
            connection_options(self.server.bootstrap, Login("admin", "admin"), self.pem)
        )
        rights = [
            AclBinding(
                ResourceType.TOPIC,
                prefix,
                ResourcePatternType.PREFIXED,
                "User:topicsvc",
                "*",
                operation,
                AclPermissionType.ALLOW,
            )
            for operation in (
                AclOperation.DESCRIBE,
                AclOperation.READ,
                AclOperation.WRITE,
                AclOperation.CREATE,
            )
        ]
        for made in admin.create_acls(rights).values():
            yield deferToThread(made.result)

    @inlineCallbacks
    def test_only_trusted_servers_valid_logins_and_granted_topics(self) -> Any:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        # Granted first, as by an operator: an idempotent producer needs the rights at its start.
        yield self.allow("cell1.")
        broker = self.broker("open:sesame", self.other_pem + self.pem)
        others = [
            self.broker("wrong", self.pem),
            self.broker("open:sesame", self.other_pem),
            self.broker("open:sesame", None),
        ]
        yield until(lambda: broker.is_up, "the valid login connects")
        inbox = Inbox()
        topic = TopicAddress("cell1", "box1", ("tls",), "name")
        yield broker.subscribe(topic, inbox)
        yield broker.publish(Message(topic, CELL, b"1"))
        yield inbox.holds(1)
        foreign = TopicAddress("cell2", "box1", ("tls",), "name")
        yield self.assertFailure(broker.subscribe(foreign, inbox), BrokerUnavailable)
        yield self.assertFailure(broker.publish(Message(foreign, CELL, b"1")), BrokerUnavailable)
        yield deferLater(reactor, 2)
        for other in others:
            self.assertFalse(other.is_up)
            yield self.assertFailure(other.publish(Message(topic, CELL, b"2")), BrokerUnavailable)
        self.assertTrue(broker.is_up)
        self.assertEqual(inbox.bodies, [b"1"])
        self.assertNotIn("sesame", repr(events))
        self.assertIn("Invalid username or password", repr(events))
