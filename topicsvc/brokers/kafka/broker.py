"""Adapter: Kafka, as Personium units use it.

A topic is read from where it ended when it was asked for: no group, no commits, nothing of the
past. When the broker comes back, reading goes on where it stopped, so that nothing is missed,
unless the broker itself has lost it.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults

from topicsvc.brokers.in_flight import Answered, InFlightLimit
from topicsvc.brokers.kafka.consumer import Consumer
from topicsvc.brokers.kafka.metadata import MetadataClient
from topicsvc.brokers.kafka.options import Options, is_topic_name
from topicsvc.brokers.kafka.producer import Outcome, Place, Producer
from topicsvc.brokers.kafka.reader import Reader
from topicsvc.brokers.subscriptions import Deliver, Lost
from topicsvc.errors import BrokerUnavailable, TopicNotFound
from topicsvc.interfaces import Losses, Message, Subscription
from topicsvc.topics import TopicAddress

__all__ = ["KafkaBroker"]

STOP_TIMEOUT = 3.0
"""Seconds that the goodbye may take."""


class KafkaBroker(Service):
    """A broker outside, shared by any number of processes and by the unit itself.

    Args:
        options: how to reach it (`topicsvc.brokers.kafka.options.connection_options`).
        reactor: tells and keeps the time, and is where threads report to.
        closes_on_loss: whether listeners are told when the broker is lost; otherwise they
            stay, and hear what was sent meanwhile when it is back.
    """

    name = "kafka broker"

    def __init__(self, options: Options, reactor: Any, closes_on_loss: bool = False) -> None:
        self.losses = Losses()
        self._options = options
        self._reactor = reactor
        self._reader = Reader(reactor, closes_on_loss, self.losses)
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
        """Why it is not up, as far as it can be told."""
        return self._reader.last_error

    def subscribe(
        self, topic: TopicAddress, deliver: Deliver, lost: Lost | None = None
    ) -> Deferred[Subscription]:
        """See `topicsvc.interfaces.Broker`. While the broker is down it fails at once."""
        refusal = self._refusal(topic)
        if refusal is not None:
            return fail(refusal)
        return self._reader.subscribe(topic, deliver, lost)

    def publish(self, message: Message) -> Deferred[None]:
        """See `topicsvc.interfaces.Broker`. While the broker is down it fails at once."""
        refusal = self._refusal(message.topic)
        if refusal is not None:
            return fail(refusal)
        name, sender, body = message.topic.broker_name, message.sender, message.body

        def hand_over(answered: Answered) -> None:
            def told(outcome: Outcome) -> None:
                if isinstance(outcome, Place):
                    self._reader.expect(name, outcome)
                    answered(None)
                else:
                    self._reader.complain(f"a message for {name} was not taken: {outcome}")
                    answered(outcome)

            self._producer.send(name, sender, body, told)

        return self._in_flight.send(len(body), hand_over)

    def pause(self) -> None:
        """See `topicsvc.interfaces.Broker`. Reading goes on until our own queue is full."""
        self._consumer.pause()

    def resume(self) -> None:
        """See `topicsvc.interfaces.Broker`."""
        self._consumer.resume()

    def startService(self) -> None:
        # librdkafka's threads would not survive a twistd that becomes a daemon: here it has.
        super().startService()  # type: ignore[no-untyped-call]
        self._metadata = MetadataClient(self._options, self._reactor)
        self._producer = Producer(self._options, self._reactor)
        self._consumer = Consumer(self._options, self._reactor, self._reader)
        self._metadata.start()
        self._producer.start()
        self._consumer.start()
        self._reader.start(self._consumer, self._metadata)

    def stopService(self) -> Deferred[None]:
        """Close all clients; fires when they are closed, or after a few seconds."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._reader.stop()
        closing = [each.stop() for each in (self._consumer, self._producer, self._metadata)]
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
            return TopicNotFound("Kafka can have no topic of this name")
        return None if self.is_up else BrokerUnavailable("the broker is not there")
