"""Clients of a real Kafka: the broker under test, and another sender."""

from __future__ import annotations

from time import time

from confluent_kafka import Producer
from twisted.internet import reactor

from tests.integration.support.broker_cases import CELL
from tests.integration.support.kafka_server import Kafka, KafkaCluster
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.options import Options
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

__all__ = ["OtherSender", "make_broker"]


def make_broker(options: Options, history: HistorySettings | None = None) -> KafkaBroker:
    """Make the broker under test, in this process.

    Args:
        options: of its connections.
        history: what it reads back; None: the default.
    """
    return KafkaBroker(options, reactor, time, history or HistorySettings())


class OtherSender:
    """Another client of the broker; it sends numbered messages until they are accepted.

    Attributes:
        accepted: the numbers of the messages that were accepted, in their order.
    """

    def __init__(self, server: Kafka | KafkaCluster, topic: TopicAddress) -> None:
        self._name = topic.broker_name
        self._client = Producer(
            {
                "bootstrap.servers": server.bootstrap,
                "enable.idempotence": True,
                "message.timeout.ms": 300000,
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
        assert self._client.flush(120) == 0
