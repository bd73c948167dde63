from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.kafka_fakes import ScriptedKafka
from topicsvc.brokers import in_flight, subscriptions
from topicsvc.brokers.kafka import broker, reader
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.liveness import BEAT, BEAT_WHEN_AWAY
from topicsvc.errors import BrokerUnavailable, TopicNotFound
from topicsvc.interfaces import Message, Subscription
from topicsvc.topics import TopicAddress

SENDER = "https://cell2.unit1.example/"


def topic(name: str = "name") -> TopicAddress:
    return TopicAddress("cell1", "box1", ("col",), name)


def broker_name(name: str = "name") -> str:
    return f"cell1.box1.col.topic.{name}"


class KafkaTests(SynchronousTestCase):
    """Fixture: a broker under test, beside a scripted Kafka."""

    closes_on_loss = False

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.clock = Clock()
        self.server = ScriptedKafka(self, broker)
        self.consumer, self.producer = self.server.consumer, self.server.producer
        self.broker = KafkaBroker({}, self.clock, self.closes_on_loss)
        self.inbox: list[Message] = []
        self.losses = 0
        self.broker.startService()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        if self.broker.running:
            self.successResultOf(self.broker.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [], "something was left behind")

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def lost(self) -> None:
        self.losses += 1

    def subscribe(self, name: str = "name") -> Deferred[Subscription]:
        subscribed = self.broker.subscribe(topic(name), self.inbox.append, self.lost)
        self.clock.advance(0)
        return subscribed

    def subscribed(self, name: str = "name", ends: dict[int, int] | None = None) -> Subscription:
        self.server.topics.setdefault(broker_name(name), ends or {0: 7})
        return self.successResultOf(self.subscribe(name))

    def publish(self, body: bytes = b"1", name: str = "name") -> Deferred[None]:
        return self.broker.publish(Message(topic(name), SENDER, body))

    def go(self) -> None:
        """The broker goes, and its clients notice that all connections are gone."""
        self.server.is_there = False
        self.consumer.owner.doubted()
        self.clock.advance(0)

    def come(self) -> None:
        self.server.is_there = True
        self.pass_time(BEAT_WHEN_AWAY)

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.inbox]

    def log_of(self, word: str) -> list[str]:
        texts = [
            event["log_format"].format(**event)
            for event in self.events
            if event.get("log_format") and event["log_namespace"].startswith("topicsvc")
        ]
        return [text for text in texts if word in text]


class PauseTests(KafkaTests):
    def test_records_wait_and_all_else_goes_on(self) -> None:
        self.subscribed()
        self.broker.pause()
        self.assertTrue(self.consumer.is_paused)
        self.pass_time(10 * BEAT)
        self.assertTrue(self.broker.is_up)
        self.subscribed("other")
        accepted = self.publish()
        self.producer.accept()
        self.successResultOf(accepted)
        self.broker.resume()
        self.assertFalse(self.consumer.is_paused)


class SubscribeTests(KafkaTests):
    def test_reading_begins_where_the_topic_ended_when_it_was_asked_for(self) -> None:
        self.subscribed(ends={0: 7, 1: 0, 2: 11})
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 7, 1: 0, 2: 11})

    def test_it_is_confirmed_when_the_end_is_known_and_not_before(self) -> None:
        self.server.topics[broker_name()] = {0: 7}
        self.server.held = []
        subscribed = self.subscribe()
        self.assertNoResult(subscribed)
        self.server.let_go()
        self.successResultOf(subscribed)

    def test_a_topic_is_asked_for_once_however_many_listen(self) -> None:
        for _ in range(3):
            self.subscribed()
        self.assertEqual(self.server.asked, [[broker_name()]])
        self.consumer.bring(broker_name(), b"1")
        self.assertEqual(self.bodies, [b"1"] * 3)

    def test_topics_of_one_turn_or_during_an_answer_are_one_question(self) -> None:
        for name in "abcde":
            self.server.topics[broker_name(name)] = {0: 0}
        self.server.held = []
        first = [self.broker.subscribe(topic(name), print) for name in "ab"]
        self.clock.advance(0)
        second = [self.subscribe(name) for name in "cde"]
        self.server.let_go()
        self.clock.advance(0)
        for each in (*first, *second):
            self.successResultOf(each)
        asked = [[broker_name(name) for name in names] for names in ("ab", "cde")]
        self.assertEqual(self.server.asked, asked)

    def test_questions_are_bounded(self) -> None:
        self.patch(reader, "AT_ONCE", 2)
        self.server.topics = {broker_name(name): {0: 0} for name in "abcde"}
        subscribed = [self.broker.subscribe(topic(name), print) for name in "abcde"]
        self.clock.advance(0)
        self.assertEqual([len(names) for names in self.server.asked], [2, 2, 1])
        for each in subscribed:
            self.successResultOf(each)

    def test_a_topic_that_is_being_made_is_waited_for(self) -> None:
        subscribed = self.subscribe()
        self.assertNoResult(subscribed)
        self.pass_time(reader.CREATION)
        self.successResultOf(subscribed)
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 0})

    def test_a_topic_that_is_never_made_is_refused_and_keeps_no_other(self) -> None:
        self.server.makes_topics = False
        missing = self.subscribe("missing")
        self.subscribed()
        self.pass_time(reader.CREATION * (reader.CREATION_TRIES - 1))
        self.assertNoResult(missing)
        self.pass_time(1)
        self.failureResultOf(missing, BrokerUnavailable)
        self.assertEqual(len(self.broker._reader), 1)
        self.assertEqual(len(self.log_of("does not serve cell1.box1.col.topic.missing")), 1)

    def test_a_topic_that_we_may_not_read_is_refused_at_once(self) -> None:
        self.server.refusals[broker_name()] = BrokerUnavailable("not authorized")
        self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.assertEqual(len(self.broker._reader), 0)

    def test_names_that_kafka_cannot_have_never_reach_it(self) -> None:
        alien = TopicAddress("cell1", "box1", ("\u65e5\u672c",), "name")
        self.failureResultOf(self.broker.subscribe(alien, print), TopicNotFound)
        self.failureResultOf(self.broker.publish(Message(alien, None, b"1")), TopicNotFound)
        self.clock.advance(0)
        self.assertEqual((self.server.asked, self.producer.sent), ([], []))

    def test_it_is_let_go_a_few_seconds_after_the_last_listener(self) -> None:
        first, second = self.subscribed(), self.subscribed()
        first.stop()
        self.pass_time(subscriptions.LINGER * 2)
        second.stop()
        self.pass_time(subscriptions.LINGER - 0.5)
        self.assertEqual(len(self.broker._reader), 1)
        self.pass_time(1)
        self.assertEqual((len(self.broker._reader), self.consumer.places), (0, {}))

    def test_who_comes_back_at_once_costs_nothing(self) -> None:
        self.subscribed().stop()
        self.pass_time(subscriptions.LINGER - 0.5)
        self.subscribed()
        self.pass_time(subscriptions.LINGER)
        self.assertEqual(len(self.server.asked), 1)

    def test_what_is_still_on_its_way_for_an_older_reading_is_not_brought_twice(self) -> None:
        self.subscribed().stop()
        old = self.consumer.id(broker_name())
        self.pass_time(subscriptions.LINGER + 1)
        self.subscribed()
        self.consumer.owner.record(reader.Record(old, b"1", None))
        self.consumer.bring(broker_name(), b"1")
        self.assertEqual(self.bodies, [b"1"])

    def test_a_wish_that_is_withdrawn_reads_nothing(self) -> None:
        self.server.topics[broker_name()] = {0: 7}
        self.server.held = []
        subscribed = self.subscribe()
        subscribed.addErrback(lambda _: None)
        subscribed.cancel()
        self.pass_time(subscriptions.LINGER + 1)
        self.server.let_go()
        self.assertEqual((len(self.broker._reader), self.consumer.places), (0, {}))

    def test_new_partitions_are_read_from_their_beginning(self) -> None:
        self.subscribed()
        self.server.topics[broker_name()] |= {1: 5}
        self.pass_time(reader.GROWTH)
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 7, 1: 0})
        self.pass_time(reader.GROWTH)
        self.assertEqual(self.consumer.offsets(broker_name()), {0: 7, 1: 0})


class DeliverTests(KafkaTests):
    def setUp(self) -> None:
        super().setUp()
        self.subscribed()

    def test_body_and_sender(self) -> None:
        self.consumer.bring(broker_name(), b'{"a":1}', SENDER.encode())
        self.assertEqual(self.inbox, [Message(topic(), SENDER, b'{"a":1}')])

    def test_no_header_no_sender(self) -> None:
        for cell in (None, b""):
            self.consumer.bring(broker_name(), b"1", cell)
        self.assertEqual([message.sender for message in self.inbox], [None, None])

    def test_text_that_is_not_json_and_no_text_at_all(self) -> None:
        for value in (b"not JSON", b"", None, b"\xff"):
            self.consumer.bring(broker_name(), value)
        wrapped = [b'{"content":"not JSON"}', b'{"content":""}', b'{"content":""}']
        self.assertEqual(self.bodies[:3], wrapped)
        self.assertEqual(self.bodies[3], b'{"content":"\\ufffd"}')

    def test_a_partition_that_nobody_reads_is_counted_and_dropped(self) -> None:
        self.consumer.owner.misrouted("another")
        self.assertEqual(self.broker.losses.misrouted, 1)
        self.assertEqual(self.inbox, [])
        self.assertEqual(len(self.log_of("a message of another: dropped")), 1)


class PublishTests(KafkaTests):
    def test_it_fires_with_the_broker_s_word(self) -> None:
        accepted = self.publish(b"[1]")
        self.assertNoResult(accepted)
        self.assertEqual(self.producer.sent, [(broker_name(), SENDER, b"[1]")])
        self.producer.accept()
        self.successResultOf(accepted)

    def test_it_fails_if_the_broker_does_not_take_it(self) -> None:
        refused = self.publish()
        self.producer.answers[0](BrokerUnavailable("too big"))
        self.failureResultOf(refused, BrokerUnavailable)
        self.assertEqual(len(self.log_of("was not taken: too big")), 1)

    def test_how_many_are_under_way_is_bounded(self) -> None:
        self.patch(in_flight, "MAX_IN_FLIGHT", 2)
        sent = [self.publish() for _ in range(2)]
        self.failureResultOf(self.publish(), BrokerUnavailable)
        for each in sent:
            self.producer.accept()
            self.successResultOf(each)

    def test_it_fails_at_once_while_the_broker_is_away(self) -> None:
        self.go()
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.assertEqual(self.producer.sent, [])


class SettlingTests(KafkaTests):
    """Whether what was accepted from here is brought to those who listen here."""

    def accepted(self, *places: tuple[int, int], name: str = "name") -> None:
        for partition, offset in places:
            self.publish(name=name)
            self.producer.accept(offset, partition)

    def assert_expected(self, places: dict[tuple[str, int], int]) -> None:
        self.assertEqual(self.broker.is_settled, not places)
        self.assertEqual(self.consumer.expected, places)

    def test_each_partition_must_be_read_as_far_as_the_last_that_was_accepted(self) -> None:
        self.subscribed(ends={0: 7, 1: 0})
        self.publish()
        self.assert_expected({})  # nothing is accepted yet
        self.producer.accept(7)
        self.accepted((1, 0), (0, 9), (0, 8))
        self.assert_expected({(broker_name(), 0): 9, (broker_name(), 1): 0})

    def test_nobody_waits_for_what_nobody_listens_to(self) -> None:
        self.accepted((0, 3), name="other")
        self.assert_expected({})
        subscription = self.subscribed()
        self.accepted((0, 7))
        self.assertFalse(self.broker.is_settled)
        self.successResultOf(subscription.stop())
        self.pass_time(subscriptions.LINGER + 1)
        self.assert_expected({})

    def test_what_is_refused_is_not_waited_for(self) -> None:
        self.subscribed()
        self.publish().addErrback(lambda _: None)
        self.producer.answers.pop()(BrokerUnavailable("too big"))
        self.assert_expected({})


class LossTests(KafkaTests):
    def test_it_is_down_until_the_first_sign_of_life(self) -> None:
        self.successResultOf(self.broker.stopService())
        self.server.is_there = False
        self.broker = KafkaBroker({}, self.clock)
        self.broker.startService()
        self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.pass_time(10)
        self.assertEqual(self.broker.last_error, "said the test")
        self.assertEqual(len(self.log_of("said the test")), 1)
        self.come()
        self.assertTrue(self.broker.is_up)
        self.assertEqual((self.broker.losses.reconnects, self.broker.last_error), (0, ""))
        self.assertEqual(len(self.log_of("connected to Kafka")), 2)

    def test_listeners_stay_and_are_read_on_from_where_they_were(self) -> None:
        self.subscribed()
        places = dict(self.consumer.places)
        self.go()
        self.assertFalse(self.broker.is_up)
        self.pass_time(60)
        self.come()
        self.assertTrue(self.broker.is_up)
        self.assertEqual((self.consumer.places, self.losses), (places, 0))
        self.consumer.bring(broker_name(), b"1")
        self.assertEqual(self.bodies, [b"1"])

    def test_it_is_logged_and_counted_and_is_no_gap(self) -> None:
        self.subscribed()
        self.go()
        self.pass_time(30)
        self.come()
        self.go()
        losses = self.broker.losses
        self.assertEqual((losses.reconnects, losses.gaps), (1, 0))
        self.assertEqual(len(self.log_of("the broker is lost: said the test; 1 topics wait")), 2)
        self.assertEqual(len(self.log_of("the broker is back after 30.")), 1)

    def test_who_waits_for_a_topic_is_told_at_once(self) -> None:
        self.server.topics[broker_name()] = {0: 7}
        self.server.held = []
        subscribed = self.subscribe()
        held, self.server.held = self.server.held, None
        self.go()
        self.failureResultOf(subscribed, BrokerUnavailable)
        self.come()
        held[0][0].callback(held[0][1])
        self.assertEqual((len(self.broker._reader), self.consumer.places), (0, {}))

    def test_a_question_without_an_answer_is_a_reason_to_doubt(self) -> None:
        self.server.is_there = False
        self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.clock.advance(0)
        self.assertFalse(self.broker.is_up)

    def test_signs_of_life_come_from_the_leaders_of_what_is_read(self) -> None:
        self.patch(reader, "AT_ONCE", 2)
        for name in "abc":
            self.subscribed(name)
        self.server.signs.clear()
        self.pass_time(3 * BEAT + 1)
        a, b, c = ((broker_name(name), 0) for name in "abc")
        self.assertEqual(self.server.signs, [[a, b], [c], [a, b]])

    def test_trouble_is_told_once_for_each_reason(self) -> None:
        for number in range(3):
            self.consumer.owner.complain(f"refused (after {number}ms in state CONNECT)")
            self.consumer.owner.complain("another")
        said = ["trouble with the broker: refused", "trouble with the broker: another"]
        self.assertEqual(self.log_of("trouble"), said)
        for number in range(100):
            self.consumer.owner.complain(str(number))
        self.assertEqual(len(self.log_of("trouble")), reader.MAX_ERRORS_LOGGED)
        self.go()
        self.come()
        self.consumer.owner.complain("another")
        self.assertEqual(len(self.log_of("trouble")), reader.MAX_ERRORS_LOGGED + 1)

    def test_listeners_of_a_topic_that_is_served_no_more_are_told(self) -> None:
        self.subscribed("good")
        self.subscribed("bad")
        self.consumer.owner.refused(self.consumer.id(broker_name("bad")), "deleted")
        self.assertEqual((self.losses, len(self.broker._reader)), (1, 1))
        self.assertEqual(list(self.consumer.places), [(broker_name("good"), 0)])
        self.assertTrue(self.broker.is_up)

    def test_nothing_is_asked_once_the_service_stops(self) -> None:
        self.server.makes_topics = False
        waiting = self.subscribe()
        self.successResultOf(self.broker.stopService())
        self.failureResultOf(waiting, BrokerUnavailable)
        self.assertFalse(self.broker.is_up)
        self.failureResultOf(self.publish(), BrokerUnavailable)


class MissingMessagesTests(KafkaTests):
    """A broker that no longer has what comes next."""

    def missing(self, low: int, high: int, next_: int) -> int:
        """Where reading goes on."""
        self.subscribed()
        self.server.lows[broker_name(), 0] = low
        self.server.topics[broker_name()] = {0: high}
        self.consumer.owner.not_there(self.consumer.id(broker_name()), 0, next_)
        return self.consumer.offsets(broker_name())[0]

    def test_what_was_too_old_for_it_is_passed_over(self) -> None:
        self.assertEqual(self.missing(20, 30, 10), 20)

    def test_what_it_has_lost_is_not_brought_twice(self) -> None:
        self.assertEqual(self.missing(0, 5, 10), 5)

    def test_what_it_has_again_is_read_on(self) -> None:
        self.assertEqual(self.missing(0, 15, 10), 10)

    def test_it_is_logged_and_counted(self) -> None:
        self.missing(20, 30, 10)
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertEqual(len(self.log_of("has partition 0 from 20 to 30, and 10 was next")), 1)
        self.assertEqual(self.losses, 0)

    def test_it_is_asked_again_if_it_does_not_say(self) -> None:
        self.subscribed()
        self.server.is_there = False
        self.consumer.owner.not_there(self.consumer.id(broker_name()), 0, 99)
        self.server.is_there = True
        self.pass_time(reader.CREATION)
        self.assertEqual(self.broker.losses.gaps, 1)

    def test_nobody_is_left_to_miss_it(self) -> None:
        subscription = self.subscribed()
        id_ = self.consumer.id(broker_name())
        subscription.stop()
        self.pass_time(subscriptions.LINGER + 1)
        self.consumer.owner.not_there(id_, 0, 99)
        self.assertEqual(self.broker.losses.gaps, 0)


class CloseOnLossTests(KafkaTests):
    closes_on_loss = True

    def test_all_listeners_are_told_at_once(self) -> None:
        for name in ("one", "one", "two"):
            self.subscribed(name)
        self.subscribed("left").stop()
        self.go()
        self.assertEqual(self.losses, 3)

    def test_those_of_a_topic_whose_messages_are_missing_are_told(self) -> None:
        self.subscribed("other")
        self.subscribed()
        self.consumer.owner.not_there(self.consumer.id(broker_name()), 0, 99)
        self.assertEqual(self.losses, 1)

    def test_none_is_told_when_the_service_stops(self) -> None:
        self.subscribed()
        self.successResultOf(self.broker.stopService())
        self.assertEqual(self.losses, 0)
