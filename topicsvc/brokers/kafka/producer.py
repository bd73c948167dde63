"""Sends to Kafka. A thread of its own gets the results."""

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

__all__ = ["CELL_HEADER", "DeliveryResult", "OnDelivery", "Position", "Producer"]

CELL_HEADER = "__PERSONIUM_CELL"
"""The name of the header with the sender of a message."""

POLL_TIMEOUT = 0.1
"""Seconds between two checks whether to stop. Results are processed at once."""

FLUSH_TIMEOUT = 2.0
"""Seconds that unconfirmed messages have when the service stops."""


class Position(NamedTuple):
    """Where an accepted message is in its topic."""

    partition: int
    offset: int


DeliveryResult = Position | BrokerUnavailable
OnDelivery = Callable[[DeliveryResult], None]
"""Is called once with the result for a message."""


class Producer:
    """Sends messages and reports the result for each.

    Args:
        options: see `topicsvc.brokers.kafka.options.connection_options`.
        reactor: in whose thread results are reported.
        make: makes librdkafka's client.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, options: Options, reactor: Any, make: Callable[[Options], Any] = KafkaProducer
    ) -> None:
        self._options = {**options, **PRODUCER, "error_cb": self._on_error}
        self._reactor = reactor
        self._make = make
        self._client: Any = None
        self._results: deque[tuple[OnDelivery, DeliveryResult]] = deque()
        self._stopping = Event()
        self._has_failed = False
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        """Start the client. Its threads do not survive a fork: call this after daemonizing."""
        self._client = self._make(self._options)
        Thread(target=self._serve, name="topicsvc sends to Kafka", daemon=True).start()

    def stop(self) -> Deferred[None]:
        """Stop sending; fires when the results for all messages are reported."""
        self._stopping.set()
        return self._stopped

    def send(self, topic: str, sender: str | None, body: bytes, on_delivery: OnDelivery) -> None:
        """Send a message; `on_delivery` is called later with the result."""

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is None:
                position = Position(message.partition(), message.offset())
                self._results.append((on_delivery, position))
                return
            self._results.append((on_delivery, BrokerUnavailable(error.str())))
            if error.fatal():
                self._has_failed = True

        headers = [(CELL_HEADER, (sender or "").encode("utf-8"))]
        try:
            self._client.produce(topic, body, headers=headers, on_delivery=delivered)
        except (KafkaException, BufferError) as error:
            self._reactor.callLater(0, on_delivery, BrokerUnavailable(str(error)))

    # In the thread.

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._poll()
            except Exception:
                failed = "internal error in the thread that sends to Kafka"
                self._reactor.callFromThread(self._log.failure, failed, Failure())
                self._stopping.wait(POLL_TIMEOUT)
        self._client.flush(FLUSH_TIMEOUT)
        self._close(self._client)
        self._reactor.callFromThread(self._stopped.callback, None)

    def _poll(self) -> None:
        try:
            self._client.poll(POLL_TIMEOUT)
        except KafkaException as error:  # librdkafka raises it, or passes it to error_cb, or both
            if not error.args[0].fatal():
                raise
            self._on_error(error.args[0])
        self._report_results()
        if self._has_failed:
            self._replace_client()

    def _replace_client(self) -> None:
        """Replace the client: one that cannot keep "once and in order" has a fatal error."""
        failed, self._client = self._client, self._make(self._options)
        self._has_failed = False
        self._close(failed)

    def _close(self, client: Any) -> None:
        """Fail all messages that are not accepted yet."""
        client.purge()
        client.flush(FLUSH_TIMEOUT)
        self._report_results()

    def _report_results(self) -> None:
        if self._results:
            results, self._results = self._results, deque()
            self._reactor.callFromThread(_report, results)

    def _on_error(self, error: KafkaError) -> None:
        """Log a fatal error, which needs a new client. librdkafka recovers from other errors."""
        if error.fatal() and not self._has_failed:
            self._has_failed = True
            self._reactor.callFromThread(
                self._log.error,
                "the Kafka producer is replaced after a fatal error: {why}",
                why=error.str(),
            )


def _report(results: deque[tuple[OnDelivery, DeliveryResult]]) -> None:
    for on_delivery, result in results:
        on_delivery(result)
