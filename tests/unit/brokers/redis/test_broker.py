"""The Redis broker and its client, with a scripted server in virtual time."""

from __future__ import annotations

from random import Random

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.scripted_broker import log_lines
from tests.support.scripted_redis import ScriptedRedis, ScriptedRedisPeer
from topicsvc.brokers import in_flight, reconnection, subscriptions
from topicsvc.brokers.redis import client
from topicsvc.brokers.redis.broker import RedisBroker
from topicsvc.brokers.redis.client import Session
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message, Subscription
from topicsvc.settings import HistorySettings, Login
from topicsvc.topics import TopicAddress

CHANNEL = b"t:channel:{cell1.box1.col.topic.name}"
STREAM = b"t:stream:{cell1.box1.col.topic.name}"
SENDER = "https://cell2.unit1.example/"
NOTICED = client.PROBE_INTERVAL * (client.MAX_UNANSWERED + 1)
BACK = 5.0


def topic(name: str = "name") -> TopicAddress:
    return TopicAddress("cell1", "box1", ("col",), name)


class RedisTests(SynchronousTestCase):
    """The broker under test, connected to a scripted server."""

    session = Session()
    closes_on_loss = False

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.clock = Clock()
        self.server = ScriptedRedis(self.clock)
        self.broker = RedisBroker(
            self.server, self.clock, self.session, "t:", HistorySettings(60, 10, 1024),
            self.closes_on_loss, Random(1),
        )  # fmt: skip
        self.inbox: list[Message] = []
        self.losses = 0
        self.prepare()
        self.broker.startService()
        self.addCleanup(self.stop)
        self.pass_time(0)

    def prepare(self) -> None:
        """Change the server before the broker connects."""

    def stop(self) -> None:
        stopped = self.broker.stopService()
        self.pass_time(reconnection.STOP_TIMEOUT)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [], "delayed calls are left")

    def pass_time(self, seconds: float) -> None:
        for _ in range(4):
            self.clock.advance(0)
        for _ in range(round(seconds / 0.5)):
            self.clock.advance(0.5)
            self.clock.advance(0)

    def on_lost(self) -> None:
        self.losses += 1

    def subscribe(self, name: str = "name") -> Deferred[Subscription]:
        subscribed = self.broker.subscribe(topic(name), self.inbox.append, self.on_lost)
        self.clock.advance(0)
        return subscribed

    def publish(self, body: bytes = b"1", name: str = "name") -> Deferred[None]:
        accepted = self.broker.publish(Message(topic(name), SENDER, body))
        self.clock.advance(0)
        return accepted

    @property
    def reader(self) -> ScriptedRedisPeer:
        return self.server.connected[0]

    @property
    def sender(self) -> ScriptedRedisPeer:
        return self.server.connected[1]

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.inbox]

    def log_of(self, word: str) -> list[str]:
        return log_lines(self.events, word)


class GreetingTests(RedisTests):
    session = Session(Login("app", "secret-word"), 3)

    def test_each_connection_has_a_login_a_name_and_a_database(self) -> None:
        for peer, name in ((self.reader, b"topicsvc-reader"), (self.sender, b"topicsvc-sender")):
            hello = [b"HELLO", b"3", b"AUTH", b"app", b"secret-word", b"SETNAME", name]
            self.assertEqual(peer.commands, [hello, [b"SELECT", b"3"]])
        self.assertTrue(self.broker.is_up)


class RefusedLoginTests(RedisTests):
    session = Session(Login("app", "secret-word"))

    def prepare(self) -> None:
        self.server.login_error = b"WRONGPASS invalid username-password pair"

    def test_a_refused_login_is_tried_again_and_named_once(self) -> None:
        self.pass_time(30)
        self.assertFalse(self.broker.is_up)
        self.assertIn("see broker.username and broker.password_file", self.broker.last_error)
        self.assertGreater(len(self.server.peers), 10)
        self.assertLess(len(self.server.peers), 60)
        self.assertEqual(len(self.log_of("WRONGPASS")), 2, "one line for each connection")
        self.assertEqual(self.log_of("secret-word"), [])
        self.server.login_error = b""
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.broker.last_error, "")


class OldServerTests(RedisTests):
    def prepare(self) -> None:
        self.server.login_error = b"ERR unknown command `HELLO`"

    def test_a_server_without_resp3_is_named(self) -> None:
        self.assertIn("Redis 7 or Valkey is needed", self.broker.last_error)


class SubscriptionTests(RedisTests):
    def test_a_topic_is_confirmed_after_its_stream_was_read(self) -> None:
        self.reader.responds = False
        subscribed = self.subscribe()
        subscribe, read = self.reader.commands[1:]
        self.assertEqual(subscribe, [b"SUBSCRIBE", CHANNEL])
        self.assertEqual((read[0], read[2:]), (b"EVAL", [b"1", STREAM, b""]))
        self.reader.respond(subscribe)
        self.assertNoResult(subscribed)
        self.reader.push(CHANNEL, self.server.add(b"1"))
        self.reader.respond(read)
        self.successResultOf(subscribed)
        self.assertEqual(self.bodies, [], "it was sent before the confirmation")
        self.reader.push(CHANNEL, self.server.add(b"2"))
        self.assertEqual(self.bodies, [b"2"])

    def test_a_message_between_reading_and_confirmation_is_delivered_once(self) -> None:
        self.reader.responds = False
        subscribed = self.subscribe()
        subscribe, read = self.reader.commands[1:]
        self.reader.respond(subscribe)
        reply = self.server.reply_to(read)
        self.reader.push(CHANNEL, self.server.add(b"1"))
        self.reader.send_bytes(reply)
        self.successResultOf(subscribed)
        self.assertEqual(self.bodies, [], "nobody is subscribed yet")
        self.assertEqual(self.broker.losses.gaps, 0)

    def test_a_refused_channel_fails_and_the_next_topic_works(self) -> None:
        self.server.errors[b"SUBSCRIBE"] = b"NOPERM No permissions to access a channel"
        failure = self.failureResultOf(self.subscribe(), BrokerUnavailable)
        self.assertIn("NOPERM", str(failure.value))
        self.assertEqual(len(self.log_of("Redis refuses /cell1/box1/col/topic/name")), 1)
        self.server.errors.clear()
        self.successResultOf(self.subscribe())
        self.reader.push(CHANNEL, self.server.add(b"1"))
        self.assertEqual(self.bodies, [b"1"])

    def test_a_topic_is_unsubscribed_some_seconds_after_its_last_subscriber(self) -> None:
        subscription = self.successResultOf(self.subscribe())
        subscription.stop()
        self.assertEqual(self.reader.received(b"UNSUBSCRIBE"), [])
        self.pass_time(subscriptions.UNSUBSCRIBE_DELAY)
        self.assertEqual(self.reader.received(b"UNSUBSCRIBE"), [[b"UNSUBSCRIBE", CHANNEL]])
        self.reader.push(CHANNEL, self.server.add(b"1"))
        self.assertEqual(self.bodies, [])

    def test_a_message_that_is_not_from_topicsvc_is_dropped_and_logged_once(self) -> None:
        self.successResultOf(self.subscribe())
        for payload in (b"hello", b"", b"1-1\nx"):
            self.reader.push(CHANNEL, payload)
        self.assertEqual(self.bodies, [])
        self.assertEqual(self.broker.losses.misrouted, 3)
        self.assertEqual(len(self.log_of("is dropped")), 1)


class SendingTests(RedisTests):
    def test_a_send_is_one_script_call(self) -> None:
        self.successResultOf(self.publish(b'{"a":1}'))
        [call] = self.sender.received(b"EVAL")
        self.assertEqual(
            call[2:],
            [b"1", STREAM, CHANNEL, SENDER.encode(), b'{"a":1}', b"10", b"1024", b"60000"],
        )

    def test_an_error_of_redis_refuses_the_message_and_is_logged_once(self) -> None:
        self.server.errors[b"EVAL"] = b"OOM command not allowed when used memory > 'maxmemory'."
        for _ in range(3):
            failure = self.failureResultOf(self.publish(), BrokerUnavailable)
            self.assertIn("OOM", str(failure.value))
        self.assertEqual(len(self.log_of("Redis refuses a request of the sender")), 1)
        self.assertTrue(self.broker.is_up)

    def test_a_replica_is_left(self) -> None:
        self.server.errors[b"EVAL"] = b"READONLY You can't write against a read only replica."
        sender = self.sender
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.pass_time(0)
        self.assertTrue(sender.is_closed)
        self.server.errors.clear()
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.successResultOf(self.publish())

    def test_unconfirmed_messages_are_bounded(self) -> None:
        self.sender.responds = False
        waiting = [self.publish() for _ in range(in_flight.MAX_IN_FLIGHT)]
        self.failureResultOf(self.publish(), BrokerUnavailable)
        self.sender.close()
        for each in waiting:
            self.failureResultOf(each, BrokerUnavailable)

    def test_it_is_settled_when_the_message_has_come_back(self) -> None:
        self.successResultOf(self.subscribe())
        self.successResultOf(self.publish())
        self.assertFalse(self.broker.is_settled)
        self.reader.push(CHANNEL, b"%s\n\n1" % self.server.newest)
        self.assertTrue(self.broker.is_settled)
        self.successResultOf(self.publish(name="nobody-listens"))
        self.assertTrue(self.broker.is_settled)


class OutageTests(RedisTests):
    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.subscribe())
        self.reader.push(CHANNEL, self.server.add(b"1"))

    def restart(self) -> None:
        """Both connections are lost, and made again a little later."""
        for peer in self.server.connected:
            peer.close()
        self.server.is_listening = False
        self.pass_time(1)
        self.assertFalse(self.broker.is_up)
        self.failureResultOf(self.subscribe("other"), BrokerUnavailable)
        self.failureResultOf(self.publish(), BrokerUnavailable)

    def come_back(self) -> None:
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.losses, 0)

    def test_messages_of_the_outage_are_delivered(self) -> None:
        self.restart()
        for body in (b"2", b"3"):
            self.server.add(body)
        self.come_back()
        self.assertEqual(self.bodies, [b"1", b"2", b"3"])
        self.assertEqual(self.broker.losses.gaps, 0)
        self.assertEqual(self.broker.losses.reconnects, 2)
        self.assertEqual(len(self.log_of("1 topics get nothing until Redis is back")), 1)
        self.assertEqual(len(self.log_of("0 of them may have missed messages")), 1)

    def test_a_hole_is_logged_and_counted(self) -> None:
        self.restart()
        self.server.add(b"2")
        self.server.add(b"3")
        del self.server.entries[1]
        self.come_back()
        self.assertEqual(self.bodies, [b"1", b"3"])
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertGreater(self.broker.losses.seconds, 0)
        self.assertEqual(len(self.log_of("/name: Redis no longer has all messages")), 1)
        self.assertEqual(len(self.log_of("1 of them may have missed messages")), 1)

    def test_after_a_lost_stream_the_new_one_is_read(self) -> None:
        self.restart()
        self.server.entries.clear()
        self.server.newest = b"0-0"
        self.come_back()
        self.assertEqual(self.broker.losses.gaps, 1)
        self.server.newest = b"1-0"
        self.reader.push(CHANNEL, self.server.add(b"2"))
        self.assertEqual(self.bodies, [b"1", b"2"])

    def test_a_frozen_server_is_noticed(self) -> None:
        self.server.responds = False
        for peer in self.server.connected:
            peer.responds = False
        self.pass_time(NOTICED - 1)
        self.assertTrue(self.broker.is_up)
        self.pass_time(1.5)
        self.assertFalse(self.broker.is_up)
        self.assertEqual(self.broker.last_error, "it does not respond")
        for peer in self.server.connected:
            peer.close()

    def test_a_silent_server_that_answers_is_kept(self) -> None:
        peers = self.server.connected
        self.pass_time(600)
        self.assertEqual(self.server.connected, peers)

    def test_a_paused_reader_is_not_probed(self) -> None:
        reader = self.reader
        self.broker.pause()
        self.pass_time(10 * NOTICED)
        self.assertFalse(reader.is_closed)
        self.assertTrue(self.broker.is_up)
        reader.push(CHANNEL, self.server.add(b"2"))
        self.assertEqual(self.bodies, [b"1"])
        self.broker.resume()
        self.pass_time(NOTICED)
        self.assertEqual(self.bodies, [b"1", b"2"])
        self.assertFalse(reader.is_closed)

    def test_a_reply_that_is_not_resp_ends_the_connection(self) -> None:
        reader = self.reader
        reader.send_bytes(b"HTTP/1.1 400 Bad Request\r\n")
        self.pass_time(0)
        self.assertTrue(reader.is_closed)
        self.assertEqual(len(self.log_of("its reply is not RESP3")), 1)

    def test_a_reply_without_end_ends_the_connection(self) -> None:
        self.patch(client, "MAX_REPLY", 1000)
        reader = self.reader
        reader.send_bytes(b"$5000\r\n")
        reader.send_bytes(b"x" * 1001)
        self.pass_time(0)
        self.assertTrue(reader.is_closed)


class CloseOnLossTests(RedisTests):
    closes_on_loss = True

    def test_subscribers_are_notified_when_the_reader_is_lost(self) -> None:
        self.successResultOf(self.subscribe())
        self.sender.close()
        self.pass_time(0)
        self.assertEqual(self.losses, 0)
        self.reader.close()
        self.assertEqual(self.losses, 1)
