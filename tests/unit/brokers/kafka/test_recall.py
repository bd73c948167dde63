"""Reading back what Kafka has kept, and news of messages that may be missing, in virtual time."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred

from tests.support.kafka_case import NOW, KafkaTestCase, broker_name, topic
from tests.support.kafka_fakes import CLEAN
from topicsvc.brokers import subscriptions
from topicsvc.brokers.kafka import reader, recall
from topicsvc.brokers.kafka.lanes import Entry, place_id
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Mark, Message, TopicLog
from topicsvc.settings import HistorySettings

UNCLEAN = replace(CLEAN, is_clean=False)
ANOTHER = replace(CLEAN, epoch="k2")


def entry(offset: int, partition: int = 0, epoch: int = 0, name: str = "name") -> Entry:
    mark = Mark(partition, place_id(epoch, offset))
    return Entry(partition, epoch, offset, NOW, Message(topic(name), None, b"%d" % offset, mark))


class RecallTestCase(KafkaTestCase):
    def keep(self, *entries: Entry, name: str = "name") -> None:
        """Kafka has kept these records."""
        for each in entries:
            records = self.server.log.records.setdefault((broker_name(name), each.partition), [])
            assert records is not None
            records.append(each)

    def recall(self, name: str = "name") -> Deferred[TopicLog]:
        recalled = self.broker.recall(topic(name))
        assert recalled is not None
        self.clock.advance(0)
        self.clock.advance(0)
        return recalled

    def recalled(self, name: str = "name") -> TopicLog:
        log = self.successResultOf(self.recall(name))
        self.clock.advance(0)
        return log

    def deliver(self, offset: int, epoch: int = 0, partition: int = 0) -> None:
        body = b"%d" % offset
        self.consumer.deliver(broker_name(), body, None, partition, offset, epoch)

    @property
    def notices(self) -> list[tuple[tuple[str, ...], int]]:
        """The start of each log that was told, and how many messages were delivered before it."""
        return [(log.start if log else (), count) for log, count in self.missed]


def bodies(log: TopicLog) -> list[bytes]:
    return [message.body for message, _ in log.messages]


class MarkTests(RecallTestCase):
    def test_each_message_has_the_place_of_its_record(self) -> None:
        self.subscribed(ends={0: 7, 1: 0})
        self.deliver(7, epoch=3)
        self.deliver(0, partition=1)
        marks = [message.mark for message in self.inbox]
        self.assertEqual(marks, [Mark(0, "3-7"), Mark(1, "0-0")])

    def test_plain_topics_cause_no_requests(self) -> None:
        self.subscribed()
        self.deliver(7, epoch=0)
        self.deliver(8, epoch=1)
        self.assertEqual(self.bodies, [b"7", b"8"])
        self.pass_time(reader.PARTITION_CHECK_INTERVAL)
        self.assertEqual((self.server.log.requests, self.server.descriptions), ([], []))


class LogTests(RecallTestCase):
    def test_it_is_read_up_to_the_records_that_are_delivered(self) -> None:
        self.subscribed(ends={0: 7, 1: 0})
        self.deliver(7)
        self.keep(entry(5), entry(6), entry(7))
        log = self.recalled()
        self.assertEqual(self.server.log.requests, [({broker_name(): {0: 8, 1: 0}}, NOW - 120)])
        self.assertEqual((log.epoch, log.start), ("k1", ("0-5", "")))
        self.assertEqual(bodies(log), [b"6", b"7"])

    def test_it_ends_with_the_last_message_that_was_delivered(self) -> None:
        """Records that arrive while it is read follow the others, each once."""
        self.subscribed()
        self.keep(entry(5), entry(6))
        self.server.log.held = []
        recalled = self.recall()
        self.deliver(7)
        self.deliver(8)
        self.assertNoResult(recalled)
        self.server.log.release()
        self.clock.advance(0)
        log = self.successResultOf(recalled)
        self.assertEqual(bodies(log), [b"6", b"7", b"8"])
        self.assertEqual(log.messages[-1][0], self.inbox[-1])
        self.deliver(9)
        self.assertEqual(self.bodies, [b"7", b"8", b"9"])
        self.assertEqual(self.notices, [])

    def test_a_subscriber_may_call_it_while_it_gets_a_message(self) -> None:
        self.subscribed()
        self.keep(entry(6))
        self.recalled()
        calls: list[Deferred[TopicLog] | None] = []
        self.broker.subscribe(topic(), lambda _: calls.append(self.broker.recall(topic())))
        self.keep(entry(7))
        self.deliver(7)
        self.clock.advance(0)
        self.clock.advance(0)
        [recalled] = calls
        assert recalled is not None
        self.assertEqual(bodies(self.successResultOf(recalled)), [b"7"])

    def test_calls_at_the_same_time_share_one_request(self) -> None:
        self.subscribed()
        self.keep(entry(6))
        calls = [self.broker.recall(topic()) for _ in range(3)]
        self.clock.advance(0)
        self.clock.advance(0)
        logs = [self.successResultOf(call) for call in calls if call is not None]
        self.assertEqual(len(logs), 3)
        self.assertIs(logs[0], logs[2])
        self.assertEqual(len(self.server.log.requests), 1)

    def test_a_later_call_reads_again(self) -> None:
        self.subscribed()
        self.keep(entry(6))
        self.recalled()
        self.deliver(7)
        self.keep(entry(7))
        self.assertEqual(bodies(self.recalled()), [b"7"])

    def test_topics_are_read_together_up_to_a_limit(self) -> None:
        self.patch(recall, "MAX_TOPICS_READ", 2)
        self.successResultOf(self.broker.stopService())
        self.start()
        for name in "abc":
            self.subscribed(name)
            self.keep(entry(6, name=name), name=name)
        calls = [self.broker.recall(topic(name)) for name in "abc"]
        self.pass_time(0.2)
        for call in calls:
            assert call is not None
            self.successResultOf(call)
        sizes = [len(floors) for floors, _ in self.server.log.requests]
        self.assertEqual(sizes, [2, 1])

    def test_if_more_arrives_than_is_kept_the_log_begins_behind_it(self) -> None:
        self.broker._reader._recall._history = HistorySettings(messages=2)
        self.subscribed()
        self.keep(entry(6))
        self.server.log.held = []
        recalled = self.recall()
        for offset in range(7, 11):
            self.deliver(offset)
        self.server.log.release()
        self.clock.advance(0)
        log = self.successResultOf(recalled)
        self.assertEqual((log.start, log.messages), (("0-a",), ()))

    def test_a_partition_that_is_added_meanwhile_begins_with_the_empty_place(self) -> None:
        self.subscribed()
        self.keep(entry(6))
        self.server.log.held = []
        recalled = self.recall()
        self.server.topics[broker_name()] |= {1: 0}
        self.pass_time(reader.PARTITION_CHECK_INTERVAL)
        self.deliver(0, partition=1)
        self.server.log.release()
        self.clock.advance(0)
        log = self.successResultOf(recalled)
        self.assertEqual((log.start, bodies(log)), (("0-6", ""), [b"0"]))


class NoLogTests(RecallTestCase):
    def test_it_is_off_without_seconds(self) -> None:
        self.broker._reader._recall._history = HistorySettings(seconds=0)
        self.subscribed()
        self.assertIsNone(self.broker.recall(topic()))

    def test_positions_of_too_many_partitions_are_those_of_the_process(self) -> None:
        self.subscribed(ends=dict.fromkeys(range(20), 10**6))
        self.assertIsNone(self.broker.recall(topic()))
        self.assertIsNone(self.broker.recall(topic()))
        self.assertEqual(len(self.log_of("has too many partitions for positions")), 1)

    def test_a_gap_of_such_a_topic_is_told(self) -> None:
        """Otherwise the positions of the process would prove that nothing is missing."""
        self.subscribed(ends=dict.fromkeys(range(20), 10**6))
        self.assertIsNone(self.broker.recall(topic()))
        self.server.lows[broker_name(), 0] = 10**6 + 20
        self.server.topics[broker_name()] |= {0: 10**6 + 30}
        id_ = self.consumer.id(broker_name())
        self.consumer.handler.on_offset_missing(id_, 0, 10**6)
        self.assertEqual(self.missed, [(None, 0)])
        self.deliver(10**6 + 20)
        self.assertEqual((self.missed, len(self.inbox)), ([(None, 0)], 1))

    def test_if_partitions_are_added_until_positions_are_too_long_sessions_are_told(self) -> None:
        self.subscribed()
        self.keep(entry(6))
        self.recalled()
        self.server.topics[broker_name()] |= dict.fromkeys(range(1, 30), 0)
        self.pass_time(reader.PARTITION_CHECK_INTERVAL)
        self.assertEqual(self.missed, [(None, 0)])

    def test_if_offsets_grow_until_positions_are_too_long_sessions_are_told(self) -> None:
        """Before the first record whose position would be too long."""
        partitions = range(14)
        self.subscribed(ends=dict.fromkeys(partitions, 0))
        self.recalled()
        for partition in partitions:
            self.deliver(36**5 - 1, partition=partition)
        for partition in range(5):
            self.deliver(36**5, partition=partition)
        self.assertEqual(self.missed, [])
        self.deliver(36**5, partition=5)
        self.assertEqual(self.missed, [(None, len(partitions) + 5)])
        self.deliver(36**5 + 1)
        self.assertEqual((len(self.missed), len(self.inbox)), (1, len(partitions) + 7))
        self.assertIsNone(self.broker.recall(topic()))
        self.assertEqual(len(self.log_of("has too many partitions for positions")), 1)

    def test_it_fails_while_the_broker_is_down(self) -> None:
        self.subscribed()
        self.shut_down()
        self.failureResultOf(self.recall(), BrokerUnavailable)

    def test_it_fails_for_a_topic_that_is_not_subscribed(self) -> None:
        self.failureResultOf(self.recall(), BrokerUnavailable)

    def test_it_fails_if_the_records_cannot_be_requested(self) -> None:
        self.subscribed()
        self.server.log.is_responding = False
        self.failureResultOf(self.recall(), BrokerUnavailable)
        self.server.log.is_responding = True
        self.keep(entry(6))
        self.assertEqual(self.recalled().start, ("0-6",))

    def test_it_fails_if_the_topic_cannot_be_described(self) -> None:
        self.subscribed()
        self.server.log.held = []
        recalled = self.recall()
        self.server.is_responding = False
        self.server.log.release()
        self.clock.advance(0)
        self.failureResultOf(recalled, BrokerUnavailable)

    def test_it_fails_if_the_topic_was_deleted(self) -> None:
        self.subscribed()
        self.server.log.held = []
        recalled = self.recall()
        del self.server.topics[broker_name()]
        self.server.log.release()
        self.clock.advance(0)
        self.failureResultOf(recalled, BrokerUnavailable)

    def test_it_fails_if_the_topic_is_unsubscribed_or_the_service_stops(self) -> None:
        subscription = self.subscribed()
        self.server.log.held = []
        recalled = self.recall()
        subscription.stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        self.failureResultOf(recalled, BrokerUnavailable)
        self.subscribed("other")
        other = self.recall("other")
        self.successResultOf(self.broker.stopService())
        self.failureResultOf(other, BrokerUnavailable)
        self.server.log.release()


class ElectionTests(RecallTestCase):
    """Records of a new leader wait until the cluster has said whether the election lost some."""

    def setUp(self) -> None:
        super().setUp()
        self.subscribed()
        self.keep(entry(5), entry(6))
        self.recalled()
        self.deliver(7)
        self.server.held = []

    def release(self) -> None:
        self.clock.advance(0)
        self.server.release()
        self.clock.advance(0)

    def test_nothing_is_told_if_elections_are_clean(self) -> None:
        self.deliver(8, epoch=1)
        self.deliver(9, epoch=1)
        self.assertEqual(self.bodies, [b"7"])
        self.assertFalse(self.broker.is_settled)
        self.release()
        self.assertEqual(self.bodies, [b"7", b"8", b"9"])
        self.assertEqual(self.missed, [])
        self.assertTrue(self.broker.is_settled)

    def test_after_an_election_that_may_be_unclean_sessions_are_told_before_its_records(
        self,
    ) -> None:
        self.server.described[broker_name()] = UNCLEAN
        self.deliver(8, epoch=1)
        self.release()
        [(start, count)] = self.notices
        self.assertEqual((start[0][0], count), ("~", 1))
        self.assertEqual(self.bodies, [b"7", b"8"])
        self.assertEqual(len(self.log_of("messages may be missing")), 1)
        self.deliver(9, epoch=1)
        self.assertEqual((self.bodies[-1], len(self.missed)), (b"9", 1))

    def test_each_election_is_told_before_its_own_records(self) -> None:
        self.server.described[broker_name()] = UNCLEAN
        self.deliver(8, epoch=1)
        self.deliver(9, epoch=2)
        self.release()
        self.assertEqual([count for _, count in self.notices], [1, 2])

    def test_the_settings_are_requested_after_the_election(self) -> None:
        """An operator may have allowed an unclean election because there was no leader."""
        self.release()
        self.assertEqual(len(self.server.descriptions), 1)
        self.server.described[broker_name()] = UNCLEAN
        self.deliver(8, epoch=1)
        self.clock.advance(0)
        self.assertEqual(len(self.missed), 1)

    def test_without_an_answer_sessions_are_told(self) -> None:
        self.server.held = None
        self.server.is_responding = False
        self.deliver(8, epoch=1)
        self.clock.advance(0)
        self.assertEqual([count for _, count in self.notices], [1])
        self.assertEqual(self.bodies, [b"7", b"8"])

    def test_if_too_many_records_wait_sessions_are_told(self) -> None:
        self.patch(recall, "MAX_HELD_RECORDS", 3)
        for offset in range(8, 12):
            self.deliver(offset, epoch=1)
        self.assertEqual([count for _, count in self.notices], [1])
        self.assertEqual(self.bodies, [b"7", b"8", b"9", b"10", b"11"])
        self.release()
        self.assertEqual(len(self.missed), 1)

    def test_if_too_many_bytes_wait_sessions_are_told(self) -> None:
        self.patch(recall, "MAX_HELD_BYTES", 100)
        self.deliver(8, epoch=1)
        self.assertEqual([count for _, count in self.notices], [1])
        self.release()

    def test_records_that_wait_are_dropped_with_their_subscription(self) -> None:
        self.deliver(8, epoch=1)
        self.consumer.handler.on_topic_refused(self.consumer.id(broker_name()), "deleted")
        self.release()
        self.assertEqual(self.bodies, [b"7"])
        self.assertFalse(self.broker._reader._recall.is_holding)

    def test_an_election_while_the_log_is_read_begins_the_log(self) -> None:
        self.server.held = None
        self.server.described[broker_name()] = UNCLEAN
        self.keep(entry(7))
        self.server.log.held = []
        recalled = self.recall()
        self.deliver(8, epoch=1)
        self.server.log.release()
        self.clock.advance(0)
        log = self.successResultOf(recalled)
        self.assertEqual((log.start[0][0], bodies(log)), ("~", [b"8"]))
        self.clock.advance(0)


class MissingTests(RecallTestCase):
    """The next records are missing: sessions are told before the first one behind the gap."""

    def setUp(self) -> None:
        super().setUp()
        self.subscribed(ends={0: 7, 1: 3})
        self.keep(entry(6), entry(2, partition=1))
        self.recalled()

    def lose(self) -> None:
        """The broker has partition 0 from offset 20 on."""
        self.server.lows[broker_name(), 0] = 20
        self.server.topics[broker_name()] |= {0: 30}
        self.consumer.handler.on_offset_missing(self.consumer.id(broker_name()), 0, 7)

    def test_it_is_told_with_the_place_of_each_partition(self) -> None:
        self.server.held = []
        self.lose()
        held, self.server.held = self.server.held, []
        held[0][0].callback(held[0][1])  # the watermarks
        self.assertEqual(self.consumer.offsets(broker_name())[0], 20)
        self.deliver(20)
        self.assertEqual((self.bodies, self.missed), ([], []))
        self.clock.advance(0)
        self.server.release()
        [(start, count)] = self.notices
        self.assertEqual((start[0][0], start[1], count), ("~", "0-2", 0))
        self.assertEqual(self.bodies, [b"20"])
        self.clock.advance(0)

    def test_it_is_told_once_although_no_record_follows(self) -> None:
        self.lose()
        self.pass_time(1)
        self.assertEqual(len(self.missed), 1)
        self.deliver(20)
        self.clock.advance(0)
        self.assertEqual((len(self.missed), self.bodies), (1, [b"20"]))
        self.clock.advance(0)

    def test_a_gap_while_the_log_is_read_begins_the_log(self) -> None:
        self.server.log.held = []
        recalled = self.recall()
        self.lose()
        self.deliver(20)
        self.server.log.release()
        self.pass_time(1)
        log = self.successResultOf(recalled)
        self.assertEqual((log.start, log.messages), (("0-k", "0-2"), ()))
        self.assertEqual([count for _, count in self.notices], [0])

    def test_a_topic_that_was_created_again_has_another_epoch(self) -> None:
        self.server.described[broker_name()] = ANOTHER
        self.lose()
        self.clock.advance(0)
        self.assertEqual([log.epoch for log, _ in self.missed if log], ["k2"])
        self.assertEqual(len(self.log_of("was deleted and created again")), 1)
        self.clock.advance(0)

    def test_a_topic_that_was_created_again_unnoticed_is_found_by_its_id(self) -> None:
        """It got more records than the old one had, so no offset is missing."""
        self.deliver(7)
        self.server.described[broker_name()] = ANOTHER
        self.pass_time(reader.PARTITION_CHECK_INTERVAL)
        [(start, count)] = self.notices
        self.assertEqual(([place[0] for place in start], count), (["~", "~"], 1))
        self.pass_time(reader.PARTITION_CHECK_INTERVAL)
        self.assertEqual(len(self.missed), 1)


class CatchUpTests(RecallTestCase):
    """Another process may have delivered records that have not arrived here yet."""

    def setUp(self) -> None:
        super().setUp()
        self.subscribed()
        self.keep(entry(6))
        self.recalled()

    def catch_up(self) -> Deferred[None]:
        catching_up = self.broker.catch_up(topic())
        assert catching_up is not None
        self.clock.advance(0)
        return catching_up

    def test_it_waits_for_the_records_that_are_accepted_already(self) -> None:
        self.server.topics[broker_name()] = {0: 9}
        catching_up = self.catch_up()
        self.deliver(7)
        self.pass_time(0.1)
        self.assertNoResult(catching_up)
        self.deliver(8)
        self.pass_time(0.1)
        self.successResultOf(catching_up)

    def test_it_does_not_wait_if_all_are_here(self) -> None:
        self.successResultOf(self.catch_up())
        self.clock.advance(0)

    def test_it_waits_for_two_seconds_at_most(self) -> None:
        """The end of a partition may be behind the marker of a transaction."""
        self.server.topics[broker_name()] = {0: 9}
        catching_up = self.catch_up()
        self.pass_time(1.5)
        self.assertNoResult(catching_up)
        for _ in range(recall.CATCH_UP_CHECKS):
            self.clock.advance(recall.CATCH_UP_INTERVAL)
        self.successResultOf(catching_up)

    def test_calls_during_a_request_are_requested_again_together(self) -> None:
        """They need an end that is newer than they are."""
        self.server.requested.clear()
        self.server.held = []
        calls = [self.catch_up() for _ in range(3)]
        self.server.release()
        for _ in range(3):
            self.clock.advance(0)
        for call in calls:
            self.successResultOf(call)
        self.assertEqual(len(self.server.requested), 2)

    def test_it_fails_if_the_broker_does_not_respond(self) -> None:
        self.server.is_responding = False
        self.failureResultOf(self.catch_up(), BrokerUnavailable)

    def test_there_is_nothing_to_wait_for_without_positions(self) -> None:
        self.subscribed("plain")
        self.assertIsNone(self.broker.catch_up(topic("plain")))
        self.assertIsNone(self.broker.catch_up(topic("unknown")))

    def test_it_reads_partitions_that_were_added_from_their_beginning(self) -> None:
        """Another process has found them, and delivered a record; this one has not looked yet."""
        self.server.topics[broker_name()] |= {1: 1, 2: 0}
        catching_up = self.catch_up()
        assigned = {0: 7, 1: 0, 2: 0}
        self.assertEqual(self.consumer.offsets(broker_name()), assigned)
        self.pass_time(0.1)
        self.assertNoResult(catching_up)
        self.deliver(0, partition=1)
        self.pass_time(0.1)
        self.successResultOf(catching_up)
        self.assertEqual([message.mark for message in self.inbox], [Mark(1, "0-0")])
        self.pass_time(reader.PARTITION_CHECK_INTERVAL)
        self.assertEqual(self.consumer.offsets(broker_name()), assigned)
        self.assertEqual(self.missed, [])

    def test_a_topic_that_was_created_again_with_more_partitions_is_found(self) -> None:
        self.server.topics[broker_name()] |= {1: 0}
        self.server.described[broker_name()] = ANOTHER
        self.catch_up()
        self.pass_time(0.1)
        self.assertEqual(len(self.missed), 1)

    def test_added_partitions_that_make_positions_too_long_end_them(self) -> None:
        self.server.topics[broker_name()] |= dict.fromkeys(range(1, 30), 0)
        catching_up = self.catch_up()
        self.successResultOf(catching_up)
        self.assertEqual(self.missed, [(None, 0)])
        self.clock.advance(0)

    def test_a_topic_that_has_ended_meanwhile_gets_no_partitions(self) -> None:
        self.server.topics[broker_name()] |= {1: 0}
        self.server.held = []
        catching_up = self.catch_up()
        self.broker._reader._recall.forget(next(iter(self.broker._reader._watched)))
        self.server.release()
        self.successResultOf(catching_up)
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 7})

    def test_it_ends_with_the_service(self) -> None:
        self.server.topics[broker_name()] = {0: 9}
        self.catch_up()
        self.broker.catch_up(topic())
        self.successResultOf(self.broker.stopService())


class CloseOnLossTests(RecallTestCase):
    closes_on_loss = True

    def test_sessions_are_closed_and_told_nothing_else_before(self) -> None:
        self.subscribed()
        self.keep(entry(6))
        self.recalled()
        self.consumer.handler.on_offset_missing(self.consumer.id(broker_name()), 0, 99)
        self.assertEqual((self.losses, self.missed), (1, []))
        self.clock.advance(0)
        self.clock.advance(0)
