"""Adapter: sends to Kafka. One thread hears what became of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Thread
from typing import Any, ClassVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as KafkaProducer
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from topicsvc.brokers.kafka_options import PRODUCER, Options
from topicsvc.brokers.under_way import Answered
from topicsvc.errors import BrokerUnavailable

__all__ = ["CELL", "Producer"]

CELL = "__PERSONIUM_CELL"
"""The header that says who sent a message."""

TURN = 0.1
"""Seconds between two looks whether to stop; what became of a message is heard at once."""

LAST_WORDS = 2.0
"""Seconds that what is under way has left when the service stops."""


class Producer:
    """Sends, and says what became of each message.

    Args:
        options: how to reach the broker.
        reactor: where outcomes are told.
        make: makes librdkafka's client.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, options: Options, reactor: Any, make: Callable[[Options], Any] = KafkaProducer
    ) -> None:
        self._options = {**options, **PRODUCER, "error_cb": self._failed}
        self._reactor = reactor
        self._make = make
        self._client: Any = None
        self._outcomes: deque[tuple[Answered, BrokerUnavailable | None]] = deque()
        self._is_stopping = False
        self._is_spent = False
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        """Begin; the threads of librdkafka are made here, and live in this process alone."""
        self._client = self._make(self._options)
        Thread(target=self._serve, name="topicsvc sends to Kafka", daemon=True).start()

    def stop(self) -> Deferred[None]:
        """Send no more; fires when the outcome of all that was sent is told."""
        self._is_stopping = True
        return self._stopped

    def send(self, topic: str, sender: str | None, body: bytes, answered: Answered) -> None:
        """Send a message; `answered` hears the outcome, later."""

        def delivered(error: KafkaError | None, _: object) -> None:
            self._outcomes.append((answered, None if error is None else _unavailable(error)))
            if error is not None and error.fatal():
                self._is_spent = True

        headers = [(CELL, (sender or "").encode("utf-8"))]
        try:
            self._client.produce(topic, body, headers=headers, on_delivery=delivered)
        except (KafkaException, BufferError) as error:
            self._reactor.callLater(0, answered, BrokerUnavailable(str(error)))

    # On the thread.

    def _serve(self) -> None:
        client = self._client
        while not self._is_stopping:
            client.poll(TURN)
            self._report()
            if self._is_spent:
                client = self._renew(client)
        client.flush(LAST_WORDS)
        self._end(client)
        self._reactor.callFromThread(self._stopped.callback, None)

    def _renew(self, client: Any) -> Any:
        """Librdkafka ends a producer that cannot keep its promise of "once and in order"."""
        self._is_spent = False
        self._client = self._make(self._options)
        self._end(client)
        return self._client

    def _end(self, client: Any) -> None:
        """What is not accepted by now is not."""
        client.purge()
        client.flush(LAST_WORDS)
        self._report()

    def _report(self) -> None:
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, deque()
            self._reactor.callFromThread(_tell, outcomes)

    def _failed(self, error: KafkaError) -> None:
        """Something is wrong; what can be mended librdkafka mends."""
        if error.fatal():
            self._is_spent = True
            self._reactor.callFromThread(
                self._log.error, "the producer is made anew: {why}", why=error.str()
            )


def _tell(outcomes: deque[tuple[Answered, BrokerUnavailable | None]]) -> None:
    for answered, outcome in outcomes:
        answered(outcome)


def _unavailable(error: KafkaError) -> BrokerUnavailable:
    return BrokerUnavailable(error.str())
