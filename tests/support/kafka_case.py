"""A fixture: the Kafka broker with fake clients, in virtual time."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.kafka_fakes import ScriptedKafka
from tests.support.mock_kafka import SENDER
from tests.support.scripted_broker import log_lines
from topicsvc.brokers.kafka import broker
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.liveness import PROBE_RETRY_DELAY
from topicsvc.interfaces import Message, Subscription, TopicLog
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

__all__ = ["NOW", "KafkaTestCase", "broker_name", "topic"]

NOW = 1_000_000.0
"""The time of day at which each test begins."""


def topic(name: str = "name") -> TopicAddress:
    return TopicAddress("cell1", "box1", ("col",), name)


def broker_name(name: str = "name") -> str:
    return f"cell1.box1.col.topic.{name}"


class KafkaTestCase(SynchronousTestCase):
    """The broker under test, with a scripted Kafka.

    Attributes:
        inbox: the messages that were delivered.
        losses: how often a subscriber was notified that the broker is lost.
        missed: each notice of missing messages, with the number of messages delivered before it.
    """

    closes_on_loss = False
    history = HistorySettings()

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.clock = Clock()
        self.server = ScriptedKafka(self, broker)
        self.consumer, self.producer = self.server.consumer, self.server.producer
        self.inbox: list[Message] = []
        self.losses = 0
        self.missed: list[tuple[TopicLog | None, int]] = []
        self.start()
        self.addCleanup(self.stop)

    def start(self) -> None:
        """Make the broker under test, and start it."""
        self.broker = KafkaBroker({}, self.clock, self.now, self.history, self.closes_on_loss)
        self.broker.startService()

    def now(self) -> float:
        return NOW + self.clock.seconds()

    def stop(self) -> None:
        if self.broker.running:
            self.successResultOf(self.broker.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [], "delayed calls are left")

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def on_lost(self) -> None:
        self.losses += 1

    def on_missed(self, log: TopicLog | None) -> None:
        self.missed.append((log, len(self.inbox)))

    def subscribe(self, name: str = "name") -> Deferred[Subscription]:
        subscribed = self.broker.subscribe(
            topic(name), self.inbox.append, self.on_lost, self.on_missed
        )
        self.clock.advance(0)
        return subscribed

    def subscribed(self, name: str = "name", ends: dict[int, int] | None = None) -> Subscription:
        self.server.topics.setdefault(broker_name(name), ends or {0: 7})
        return self.successResultOf(self.subscribe(name))

    def publish(self, body: bytes = b"1", name: str = "name") -> Deferred[None]:
        return self.broker.publish(Message(topic(name), SENDER, body))

    def shut_down(self) -> None:
        """The broker stops responding, and all connections are lost."""
        self.server.is_responding = False
        self.consumer.handler.on_disconnected()
        self.clock.advance(0)

    def come_back(self) -> None:
        self.server.is_responding = True
        self.pass_time(PROBE_RETRY_DELAY)

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.inbox]

    def log_of(self, word: str) -> list[str]:
        return log_lines(self.events, word)
