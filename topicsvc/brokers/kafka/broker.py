"""Kafka, as Personium units use it.

A topic is read from its end at the time of the request: no group, no commits, no old messages.
When the broker is back after an outage, reading continues where it stopped. No message is missed
unless the broker itself has lost it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults

from topicsvc.brokers.in_flight import InFlightLimit, OnResult
from topicsvc.brokers.kafka.consumer import Consumer
from topicsvc.brokers.kafka.log_reader import LogReader
from topicsvc.brokers.kafka.metadata import MetadataClient
from topicsvc.brokers.kafka.options import Options, is_topic_name
from topicsvc.brokers.kafka.producer import DeliveryResult, Position, Producer
from topicsvc.brokers.kafka.reader import Reader
from topicsvc.brokers.subscriptions import Deliver, OnLost, OnMissed
from topicsvc.errors import BrokerUnavailable, TopicNotFound
from topicsvc.interfaces import Losses, Message, Subscription, TopicLog
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

__all__ = ["KafkaBroker"]

STOP_TIMEOUT = 3.0
"""Seconds that closing the clients may take."""


class KafkaBroker(Service):
    """A Kafka broker, shared by any number of processes and by the unit itself.

    Args:
        options: see `topicsvc.brokers.kafka.options.connection_options`.
        reactor: the time and timers; the threads report to its thread.
        now: the time of day, in seconds since the epoch.
        history: the messages that are read back for clients that return.
        closes_on_loss: whether subscribers are notified when the broker is lost; otherwise they
            stay subscribed, and get the messages of the outage when the broker is back.
    """

    name = "kafka broker"

    def __init__(
        self,
        options: Options,
        reactor: Any,
        now: Callable[[], float],
        history: HistorySettings,
        closes_on_loss: bool = False,
    ) -> None:
        self.losses = Losses()
        self._options = options
        self._reactor = reactor
        self._history = history
        self._reader = Reader(reactor, now, history, closes_on_loss, self.losses)
        self._in_flight = InFlightLimit()

    @property
    def is_up(self) -> bool:
        """See `topicsvc.interfaces.Broker`."""
        return self._reader.is_up

    @property
    def is_settled(self) -> bool:
        """See `topicsvc.interfaces.Broker`."""
        return self._reader.is_settled

    @property
    def last_error(self) -> str:
        """The last known reason why the broker is not up; empty if there is none."""
        return self._reader.last_error

    @property
    def limitation(self) -> str:
        """Always empty."""
        return ""

    def subscribe(
        self,
        topic: TopicAddress,
        deliver: Deliver,
        lost: OnLost | None = None,
        missed: OnMissed | None = None,
    ) -> Deferred[Subscription]:
        """See `topicsvc.interfaces.Broker`. While the broker is down it fails at once."""
        refusal = self._refusal(topic)
        if refusal is not None:
            return fail(refusal)
        return self._reader.subscribe(topic, deliver, lost, missed)

    def recall(self, topic: TopicAddress) -> Deferred[TopicLog] | None:
        """See `topicsvc.interfaces.Broker`.

        Returns:
            None: `history` keeps nothing, or the positions of so many partitions are too long.
        """
        return self._reader.recall(topic)

    def catch_up(self, topic: TopicAddress) -> Deferred[None] | None:
        """See `topicsvc.interfaces.Broker`. Each process fetches the records by itself."""
        return self._reader.catch_up(topic)

    def publish(self, message: Message) -> Deferred[None]:
        """See `topicsvc.interfaces.Broker`. While the broker is down it fails at once."""
        refusal = self._refusal(message.topic)
        if refusal is not None:
            return fail(refusal)
        name, sender, body = message.topic.broker_name, message.sender, message.body

        def send(on_result: OnResult) -> None:
            def on_delivery(result: DeliveryResult) -> None:
                if isinstance(result, Position):
                    self._reader.expect_echo(name, result)
                    on_result(None)
                else:
                    self._reader.on_error(f"a message for {name} was not accepted: {result}")
                    on_result(result)

            self._producer.send(name, sender, body, on_delivery)

        return self._in_flight.send(len(body), send)

    def accept(self, message: Message) -> bool:
        """Never: the answer comes over the network."""
        return False

    def pause(self) -> None:
        """See `topicsvc.interfaces.Broker`. Reading continues until the record queue is full."""
        self._consumer.pause()

    def resume(self) -> None:
        """See `topicsvc.interfaces.Broker`."""
        self._consumer.resume()

    def startService(self) -> None:
        # Make the clients here, after twistd has daemonized: their threads do not survive a fork.
        super().startService()  # type: ignore[no-untyped-call]
        self._metadata = MetadataClient(self._options, self._reactor)
        self._producer = Producer(self._options, self._reactor)
        self._consumer = Consumer(self._options, self._reactor, self._reader)
        self._metadata.start()
        self._producer.start()
        self._consumer.start()
        self._log_reader = LogReader(self._options, self._reactor, self._history)
        self._reader.start(self._consumer, self._metadata, self._log_reader)

    def stopService(self) -> Deferred[None]:
        """Close all clients; fires when they are closed, or after a few seconds."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._reader.stop()
        clients = (self._consumer, self._producer, self._metadata, self._log_reader)
        closing = [each.stop() for each in clients]
        done: Deferred[None] = Deferred()
        force = self._reactor.callLater(STOP_TIMEOUT, done.callback, None)

        def closed(_: object) -> None:
            if force.active():
                force.cancel()
                done.callback(None)

        gatherResults(closing).addCallback(closed)
        return done

    def _refusal(self, topic: TopicAddress) -> Exception | None:
        if not is_topic_name(topic.broker_name):
            return TopicNotFound(Refusal(RefusalReason.TOPIC_NAME, "Kafka does not allow it"))
        return None if self.is_up else BrokerUnavailable("the broker is not connected")
