"""Positions with real brokers: what clients get when they come back, and what they are told."""

from __future__ import annotations

from typing import Any

from confluent_kafka.admin import AdminClient
from twisted.internet import reactor
from twisted.internet.defer import gatherResults, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.integration.support.activemq_server import ActiveMQ
from tests.integration.support.kafka_clients import make_broker as make_kafka_broker
from tests.integration.support.kafka_server import Kafka, create_topic, delete_topic
from tests.integration.support.recovery_cases import TOPIC, RecoveryCase, RollingRestartCases
from tests.integration.support.redis_server import Redis
from tests.support.processes import until
from tests.support.returning_client import ReturningClient
from topicsvc.brokers.factory import make_broker
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.settings import RedisSettings


class RedisCase(RecoveryCase):
    """Over Redis."""

    keeps_data = True

    def make_server(self) -> Redis:
        return Redis(keeps_data=self.keeps_data)

    @inlineCallbacks
    def make_sender(self) -> Any:
        assert isinstance(self.server, Redis)
        broker = make_broker(RedisSettings("127.0.0.1", self.server.port), reactor, reactor.seconds)
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the sender is up")
        return broker


class RedisRollingRestartTests(RedisCase, RollingRestartCases, TestCase):
    pass


class RedisOutageTests(RedisCase, TestCase):
    """Sessions with positions, and one without, during an outage of Redis."""

    clients_count = 4

    @inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        self.plain = yield self.services[0].join(TOPIC)
        self.addCleanup(self.plain.leave)
        self.sender = yield self.make_sender()
        yield self.send_one(self.sender)
        yield self.until_all_have_the_last()

    @inlineCallbacks
    def until_all_are_back(self) -> Any:
        for service in self.services:
            yield service.until_ready()
        yield until(lambda: self.sender.is_up, "the sender is up")
        yield self.send_one(self.sender)
        yield self.until_all_have_the_last()
        yield until(lambda: len(self.plain.messages) >= len(self.sent), "the plain session too")

    @inlineCallbacks
    def test_after_a_restart_of_redis_sessions_with_positions_are_told(self) -> Any:
        """None is closed, and all get what was sent. Only those with positions are told."""
        old = [client.position for client in self.clients]
        self.server.program.kill()
        yield self.server.start()
        yield self.until_all_are_back()
        for client in self.clients:
            self.assertEqual(self.numbers_of(client), self.sent)
            self.assertEqual((client.unasked, client.returns), (1, []))
        self.assertEqual(len(self.plain.messages), len(self.sent))
        self.assertEqual(len(self.plain.replies), 1)
        # A position of before the restart is void, also at a process that was there all the time.
        returning = self.make_client()
        returning.position = old[0]
        self.clients.append(returning)
        returning.start()
        yield self.until_all_active()
        yield self.send_one(self.sender)
        yield self.until_all_have_the_last()
        self.assertEqual(self.numbers_of(returning), self.sent[-1:])

    @inlineCallbacks
    def test_after_a_lost_connection_to_redis_nothing_is_missed(self) -> Any:
        for _ in self.services:
            self.server.command("CLIENT", "KILL", "TYPE", "pubsub")
            yield self.send_one(self.sender)
        yield self.until_all_are_back()
        for client in self.clients:
            self.assertEqual(self.numbers_of(client), self.sent)
            self.assertEqual((client.unasked, client.returns), (0, []))
        self.assertEqual(len(self.plain.messages), len(self.sent))


class KafkaCase(RecoveryCase):
    """Over Kafka."""

    def make_server(self) -> Kafka:
        return Kafka()

    @inlineCallbacks
    def make_sender(self) -> Any:
        assert isinstance(self.server, Kafka)
        broker = make_kafka_broker(connection_options(self.server.bootstrap))
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the sender is up", 60)
        return broker


class KafkaRollingRestartTests(KafkaCase, RollingRestartCases, TestCase):
    pass


class KafkaOutageTests(KafkaCase, TestCase):
    """Sessions with positions when Kafka is restarted, and when their topic is created again."""

    clients_count = 4

    @inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        self.sender = yield self.make_sender()
        yield self.send_one(self.sender)
        yield self.until_all_have_the_last()

    def returning(self, position: str | None) -> ReturningClient:
        """A client that returns with a position."""
        client = self.make_client()
        client.position = position
        self.clients.append(client)
        client.start()
        return client

    @inlineCallbacks
    def test_after_a_restart_of_kafka_nothing_is_missed(self) -> Any:
        """Its partitions have another leader epoch then; unclean elections are not allowed."""
        old = self.clients[0].position
        assert isinstance(self.server, Kafka)
        self.server.program.kill()
        yield gatherResults([service.until_not_ready(60) for service in self.services])
        yield self.server.start()
        yield gatherResults([service.until_ready(60) for service in self.services])
        yield until(lambda: self.sender.is_up, "the sender is up", 60)
        yield self.until_all_active()
        for _ in range(5):
            yield self.send_one(self.sender)
        yield self.until_all_have_the_last()
        for client in self.clients:
            self.assertEqual(self.numbers_of(client), self.sent)
            self.assertEqual((client.unasked, client.returns), (0, []))
        yield self.restart(self.services[0])
        client = self.returning(old)
        yield self.until_all_have_the_last()
        self.assertEqual((self.numbers_of(client), client.returns), (self.sent[1:], [False]))

    @inlineCallbacks
    def test_clients_of_a_topic_that_is_created_again_are_told(self) -> Any:
        assert isinstance(self.server, Kafka)
        old = self.clients[0].position
        admin = AdminClient({"bootstrap.servers": self.server.bootstrap, "log_level": 0})
        yield delete_topic(admin, TOPIC.broker_name)
        yield create_topic(admin, TOPIC.broker_name)
        yield until(
            lambda: all(True in [*each.returns, each.unasked == 1] for each in self.clients),
            "all are told",
            90,
        )
        yield self.until_all_active()
        client = self.returning(old)
        yield until(lambda: client.returns, "it is back")
        self.assertEqual(client.returns, [True])


class LocalPositionsCases(RecoveryCase):
    """Another process knows nothing of a position, and says so."""

    @inlineCallbacks
    def test_each_client_is_told_each_time_in_a_rolling_restart(self) -> Any:
        for service in self.services:
            status = yield deferToThread(service.send, TOPIC.send_path, b'{"number":1}')
            self.assertEqual(status, 200)
            yield self.restart(service)
        returns = [missed for client in self.clients for missed in client.returns]
        self.assertGreaterEqual(len(returns), len(self.clients))
        self.assertEqual(set(returns), {True})


class MemoryRestartTests(LocalPositionsCases, TestCase):
    """Over memory."""

    def make_server(self) -> None:
        return None


class ActiveMQRestartTests(LocalPositionsCases, TestCase):
    """Over ActiveMQ, which keeps nothing."""

    def make_server(self) -> ActiveMQ:
        return ActiveMQ()
