"""librdkafka's own mock cluster: the real protocol, on a port of this machine."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Producer

from topicsvc.topics import TopicAddress

SENDER = "https://cell2.unit1.example/"
PARTITIONS = 4
"""The number of partitions of each topic of the mock cluster."""

_cluster: list[Any] = []


def bootstrap() -> str:
    """The address of the mock cluster, which runs until the end of the test run."""
    if not _cluster:
        options = {"bootstrap.servers": "ignored", "test.mock.num.brokers": 1, "log_level": 0}
        _cluster.append(Producer(options))
    brokers = _cluster[0].list_topics(timeout=5).brokers.values()
    return ",".join(f"{each.host}:{each.port}" for each in brokers)


def send(topic: str, partition: int, *bodies: bytes) -> None:
    """Send messages to a partition; return when the mock cluster has accepted them."""
    for body in bodies:
        _cluster[0].produce(topic, body, partition=partition)
    _cluster[0].flush(5)


def address(name: str) -> TopicAddress:
    return TopicAddress("cell1", "box1", ("mock",), name)
