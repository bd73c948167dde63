"""The Kafka broker with fake clients, in virtual time."""

from __future__ import annotations

from time import time
from typing import Any

from confluent_kafka import Consumer as KafkaConsumer
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.trial.unittest import TestCase

from tests.support.broker_contract import Inbox
from tests.support.kafka_case import KafkaTestCase, broker_name, topic
from tests.support.mock_kafka import PARTITIONS, SENDER, address, bootstrap
from tests.support.processes import until
from topicsvc.brokers import in_flight, subscriptions
from topicsvc.brokers.kafka import reader, record_queue
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.liveness import PROBE_INTERVAL
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.errors import BrokerUnavailable, TopicNotFound
from topicsvc.interfaces import Message
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress


class PauseTests(KafkaTestCase):
    def test_records_wait_and_requests_are_processed(self) -> None:
        self.subscribed()
        self.broker.pause()
        self.assertTrue(self.consumer.is_paused)
        self.pass_time(10 * PROBE_INTERVAL)
        self.assertTrue(self.broker.is_up)
        self.subscribed("other")
        accepted = self.publish()
        self.producer.accept()
        self.successResultOf(accepted)
        self.broker.resume()
        self.assertFalse(self.consumer.is_paused)


class SubscribeTests(KafkaTestCase):
    def test_reading_begins_at_the_end_of_the_topic(self) -> None:
        self.subscribed(ends={0: 7, 1: 0, 2: 11})
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 7, 1: 0, 2: 11})

    def test_it_is_confirmed_when_the_end_of_the_topic_is_known(self) -> None:
        self.server.topics[broker_name()] = {0: 7}
        self.server.held = []
        subscribed = self.subscribe()
        self.assertNoResult(subscribed)
        self.server.release()
        self.successResultOf(subscribed)

    def test_a_topic_is_requested_once_for_all_subscribers(self) -> None:
        for _ in range(3):
            self.subscribed()
        self.assertEqual(self.server.requested, [[broker_name()]])
        self.consumer.deliver(broker_name(), b"1")
        self.assertEqual(self.bodies, [b"1"] * 3)

    def test_topics_of_one_reactor_iteration_or_during_a_request_are_requested_together(
        self,
    ) -> None:
        for name in "abcde":
            self.server.topics[broker_name(name)] = {0: 0}
        self.server.held = []
        first = [self.broker.subscribe(topic(name), print) for name in "ab"]
        self.clock.advance(0)
        second = [self.subscribe(name) for name in "cde"]
        self.server.release()
        self.clock.advance(0)
        for each in (*first, *second):
            self.successResultOf(each)
        expected = [[broker_name(name) for name in names] for names in ("ab", "cde")]
        self.assertEqual(self.server.requested, expected)

    def test_the_number_of_topics_in_one_request_is_limited(self) -> None:
        self.patch(reader, "MAX_PER_REQUEST", 2)
        self.server.topics = {broker_name(name): {0: 0} for name in "abcde"}
        subscribed = [self.broker.subscribe(topic(name), print) for name in "abcde"]
        self.clock.advance(0)
        self.assertEqual([len(names) for names in self.server.requested], [2, 2, 1])
        for each in subscribed:
            self.successResultOf(each)

    def test_a_topic_that_is_being_created_is_requested_again(self) -> None:
        subscribed = self.subscribe()
        self.assertNoResult(subscribed)
        self.pass_time(reader.TOPIC_RETRY_DELAY)
        self.successResultOf(subscribed)
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 0})

    def test_a_topic_that_is_never_created_is_refused_and_does_not_delay_another(self) -> None:
        self.server.creates_topics = False
        missing = self.subscribe("missing")
        self.subscribed()
        self.pass_time(reader.TOPIC_RETRY_DELAY * (reader.MAX_TOPIC_RETRIES - 1))
        self.assertNoResult(missing)
        self.pass_time(1)
        self.failureResultOf(missing, BrokerUnavailable)
        self.assertEqual(len(self.broker._reader), 1)
        self.assertEqual(len(self.log_of("does not serve cell1.box1.col.topic.missing")), 1)

    def test_a_topic_without_authorization_is_refused_at_once(self) -> None:
        self.server.refusals[broker_name()] = BrokerUnavailable("not authorized")
        self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.assertEqual(len(self.broker._reader), 0)

    def test_invalid_topic_names_are_not_sent_to_kafka(self) -> None:
        invalid = TopicAddress("cell1", "box1", ("\u65e5\u672c",), "name")
        self.failureResultOf(self.broker.subscribe(invalid, print), TopicNotFound)
        self.failureResultOf(self.broker.publish(Message(invalid, None, b"1")), TopicNotFound)
        self.clock.advance(0)
        self.assertEqual((self.server.requested, self.producer.sent), ([], []))

    def test_it_is_unsubscribed_some_seconds_after_the_last_subscriber_has_stopped(self) -> None:
        first, second = self.subscribed(), self.subscribed()
        first.stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY * 2)
        second.stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY - 0.5)
        self.assertEqual(len(self.broker._reader), 1)
        self.pass_time(1)
        self.assertEqual((len(self.broker._reader), self.consumer.positions), (0, {}))

    def test_a_subscriber_that_returns_soon_causes_no_request(self) -> None:
        self.subscribed().stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY - 0.5)
        self.subscribed()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY)
        self.assertEqual(len(self.server.requested), 1)

    def test_a_record_of_an_earlier_subscription_is_dropped(self) -> None:
        self.subscribed().stop()
        old = self.consumer.id(broker_name())
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        self.subscribed()
        self.consumer.handler.on_record(reader.Record(old, b"1", None, 0, 7, 0))
        self.consumer.deliver(broker_name(), b"1")
        self.assertEqual(self.bodies, [b"1"])

    def test_a_cancelled_subscription_reads_nothing(self) -> None:
        self.server.topics[broker_name()] = {0: 7}
        self.server.held = []
        subscribed = self.subscribe()
        subscribed.addErrback(lambda _: None)
        subscribed.cancel()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        self.server.release()
        self.assertEqual((len(self.broker._reader), self.consumer.positions), (0, {}))

    def test_new_partitions_are_read_from_offset_0(self) -> None:
        self.subscribed()
        self.server.topics[broker_name()] |= {1: 5}
        self.pass_time(reader.PARTITION_CHECK_INTERVAL)
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 7, 1: 0})
        self.pass_time(reader.PARTITION_CHECK_INTERVAL)
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 7, 1: 0})


class DeliverTests(KafkaTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.subscribed()

    def test_body_and_sender_are_delivered(self) -> None:
        self.consumer.deliver(broker_name(), b'{"a":1}', SENDER.encode())
        self.assertEqual(self.inbox, [Message(topic(), SENDER, b'{"a":1}')])

    def test_without_the_header_there_is_no_sender(self) -> None:
        for cell in (None, b""):
            self.consumer.deliver(broker_name(), b"1", cell)
        self.assertEqual([message.sender for message in self.inbox], [None, None])

    def test_values_that_are_not_json_are_wrapped(self) -> None:
        for value in (b"not JSON", b"", None, b"\xff"):
            self.consumer.deliver(broker_name(), value)
        wrapped = [b'{"content":"not JSON"}', b'{"content":""}', b'{"content":""}']
        self.assertEqual(self.bodies[:3], wrapped)
        self.assertEqual(self.bodies[3], b'{"content":"\\ufffd"}')

    def test_a_message_of_an_unassigned_partition_is_counted_and_dropped(self) -> None:
        self.consumer.handler.on_misrouted("another")
        self.assertEqual(self.broker.losses.misrouted, 1)
        self.assertEqual(self.inbox, [])
        self.assertEqual(len(self.log_of("a message of another: dropped")), 1)


class PublishTests(KafkaTestCase):
    def test_it_fires_when_the_broker_has_accepted_the_message(self) -> None:
        accepted = self.publish(b"[1]")
        self.assertNoResult(accepted)
        self.assertEqual(self.producer.sent, [(broker_name(), SENDER, b"[1]")])
        self.producer.accept()
        self.successResultOf(accepted)

    def test_it_fails_if_the_broker_does_not_accept_the_message(self) -> None:
        refused = self.publish()
        self.producer.callbacks[0](BrokerUnavailable("too big"))
        self.failureResultOf(refused, BrokerUnavailable)
        self.assertEqual(len(self.log_of("was not accepted: too big")), 1)

    def test_the_number_of_unconfirmed_messages_is_limited(self) -> None:
        self.patch(in_flight, "MAX_IN_FLIGHT", 2)
        sent = [self.publish() for _ in range(2)]
        self.failureResultOf(self.publish(), BrokerUnavailable)
        for each in sent:
            self.producer.accept()
            self.successResultOf(each)

    def test_it_fails_at_once_while_the_broker_is_down(self) -> None:
        self.shut_down()
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.assertEqual(self.producer.sent, [])


class SettlingTests(KafkaTestCase):
    """It is settled when the messages sent from here have reached the subscribers here."""

    def accepted(self, *places: tuple[int, int], name: str = "name") -> None:
        for partition, offset in places:
            self.publish(name=name)
            self.producer.accept(offset, partition)

    def assert_expected(self, places: dict[tuple[str, int], int]) -> None:
        self.assertEqual(self.broker.is_settled, not places)
        self.assertEqual(self.consumer.expected, places)

    def test_each_partition_is_expected_up_to_its_last_accepted_message(self) -> None:
        self.subscribed(ends={0: 7, 1: 0})
        self.publish()
        self.assert_expected({})  # no message is accepted yet
        self.producer.accept(7)
        self.accepted((1, 0), (0, 9), (0, 8))
        self.assert_expected({(broker_name(), 0): 9, (broker_name(), 1): 0})

    def test_messages_without_subscribers_are_not_expected(self) -> None:
        self.accepted((0, 3), name="other")
        self.assert_expected({})
        subscription = self.subscribed()
        self.accepted((0, 7))
        self.assertFalse(self.broker.is_settled)
        self.successResultOf(subscription.stop())
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        self.assert_expected({})

    def test_refused_messages_are_not_expected(self) -> None:
        self.subscribed()
        self.publish().addErrback(lambda _: None)
        self.producer.callbacks.pop()(BrokerUnavailable("too big"))
        self.assert_expected({})


class LossTests(KafkaTestCase):
    def test_it_is_down_until_the_first_response(self) -> None:
        self.successResultOf(self.broker.stopService())
        self.server.is_responding = False
        self.broker = KafkaBroker({}, self.clock, self.now, self.history)
        self.broker.startService()
        self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.pass_time(10)
        self.assertEqual(self.broker.last_error, "simulated")
        self.assertEqual(len(self.log_of("simulated")), 1)
        self.come_back()
        self.assertTrue(self.broker.is_up)
        self.assertEqual((self.broker.losses.reconnects, self.broker.last_error), (0, ""))
        self.assertEqual(len(self.log_of("connected to Kafka")), 2)

    def test_subscribers_stay_and_reading_continues_where_it_stopped(self) -> None:
        self.subscribed()
        places = dict(self.consumer.positions)
        self.shut_down()
        self.assertFalse(self.broker.is_up)
        self.pass_time(60)
        self.come_back()
        self.assertTrue(self.broker.is_up)
        self.assertEqual((self.consumer.positions, self.losses), (places, 0))
        self.consumer.deliver(broker_name(), b"1")
        self.assertEqual(self.bodies, [b"1"])

    def test_an_outage_is_logged_and_counted_and_is_not_a_gap(self) -> None:
        self.subscribed()
        self.shut_down()
        self.pass_time(30)
        self.come_back()
        self.shut_down()
        losses = self.broker.losses
        self.assertEqual((losses.reconnects, losses.gaps), (1, 0))
        self.assertEqual(len(self.log_of("the broker is lost: simulated; 1 topic waits")), 2)
        self.assertEqual(len(self.log_of("the broker is back after 30.")), 1)

    def test_pending_subscribers_fail_when_the_broker_is_lost(self) -> None:
        self.server.topics[broker_name()] = {0: 7}
        self.server.held = []
        subscribed = self.subscribe()
        held, self.server.held = self.server.held, None
        self.shut_down()
        self.failureResultOf(subscribed, BrokerUnavailable)
        self.come_back()
        held[0][0].callback(held[0][1])
        self.assertEqual((len(self.broker._reader), self.consumer.positions), (0, {}))

    def test_a_failed_request_causes_a_probe(self) -> None:
        self.server.is_responding = False
        self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.clock.advance(0)
        self.assertFalse(self.broker.is_up)

    def test_the_leaders_of_the_assigned_partitions_are_probed(self) -> None:
        self.patch(reader, "MAX_PER_REQUEST", 2)
        for name in "abc":
            self.subscribed(name)
        self.server.probes.clear()
        self.pass_time(3 * PROBE_INTERVAL + 1)
        a, b, c = ((broker_name(name), 0) for name in "abc")
        self.assertEqual(self.server.probes, [[a, b], [c], [a, b]])

    def test_each_error_is_logged_once_during_an_outage(self) -> None:
        for number in range(3):
            self.consumer.handler.on_error(f"refused (after {number}ms in state CONNECT)")
            self.consumer.handler.on_error("another")
        expected = ["Kafka error: refused", "Kafka error: another"]
        self.assertEqual(self.log_of("Kafka error"), expected)
        for number in range(100):
            self.consumer.handler.on_error(str(number))
        self.assertEqual(len(self.log_of("Kafka error")), reader.MAX_ERRORS_LOGGED)
        self.shut_down()
        self.come_back()
        self.consumer.handler.on_error("another")
        self.assertEqual(len(self.log_of("Kafka error")), reader.MAX_ERRORS_LOGGED + 1)

    def test_subscribers_of_a_refused_topic_are_notified(self) -> None:
        self.subscribed("good")
        self.subscribed("bad")
        self.consumer.handler.on_topic_refused(self.consumer.id(broker_name("bad")), "deleted")
        self.assertEqual((self.losses, len(self.broker._reader)), (1, 1))
        self.assertEqual(list(self.consumer.positions), [(broker_name("good"), 0)])
        self.assertTrue(self.broker.is_up)

    def test_requests_fail_after_the_service_has_stopped(self) -> None:
        self.server.creates_topics = False
        waiting = self.subscribe()
        self.successResultOf(self.broker.stopService())
        self.failureResultOf(waiting, BrokerUnavailable)
        self.assertFalse(self.broker.is_up)
        self.failureResultOf(self.publish(), BrokerUnavailable)


class MissingMessagesTests(KafkaTestCase):
    """The broker does not have the next messages any more."""

    def missing(self, low: int, high: int, next_: int) -> int:
        """Return the offset at which reading continues."""
        self.subscribed()
        self.server.lows[broker_name(), 0] = low
        self.server.topics[broker_name()] = {0: high}
        self.consumer.handler.on_offset_missing(self.consumer.id(broker_name()), 0, next_)
        return self.consumer.offsets(broker_name())[0]

    def test_deleted_messages_are_skipped(self) -> None:
        self.assertEqual(self.missing(20, 30, 10), 20)

    def test_reading_continues_at_the_end_if_the_broker_has_lost_messages(self) -> None:
        self.assertEqual(self.missing(0, 5, 10), 5)

    def test_reading_continues_at_the_next_offset_if_it_is_available(self) -> None:
        self.assertEqual(self.missing(0, 15, 10), 10)

    def test_missing_messages_are_logged_and_counted(self) -> None:
        self.missing(20, 30, 10)
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertEqual(
            len(self.log_of("has partition 0 from offset 20 to 30, and 10 was next")), 1
        )
        self.assertEqual(self.losses, 0)

    def test_the_request_for_offsets_is_repeated_after_a_failure(self) -> None:
        self.subscribed()
        self.server.is_responding = False
        self.consumer.handler.on_offset_missing(self.consumer.id(broker_name()), 0, 99)
        self.server.is_responding = True
        self.pass_time(reader.TOPIC_RETRY_DELAY)
        self.assertEqual(self.broker.losses.gaps, 1)

    def test_a_gap_without_subscribers_is_not_counted(self) -> None:
        subscription = self.subscribed()
        id_ = self.consumer.id(broker_name())
        subscription.stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        self.consumer.handler.on_offset_missing(id_, 0, 99)
        self.assertEqual(self.broker.losses.gaps, 0)


class CloseOnLossTests(KafkaTestCase):
    closes_on_loss = True

    def test_all_subscribers_are_notified_at_once(self) -> None:
        for name in ("one", "one", "two"):
            self.subscribed(name)
        self.subscribed("left").stop()
        self.shut_down()
        self.assertEqual(self.losses, 3)

    def test_subscribers_of_a_topic_with_missing_messages_are_notified(self) -> None:
        self.subscribed("other")
        self.subscribed()
        self.consumer.handler.on_offset_missing(self.consumer.id(broker_name()), 0, 99)
        self.assertEqual(self.losses, 1)

    def test_subscribers_are_not_notified_when_the_service_stops(self) -> None:
        self.subscribed()
        self.successResultOf(self.broker.stopService())
        self.assertEqual(self.losses, 0)


class MockClusterTests(TestCase):
    """The broker with librdkafka's mock cluster."""

    timeout = 30

    @inlineCallbacks
    def setUp(self) -> Any:
        self.broker = KafkaBroker(connection_options(bootstrap()), reactor, time, HistorySettings())
        self.broker.startService()
        self.addCleanup(self.broker.stopService)
        yield until(lambda: self.broker.is_up, "the broker is up")

    def publish_all(self, name: str, bodies: list[bytes]) -> Deferred[Any]:
        return gatherResults(
            [self.broker.publish(Message(address(name), SENDER, body)) for body in bodies]
        )

    @inlineCallbacks
    def test_no_message_of_a_topic_with_several_partitions_is_lost(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(address("several"), inbox)
        bodies = [b"%d" % number for number in range(200)]
        for body in bodies:
            yield self.broker.publish(Message(address("several"), SENDER, body))
        yield inbox.holds(len(bodies))
        self.assertEqual(sorted(inbox.bodies), sorted(bodies))
        client = KafkaConsumer({"bootstrap.servers": bootstrap(), "group.id": "x"})
        self.addCleanup(client.close)
        name = address("several").broker_name
        listing = client.list_topics(name, timeout=5)
        self.assertEqual(len(listing.topics[name].partitions), PARTITIONS)

    @inlineCallbacks
    def test_old_messages_are_not_delivered(self) -> Any:
        yield self.publish_all("before", [b"1", b"2", b"3"])
        inbox = Inbox()
        yield self.broker.subscribe(address("before"), inbox)
        yield self.publish_all("before", [b"4"])
        yield inbox.holds(1)
        self.assertEqual(inbox.bodies, [b"4"])

    @inlineCallbacks
    def test_reading_pauses_and_continues_without_loss(self) -> Any:
        self.patch(record_queue, "MAX_RECORDS", 100)
        self.patch(record_queue, "RECORDS_PER_ITERATION", 5)
        pauses, resumes = [], []
        client = self.broker._consumer._client

        class Recorded:
            def __getattr__(self, name: str) -> Any:
                return getattr(client, name)

            def pause(self, partitions: list[Any]) -> None:
                pauses.append(len(partitions))
                client.pause(partitions)

            def resume(self, partitions: list[Any]) -> None:
                resumes.append(len(partitions))
                client.resume(partitions)

        self.broker._consumer._client = Recorded()
        inbox = Inbox()
        yield self.broker.subscribe(address("flood"), inbox)
        bodies = [b"%d" % number for number in range(1000)]
        yield self.publish_all("flood", bodies)
        yield inbox.holds(len(bodies))
        self.assertEqual(sorted(inbox.bodies), sorted(bodies))
        self.assertGreater(len(pauses), 0)
        yield until(lambda: len(resumes) == len(pauses), "all is resumed")
        self.assertEqual(set(pauses + resumes), {PARTITIONS})

    @inlineCallbacks
    def test_the_record_is_the_same_as_that_of_a_unit(self) -> Any:
        yield self.broker.publish(Message(address("wire"), SENDER, '{"a":"\xe9"}'.encode()))
        client = KafkaConsumer(
            {
                "bootstrap.servers": bootstrap(),
                "group.id": "x",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        self.addCleanup(client.close)
        client.subscribe([address("wire").broker_name])
        messages = []

        def poll() -> bool:
            message = client.poll(0.1)
            if message is not None and message.error() is None:
                messages.append(message)
            return bool(messages)

        yield until(poll, "the message has arrived")
        [message] = messages
        self.assertIsNone(message.key())
        self.assertEqual(message.value(), '{"a":"\xe9"}'.encode())
        self.assertEqual(message.headers(), [("__PERSONIUM_CELL", SENDER.encode())])
