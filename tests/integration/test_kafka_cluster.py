"""Kafka with three brokers: the loss of a leader, and an election that loses messages."""

from __future__ import annotations

import json
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.integration.support.broker_cases import directory, figure
from tests.integration.support.kafka_clients import OtherSender, make_broker
from tests.integration.support.kafka_server import KafkaCluster
from tests.support.broker_contract import Inbox
from tests.support.processes import Deployment, Shared, TopicsvcServer, until
from tests.support.returning_client import ReturningClient
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.interfaces import Mark, TopicLog
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

shared = Shared(KafkaCluster)

ELECTION_TIME = 120
"""Seconds in which a partition must get another leader."""

HISTORY = HistorySettings(seconds=3600, messages=100_000, bytes=2**26)
"""Has all messages that are sent during `ELECTION_TIME`."""


class Listener:
    """A process that listens to a topic with positions.

    Attributes:
        broker: its connection to Kafka.
        inbox: the messages that it got.
        gaps: each notice of missing messages, with the number of messages before it.
    """

    def __init__(self, broker: KafkaBroker, topic: TopicAddress) -> None:
        self.broker = broker
        self.inbox = Inbox()
        self.gaps: list[tuple[TopicLog | None, int]] = []
        self._topic = topic

    @inlineCallbacks
    def join(self) -> Any:
        """Subscribe; fires with what Kafka has kept."""
        yield self.broker.subscribe(self._topic, self.inbox, None, self._on_missed)
        recalled = self.broker.recall(self._topic)
        assert recalled is not None
        return (yield recalled)

    def _on_missed(self, log: TopicLog | None) -> None:
        self.gaps.append((log, len(self.inbox.messages)))

    @property
    def numbers(self) -> list[int]:
        return [json.loads(body)["number"] for body in self.inbox.bodies]


def places(log: TopicLog) -> set[str]:
    """The places of a log with one partition."""
    marks = [message.mark for message, _ in log.messages]
    return {log.start[0], *(mark.id for mark in marks if mark is not None)}


class ClusterTests(TestCase):
    timeout = 1000

    @inlineCallbacks
    def setUp(self) -> Any:
        self.cluster: KafkaCluster = yield shared.get()
        yield self.cluster.start()
        options = {
            "bootstrap.servers": self.cluster.bootstrap,
            "log_level": 0,
            "socket.timeout.ms": 5000,
        }
        self.admin = AdminClient(options)
        yield until(lambda: self.cluster_has(3), "three brokers are there", 120)

    def cluster_has(self, brokers: int) -> bool:
        try:
            return len(self.admin.list_topics(timeout=5).brokers) == brokers
        except KafkaException:  # they do not answer now
            return False

    @inlineCallbacks
    def create(self, name: str, replicas: list[int], **config: str) -> Any:
        topic = TopicAddress("cell1", "box1", ("cluster",), name)
        settings = {key.replace("_", "."): value for key, value in config.items()}
        new = NewTopic(
            topic.broker_name, num_partitions=1, replica_assignment=[replicas], config=settings
        )
        [made] = self.admin.create_topics([new]).values()
        yield deferToThread(made.result)
        # A replica that was late is at the end of the list.
        yield until(
            lambda: sorted(self.in_sync(topic)) == sorted(replicas), "all replicas are in sync", 120
        )
        return topic

    def partition(self, topic: TopicAddress) -> Any:
        """What the cluster says of the partition; None: it does not answer now."""
        try:
            listed = self.admin.list_topics(topic.broker_name, timeout=5)
        except KafkaException:
            return None
        return listed.topics[topic.broker_name].partitions.get(0)

    def in_sync(self, topic: TopicAddress) -> list[int]:
        partition = self.partition(topic)
        return list(partition.isrs) if partition is not None else []

    def leader(self, topic: TopicAddress) -> int:
        partition = self.partition(topic)
        return -1 if partition is None else int(partition.leader)

    @inlineCallbacks
    def listen(self, topic: TopicAddress) -> Any:
        """Start another process; fires with its listener, and what it has read back."""
        broker = make_broker(connection_options(self.cluster.bootstrap), HISTORY)
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the broker is up", 60)
        listener = Listener(broker, topic)
        log = yield listener.join()
        return listener, log

    @inlineCallbacks
    def connect(self, topic: TopicAddress, position: str | None = None) -> Any:
        """Start a topicsvc process; fires with its only client, which has a session."""
        deployment = Deployment(directory(self), self.cluster.settings)
        service = TopicsvcServer(deployment)
        self.addCleanup(service.program.stop)
        yield service.start()
        client = ReturningClient(topic.websocket_path, deployment.token(), lambda: service.port)
        client.position = position
        self.addCleanup(client.stop)
        client.start()
        yield until(lambda: client.is_active, "the client has a session", 60)
        return client

    @inlineCallbacks
    def send(self, topic: TopicAddress, numbers: range) -> Any:
        """Send messages; fires when all are accepted."""
        sender = OtherSender(self.cluster, topic)
        for number in numbers:
            sender.send(number)
        yield deferToThread(sender.finish)

    @inlineCallbacks
    def test_the_loss_of_a_leader_loses_nothing_and_ends_no_position(self) -> Any:
        """The leader is killed while messages are sent without a pause."""
        topic = yield self.create("clean", [2, 3, 1], min_insync_replicas="2")
        listeners = []
        for _ in range(2):
            listener, log = yield self.listen(topic)
            self.assertEqual(log.start, ("",))
            listeners.append(listener)
        sender = OtherSender(self.cluster, topic)
        numbers = iter(range(10**6))
        sending = LoopingCall(lambda: sender.send(next(numbers)))
        sending.start(0.02)
        yield until(lambda: len(sender.accepted) > 50, "messages are accepted", 60)
        before = listeners[0].inbox.messages[-1].mark
        self.cluster.nodes[2].program.kill()
        seconds = yield until(
            lambda: self.leader(topic) not in (-1, 2), "another leader", ELECTION_TIME
        )
        figure("election of another leader", seconds)
        accepted = len(sender.accepted)
        yield until(lambda: len(sender.accepted) > accepted + 50, "messages are accepted", 60)
        sending.stop()
        yield deferToThread(sender.finish)
        figure("sent around the election", len(sender.accepted), "messages")
        for listener in listeners:
            yield listener.inbox.holds(len(sender.accepted))
            self.assertEqual(listener.numbers, sender.accepted)
            self.assertEqual(listener.gaps, [])
        marks = [message.mark for message in listeners[0].inbox.messages]
        self.assertEqual(marks, [message.mark for message in listeners[1].inbox.messages])
        epochs = {mark.id.partition("-")[0] for mark in marks if mark is not None}
        # More than 2 if a loaded machine was late with the heartbeats of a broker that was left.
        self.assertGreater(len(epochs), 1, "the messages of one leader only")
        _, log = yield self.listen(topic)
        assert isinstance(before, Mark)
        self.assertIn(before.id, places(log))
        kept = [json.loads(message.body)["number"] for message, _ in log.messages]
        self.assertEqual(kept, sender.accepted)

    @inlineCallbacks
    def test_an_unclean_election_is_told_and_ends_all_positions(self) -> Any:
        """Broker 3 misses messages that broker 2 accepts alone, and then becomes the leader."""
        topic = yield self.create(
            "unclean",
            [2, 3],
            unclean_leader_election_enable="true",
            min_insync_replicas="1",
        )
        listener, _ = yield self.listen(topic)
        client = yield self.connect(topic)
        yield self.send(topic, range(5))
        self.cluster.nodes[3].program.kill()
        yield until(lambda: self.in_sync(topic) == [2], "broker 3 is not in sync", ELECTION_TIME)
        yield self.send(topic, range(5, 10))
        yield listener.inbox.holds(10)
        yield until(lambda: len(client.bodies) == 10, "the client gets them", 60)
        position = client.position
        self.assertEqual((listener.numbers, listener.gaps), (list(range(10)), []))
        self.cluster.nodes[2].program.kill()
        yield self.cluster.nodes[3].start()
        yield until(lambda: self.leader(topic) == 3, "broker 3 is the leader", ELECTION_TIME)
        yield self.send(topic, range(10, 20))
        yield until(lambda: listener.gaps, "it is told", 120)
        yield until(lambda: listener.numbers[-1:] == [19], "the last message arrives", 120)
        self.assertEqual(listener.gaps[0][1], 10)
        before = {message.mark for message in listener.inbox.messages[:10]}
        after = {message.mark for message in listener.inbox.messages[10:]}
        self.assertFalse(before & after, "a place was used again")
        _, log = yield self.listen(topic)
        lost = {mark.id for mark in before if mark is not None}
        self.assertFalse(lost & places(log), "a position from before the election is provable")
        self.assertLessEqual({mark.id for mark in after if mark is not None}, places(log))
        yield until(
            lambda: client.bodies[-1]["number"] == 19, "the client gets the last message", 120
        )
        self.assertTrue(client.unasked or True in client.returns, "the client was not told")
        returning = yield self.connect(topic, position)
        self.assertEqual(returning.returns, [True])
