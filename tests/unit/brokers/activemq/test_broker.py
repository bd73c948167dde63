from __future__ import annotations

from itertools import pairwise
from random import Random
from uuid import UUID

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import Wall
from tests.support.stomp_server import ScriptedBroker, ScriptedPeer
from topicsvc.brokers import in_flight, subscriptions
from topicsvc.brokers.activemq import broker, stomp_client
from topicsvc.brokers.activemq.broker import ActiveMQBroker
from topicsvc.brokers.activemq.stomp_frames import Frame
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message, Subscription
from topicsvc.settings import Login
from topicsvc.topics import TopicAddress

NOTICED = 20
BACK = 10
SENDER = "https://cell2.unit1.example/"


def topic(name: str = "name") -> TopicAddress:
    return TopicAddress("cell1", "box1", ("col",), name)


def destination(name: str = "name") -> str:
    return f"/topic/cell1.box1.col.topic.{name}"


class ActiveMQTests(SynchronousTestCase):
    """Fixture: a broker under test, connected to a scripted one."""

    login: Login | None = None
    closes_on_loss = False

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.clock = Clock()
        self.wall = Wall(self.clock, 1_500_000_000)
        self.server = ScriptedBroker(self.clock)
        self.broker = ActiveMQBroker(
            self.server, self.clock, self.wall, self.login, self.closes_on_loss, Random(1)
        )
        self.inbox: list[Message] = []
        self.losses = 0
        self.broker.startService()
        self.addCleanup(self.stop)
        self.pass_time(0)

    def stop(self) -> None:
        stopped = self.broker.stopService()
        self.pass_time(stomp_client.STOP_TIMEOUT)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [], "something was left behind")

    def pass_time(self, seconds: float) -> None:
        """In steps, as time does; a broker that obeys shows signs of life."""
        self.clock.advance(0)
        self.clock.advance(0)
        for _ in range(round(seconds / 0.5)):
            for peer in self.server.live:
                if peer.obeys:
                    peer.say_bytes(b"\n")
            self.clock.advance(0.5)
            self.clock.advance(0)

    def lost(self) -> None:
        self.losses += 1

    def subscribe(self, name: str = "name") -> Deferred[Subscription]:
        subscribed = self.broker.subscribe(topic(name), self.inbox.append, self.lost)
        self.clock.advance(0)
        return subscribed

    def subscribed(self, name: str = "name") -> Subscription:
        return self.successResultOf(self.subscribe(name))

    def publish(self, body: bytes = b"1", name: str = "name") -> Deferred[None]:
        accepted = self.broker.publish(Message(topic(name), SENDER, body))
        self.clock.advance(0)
        return accepted

    @property
    def reader(self) -> ScriptedPeer:
        return self.server.live[0]

    @property
    def sender(self) -> ScriptedPeer:
        return self.server.live[1]

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


class GreetingTests(ActiveMQTests):
    login = Login("topicsvc", "sec:ret\\")

    def test_it_insists_on_1_2_and_heart_beats_and_says_who_it_is(self) -> None:
        self.assertEqual(len(self.server.live), 2)
        for peer in self.server.live:
            self.assertEqual(
                peer.frames[0],
                Frame(
                    "CONNECT",
                    {
                        "accept-version": "1.2",
                        "host": "/",
                        "heart-beat": "5000,5000",
                        "login": "topicsvc",
                        "passcode": "sec:ret\\",
                    },
                ),
            )
        self.assertTrue(self.broker.is_up)

    def test_the_password_is_in_no_log(self) -> None:
        self.assertNotIn("sec:ret", repr(self.login))
        self.assertNotIn("sec:ret", repr(self.events))

    def greet(self, **headers: str) -> None:
        """Reconnect to a broker that greets differently."""
        self.server.greeting = headers
        for peer in self.server.live:
            peer.close()
        self.pass_time(1)

    def test_another_version_is_refused(self) -> None:
        self.greet(version="1.1", **{"heart-beat": "5000,5000"})
        self.assertFalse(self.broker.is_up)
        self.assertEqual(len(self.log_of("speaks another version")), 2)
        self.assertFalse(self.broker.is_up)

    def test_a_broker_that_could_not_be_watched_is_refused(self) -> None:
        for value in ("0,5000", "60000,5000", "often"):
            self.greet(version="1.2", **{"heart-beat": value})
            self.assertFalse(self.broker.is_up)
        self.assertEqual(len(self.log_of("too seldom")), 2)

    def test_a_refused_login_is_not_tried_at_once_again_and_again(self) -> None:
        self.server.obeys = False
        for peer in self.server.live:
            peer.close()
        for _ in range(60):
            self.pass_time(0.5)
            for peer in self.server.live:
                peer.say("ERROR", message="User name or password is invalid.")
        self.assertLess(len(self.server.attempts), 2 + 2 * 20)
        self.assertEqual(len(self.log_of("password is invalid")), 2, "once for each connection")

    def test_a_broker_that_never_greets_is_left_within_five_seconds(self) -> None:
        self.server.obeys = False
        for peer in self.server.live:
            peer.close()
        self.pass_time(1)
        first = self.server.live
        for _ in range(12):
            for peer in first:
                peer.say_bytes(b"\n")
            self.pass_time(0.5)
        self.assertTrue(all(peer.is_gone for peer in first))

    def test_an_answer_that_is_not_stomp(self) -> None:
        self.reader.say_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.pass_time(0)
        self.assertEqual(len(self.log_of("not STOMP 1.2")), 1)
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)


class HeartBeatTests(ActiveMQTests):
    def test_it_shows_signs_of_life_twice_as_often_as_it_promised(self) -> None:
        before = [peer.beats for peer in self.server.live]
        self.pass_time(60)
        after = [peer.beats for peer in self.server.live]
        self.assertEqual([now - then for now, then in zip(after, before, strict=True)], [24, 24])

    def test_a_silent_broker_is_noticed(self) -> None:
        self.server.freeze()
        frozen = self.server.live
        self.pass_time(9.5)
        self.assertTrue(self.broker.is_up, "a little late is not dead")
        self.pass_time(NOTICED - 9.5)
        self.assertFalse(self.broker.is_up)
        self.assertTrue(all(peer.is_gone for peer in frozen))
        self.assertEqual(len(self.log_of("it is silent")), 2)

    def test_a_long_pause_of_ours_kills_nobody(self) -> None:
        self.clock.advance(86400)
        self.clock.advance(0)
        self.assertTrue(self.broker.is_up)


class ReconnectTests(ActiveMQTests):
    def test_attempts_grow_rare_but_stay_within_the_bound(self) -> None:
        self.server.go()
        self.clock.pump([0.05] * (120 * 20))
        attempts = self.server.attempts[2:]
        self.assertLess(len(attempts), 2 * 120 / stomp_client.LONGEST_DELAY * 1.6)
        self.assertGreater(len(attempts), 2 * 120 / (stomp_client.LONGEST_DELAY * 1.5))
        gaps = [after - before for before, after in pairwise(attempts[-20:])]
        self.assertGreater(len({round(gap, 3) for gap in gaps}), 10, "they are spread")

    def test_it_is_back_soon_after_the_broker(self) -> None:
        for seconds in (1, 7, 100):
            self.server.go()
            self.pass_time(seconds)
            self.assertFalse(self.broker.is_up)
            self.server.is_there = True
            self.pass_time(stomp_client.LONGEST_DELAY * 1.5 + 0.5)
            self.assertTrue(self.broker.is_up)
        self.assertEqual(self.broker.losses.reconnects, 2 * 3, "two connections, three times")

    def test_an_attempt_that_hangs_is_given_up(self) -> None:
        self.server.go()
        self.server.hangs = True
        self.pass_time(30)
        self.server.hangs = False
        self.server.is_there = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)

    def test_why_is_logged_once(self) -> None:
        self.server.go()
        self.pass_time(60)
        self.assertEqual(len(self.log_of("cannot reach the broker")), 2)

    def test_stopping_while_it_is_away_stops_the_attempts(self) -> None:
        self.server.go()
        self.server.hangs = True
        self.pass_time(3)
        self.successResultOf(self.broker.stopService())
        attempts = len(self.server.attempts)
        self.pass_time(60)
        self.assertEqual(len(self.server.attempts), attempts)

    def test_stopping_beside_a_dead_broker_does_not_wait_for_it(self) -> None:
        self.server.freeze()
        stopped = self.broker.stopService()
        self.assertNoResult(stopped)
        self.pass_time(stomp_client.STOP_TIMEOUT)
        self.successResultOf(stopped)

    def test_stopping_says_goodbye(self) -> None:
        peers = self.server.live
        self.subscribed()
        self.broker.stopService()
        self.pass_time(0)
        self.assertEqual([len(peer.sent("DISCONNECT")) for peer in peers], [1, 1])
        self.assertEqual(self.log_of("get nothing"), [], "no loss that anybody minds")


class SubscribeTests(ActiveMQTests):
    def test_confirmed_by_the_receipt_and_not_before(self) -> None:
        self.reader.obeys = False
        subscribing = self.subscribe()
        frame = self.reader.sent("SUBSCRIBE")[0]
        self.assertEqual(frame.headers["destination"], destination())
        self.assertNoResult(subscribing)
        self.reader.obey(frame)
        self.successResultOf(subscribing)

    def test_one_subscription_serves_all(self) -> None:
        self.subscribed()
        self.subscribed()
        self.assertEqual(self.reader.destinations, [destination()])
        self.reader.bring(destination(), b"1")
        self.assertEqual(self.bodies, [b"1", b"1"])

    def test_all_who_wait_are_confirmed_by_one_receipt(self) -> None:
        self.reader.obeys = False
        waiting = [self.subscribe(), self.subscribe()]
        self.assertEqual(len(self.reader.sent("SUBSCRIBE")), 1)
        self.reader.obey(self.reader.sent("SUBSCRIBE")[0])
        for each in waiting:
            self.successResultOf(each)

    def test_the_last_to_leave_ends_it_a_little_later(self) -> None:
        one, two = self.subscribed(), self.subscribed()
        self.successResultOf(one.stop())
        self.pass_time(subscriptions.LINGER * 2)
        self.assertEqual(self.reader.destinations, [destination()])
        two.stop()
        self.pass_time(subscriptions.LINGER - 0.5)
        self.assertEqual(self.reader.destinations, [destination()])
        self.pass_time(1)
        self.assertEqual(self.reader.destinations, [])
        self.assertEqual(len(self.broker._reader), 0)

    def test_who_comes_back_at_once_costs_nothing(self) -> None:
        self.subscribed().stop()
        self.pass_time(subscriptions.LINGER - 0.5)
        self.reader.obeys = False
        again = self.broker.subscribe(topic(), self.inbox.append)
        self.successResultOf(again)
        self.pass_time(subscriptions.LINGER * 2)
        self.assertEqual(len(self.reader.sent("SUBSCRIBE")), 1)
        self.assertEqual(self.reader.destinations, [destination()])
        self.reader.obeys = True

    def test_nothing_is_delivered_while_nobody_listens(self) -> None:
        self.subscribed().stop()
        self.reader.bring(destination(), b"1")
        self.subscribed()
        self.assertEqual(self.inbox, [])

    def test_who_does_not_wait_any_more_is_not_counted(self) -> None:
        self.reader.obeys = False
        waiting = self.subscribe()
        waiting.cancel()
        self.failureResultOf(waiting)
        self.reader.obeys = True
        self.reader.obey(self.reader.sent("SUBSCRIBE")[0])
        self.pass_time(subscriptions.LINGER + 1)
        self.assertEqual(self.reader.destinations, [])

    def test_a_refused_topic_harms_no_other(self) -> None:
        self.subscribed("good")
        self.reader.obeys = False
        subscribing = self.subscribe("bad")
        self.reader.refuse(self.reader.sent("SUBSCRIBE")[-1], "not authorized")
        self.failureResultOf(subscribing, BrokerUnavailable)
        self.reader.obeys = True
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.reader.destinations, [destination("good")])
        self.assertEqual(len(self.log_of("not authorized")), 2)

    def test_a_receipt_that_never_comes(self) -> None:
        self.subscribed("good")
        self.reader.obeys = False
        subscribing = self.subscribe("slow")
        for _ in range(round(stomp_client.RECEIPT_TIMEOUT)):
            self.reader.say_bytes(b"\n")
            self.pass_time(1)
        self.failureResultOf(subscribing, BrokerUnavailable)
        self.assertEqual(self.reader.destinations, [destination("good")])
        self.reader.obey(self.reader.sent("SUBSCRIBE")[-1])
        self.reader.obeys = True
        self.assertTrue(self.broker.is_up, "a receipt that comes too late is no harm")

    def test_an_error_about_no_request_ends_the_connection(self) -> None:
        reader = self.reader
        reader.say("ERROR", message="out of memory")
        self.pass_time(0)
        self.assertTrue(reader.is_gone)
        self.assertEqual(len(self.log_of("out of memory")), 1)


class MessageTests(ActiveMQTests):
    def test_a_message_of_a_unit(self) -> None:
        self.subscribed()
        self.reader.bring(
            destination(), b'{"a":"\xed\xa0\xbd\xed\xb8\x80"}', __PERSONIUM_CELL=SENDER
        )
        expected = '{"a":"\N{GRINNING FACE}"}'.encode()
        self.assertEqual(self.inbox, [Message(topic(), SENDER, expected)])

    def test_text_that_is_not_json_and_no_sender(self) -> None:
        self.subscribed()
        self.reader.bring(destination(), b"hello")
        self.assertEqual(self.inbox, [Message(topic(), None, b'{"content":"hello"}')])

    def test_the_wrong_destination_is_not_passed_on(self) -> None:
        self.subscribed("name")
        self.subscribed("other")
        mine = self.reader.sent("SUBSCRIBE")[0].headers["id"]
        self.reader.bring(destination("other"), b'"secret"', subscription=mine)
        self.assertEqual(self.inbox, [])
        self.assertEqual(self.broker.losses.misrouted, 1)
        self.assertEqual(len(self.log_of("another topic")), 1)

    def test_no_subscription_of_ours_is_not_passed_on(self) -> None:
        self.subscribed()
        self.reader.bring(destination(), b"1", subscription="77")
        self.reader.say("MESSAGE", b"2", destination=destination())
        self.assertEqual(self.inbox, [])

    def test_what_was_sent_for_an_earlier_subscription_is_not_passed_on(self) -> None:
        self.subscribed().stop()
        self.pass_time(subscriptions.LINGER + 1)
        self.subscribed()
        earlier, now = (frame.headers["id"] for frame in self.reader.sent("SUBSCRIBE"))
        self.assertNotEqual(earlier, now)
        self.reader.bring(destination(), b"1", subscription=earlier)
        self.reader.bring(destination(), b"2", subscription=now)
        self.assertEqual(self.bodies, [b"2"])

    def test_a_listener_that_fails_harms_nobody(self) -> None:
        def fail(_: Message) -> None:
            raise RuntimeError("said the test")

        self.successResultOf(self.advanced(self.broker.subscribe(topic(), fail)))
        self.subscribed()
        self.reader.bring(destination(), b"1")
        self.assertEqual(self.bodies, [b"1"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def advanced(self, asked: Deferred[Subscription]) -> Deferred[Subscription]:
        self.clock.advance(0)
        return asked


class SettlingTests(ActiveMQTests):
    """Whether what was accepted from here is brought to those who listen here."""

    def sent_id(self) -> str:
        return self.sender.sent("SEND")[-1].headers["__PERSONIUM_MESSAGE_ID"]

    def bring(self, id_: str, name: str = "name") -> None:
        self.reader.bring(destination(name), b"1", __PERSONIUM_MESSAGE_ID=id_)

    def test_it_is_when_the_last_of_each_topic_is_back(self) -> None:
        self.subscribed()
        self.subscribed("other")
        self.assertTrue(self.broker.is_settled)
        self.successResultOf(self.publish())
        first = self.sent_id()
        self.publish(name="other")
        other = self.sent_id()
        self.publish()
        for id_, name in ((first, "name"), ("somebody's", "name"), (self.sent_id(), "name")):
            self.assertFalse(self.broker.is_settled)
            self.bring(id_, name)
        self.assertFalse(self.broker.is_settled)
        self.bring(other, "other")
        self.assertTrue(self.broker.is_settled)
        self.assertEqual(len(self.inbox), 4)

    def test_it_may_be_back_before_the_receipt(self) -> None:
        self.subscribed()
        self.sender.obeys = False
        accepted = self.publish()
        self.bring(self.sent_id())
        self.sender.obey(self.sender.sent("SEND")[0])
        self.successResultOf(accepted)
        self.assertTrue(self.broker.is_settled)

    def test_nobody_waits_for_what_nobody_listens_to(self) -> None:
        self.publish()
        self.assertTrue(self.broker.is_settled)
        subscription = self.subscribed()
        self.publish()
        self.assertFalse(self.broker.is_settled)
        self.successResultOf(subscription.stop())
        self.pass_time(subscriptions.LINGER + 1)
        self.assertTrue(self.broker.is_settled)

    def test_what_is_refused_or_lost_is_not_waited_for(self) -> None:
        self.subscribed()
        self.sender.obeys = False
        refused = self.publish()
        self.sender.refuse(self.sender.sent("SEND")[0], "no")
        self.failureResultOf(refused, BrokerUnavailable)
        self.assertTrue(self.broker.is_settled)
        self.sender.obeys = True
        self.publish()
        self.assertFalse(self.broker.is_settled)
        self.reader.close()
        self.assertTrue(self.broker.is_settled)

    def test_what_was_accepted_before_one_that_is_refused_is_waited_for(self) -> None:
        self.subscribed()
        self.successResultOf(self.publish())
        first = self.sent_id()
        self.sender.obeys = False
        refused = self.publish()
        self.sender.refuse(self.sender.sent("SEND")[-1], "no")
        self.failureResultOf(refused, BrokerUnavailable)
        self.assertFalse(self.broker.is_settled)
        self.bring(first)
        self.assertTrue(self.broker.is_settled)

    def test_what_is_back_is_not_waited_for_when_a_later_one_is_refused(self) -> None:
        self.subscribed()
        self.sender.obeys = False
        first = self.publish()
        second = self.publish()
        self.bring(self.sent_id())
        self.assertTrue(self.broker.is_settled)
        accepted, late = self.sender.sent("SEND")
        self.sender.refuse(late, "too late")
        self.failureResultOf(second, BrokerUnavailable)
        self.assertTrue(self.broker.is_settled)
        self.sender.obey(accepted)
        self.successResultOf(first)
        self.assertTrue(self.broker.is_settled)

    def test_of_what_is_accepted_the_last_stands_for_all(self) -> None:
        self.subscribed()
        for _ in range(5):
            self.successResultOf(self.publish())
        self.assertEqual(len(self.broker._reader.expected), 1)
        self.bring(self.sent_id())
        self.assertTrue(self.broker.is_settled)


class PublishTests(ActiveMQTests):
    def test_a_text_message_with_all_that_a_unit_wants(self) -> None:
        self.successResultOf(self.publish('{"a":"\xe9"}'.encode()))
        frame = self.sender.sent("SEND")[0]
        headers = dict(frame.headers)
        del headers["receipt"]
        self.assertEqual(UUID(headers.pop("__PERSONIUM_MESSAGE_ID")).version, 4)
        expires = int(self.wall() + broker.TIME_TO_LIVE) * 1000
        self.assertEqual(
            headers,
            {
                "destination": destination(),
                "persistent": "false",
                "expires": str(expires),
                "__PERSONIUM_CELL": SENDER,
            },
        )
        self.assertEqual(frame.body, b'{"a":"\\u00e9"}')

    def test_every_message_has_an_id_of_its_own(self) -> None:
        self.publish()
        self.publish()
        ids = {frame.headers["__PERSONIUM_MESSAGE_ID"] for frame in self.sender.sent("SEND")}
        self.assertEqual(len(ids), 2)

    def test_accepted_with_the_receipt_and_not_before(self) -> None:
        self.sender.obeys = False
        first, second = self.publish(b"1"), self.publish(b"2")
        frames = self.sender.sent("SEND")
        self.assertEqual([frame.body for frame in frames], [b"1", b"2"], "both are under way")
        self.sender.obey(frames[1])
        self.successResultOf(second)
        self.assertNoResult(first)
        self.sender.refuse(frames[0], "no")
        self.failureResultOf(first, BrokerUnavailable)

    def test_how_many_are_under_way_is_bounded(self) -> None:
        self.patch(in_flight, "MAX_IN_FLIGHT", 3)
        self.sender.obeys = False
        sent = [self.publish() for _ in range(3)]
        self.failureResultOf(self.publish(), BrokerUnavailable)
        sent[0].addErrback(lambda _: None)
        sent[0].cancel()
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.sender.obey(self.sender.sent("SEND")[0])
        one_more = self.publish()
        self.assertEqual(len(self.sender.sent("SEND")), 4)
        for frame in self.sender.sent("SEND")[1:]:
            self.sender.obey(frame)
        for each in (*sent[1:], one_more):
            self.successResultOf(each)

    def test_how_much_is_under_way_is_bounded(self) -> None:
        self.patch(in_flight, "MAX_BYTES_IN_FLIGHT", 10)
        self.sender.obeys = False
        big = self.publish(b'"' + b"x" * 100 + b'"')
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.sender.obey(self.sender.sent("SEND")[0])
        self.successResultOf(big)
        small = self.publish()
        self.sender.obey(self.sender.sent("SEND")[1])
        self.successResultOf(small)

    def test_nobody_knows_what_became_of_those_under_way_when_the_broker_goes(self) -> None:
        self.sender.obeys = False
        in_flight = self.publish()
        self.server.go()
        self.failureResultOf(in_flight, BrokerUnavailable)

    def test_a_receipt_that_never_comes(self) -> None:
        self.sender.obeys = False
        in_flight = self.publish()
        for _ in range(round(stomp_client.RECEIPT_TIMEOUT)):
            self.sender.say_bytes(b"\n")
            self.pass_time(1)
        self.failureResultOf(in_flight, BrokerUnavailable)
        self.assertTrue(self.broker.is_up)


class LossTests(ActiveMQTests):
    def test_while_it_is_away_nothing_is_confirmed_or_accepted(self) -> None:
        self.server.go()
        self.assertFalse(self.broker.is_up)
        self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.server.is_there = True
        self.pass_time(BACK)
        self.successResultOf(self.subscribe())
        self.successResultOf(self.publish())

    def test_those_who_wait_for_a_confirmation_hear_of_the_loss(self) -> None:
        self.reader.obeys = False
        subscribing = self.subscribe()
        self.server.go()
        self.failureResultOf(subscribing, BrokerUnavailable)
        self.assertEqual(len(self.broker._reader), 0)

    def test_all_is_subscribed_again(self) -> None:
        self.subscribed("one")
        self.subscribed("two")
        self.subscribed("left").stop()
        self.server.go()
        self.pass_time(30)
        self.server.is_there = True
        self.pass_time(BACK)
        self.assertEqual(self.reader.destinations, [destination("one"), destination("two")])
        self.reader.bring(destination("two"), b"2")
        self.assertEqual(self.bodies, [b"2"])
        self.assertEqual(self.losses, 0)

    def test_it_is_up_when_all_is_subscribed_again_and_not_before(self) -> None:
        self.subscribed("one")
        self.subscribed("two")
        reader = self.reader
        self.server.obeys = False
        reader.close()
        self.pass_time(1)
        reader = self.server.live[-1]
        reader.obey(reader.frames[0])
        self.assertFalse(self.broker.is_up)
        self.failureResultOf(self.subscribe("three"), BrokerUnavailable)
        first, second = reader.sent("SUBSCRIBE")
        reader.obey(first)
        self.assertFalse(self.broker.is_up)
        reader.obey(second)
        self.assertTrue(self.broker.is_up)
        reader.obeys = self.server.obeys = True

    def test_a_topic_that_is_left_meanwhile_is_not_subscribed_again(self) -> None:
        subscription = self.subscribed()
        self.server.go()
        subscription.stop()
        self.server.is_there = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.reader.destinations, [])

    def test_a_topic_that_is_left_while_it_is_subscribed_again(self) -> None:
        subscription = self.subscribed()
        self.server.obeys = False
        self.reader.close()
        self.pass_time(1)
        reader = self.server.live[-1]
        reader.obey(reader.frames[0])
        subscription.stop()
        for _ in range(round(subscriptions.LINGER) + 1):
            reader.say_bytes(b"\n")
            self.pass_time(1)
        self.assertTrue(self.broker.is_up)
        reader.obeys = self.server.obeys = True

    def test_the_gap_is_counted_and_logged(self) -> None:
        self.subscribed()
        self.pass_time(1)
        self.server.freeze()
        self.pass_time(30)
        self.assertEqual(self.broker.losses.gaps, 1)
        self.server.obeys = True
        for peer in self.server.live:
            peer.close()
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertGreater(self.broker.losses.seconds, 29)
        self.assertLess(self.broker.losses.seconds, 30 + BACK)
        self.assertEqual(len(self.log_of("1 topics get nothing")), 1)
        self.assertEqual(len(self.log_of("is lost")), 1)

    def test_two_gaps_are_two_gaps(self) -> None:
        subscription = self.subscribed()
        self.server.go()
        self.pass_time(10)
        subscription.stop()
        self.server.is_there = True
        self.pass_time(100)
        self.subscribed()
        self.server.go()
        self.server.is_there = True
        self.pass_time(BACK)
        self.assertEqual(self.broker.losses.gaps, 2)
        self.assertLess(self.broker.losses.seconds, 10 + 2 * BACK)

    def test_nobody_misses_anything_where_nobody_listens(self) -> None:
        self.server.go()
        self.assertEqual(self.broker.losses.gaps, 0)

    def test_listeners_of_a_topic_that_is_refused_after_the_return_are_told(self) -> None:
        self.subscribed("good")
        self.subscribed("bad")
        self.server.obeys = False
        self.reader.close()
        self.pass_time(1)
        reader = self.server.live[-1]
        reader.obey(reader.frames[0])
        good, bad = reader.sent("SUBSCRIBE")
        reader.obey(good)
        reader.refuse(bad, "not authorized")
        self.assertEqual(self.losses, 1)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(reader.destinations, [destination("good")])
        reader.obeys = self.server.obeys = True

    def test_a_broker_that_goes_while_all_is_subscribed_again_costs_nobody(self) -> None:
        self.subscribed()
        self.server.obeys = False
        for peer in self.server.live:
            peer.close()
        self.pass_time(1)
        for peer in self.server.live:
            peer.obey(peer.frames[0])
        self.pass_time(NOTICED)
        self.assertEqual(self.losses, 0)
        self.server.obeys = True
        for peer in self.server.live:
            peer.close()
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.reader.bring(destination(), b"1")
        self.assertEqual(self.bodies, [b"1"])

    def test_losing_the_sending_connection_is_no_gap(self) -> None:
        self.subscribed()
        self.sender.close()
        self.assertFalse(self.broker.is_up)
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual((self.broker.losses.gaps, self.losses), (0, 0))


class CloseOnLossTests(ActiveMQTests):
    closes_on_loss = True

    def test_all_listeners_are_told_at_once(self) -> None:
        for name in ("one", "one", "two"):
            self.subscribed(name)
        self.subscribed("left").stop()
        self.server.go()
        self.assertEqual(self.losses, 3)

    def test_none_is_told_when_the_service_stops(self) -> None:
        self.subscribed()
        self.broker.stopService()
        self.pass_time(1)
        self.assertEqual(self.losses, 0)


class PauseTests(ActiveMQTests):
    def setUp(self) -> None:
        super().setUp()
        self.subscribed()
        self.broker.pause()

    def bring(self, *bodies: bytes) -> None:
        for body in bodies:
            self.reader.bring(destination(), body)

    def test_nothing_is_read_and_all_is_there_afterwards(self) -> None:
        self.bring(b"1", b"2")
        self.pass_time(5)
        self.assertEqual(self.bodies, [])
        self.successResultOf(self.accepted())
        self.broker.resume()
        self.pass_time(0)
        self.bring(b"3")
        self.assertEqual(self.bodies, [b"1", b"2", b"3"])

    def accepted(self) -> Deferred[None]:
        accepted = self.publish()
        self.pass_time(0)
        return accepted

    def test_a_broker_that_we_do_not_hear_is_not_silent(self) -> None:
        before = self.reader.beats
        self.pass_time(300)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.reader.beats - before, 120, "we still show signs of life")
        self.broker.resume()
        self.pass_time(60)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.broker.losses.reconnects, 0)

    def test_one_that_died_meanwhile_is_noticed_afterwards(self) -> None:
        self.reader.obeys = False
        self.pass_time(60)
        self.assertTrue(self.broker.is_up)
        self.broker.resume()
        self.pass_time(NOTICED)
        self.assertEqual(len(self.log_of("the reader has lost the broker: it is silent")), 1)
        self.assertEqual(self.broker.losses.reconnects, 1)

    def test_one_that_dies_whole_is_noticed_by_the_connection_that_sends(self) -> None:
        self.server.freeze()
        self.pass_time(NOTICED)
        self.assertFalse(self.broker.is_up)

    def test_a_receipt_that_we_do_not_read_is_not_late(self) -> None:
        before = self.broker.subscribe(topic("before"), self.inbox.append)
        self.pass_time(stomp_client.RECEIPT_TIMEOUT * 4)
        self.assertNoResult(before)
        self.broker.resume()
        self.pass_time(0)
        self.successResultOf(before)

    def test_one_that_was_awaited_when_it_began_has_its_whole_time_afterwards(self) -> None:
        self.broker.resume()
        self.reader.obeys = False
        waiting = self.subscribe("unauthenticated")
        self.broker.pause()
        self.pass_time(stomp_client.RECEIPT_TIMEOUT * 4)
        self.broker.resume()
        for _ in range(round(stomp_client.RECEIPT_TIMEOUT) - 1):
            self.reader.say_bytes(b"\n")
            self.pass_time(1)
        self.assertNoResult(waiting)
        self.reader.say_bytes(b"\n")
        self.pass_time(1)
        self.failureResultOf(waiting, BrokerUnavailable)

    def test_a_connection_that_is_lost_meanwhile_is_made_again_and_waits_too(self) -> None:
        self.reader.close()
        self.pass_time(BACK)
        back = self.server.live[-1]
        self.assertEqual(back.destinations, [destination()])
        self.assertTrue(back.is_unread)
        back.bring(destination(), b"1")
        self.pass_time(60)
        self.assertEqual((self.bodies, self.losses), ([], 0))
        self.assertFalse(self.broker.is_up, "nobody can tell yet whether messages arrive")
        self.broker.resume()
        self.pass_time(0)
        self.assertEqual(self.bodies, [b"1"])
        self.assertTrue(self.broker.is_up)

    def test_it_goes_on_after_a_pause_that_ends_while_the_broker_is_away(self) -> None:
        self.server.go()
        self.broker.resume()
        self.server.is_there = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.reader.bring(destination(), b"1")
        self.server.live[1].bring(destination(), b"1")
        self.assertEqual(self.bodies, [b"1"])

    def test_it_stops_while_it_is_paused(self) -> None:
        stopped = self.broker.stopService()
        self.pass_time(stomp_client.STOP_TIMEOUT)
        self.successResultOf(stopped)
