"""Adapter: sends to Kafka. One thread hears what became of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Event, Thread
from typing import Any, ClassVar, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as KafkaProducer
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.brokers.kafka.options import PRODUCER, Options
from topicsvc.errors import BrokerUnavailable

__all__ = ["CELL", "Outcome", "Place", "Producer", "Told"]

CELL = "__PERSONIUM_CELL"
"""The header that says who sent a message."""

TURN = 0.1
"""Seconds between two looks whether to stop; what became of a message is heard at once."""

LAST_WORDS = 2.0
"""Seconds that what is under way has left when the service stops."""


class Place(NamedTuple):
    """Where a message that was accepted stands in its topic."""

    partition: int
    offset: int


Outcome = Place | BrokerUnavailable
Told = Callable[[Outcome], None]
"""Takes what became of a message, once."""


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
        self._outcomes: deque[tuple[Told, Outcome]] = deque()
        self._stopping = Event()
        self._is_spent = False
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        """Begin; the threads of librdkafka are made here, and live in this process alone."""
        self._client = self._make(self._options)
        Thread(target=self._serve, name="topicsvc sends to Kafka", daemon=True).start()

    def stop(self) -> Deferred[None]:
        """Send no more; fires when the outcome of all that was sent is told."""
        self._stopping.set()
        return self._stopped

    def send(self, topic: str, sender: str | None, body: bytes, told: Told) -> None:
        """Send a message; `told` hears the outcome, later."""

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is None:
                self._outcomes.append((told, Place(message.partition(), message.offset())))
                return
            self._outcomes.append((told, BrokerUnavailable(error.str())))
            if error.fatal():
                self._is_spent = True

        headers = [(CELL, (sender or "").encode("utf-8"))]
        try:
            self._client.produce(topic, body, headers=headers, on_delivery=delivered)
        except (KafkaException, BufferError) as error:
            self._reactor.callLater(0, told, BrokerUnavailable(str(error)))

    # On the thread.

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:
                failed = "a turn of the thread that sends failed"
                self._reactor.callFromThread(self._log.failure, failed, Failure())
                self._stopping.wait(TURN)
        self._client.flush(LAST_WORDS)
        self._end(self._client)
        self._reactor.callFromThread(self._stopped.callback, None)

    def _turn(self) -> None:
        try:
            self._client.poll(TURN)
        except KafkaException as error:  # librdkafka says it so, or to `_failed`, or both
            if not error.args[0].fatal():
                raise
            self._failed(error.args[0])
        self._report()
        if self._is_spent:
            self._renew()

    def _renew(self) -> None:
        """Librdkafka ends a producer that cannot keep its promise of "once and in order"."""
        spent, self._client = self._client, self._make(self._options)
        self._is_spent = False
        self._end(spent)

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
        if error.fatal() and not self._is_spent:
            self._is_spent = True
            self._reactor.callFromThread(
                self._log.error, "the producer is made anew: {why}", why=error.str()
            )


def _tell(outcomes: deque[tuple[Told, Outcome]]) -> None:
    for told, outcome in outcomes:
        told(outcome)
