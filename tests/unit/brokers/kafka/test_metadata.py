"""Requests for metadata, with librdkafka's mock cluster and without any broker."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid
from confluent_kafka.admin import ConfigResource
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


class FakeAdmin:
    """An AdminClient with the responses of the test.

    Attributes:
        ids: the id of each topic.
        settings: those of each topic; without them, they are not authorized.
        silent: how many requests get no response.
        asked: the requests.
    """

    def __init__(self) -> None:
        self.ids: dict[str, Uuid] = {"one": Uuid(1, 2), "two": Uuid(3, 4)}
        self.settings: dict[str, dict[str, str]] = {}
        self.silent = 0
        self.asked: list[str] = []

    def list_topics(self, name: str, timeout: float) -> Any:
        self.asked.append(f"list {name}")
        return SimpleNamespace(cluster_id="cluster")

    def describe_topics(self, topics: TopicCollection, request_timeout: float) -> Any:
        names = topics.topic_names
        self.asked.append(f"describe {' '.join(names)}")
        self.silent -= 1
        if self.silent >= 0:
            return dict.fromkeys(names, failed(KafkaError._TIMED_OUT))
        return {
            name: done(SimpleNamespace(topic_id=self.ids[name]))
            if name in self.ids
            else failed(KafkaError.UNKNOWN_TOPIC_OR_PART)
            for name in names
        }

    def describe_configs(self, resources: list[ConfigResource], request_timeout: float) -> Any:
        return {
            each: done(
                {
                    name: SimpleNamespace(value=value)
                    for name, value in self.settings[each.name].items()
                }
            )
            if each.name in self.settings
            else failed(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            for each in resources
        }


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def failed(code: int) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(KafkaException(KafkaError(code, "simulated")))
    return future


SAFE = {"unclean.leader.election.enable": "false", "cleanup.policy": "delete"}


class DescribeTests(TestCase):
    """Descriptions of topics. The mock cluster does not respond to such requests."""

    timeout = 30

    def setUp(self) -> None:
        self.admin = FakeAdmin()
        self.metadata = MetadataClient(
            connection_options(bootstrap()), reactor, make_admin=lambda _: self.admin
        )
        self.metadata.start()
        self.addCleanup(self.metadata.stop)

    @inlineCallbacks
    def describe(self, settings: dict[str, str]) -> Any:
        self.admin.settings["one"] = settings
        found = yield self.metadata.describe(["one"])
        return found["one"].is_clean, found["one"].is_whole

    @inlineCallbacks
    def test_the_settings_tell_whether_records_may_be_lost(self) -> Any:
        self.assertEqual((yield self.describe(SAFE)), (True, True))
        unclean = SAFE | {"unclean.leader.election.enable": "true"}
        self.assertEqual((yield self.describe(unclean)), (False, True))
        for policy in ("compact", "compact,delete"):
            found = yield self.describe(SAFE | {"cleanup.policy": policy})
            self.assertEqual(found, (True, False))

    @inlineCallbacks
    def test_without_the_right_to_read_them_records_may_be_lost(self) -> Any:
        found = yield self.metadata.describe(["one"])
        self.assertEqual((found["one"].is_clean, found["one"].is_whole), (False, False))

    @inlineCallbacks
    def test_each_topic_has_the_epoch_of_its_id(self) -> Any:
        found = yield self.metadata.describe(["one", "two"])
        self.assertNotEqual(found["one"].epoch, found["two"].epoch)
        before = found["one"].epoch
        self.admin.ids["one"] = Uuid(5, 6)
        found = yield self.metadata.describe(["one"])
        self.assertNotEqual(found["one"].epoch, before)

    @inlineCallbacks
    def test_without_topic_ids_the_epoch_is_that_of_cluster_and_name(self) -> Any:
        self.admin.ids = dict.fromkeys(("one", "two"), Uuid(0, 0))
        found = yield self.metadata.describe(["one", "two"])
        self.assertNotEqual(found["one"].epoch, found["two"].epoch)
        again = yield self.metadata.describe(["one"])
        self.assertEqual(again["one"].epoch, found["one"].epoch)

    @inlineCallbacks
    def test_a_topic_that_does_not_exist_has_no_description(self) -> Any:
        found = yield self.metadata.describe(["one", "missing"])
        self.assertEqual(list(found), ["one"])

    @inlineCallbacks
    def test_if_a_server_does_not_respond_another_is_asked(self) -> Any:
        self.admin.silent = 1
        yield self.metadata.describe(["one"])
        self.assertEqual(self.admin.asked, ["list one", "describe one"] * 2)

    @inlineCallbacks
    def test_it_fails_if_no_server_responds(self) -> Any:
        self.patch(metadata, "TIMEOUT", 0.2)
        self.admin.silent = 10**6
        yield self.assertFailure(self.metadata.describe(["one"]), BrokerUnavailable)

    @inlineCallbacks
    def test_no_client_is_made_before_the_first_call(self) -> Any:
        self.assertIsNone(self.metadata._admin)
        yield self.metadata.describe(["one"])
        self.assertIs(self.metadata._admin, self.admin)


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
            client.describe(["x"]),
        ):
            yield self.assertFailure(request, BrokerUnavailable)
        yield client.stop()
        yield client.stop()
        yield self.assertFailure(client.probe([]), BrokerUnavailable)
