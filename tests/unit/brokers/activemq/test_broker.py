"""The ActiveMQ broker and its STOMP client, with a scripted broker in virtual time."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from uuid import UUID

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import WallClock
from tests.support.scripted_broker import log_lines
from tests.support.stomp_server import ScriptedBroker, ScriptedPeer
from topicsvc.brokers import in_flight, reconnection, subscriptions
from topicsvc.brokers.activemq import broker, stomp_client
from topicsvc.brokers.activemq.broker import ActiveMQBroker
from topicsvc.brokers.activemq.stomp_frames import Frame
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message, Subscription
from topicsvc.settings import Login
from topicsvc.topics import TopicAddress

NOTICED = 30
"""Seconds within which a broker that does not respond is noticed."""

TOLERATED = 15
"""Seconds without a byte from the broker that are tolerated, whatever is unanswered."""

BACK = 10
"""Seconds within which the connections are up again after the broker is back."""

SENDER = "https://cell2.unit1.example/"


def topic(name: str = "name") -> TopicAddress:
    return TopicAddress("cell1", "box1", ("col",), name)


def destination(name: str = "name") -> str:
    return f"/topic/cell1.box1.col.topic.{name}"


class ActiveMQTests(SynchronousTestCase):
    """The broker under test, connected to a scripted one."""

    login: Login | None = None
    closes_on_loss = False

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.clock = Clock()
        self.wall = WallClock(self.clock, 1_500_000_000)
        self.server = ScriptedBroker(self.clock)
        self.broker = ActiveMQBroker(
            self.server, self.clock, self.wall, self.login, self.closes_on_loss, Random(1)
        )
        self.inbox: list[Message] = []
        self.losses = 0
        self.beats = True
        self.broker.startService()
        self.addCleanup(self.stop)
        self.pass_time(0)

    def stop(self) -> None:
        stopped = self.broker.stopService()
        self.pass_time(reconnection.STOP_TIMEOUT)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [], "delayed calls are left")

    def pass_time(self, seconds: float) -> None:
        """Advance the clock in steps of 0.5 s, with heartbeats of each peer that responds."""
        self.clock.advance(0)
        self.clock.advance(0)
        for _ in range(round(seconds / 0.5)):
            for peer in self.server.connected:
                if peer.responds and self.beats:
                    peer.send_bytes(b"\n")
            self.clock.advance(0.5)
            self.clock.advance(0)

    def on_lost(self) -> None:
        self.losses += 1

    def subscribe(self, name: str = "name") -> Deferred[Subscription]:
        subscribed = self.broker.subscribe(topic(name), self.inbox.append, self.on_lost)
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
        return self.server.connected[0]

    @property
    def sender(self) -> ScriptedPeer:
        return self.server.connected[1]

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.inbox]

    def log_of(self, word: str) -> list[str]:
        return log_lines(self.events, word)


class GreetingTests(ActiveMQTests):
    login = Login("topicsvc", "sec:ret\\")

    def test_the_connect_frame_requires_version_1_2_and_heartbeats_and_contains_the_login(
        self,
    ) -> None:
        self.assertEqual(len(self.server.connected), 2)
        for peer in self.server.connected:
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
        for peer in self.server.connected:
            peer.close()
        self.pass_time(1)

    def test_another_version_is_refused(self) -> None:
        self.greet(version="1.1", **{"heart-beat": "5000,5000"})
        self.assertFalse(self.broker.is_up)
        self.assertEqual(len(self.log_of("uses another version")), 2)
        self.assertFalse(self.broker.is_up)

    def test_a_broker_without_frequent_heartbeats_is_refused(self) -> None:
        for value in ("0,5000", "60000,5000", "often"):
            self.greet(version="1.2", **{"heart-beat": value})
            self.assertFalse(self.broker.is_up)
        self.assertEqual(len(self.log_of("no heartbeats, or too few")), 2)

    def test_a_refused_login_is_retried_with_delays(self) -> None:
        self.server.responds = False
        for peer in self.server.connected:
            peer.close()
        for _ in range(60):
            self.pass_time(0.5)
            for peer in self.server.connected:
                peer.send_frame("ERROR", message="User name or password is invalid.")
        self.assertLess(len(self.server.attempts), 2 + 2 * 20)
        self.assertEqual(len(self.log_of("password is invalid")), 2, "once for each connection")

    def test_a_broker_that_never_greets_is_disconnected_within_five_seconds(self) -> None:
        self.server.responds = False
        for peer in self.server.connected:
            peer.close()
        self.pass_time(1)
        first = self.server.connected
        for _ in range(12):
            for peer in first:
                peer.send_bytes(b"\n")
            self.pass_time(0.5)
        self.assertTrue(all(peer.is_closed for peer in first))

    def test_a_response_that_is_not_stomp_ends_the_connection(self) -> None:
        self.reader.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.pass_time(0)
        self.assertEqual(len(self.log_of("not STOMP 1.2")), 1)
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)


class HeartbeatTests(ActiveMQTests):
    def test_heartbeats_are_sent_twice_as_often_as_offered(self) -> None:
        before = [peer.heartbeats for peer in self.server.connected]
        self.pass_time(60)
        after = [peer.heartbeats for peer in self.server.connected]
        self.assertEqual([now - then for now, then in zip(after, before, strict=True)], [24, 24])

    def test_a_broker_that_does_not_respond_is_noticed_30_s_after_its_last_byte(self) -> None:
        self.server.freeze()
        frozen = self.server.connected
        self.pass_time(27)
        self.assertTrue(self.broker.is_up)
        self.pass_time(NOTICED - 27)
        self.assertFalse(self.broker.is_up)
        self.assertTrue(all(peer.is_closed for peer in frozen))
        self.assertEqual(len(self.log_of("it does not respond")), 2)

    def test_it_is_noticed_after_20_s_if_it_owes_an_answer(self) -> None:
        sender = self.sender
        self.server.freeze()
        accepted = self.publish()
        self.pass_time(17)
        self.assertNoResult(accepted)
        self.pass_time(3)
        self.failureResultOf(accepted, BrokerUnavailable)
        self.assertTrue(sender.is_closed)

    def test_15_s_of_silence_are_tolerated_whatever_is_unanswered(self) -> None:
        peers = self.server.connected
        self.server.freeze()
        accepted = self.publish()
        for _ in range(20):
            self.pass_time(TOLERATED)
            for peer in peers:
                peer.send_bytes(b"\n")
        self.failureResultOf(accepted, BrokerUnavailable)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.server.connected, peers)

    def test_a_broker_without_heartbeats_is_kept_while_it_answers(self) -> None:
        self.beats = False
        peers = self.server.connected
        self.pass_time(600)
        self.assertEqual(self.server.connected, peers)
        for peer in peers:
            probes = peer.received("BEGIN")
            self.assertTrue(all("receipt" in frame.headers for frame in probes))
            self.assertGreater(len(probes), 0)
            self.assertLessEqual(len(probes), 600 / 7.5)
            self.assertEqual(len(peer.received("ABORT")), len(probes), "no transaction is left")

    def test_an_answer_after_15_s_is_in_time(self) -> None:
        self.server.freeze()
        peers = self.server.connected
        for _ in range(5):
            self.pass_time(10)
            self.assertTrue(all(peer.received("BEGIN") for peer in peers))
            self.pass_time(15)
            for peer in peers:
                for frame in peer.received("BEGIN") + peer.received("ABORT"):
                    peer.respond(frame)
                peer.frames.clear()
        self.assertEqual(self.server.connected, peers)

    def test_an_error_is_an_answer_to_a_probe(self) -> None:
        self.server.freeze()
        peers = self.server.connected
        for _ in range(5):
            self.pass_time(10)
            for peer in peers:
                for frame in peer.received("BEGIN") + peer.received("ABORT"):
                    peer.refuse(frame, "no transactions here")
                peer.frames.clear()
        self.assertEqual(self.server.connected, peers)
        self.assertEqual(self.log_of("no transactions"), [])

    def test_a_long_pause_of_the_process_does_not_end_the_connection(self) -> None:
        self.clock.advance(86400)
        self.clock.advance(0)
        self.assertTrue(self.broker.is_up)


class QuietBrokerTests(ActiveMQTests):
    """ActiveMQ sends no heartbeat in an interval in which it handled a frame."""

    def setUp(self) -> None:
        super().setUp()
        self.beats = False
        self._handled: dict[ScriptedPeer, int] = {}

    def pass_intervals(self, count: int) -> None:
        """Pass intervals of 5 s. At the end of each, send heartbeats as ActiveMQ does."""
        for _ in range(count):
            self.pass_time(5)
            for peer in self.server.connected:
                if len(peer.frames) == self._handled.get(peer, 0):
                    peer.send_bytes(b"\n")
                self._handled[peer] = len(peer.frames)

    def test_the_connection_is_kept_while_clients_leave(self) -> None:
        peers = self.server.connected
        members = [self.subscribed(str(number)) for number in range(36)]
        self.pass_intervals(1)
        for member in members:
            member.stop()
            self.pass_intervals(1)
        self.pass_intervals(2)
        self.assertEqual(len(peers[0].received("UNSUBSCRIBE")), len(members))
        self.assertEqual(self.server.connected, peers)
        self.assertEqual((self.broker.losses.gaps, self.losses), (0, 0))

    def test_unsubscribe_requests_a_receipt(self) -> None:
        self.subscribed().stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        (frame,) = self.reader.received("UNSUBSCRIBE")
        self.assertIn("receipt", frame.headers)

    def test_a_refused_unsubscribe_changes_nothing(self) -> None:
        self.subscribed().stop()
        reader = self.reader
        reader.responds = False
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        reader.refuse(reader.received("UNSUBSCRIBE")[0], "No subscription matched.")
        reader.responds = True
        self.assertFalse(reader.is_closed)
        self.assertEqual(self.log_of("No subscription"), [])


class ReconnectTests(ActiveMQTests):
    def test_the_delay_between_attempts_grows_up_to_its_maximum(self) -> None:
        self.server.shut_down()
        self.clock.pump([0.05] * (120 * 20))
        attempts = self.server.attempts[2:]
        self.assertLess(len(attempts), 2 * 120 / reconnection.MAX_RETRY_DELAY * 1.6)
        self.assertGreater(len(attempts), 2 * 120 / (reconnection.MAX_RETRY_DELAY * 1.5))
        gaps = [after - before for before, after in pairwise(attempts[-20:])]
        self.assertGreater(len({round(gap, 3) for gap in gaps}), 10, "the delays have jitter")

    def test_it_is_up_soon_after_the_broker_is_back(self) -> None:
        for seconds in (1, 7, 100):
            self.server.shut_down()
            self.pass_time(seconds)
            self.assertFalse(self.broker.is_up)
            self.server.is_listening = True
            self.pass_time(reconnection.MAX_RETRY_DELAY * 1.5 + 0.5)
            self.assertTrue(self.broker.is_up)
        self.assertEqual(self.broker.losses.reconnects, 2 * 3, "two connections, three times")

    def test_an_attempt_that_hangs_times_out(self) -> None:
        self.server.shut_down()
        self.server.hangs = True
        self.pass_time(30)
        self.server.hangs = False
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)

    def test_an_outage_has_one_line_for_each_connection(self) -> None:
        self.server.shut_down()
        self.pass_time(60)
        self.assertEqual(len(self.log_of("has lost the broker")), 2)
        self.assertEqual(self.log_of("cannot"), [])

    def test_stopping_during_an_outage_ends_the_attempts(self) -> None:
        self.server.shut_down()
        self.server.hangs = True
        self.pass_time(3)
        self.successResultOf(self.broker.stopService())
        attempts = len(self.server.attempts)
        self.pass_time(60)
        self.assertEqual(len(self.server.attempts), attempts)

    def test_stopping_does_not_wait_for_a_broker_that_does_not_respond(self) -> None:
        self.server.freeze()
        stopped = self.broker.stopService()
        self.assertNoResult(stopped)
        self.pass_time(reconnection.STOP_TIMEOUT)
        self.successResultOf(stopped)

    def test_stopping_sends_disconnect(self) -> None:
        peers = self.server.connected
        self.subscribed()
        self.broker.stopService()
        self.pass_time(0)
        self.assertEqual([len(peer.received("DISCONNECT")) for peer in peers], [1, 1])
        self.assertEqual(self.log_of("get nothing"), [], "stopping is not a gap")


class SubscribeTests(ActiveMQTests):
    def test_it_is_confirmed_by_the_receipt(self) -> None:
        self.reader.responds = False
        subscribing = self.subscribe()
        frame = self.reader.received("SUBSCRIBE")[0]
        self.assertEqual(frame.headers["destination"], destination())
        self.assertNoResult(subscribing)
        self.reader.respond(frame)
        self.successResultOf(subscribing)

    def test_all_subscribers_share_one_subscription(self) -> None:
        self.subscribed()
        self.subscribed()
        self.assertEqual(self.reader.destinations, [destination()])
        self.reader.send_message(destination(), b"1")
        self.assertEqual(self.bodies, [b"1", b"1"])

    def test_one_receipt_confirms_all_pending_subscribers(self) -> None:
        self.reader.responds = False
        waiting = [self.subscribe(), self.subscribe()]
        self.assertEqual(len(self.reader.received("SUBSCRIBE")), 1)
        self.reader.respond(self.reader.received("SUBSCRIBE")[0])
        for each in waiting:
            self.successResultOf(each)

    def test_it_is_unsubscribed_some_seconds_after_the_last_subscriber_has_stopped(self) -> None:
        one, two = self.subscribed(), self.subscribed()
        self.successResultOf(one.stop())
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY * 2)
        self.assertEqual(self.reader.destinations, [destination()])
        two.stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY - 0.5)
        self.assertEqual(self.reader.destinations, [destination()])
        self.pass_time(1)
        self.assertEqual(self.reader.destinations, [])
        self.assertEqual(len(self.broker._reader), 0)

    def test_a_subscriber_that_returns_soon_causes_no_request(self) -> None:
        self.subscribed().stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY - 0.5)
        self.reader.responds = False
        again = self.broker.subscribe(topic(), self.inbox.append)
        self.successResultOf(again)
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY * 2)
        self.assertEqual(len(self.reader.received("SUBSCRIBE")), 1)
        self.assertEqual(self.reader.destinations, [destination()])
        self.reader.responds = True

    def test_no_message_is_delivered_without_subscribers(self) -> None:
        self.subscribed().stop()
        self.reader.send_message(destination(), b"1")
        self.subscribed()
        self.assertEqual(self.inbox, [])

    def test_a_cancelled_subscriber_is_not_counted(self) -> None:
        self.reader.responds = False
        waiting = self.subscribe()
        waiting.cancel()
        self.failureResultOf(waiting)
        self.reader.responds = True
        self.reader.respond(self.reader.received("SUBSCRIBE")[0])
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        self.assertEqual(self.reader.destinations, [])

    def test_a_refused_topic_does_not_affect_another(self) -> None:
        self.subscribed("good")
        self.reader.responds = False
        subscribing = self.subscribe("bad")
        self.reader.refuse(self.reader.received("SUBSCRIBE")[-1], "not authorized")
        self.failureResultOf(subscribing, BrokerUnavailable)
        self.reader.responds = True
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.reader.destinations, [destination("good")])
        self.assertEqual(len(self.log_of("not authorized")), 2)

    def test_a_missing_receipt_times_out(self) -> None:
        self.subscribed("good")
        self.reader.responds = False
        subscribing = self.subscribe("slow")
        for _ in range(round(stomp_client.RECEIPT_TIMEOUT)):
            self.reader.send_bytes(b"\n")
            self.pass_time(1)
        self.failureResultOf(subscribing, BrokerUnavailable)
        self.assertEqual(self.reader.destinations, [destination("good")])
        self.reader.respond(self.reader.received("SUBSCRIBE")[-1])
        self.reader.responds = True
        self.assertTrue(self.broker.is_up, "a late receipt is ignored")

    def test_an_error_without_a_request_ends_the_connection(self) -> None:
        reader = self.reader
        reader.send_frame("ERROR", message="out of memory")
        self.pass_time(0)
        self.assertTrue(reader.is_closed)
        self.assertEqual(len(self.log_of("out of memory")), 1)


class MessageTests(ActiveMQTests):
    def test_a_message_of_a_unit_is_delivered(self) -> None:
        self.subscribed()
        self.reader.send_message(
            destination(), b'{"a":"\xed\xa0\xbd\xed\xb8\x80"}', __PERSONIUM_CELL=SENDER
        )
        expected = '{"a":"\N{GRINNING FACE}"}'.encode()
        self.assertEqual(self.inbox, [Message(topic(), SENDER, expected)])

    def test_text_that_is_not_json_is_wrapped_and_the_sender_may_be_missing(self) -> None:
        self.subscribed()
        self.reader.send_message(destination(), b"hello")
        self.assertEqual(self.inbox, [Message(topic(), None, b'{"content":"hello"}')])

    def test_a_message_with_the_wrong_destination_is_dropped(self) -> None:
        self.subscribed("name")
        self.subscribed("other")
        mine = self.reader.received("SUBSCRIBE")[0].headers["id"]
        self.reader.send_message(destination("other"), b'"secret"', subscription=mine)
        self.assertEqual(self.inbox, [])
        self.assertEqual(self.broker.losses.misrouted, 1)
        self.assertEqual(len(self.log_of("another topic")), 1)

    def test_a_message_of_an_unknown_subscription_is_dropped(self) -> None:
        self.subscribed()
        self.reader.send_message(destination(), b"1", subscription="77")
        self.reader.send_frame("MESSAGE", b"2", destination=destination())
        self.assertEqual(self.inbox, [])

    def test_a_message_of_an_earlier_subscription_is_dropped(self) -> None:
        self.subscribed().stop()
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        self.subscribed()
        earlier, now = (frame.headers["id"] for frame in self.reader.received("SUBSCRIBE"))
        self.assertNotEqual(earlier, now)
        self.reader.send_message(destination(), b"1", subscription=earlier)
        self.reader.send_message(destination(), b"2", subscription=now)
        self.assertEqual(self.bodies, [b"2"])

    def test_an_exception_of_one_subscriber_does_not_affect_the_others(self) -> None:
        def fail(_: Message) -> None:
            raise RuntimeError("simulated")

        self.successResultOf(self.advance(self.broker.subscribe(topic(), fail)))
        self.subscribed()
        self.reader.send_message(destination(), b"1")
        self.assertEqual(self.bodies, [b"1"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def advance(self, subscribing: Deferred[Subscription]) -> Deferred[Subscription]:
        self.clock.advance(0)
        return subscribing


class SettlingTests(ActiveMQTests):
    """It is settled when the messages sent from here have reached the subscribers here."""

    def sent_id(self) -> str:
        return self.sender.received("SEND")[-1].headers["__PERSONIUM_MESSAGE_ID"]

    def send_back(self, id_: str, name: str = "name") -> None:
        self.reader.send_message(destination(name), b"1", __PERSONIUM_MESSAGE_ID=id_)

    def test_it_is_settled_when_the_last_message_of_each_topic_is_back(self) -> None:
        self.subscribed()
        self.subscribed("other")
        self.assertTrue(self.broker.is_settled)
        self.successResultOf(self.publish())
        first = self.sent_id()
        self.publish(name="other")
        other = self.sent_id()
        self.publish()
        for id_, name in ((first, "name"), ("unknown", "name"), (self.sent_id(), "name")):
            self.assertFalse(self.broker.is_settled)
            self.send_back(id_, name)
        self.assertFalse(self.broker.is_settled)
        self.send_back(other, "other")
        self.assertTrue(self.broker.is_settled)
        self.assertEqual(len(self.inbox), 4)

    def test_a_message_may_be_back_before_its_receipt(self) -> None:
        self.subscribed()
        self.sender.responds = False
        accepted = self.publish()
        self.send_back(self.sent_id())
        self.sender.respond(self.sender.received("SEND")[0])
        self.successResultOf(accepted)
        self.assertTrue(self.broker.is_settled)

    def test_messages_without_subscribers_are_not_expected(self) -> None:
        self.publish()
        self.assertTrue(self.broker.is_settled)
        subscription = self.subscribed()
        self.publish()
        self.assertFalse(self.broker.is_settled)
        self.successResultOf(subscription.stop())
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY + 1)
        self.assertTrue(self.broker.is_settled)

    def test_refused_and_lost_messages_are_not_expected(self) -> None:
        self.subscribed()
        self.sender.responds = False
        refused = self.publish()
        self.sender.refuse(self.sender.received("SEND")[0], "no")
        self.failureResultOf(refused, BrokerUnavailable)
        self.assertTrue(self.broker.is_settled)
        self.sender.responds = True
        self.publish()
        self.assertFalse(self.broker.is_settled)
        self.reader.close()
        self.assertTrue(self.broker.is_settled)

    def test_a_message_accepted_before_a_refused_one_is_expected(self) -> None:
        self.subscribed()
        self.successResultOf(self.publish())
        first = self.sent_id()
        self.sender.responds = False
        refused = self.publish()
        self.sender.refuse(self.sender.received("SEND")[-1], "no")
        self.failureResultOf(refused, BrokerUnavailable)
        self.assertFalse(self.broker.is_settled)
        self.send_back(first)
        self.assertTrue(self.broker.is_settled)

    def test_a_message_that_is_back_is_not_expected_again_when_a_later_one_is_refused(self) -> None:
        self.subscribed()
        self.sender.responds = False
        first = self.publish()
        second = self.publish()
        self.send_back(self.sent_id())
        self.assertTrue(self.broker.is_settled)
        accepted, late = self.sender.received("SEND")
        self.sender.refuse(late, "too late")
        self.failureResultOf(second, BrokerUnavailable)
        self.assertTrue(self.broker.is_settled)
        self.sender.respond(accepted)
        self.successResultOf(first)
        self.assertTrue(self.broker.is_settled)

    def test_only_the_last_accepted_message_is_kept(self) -> None:
        self.subscribed()
        for _ in range(5):
            self.successResultOf(self.publish())
        self.assertEqual(len(self.broker._reader.echoes), 1)
        self.send_back(self.sent_id())
        self.assertTrue(self.broker.is_settled)


class PublishTests(ActiveMQTests):
    def test_the_frame_has_all_headers_that_a_unit_requires(self) -> None:
        self.successResultOf(self.publish('{"a":"\xe9"}'.encode()))
        frame = self.sender.received("SEND")[0]
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

    def test_each_message_has_its_own_id(self) -> None:
        self.publish()
        self.publish()
        ids = {frame.headers["__PERSONIUM_MESSAGE_ID"] for frame in self.sender.received("SEND")}
        self.assertEqual(len(ids), 2)

    def test_it_is_accepted_with_its_receipt(self) -> None:
        self.sender.responds = False
        first, second = self.publish(b"1"), self.publish(b"2")
        frames = self.sender.received("SEND")
        self.assertEqual([frame.body for frame in frames], [b"1", b"2"], "both are sent")
        self.sender.respond(frames[1])
        self.successResultOf(second)
        self.assertNoResult(first)
        self.sender.refuse(frames[0], "no")
        self.failureResultOf(first, BrokerUnavailable)

    def test_the_number_of_unconfirmed_messages_is_limited(self) -> None:
        self.patch(in_flight, "MAX_IN_FLIGHT", 3)
        self.sender.responds = False
        sent = [self.publish() for _ in range(3)]
        self.failureResultOf(self.publish(), BrokerUnavailable)
        sent[0].addErrback(lambda _: None)
        sent[0].cancel()
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.sender.respond(self.sender.received("SEND")[0])
        one_more = self.publish()
        self.assertEqual(len(self.sender.received("SEND")), 4)
        for frame in self.sender.received("SEND")[1:]:
            self.sender.respond(frame)
        for each in (*sent[1:], one_more):
            self.successResultOf(each)

    def test_the_bytes_of_unconfirmed_messages_are_limited(self) -> None:
        self.patch(in_flight, "MAX_BYTES_IN_FLIGHT", 10)
        self.sender.responds = False
        big = self.publish(b'"' + b"x" * 100 + b'"')
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.sender.respond(self.sender.received("SEND")[0])
        self.successResultOf(big)
        small = self.publish()
        self.sender.respond(self.sender.received("SEND")[1])
        self.successResultOf(small)

    def test_unconfirmed_messages_fail_when_the_broker_is_lost(self) -> None:
        self.sender.responds = False
        in_flight = self.publish()
        self.server.shut_down()
        self.failureResultOf(in_flight, BrokerUnavailable)

    def test_a_missing_receipt_times_out(self) -> None:
        self.sender.responds = False
        in_flight = self.publish()
        for _ in range(round(stomp_client.RECEIPT_TIMEOUT)):
            self.sender.send_bytes(b"\n")
            self.pass_time(1)
        self.failureResultOf(in_flight, BrokerUnavailable)
        self.assertTrue(self.broker.is_up)


class LossTests(ActiveMQTests):
    def test_requests_fail_while_the_broker_is_down(self) -> None:
        self.server.shut_down()
        self.assertFalse(self.broker.is_up)
        self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.server.is_listening = True
        self.pass_time(BACK)
        self.successResultOf(self.subscribe())
        self.successResultOf(self.publish())

    def test_pending_subscribers_fail_when_the_broker_is_lost(self) -> None:
        self.reader.responds = False
        subscribing = self.subscribe()
        self.server.shut_down()
        self.failureResultOf(subscribing, BrokerUnavailable)
        self.assertEqual(len(self.broker._reader), 0)

    def test_an_exception_does_not_keep_other_requests_from_their_result(self) -> None:
        def fail(_: object) -> None:
            raise KeyError("simulated")

        self.reader.responds = False
        self.broker._reader.client.request(Frame("BEGIN", {"transaction": "t"}), fail)
        subscribing = self.subscribe()
        self.server.shut_down()
        self.failureResultOf(subscribing, BrokerUnavailable)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_all_topics_are_subscribed_again(self) -> None:
        self.subscribed("one")
        self.subscribed("two")
        self.subscribed("left").stop()
        self.server.shut_down()
        self.pass_time(30)
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertEqual(self.reader.destinations, [destination("one"), destination("two")])
        self.reader.send_message(destination("two"), b"2")
        self.assertEqual(self.bodies, [b"2"])
        self.assertEqual(self.losses, 0)

    def test_it_is_up_when_all_topics_are_subscribed_again(self) -> None:
        self.subscribed("one")
        self.subscribed("two")
        reader = self.reader
        self.server.responds = False
        reader.close()
        self.pass_time(1)
        reader = self.server.connected[-1]
        reader.respond(reader.frames[0])
        self.assertFalse(self.broker.is_up)
        self.failureResultOf(self.subscribe("three"), BrokerUnavailable)
        first, second = reader.received("SUBSCRIBE")
        reader.respond(first)
        self.assertFalse(self.broker.is_up)
        reader.respond(second)
        self.assertTrue(self.broker.is_up)
        reader.responds = self.server.responds = True

    def test_a_topic_that_is_stopped_during_the_outage_is_not_subscribed_again(self) -> None:
        subscription = self.subscribed()
        self.server.shut_down()
        subscription.stop()
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.reader.destinations, [])

    def test_a_topic_may_be_stopped_while_it_is_subscribed_again(self) -> None:
        subscription = self.subscribed()
        self.server.responds = False
        self.reader.close()
        self.pass_time(1)
        reader = self.server.connected[-1]
        reader.respond(reader.frames[0])
        subscription.stop()
        for _ in range(round(subscriptions.UNSUBSCRIBE_DELAY) + 1):
            reader.send_bytes(b"\n")
            self.pass_time(1)
        self.assertTrue(self.broker.is_up)
        reader.responds = self.server.responds = True

    def test_a_gap_is_counted_and_logged(self) -> None:
        self.subscribed()
        self.pass_time(1)
        self.server.freeze()
        self.pass_time(30)
        self.assertEqual(self.broker.losses.gaps, 1)
        self.server.responds = True
        for peer in self.server.connected:
            peer.close()
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertGreater(self.broker.losses.seconds, 29)
        self.assertLess(self.broker.losses.seconds, 30 + BACK)
        self.assertEqual(len(self.log_of("1 topic gets nothing")), 1)
        self.assertEqual(len(self.log_of("meanwhile are lost")), 1)

    def test_each_gap_is_counted(self) -> None:
        subscription = self.subscribed()
        self.server.shut_down()
        self.pass_time(10)
        subscription.stop()
        self.server.is_listening = True
        self.pass_time(100)
        self.subscribed()
        self.server.shut_down()
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertEqual(self.broker.losses.gaps, 2)
        self.assertLess(self.broker.losses.seconds, 10 + 2 * BACK)

    def test_a_loss_without_subscribers_is_not_a_gap(self) -> None:
        self.server.shut_down()
        self.assertEqual(self.broker.losses.gaps, 0)

    def test_subscribers_of_a_topic_that_is_refused_after_the_outage_are_notified(self) -> None:
        self.subscribed("good")
        self.subscribed("bad")
        self.server.responds = False
        self.reader.close()
        self.pass_time(1)
        reader = self.server.connected[-1]
        reader.respond(reader.frames[0])
        good, bad = reader.received("SUBSCRIBE")
        reader.respond(good)
        reader.refuse(bad, "not authorized")
        self.assertEqual(self.losses, 1)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(reader.destinations, [destination("good")])
        reader.responds = self.server.responds = True

    def test_a_second_loss_while_topics_are_subscribed_again_ends_no_subscription(self) -> None:
        self.subscribed()
        self.server.responds = False
        for peer in self.server.connected:
            peer.close()
        self.pass_time(1)
        for peer in self.server.connected:
            peer.respond(peer.frames[0])
        self.pass_time(NOTICED)
        self.assertEqual(self.losses, 0)
        self.server.responds = True
        for peer in self.server.connected:
            peer.close()
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        (reader,) = [peer for peer in self.server.connected if peer.destinations]
        reader.send_message(destination(), b"1")
        self.assertEqual(self.bodies, [b"1"])

    def test_losing_the_sending_connection_is_not_a_gap(self) -> None:
        self.subscribed()
        self.sender.close()
        self.assertFalse(self.broker.is_up)
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual((self.broker.losses.gaps, self.losses), (0, 0))


class CloseOnLossTests(ActiveMQTests):
    closes_on_loss = True

    def test_all_subscribers_are_notified_at_once(self) -> None:
        for name in ("one", "one", "two"):
            self.subscribed(name)
        self.subscribed("left").stop()
        self.server.shut_down()
        self.assertEqual(self.losses, 3)

    def test_subscribers_are_not_notified_when_the_service_stops(self) -> None:
        self.subscribed()
        self.broker.stopService()
        self.pass_time(1)
        self.assertEqual(self.losses, 0)


class PauseTests(ActiveMQTests):
    def setUp(self) -> None:
        super().setUp()
        self.subscribed()
        self.broker.pause()

    def send_messages(self, *bodies: bytes) -> None:
        for body in bodies:
            self.reader.send_message(destination(), body)

    def test_no_message_is_delivered_until_resume(self) -> None:
        self.send_messages(b"1", b"2")
        self.pass_time(5)
        self.assertEqual(self.bodies, [])
        self.successResultOf(self.accepted())
        self.broker.resume()
        self.pass_time(0)
        self.send_messages(b"3")
        self.assertEqual(self.bodies, [b"1", b"2", b"3"])

    def accepted(self) -> Deferred[None]:
        accepted = self.publish()
        self.pass_time(0)
        return accepted

    def test_a_broker_is_not_disconnected_while_reading_is_paused(self) -> None:
        before = self.reader.heartbeats
        self.pass_time(300)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(
            self.reader.heartbeats - before, 120, "heartbeats are sent during the pause"
        )
        self.broker.resume()
        self.pass_time(60)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.broker.losses.reconnects, 0)

    def test_a_broker_that_died_during_the_pause_is_noticed_after_it(self) -> None:
        self.reader.responds = False
        self.pass_time(60)
        self.assertTrue(self.broker.is_up)
        self.broker.resume()
        self.pass_time(NOTICED + BACK)
        self.assertEqual(len(self.log_of("the reader has lost the broker: it does not respond")), 1)
        self.assertEqual(self.broker.losses.reconnects, 1)

    def test_a_broker_that_dies_is_noticed_by_the_sending_connection(self) -> None:
        self.server.freeze()
        self.pass_time(NOTICED)
        self.assertFalse(self.broker.is_up)

    def test_a_receipt_does_not_time_out_during_the_pause(self) -> None:
        before = self.broker.subscribe(topic("before"), self.inbox.append)
        self.pass_time(stomp_client.RECEIPT_TIMEOUT * 4)
        self.assertNoResult(before)
        self.broker.resume()
        self.pass_time(0)
        self.successResultOf(before)

    def test_the_timeout_of_a_receipt_starts_anew_after_the_pause(self) -> None:
        self.broker.resume()
        self.reader.responds = False
        waiting = self.subscribe("pending")
        self.broker.pause()
        self.pass_time(stomp_client.RECEIPT_TIMEOUT * 4)
        self.broker.resume()
        for _ in range(round(stomp_client.RECEIPT_TIMEOUT) - 1):
            self.reader.send_bytes(b"\n")
            self.pass_time(1)
        self.assertNoResult(waiting)
        self.reader.send_bytes(b"\n")
        self.pass_time(1)
        self.failureResultOf(waiting, BrokerUnavailable)

    def test_a_new_connection_is_paused_too(self) -> None:
        self.reader.close()
        self.pass_time(BACK)
        back = self.server.connected[-1]
        self.assertEqual(back.destinations, [destination()])
        self.assertTrue(back.is_paused)
        back.send_message(destination(), b"1")
        self.pass_time(60)
        self.assertEqual((self.bodies, self.losses), ([], 0))
        self.assertFalse(self.broker.is_up, "the subscription is not confirmed yet")
        self.broker.resume()
        self.pass_time(0)
        self.assertEqual(self.bodies, [b"1"])
        self.assertTrue(self.broker.is_up)

    def test_reading_continues_if_the_pause_ends_during_an_outage(self) -> None:
        self.server.shut_down()
        self.broker.resume()
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.reader.send_message(destination(), b"1")
        self.server.connected[1].send_message(destination(), b"1")
        self.assertEqual(self.bodies, [b"1"])

    def test_it_can_be_stopped_during_the_pause(self) -> None:
        stopped = self.broker.stopService()
        self.pass_time(reconnection.STOP_TIMEOUT)
        self.successResultOf(stopped)
