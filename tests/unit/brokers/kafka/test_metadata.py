"""Requests for metadata, with librdkafka's mock cluster and without any broker."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import TestCase

from tests.support.mock_kafka import PARTITIONS, bootstrap
from topicsvc.brokers.kafka import metadata
from topicsvc.brokers.kafka.metadata import MetadataClient
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.errors import BrokerUnavailable


class MetadataTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.metadata = MetadataClient(connection_options(bootstrap()), reactor)
        self.metadata.start()
        self.addCleanup(self.metadata.stop)

    @inlineCallbacks
    def test_the_ends_of_several_topics(self) -> Any:
        ends = yield self.metadata.end_offsets(["one", "two"])
        self.assertEqual(ends, {name: dict.fromkeys(range(PARTITIONS), 0) for name in ends})
        self.assertEqual((yield self.metadata.partitions(["one"])), {"one": [0, 1, 2, 3]})
        yield self.metadata.probe([("one", 0), ("two", 3)])
        yield self.metadata.probe([])

    @inlineCallbacks
    def test_a_probe_succeeds_although_a_topic_was_deleted(self) -> Any:
        yield self.metadata.end_offsets(["there"])
        yield self.metadata.probe([("there", 0), ("deleted", 0)])


class NoBrokerTests(TestCase):
    """No broker listens at the address."""

    timeout = 30

    @inlineCallbacks
    def test_requests_fail_and_the_client_can_be_stopped(self) -> Any:
        self.patch(metadata, "TIMEOUT", 0.2)
        self.patch(metadata, "SHORT_TIMEOUT", 0.2)
        client = MetadataClient(connection_options("127.0.0.1:9"), reactor)
        client.start()
        for request in (
            client.end_offsets(["x"]),
            client.probe([]),
            client.watermarks("x", 0),
            client.partitions(["x"]),
        ):
            yield self.assertFailure(request, BrokerUnavailable)
        yield client.stop()
        yield client.stop()
        yield self.assertFailure(client.probe([]), BrokerUnavailable)
