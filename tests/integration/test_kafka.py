"""The Kafka broker with a real Kafka and topicsvc processes."""

from __future__ import annotations

import json
from itertools import pairwise
from time import time
from typing import Any

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewPartitions,
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
from tests.integration.support.kafka_clients import OtherSender, make_broker
from tests.integration.support.kafka_server import (
    Kafka,
    create_topic,
    delete_topic,
    need_kafka,
    until_it_has,
)
from tests.integration.support.run_delay import run_delay
from tests.support.broker_contract import BrokerContract, Inbox, LogContract
from tests.support.certificates import Authority
from tests.support.processes import (
    Deployment,
    Shared,
    TopicsvcServer,
    until,
)
from topicsvc.brokers.kafka import reader
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.lanes import place_id
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Mark, Message, TopicLog
from topicsvc.settings import Login
from topicsvc.topics import TopicAddress

shared = Shared(Kafka)


class KafkaTestCase(TestCase):
    """Fixture: a `KafkaBroker` in this process, connected to a server that all tests share."""

    timeout = 400

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server: Kafka = yield shared.get()
        self.broker = make_broker(connection_options(self.server.bootstrap))
        self.broker.startService()
        self.addCleanup(self.broker.stopService)
        yield until(lambda: self.broker.is_up, "the broker is up", 60)


class KafkaContractTests(BrokerContract, KafkaTestCase):
    name = "contract"


class KafkaLogTests(LogContract, KafkaTestCase):
    @inlineCallbacks
    def make_other(self) -> Any:
        broker = make_broker(connection_options(self.server.bootstrap))
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the broker is up", 60)
        return broker


class PressureTests(PressureCases, KafkaTestCase):
    pass


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
    at_once = 40


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
        yield create_topic(self.admin, topic.broker_name, partitions)

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
        yield delete_topic(self.admin, topic.broker_name)
        yield self.create(topic, 1)
        yield until(lambda: self.broker.losses.gaps, "the gap is noticed", 90)
        inbox.messages.clear()
        yield self.publish(topic, 5)
        yield inbox.holds(1)
        self.assertEqual(inbox.bodies, [b"5"])
        self.assertTrue(self.broker.is_up)


class PositionTests(KafkaTestCase):
    """Positions in topics that change."""

    @inlineCallbacks
    def setUp(self) -> Any:
        self.patch(reader, "PARTITION_CHECK_INTERVAL", 0.5)
        yield super().setUp()
        self.admin = AdminClient({"bootstrap.servers": self.server.bootstrap, "log_level": 0})
        self.inbox = Inbox()
        self.gaps: list[tuple[TopicLog | None, int]] = []

    @inlineCallbacks
    def create(self, name: str, partitions: int = 1) -> Any:
        self.topic = TopicAddress("cell1", "box1", ("positions",), name)
        yield create_topic(self.admin, self.topic.broker_name, partitions)

    @inlineCallbacks
    def delete(self) -> Any:
        yield delete_topic(self.admin, self.topic.broker_name)

    def join(self) -> Any:
        return self.broker.subscribe(self.topic, self.inbox, None, self.on_missed)

    def on_missed(self, log: TopicLog | None) -> None:
        self.gaps.append((log, len(self.inbox.messages)))

    def recall(self, broker: KafkaBroker | None = None) -> Any:
        recalled = (broker or self.broker).recall(self.topic)
        assert recalled is not None
        return recalled

    @inlineCallbacks
    def another_broker(self, inbox: Inbox) -> Any:
        """Start another process, which subscribes."""
        broker = make_broker(connection_options(self.server.bootstrap))
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the broker is up", 60)
        yield broker.subscribe(self.topic, inbox)
        return broker

    @inlineCallbacks
    def another(self) -> Any:
        """Start another process, which joins; fires with what it has read back."""
        broker = yield self.another_broker(Inbox())
        return (yield self.recall(broker))

    @inlineCallbacks
    def send(self, numbers: range, partition: int = -1) -> Any:
        sender = OtherSender(self.server, self.topic)
        for number in numbers:
            sender.send(number, partition)
        yield deferToThread(sender.finish)

    @inlineCallbacks
    def send_and_receive(self, numbers: range, partition: int = -1) -> Any:
        count = len(self.inbox.messages) + len(numbers)
        yield self.send(numbers, partition)
        yield self.inbox.holds(count)

    def lane(self, log: TopicLog, partition: int = 0) -> list[int]:
        """The numbers of a partition's messages."""
        return [
            json.loads(message.body)["number"]
            for message, _ in log.messages
            if message.mark is not None and message.mark.lane == partition
        ]

    @inlineCallbacks
    def test_what_was_sent_while_no_process_listened_follows_the_last_position(self) -> Any:
        yield self.create("restart", 3)
        subscription = yield self.join()
        log = yield self.recall()
        self.assertEqual(log.start, ("", "", ""))
        for partition in range(3):
            yield self.send_and_receive(range(10), partition)
        last = {each.mark.lane: each.mark for each in self.inbox.messages if each.mark}
        yield subscription.stop()
        for partition in (0, 2):
            yield self.send(range(10, 15), partition)
        log = yield self.another()
        for partition, kept in ((0, 15), (1, 10), (2, 15)):
            self.assertEqual(self.lane(log, partition), list(range(kept)))
        marks = [message.mark for message, _ in log.messages]
        for partition, missed in ((0, 5), (1, 0), (2, 5)):
            lane = [mark for mark in marks if mark is not None and mark.lane == partition]
            self.assertEqual(len(lane) - 1 - lane.index(last[partition]), missed)

    @inlineCallbacks
    def test_more_messages_than_are_kept_are_read_from_behind(self) -> Any:
        yield self.create("many")
        yield self.send(range(3000))
        log = yield self.another()
        self.assertEqual(self.lane(log), list(range(2000, 3000)))
        self.assertEqual(log.start, (place_id(0, 1999),))

    @inlineCallbacks
    def test_a_topic_that_is_created_again_has_another_epoch(self) -> Any:
        yield self.create("again")
        yield self.join()
        before = yield self.recall()
        yield self.send_and_receive(range(5))
        yield self.delete()
        yield self.create("again")
        yield until(lambda: self.gaps, "it is told", 90)
        [(log, count), *_] = self.gaps
        self.assertEqual(count, 5)
        self.assertNotEqual(log.epoch, before.epoch)
        other = yield self.another()
        self.assertEqual((other.epoch, other.start, other.messages), (log.epoch, ("",), ()))

    @inlineCallbacks
    def test_so_has_one_that_has_more_messages_than_before(self) -> Any:
        """Librdkafka goes on at the old offset of the new topic, and reports no error."""
        yield self.create("more")
        yield self.join()
        before = yield self.recall()
        yield self.send_and_receive(range(5))
        yield self.delete()
        yield self.create("more")
        yield self.send(range(100))
        yield until(lambda: self.gaps, "it is told", 90)
        self.assertNotEqual(self.gaps[-1][0].epoch, before.epoch)
        other = yield self.another()
        self.assertEqual(other.epoch, self.gaps[-1][0].epoch)
        self.assertEqual(self.lane(other), list(range(100)))

    @inlineCallbacks
    def test_a_process_reads_a_new_partition_when_a_client_comes_from_another(self) -> Any:
        """It would not look for partitions for an hour, and the client knows one more."""
        yield self.create("catches_up")
        self.patch(reader, "PARTITION_CHECK_INTERVAL", 3600)
        inbox = Inbox()
        slow = yield self.another_broker(inbox)
        yield self.recall(slow)
        yield self.add_partition()
        yield self.send(range(3), 1)
        yield slow.catch_up(self.topic)
        yield until(lambda: len(inbox.messages) == 3, "the new partition is read", 60)
        marks = [message.mark for message in inbox.messages]
        self.assertEqual(marks, [Mark(1, place_id(0, each)) for each in range(3)])

    @inlineCallbacks
    def add_partition(self) -> Any:
        more = NewPartitions(self.topic.broker_name, 2)
        [made] = self.admin.create_partitions([more]).values()
        yield deferToThread(made.result)
        yield until_it_has(self.admin, self.topic.broker_name, 2)

    @inlineCallbacks
    def test_a_new_partition_begins_with_the_empty_place(self) -> Any:
        yield self.create("grows")
        yield self.join()
        yield self.send_and_receive(range(5))
        yield self.recall()
        yield self.add_partition()
        yield self.send_and_receive(range(5, 8), 1)
        self.assertEqual(self.gaps, [])
        self.assertEqual(self.inbox.messages[5].mark, Mark(1, place_id(0, 0)))
        other = yield self.another()
        self.assertEqual(other.start, ("", ""))
        self.assertEqual(self.lane(other, 1), [5, 6, 7])

    @inlineCallbacks
    def test_deleted_records_are_no_part_of_the_log(self) -> Any:
        """As after a retention that is shorter than the history."""
        yield self.create("deleted")
        yield self.send(range(10))
        below = TopicPartition(self.topic.broker_name, 0, 6)
        [deleted] = self.admin.delete_records([below]).values()
        yield deferToThread(deleted.result)
        log = yield self.another()
        self.assertEqual((log.start, self.lane(log)), ((place_id(0, 6),), [7, 8, 9]))

    @inlineCallbacks
    def test_without_any_record_left_the_place_is_known_to_this_process_only(self) -> Any:
        yield self.create("empty")
        yield self.send(range(10))
        below = TopicPartition(self.topic.broker_name, 0, 10)
        [deleted] = self.admin.delete_records([below]).values()
        yield deferToThread(deleted.result)
        one = yield self.another()
        two = yield self.another()
        self.assertEqual((one.messages, two.messages), ((), ()))
        self.assertNotEqual(one.start, two.start)

    @inlineCallbacks
    def test_markers_of_transactions_are_no_gaps(self) -> Any:
        yield self.create("transactions")
        yield self.join()
        yield self.recall()
        yield deferToThread(self.send_transactions)
        yield self.inbox.holds(6)
        self.assertEqual([json.loads(each)["number"] for each in self.inbox.bodies], [*range(6)])
        self.assertEqual(self.gaps, [])
        other = yield self.another()
        self.assertEqual((other.start, self.lane(other)), (("",), [*range(6)]))
        quiet = yield self.recall()
        self.assertEqual(quiet.messages[-1][0].mark, self.inbox.messages[-1].mark)

    def send_transactions(self) -> None:
        """Send committed and aborted messages, the last of them aborted."""
        producer = Producer(
            {
                "bootstrap.servers": self.server.bootstrap,
                "log_level": 0,
                "transactional.id": "transactions",
            }
        )
        producer.init_transactions(30)
        for number in (0, 1, 2, 3, 4, 5, -1, -2):
            producer.begin_transaction()
            body = b'{"number":%d}' % number
            producer.produce(self.topic.broker_name, body, partition=0)
            producer.flush(30)
            (producer.commit_transaction if number >= 0 else producer.abort_transaction)(30)

    @inlineCallbacks
    def test_old_records_are_left_out(self) -> Any:
        """Their time is that of their sender."""
        yield self.create("old")
        producer = Producer({"bootstrap.servers": self.server.bootstrap, "log_level": 0})
        now = time()
        for number, age in enumerate((600, 300, 130, 60, 200, 5)):
            milliseconds = int((now - age) * 1000)
            body = b'{"number":%d}' % number
            producer.produce(self.topic.broker_name, body, partition=0, timestamp=milliseconds)
        yield deferToThread(producer.flush, 30)
        log = yield self.another()
        self.assertEqual((log.start, self.lane(log)), ((place_id(0, 2),), [3, 4, 5]))
        # The time since their sender's clock was read is part of their age.
        for _, age in log.messages[:2]:
            self.assertTrue(60 <= age < 61 + time() - now, age)

    @inlineCallbacks
    def test_a_record_without_a_value_has_a_place(self) -> Any:
        yield self.create("none")
        producer = Producer({"bootstrap.servers": self.server.bootstrap, "log_level": 0})
        producer.produce(self.topic.broker_name, None, partition=0)
        yield deferToThread(producer.flush, 30)
        log = yield self.another()
        [(message, _)] = log.messages
        self.assertEqual((message.body, message.mark), (b'{"content":""}', Mark(0, place_id(0, 0))))


class NoTopicsTests(TestCase):
    """A broker that does not create topics by itself, and then stops responding."""

    timeout = 400

    @inlineCallbacks
    def test_missing_topics_and_a_frozen_broker(self) -> Any:
        server = Kafka({"auto.create.topics.enable": "false"})
        self.addCleanup(server.remove)
        yield server.start()
        broker = make_broker(connection_options(server.bootstrap))
        broker.startService()
        yield until(lambda: broker.is_up, "the broker is up", 60)
        topic = TopicAddress("cell1", "box1", ("missing",), "name")
        sent = broker.publish(Message(topic, CELL, b"1"))
        yield self.assertFailure(broker.subscribe(topic, print), BrokerUnavailable)
        yield self.assertFailure(sent, BrokerUnavailable)
        self.assertEqual(len(broker._reader), 0)
        self.assertTrue(broker.is_up)
        server.program.pause()
        # The time, without that in which the reactor's thread waited for a processor.
        ticks: list[float] = []

        def tick() -> None:
            ticks.append(reactor.seconds() - run_delay())

        ticking = LoopingCall(tick)
        ticking.start(0.02)
        yield broker.stopService()
        ticking.stop()
        tick()
        figure("stopping with a frozen broker", ticks[-1] - ticks[0])
        longest = max(after - before for before, after in pairwise(ticks))
        self.assertLess(longest, 1, "the reactor was blocked")


LOOKS = 60
"""How often a granted right is looked at, every 0.5 s."""

RIGHTS = (AclOperation.DESCRIBE, AclOperation.READ, AclOperation.WRITE, AclOperation.CREATE)
"""The rights that docs/brokers.md names, without `DescribeConfigs`."""


class TlsAndLoginTests(TestCase):
    """A broker with TLS, logins and access control lists."""

    timeout = 400

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
    def allow(self, prefix: str, *operations: AclOperation) -> Any:
        """Grant these rights on topics with this prefix."""
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
            for operation in operations
        ]
        for made in admin.create_acls(rights).values():
            yield deferToThread(made.result)

    @inlineCallbacks
    def check_rights(self, broker: KafkaBroker, topic: TopicAddress) -> Any:
        """Positions need no other rights, but elections end them without `DescribeConfigs`."""
        log = yield broker.recall(topic)
        self.assertEqual([message.body for message, _ in log.messages], [b"1"])
        self.assertEqual((yield self.known(broker, topic)), (False, False))
        yield self.allow("cell1.", AclOperation.DESCRIBE_CONFIGS)
        for _ in range(LOOKS):  # the server that checks the right gets to know it later
            if (known := (yield self.known(broker, topic))) != (False, False):
                break
            yield deferLater(reactor, 0.5)
        self.assertEqual(known, (True, True))

    @inlineCallbacks
    def known(self, broker: KafkaBroker, topic: TopicAddress) -> Any:
        """Whether the settings of the topic are known, from which these two follow."""
        described = yield broker._metadata.describe([topic.broker_name])
        description = described[topic.broker_name]
        return description.is_clean, description.is_whole

    @inlineCallbacks
    def test_only_trusted_servers_valid_logins_and_granted_topics(self) -> Any:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        # Granted first, as by an operator: an idempotent producer needs the rights at its start.
        yield self.allow("cell1.", *RIGHTS)
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
        yield self.check_rights(broker, topic)
        yield until(
            lambda: any("Invalid username or password" in repr(each) for each in events),
            "the wrong login is refused",
        )
        yield deferLater(reactor, 2)
        for other in others:
            self.assertFalse(other.is_up)
            yield self.assertFailure(other.publish(Message(topic, CELL, b"2")), BrokerUnavailable)
        self.assertTrue(broker.is_up)
        self.assertEqual(inbox.bodies, [b"1"])
        self.assertNotIn("sesame", repr(events))
        self.assertIn("Invalid username or password", repr(events))
