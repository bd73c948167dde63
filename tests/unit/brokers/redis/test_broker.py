"""The Redis broker and its client, with a scripted server in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.scripted_broker import log_lines
from tests.support.scripted_redis import ScriptedRedis, ScriptedRedisPeer
from topicsvc.brokers import in_flight, reconnection, subscriptions
from topicsvc.brokers.redis import broker, client
from topicsvc.brokers.redis.broker import REFRESH_INTERVAL, REFRESH_TICK, RedisBroker
from topicsvc.brokers.redis.client import Session
from topicsvc.brokers.redis.reads import MAX_REQUESTED, PAGE
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Mark, Message, Subscription, TopicLog
from topicsvc.settings import HistorySettings, Login
from topicsvc.topics import TopicAddress

CHANNEL = b"t:channel:{cell1.box1.col.topic.name}"
STREAM = b"t:stream:{cell1.box1.col.topic.name}"
NEWEST = b"t:newest:{cell1.box1.col.topic.name}"
IDENTIFY = [b"INFO", b"server", b"replication", b"persistence"]
SENDER = "https://cell2.unit1.example/"
NOTICED = client.PROBE_INTERVAL * (client.MAX_UNANSWERED + 1)
BACK = 5.0
NAMES = ("reader", "sender")


def topic(name: str = "name") -> TopicAddress:
    return TopicAddress("cell1", "box1", ("col",), name)


class RedisTests(SynchronousTestCase):
    """The broker under test, connected to a scripted server."""

    session = Session()
    closes_on_loss = False
    where = ""
    history = HistorySettings(60, 10, 1024)

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.clock = Clock()
        self.server = ScriptedRedis(self.clock)
        self.broker = RedisBroker(
            self.server, self.clock, self.session, "t:", self.history,
            self.closes_on_loss, Random(1), self.where,
        )  # fmt: skip
        self.inbox: list[Message] = []
        self.losses = 0
        self.missed: list[TopicLog | None] = []
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
        subscribed = self.broker.subscribe(
            topic(name), self.inbox.append, self.on_lost, self.on_missed
        )
        self.clock.advance(0)
        return subscribed

    def on_missed(self, log: TopicLog | None) -> None:
        self.missed.append(log)
        self.inbox.append(Message(topic(), None, b"MISSED"))

    def recall(self) -> TopicLog:
        recalled = self.broker.recall(topic())
        assert recalled is not None
        self.clock.advance(0)
        return self.successResultOf(recalled)

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
            self.assertEqual(peer.commands, [hello, [b"SELECT", b"3"], IDENTIFY])
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


class PasswordTests(RedisTests):
    """Redis has a password, and the settings have none."""

    where = "redis.example:6379"

    def prepare(self) -> None:
        self.server.login_error = (
            b"NOAUTH HELLO must be called with the client already authenticated, otherwise the "
            b"HELLO <proto> AUTH <user> <pass> option can be used to authenticate."
        )

    def test_the_setting_is_named_and_redis_is_not_lost(self) -> None:
        self.pass_time(30)
        why = "Redis wants a password: set broker.password_file"
        self.assertEqual(self.broker.last_error, why)
        self.assertEqual(
            self.log_of("Redis"),
            [f"the {name} cannot use Redis at redis.example:6379: {why}" for name in NAMES],
        )

    def test_a_needless_password_is_named(self) -> None:
        self.server.login_error = (
            b"ERR AUTH <password> called without any password configured for the default user. "
            b"Are you sure your configuration is correct?"
        )
        self.pass_time(BACK)
        self.assertEqual(
            self.broker.last_error, "Redis wants no password: remove broker.password_file"
        )


class OutageLogTests(RedisTests):
    """Each connection has one line about an outage, with the address."""

    where = "redis.example:6379"

    def outage(self) -> list[str]:
        """An outage of a minute; return the lines about it."""
        self.events.clear()
        self.server.is_listening = False
        for peer in self.server.connected:
            peer.close()
        self.pass_time(60)
        # Twisted's lines too: the whole log.
        lines = [e["log_format"].format(**e) for e in self.events if e.get("log_format")]
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        return lines

    def test_each_outage_is_logged_once(self) -> None:
        for _ in range(2):
            self.assertEqual(
                self.outage(),
                [
                    f"the {name} has lost Redis at redis.example:6379: it closed the connection"
                    for name in NAMES
                ],
            )

    def test_what_changes_in_an_outage_is_logged_within_a_bound(self) -> None:
        self.events.clear()
        for peer in self.server.connected:
            peer.close()
        for number in range(2 * reconnection.MAX_LINES):
            self.server.login_error = b"ERR %d" % number
            self.pass_time(BACK)
        self.assertEqual(len(self.log_of("the reader ")), reconnection.MAX_LINES)
        self.assertEqual(
            len(self.log_of("the reader cannot use Redis")), reconnection.MAX_LINES - 1
        )
        self.assertEqual(self.broker.last_error, f"ERR {number}")


class AbsentTests(RedisTests):
    where = "redis.example:6379"

    def prepare(self) -> None:
        self.server.is_listening = False

    def test_a_redis_that_was_never_reached_is_not_lost(self) -> None:
        self.pass_time(60)
        lines = self.log_of("Redis")
        self.assertEqual(len(lines), 2, lines)
        for name, line in zip(NAMES, lines, strict=True):
            begin = f"the {name} cannot reach Redis at redis.example:6379: "
            self.assertTrue(line.startswith(begin), line)
            self.assertFalse(line.endswith("."), line)


class OldServerTests(RedisTests):
    def prepare(self) -> None:
        self.server.login_error = b"ERR unknown command `HELLO`"

    def test_a_server_without_resp3_is_named(self) -> None:
        self.assertIn("Redis 7 or Valkey is needed", self.broker.last_error)


class SubscriptionTests(RedisTests):
    def test_a_topic_is_confirmed_after_its_stream_was_read(self) -> None:
        self.reader.responds = False
        subscribed = self.subscribe()
        subscribe, read = self.reader.commands[2:]
        self.assertEqual(subscribe, [b"SUBSCRIBE", CHANNEL])
        self.assertEqual((read[0], read[2:7]), (b"EVAL", [b"2", STREAM, NEWEST, b"", b""]))
        self.assertEqual(read[8:], [b"86400000", b"3600000", b"0"])
        self.reader.respond(subscribe)
        self.assertNoResult(subscribed)
        self.reader.push(CHANNEL, self.server.add(b"1"))
        self.reader.respond(read)
        self.successResultOf(subscribed)
        self.assertEqual(self.bodies, [], "it was sent before the confirmation")
        self.reader.push(CHANNEL, self.server.add(b"2"))
        self.assertEqual(self.bodies, [b"2"])

    def test_messages_of_the_channel_begin_behind_the_reading(self) -> None:
        """Redis reads the stream after it has published what arrives before the reply."""
        self.reader.responds = False
        subscribed = self.subscribe()
        subscribe, read = self.reader.commands[2:]
        self.reader.respond(subscribe)
        self.reader.push(CHANNEL, self.server.add(b"1"))
        self.reader.respond(read)
        self.reader.push(CHANNEL, self.server.add(b"2"))
        self.successResultOf(subscribed)
        self.assertEqual(self.bodies, [b"2"])
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
            call[2:11],
            [b"2", STREAM, NEWEST, CHANNEL, SENDER.encode(), b'{"a":1}', b"10", b"1024", b"60000"],
        )
        self.assertEqual(call[12:], [b"86400000"])

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
        id_, fields = self.server.entries[-1]
        self.reader.push(CHANNEL, b"%s %s\n\n1" % (fields[5], id_))
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
        self.assertEqual(len(self.log_of("1 topic gets nothing until Redis is back")), 1)
        self.assertEqual(len(self.log_of("0 of them may have missed messages")), 1)

    def test_a_hole_is_logged_and_counted(self) -> None:
        self.restart()
        for body in (b"2", b"3", b"4"):
            self.server.add(body)
        del self.server.entries[2]
        self.come_back()
        self.assertEqual(self.bodies, [b"1", b"2", b"MISSED", b"4"])
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertGreater(self.broker.losses.seconds, 0)
        self.assertEqual(len(self.log_of("/name: Redis no longer has all messages")), 1)
        self.assertEqual(len(self.log_of("1 of them may have missed messages")), 1)

    def test_after_a_lost_stream_the_new_one_is_read(self) -> None:
        self.restart()
        self.server.lose_everything()
        self.come_back()
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertEqual(self.bodies, [b"1", b"MISSED"])
        self.reader.push(CHANNEL, self.server.add(b"2"))
        self.assertEqual(self.bodies, [b"1", b"MISSED", b"2"])

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


class ManyTopicsTests(RedisTests):
    """More streams are to be read than may be requested at a time."""

    TOPICS = 100
    READS = MAX_REQUESTED // PAGE

    def setUp(self) -> None:
        super().setUp()
        self.names = [f"name{number}" for number in range(self.TOPICS)]
        for name in self.names:
            self.successResultOf(self.subscribe(name))
        self.events.clear()

    def lose_reader(self) -> None:
        """The reader loses its connection; the next one replies when the test says so."""
        self.reader.close()
        self.server.responds = False

    def connect_reader(self) -> ScriptedRedisPeer:
        """Let the reader's new connection begin; return it."""
        while len(self.server.connected) < 2:
            self.clock.advance(0.1)
        peer = self.server.connected[-1]
        for command in tuple(peer.commands):
            peer.respond(command)
        return peer

    def answer(self, peer: ScriptedRedisPeer, answered: int, reads: int) -> int:
        """Reply to the commands after the first `answered`, until some reads have a reply."""
        while reads and answered < len(peer.commands):
            command = peer.commands[answered]
            answered += 1
            reads -= command[0] == b"EVAL"
            peer.respond(command)
        return answered

    def streams(self, peer: ScriptedRedisPeer) -> list[bytes]:
        """Names of the topics whose streams were read, in their order."""
        return [each[3].split(b".")[-1].rstrip(b"}") for each in peer.received(b"EVAL")]

    def test_after_an_outage_the_reads_without_a_reply_are_bounded(self) -> None:
        """In the order of the topics, and after their SUBSCRIBE commands."""
        self.server.add(b"1")
        self.lose_reader()
        peer = self.connect_reader()
        answered = 2
        for done in range(self.TOPICS):
            self.assertEqual(len(peer.received(b"SUBSCRIBE")), self.TOPICS)
            self.assertEqual(len(peer.received(b"EVAL")), min(done + self.READS, self.TOPICS))
            self.assertFalse(self.broker.is_up)
            answered = self.answer(peer, answered, 1)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.streams(peer), [name.encode() for name in self.names])
        self.assertEqual(self.bodies, [b"1"] * self.TOPICS)
        self.assertEqual(self.broker.losses.gaps, 0)

    def test_a_lost_connection_while_reads_wait_is_explained_and_all_are_read_again(self) -> None:
        self.server.add(b"1")
        self.lose_reader()
        peer = self.connect_reader()
        self.answer(peer, 2, 10)
        self.assertEqual(self.bodies, [b"1"] * 10)
        peer.close()
        line = (
            f"the reader was lost while {self.READS} reads of streams waited for a reply; if this "
            "happens again, raise client-output-buffer-limit pubsub of Redis"
        )
        self.assertEqual(self.log_of("client-output-buffer-limit"), [line])
        self.server.responds = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.bodies, [b"1"] * self.TOPICS, "none is delivered twice")
        self.assertEqual(self.broker.losses.gaps, 0)

    def test_the_explanation_is_logged_once_a_minute(self) -> None:
        for _ in range(3):
            self.lose_reader()
            self.connect_reader().close()
        self.assertEqual(len(self.log_of("client-output-buffer-limit")), 1)

    def test_a_connection_that_is_lost_without_such_reads_is_not_explained(self) -> None:
        self.reader.close()
        self.assertEqual(self.log_of("client-output-buffer-limit"), [])

    def test_recalls_of_all_topics_are_bounded_too(self) -> None:
        """As when many clients with positions join at once."""
        peer = self.reader
        peer.responds = False
        before = len(peer.received(b"EVAL"))
        recalled = [self.broker.recall(topic(name)) for name in self.names]
        for done in range(self.TOPICS):
            requested = len(peer.received(b"EVAL")) - before
            self.assertEqual(requested, min(done + self.READS, self.TOPICS))
            peer.respond(peer.received(b"EVAL")[before + done])
        for each in recalled:
            assert each is not None
            self.successResultOf(each)

    def test_a_recall_waits_only_for_the_reads_before_it(self) -> None:
        """Topics that are read again and again do not delay it."""
        peer = self.reader
        peer.responds = False
        before = len(peer.received(b"EVAL"))
        for name in self.names[:-1]:
            peer.push(b"t:channel:{cell1.box1.col.topic.%s}" % name.encode(), b"1-1 1-2\n\nx")
        recalled = self.broker.recall(topic(self.names[-1]))
        assert recalled is not None
        for done in range(self.TOPICS):
            self.assertNoResult(recalled)
            peer.respond(peer.received(b"EVAL")[before + done])
            name = self.streams(peer)[before + done]
            peer.push(b"t:channel:{cell1.box1.col.topic.%s}" % name, b"1-1 1-2\n\nx")
        self.successResultOf(recalled)

    def test_a_new_topic_is_confirmed_although_reads_wait(self) -> None:
        """Only its newest place is read, and this reply is short."""
        peer = self.reader
        peer.responds = False
        for name in self.names:
            self.broker.recall(topic(name)).addErrback(lambda _: None)
        subscribed = self.subscribe("new")
        commands = [each for each in peer.commands if b"topic.new}" in b"".join(each[1:5])]
        self.assertEqual([each[0] for each in commands], [b"SUBSCRIBE", b"EVAL"])
        for command in peer.commands[-2 - self.READS :]:
            peer.respond(command)
        self.successResultOf(subscribed)

    def test_a_recall_of_a_topic_that_is_unsubscribed_meanwhile_is_not_sent(self) -> None:
        subscription = self.successResultOf(self.subscribe("gone"))
        peer = self.reader
        peer.responds = False
        before = len(peer.received(b"EVAL"))
        for name in self.names[: self.READS]:
            self.broker.recall(topic(name)).addErrback(lambda _: None)
        recalled = self.broker.recall(topic("gone"))
        assert recalled is not None
        subscription.stop()
        self.clock.advance(subscriptions.UNSUBSCRIBE_DELAY)
        self.assertNoResult(recalled)
        peer.respond(peer.received(b"EVAL")[before])
        self.failureResultOf(recalled, BrokerUnavailable)
        self.assertEqual(len(peer.received(b"EVAL")), before + self.READS)


class LongStreamTests(RedisTests):
    """A stream that is longer than one page."""

    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.subscribe())
        self.bodies_sent = [self.body(number) for number in range(20)]

    def body(self, number: int, length: int = PAGE // 4) -> bytes:
        return b'"%03d%s"' % (number, b"x" * length)

    def assert_delivered(self, *expected: int | str) -> None:
        """The messages with these numbers were delivered."""
        found = ["MISSED" if body == b"MISSED" else int(body[1:4]) for body in self.bodies]
        self.assertEqual(found, list(expected))

    def send_in_outage(self, *bodies: bytes) -> None:
        """The reader loses its connection, and other processes send."""
        self.reader.close()
        for body in bodies:
            self.server.add(body)

    def read_slowly(self) -> Iterator[None]:
        """Let the reader connect; stop after each page."""
        self.server.responds = False
        while len(self.server.connected) < 2:
            self.clock.advance(0.1)
        peer = self.server.connected[-1]
        answered = 0
        while answered < len(peer.commands):
            command = peer.commands[answered]
            answered += 1
            peer.respond(command)
            if command[0] == b"EVAL":
                yield

    def test_after_an_outage_all_pages_are_delivered(self) -> None:
        self.send_in_outage(*self.bodies_sent)
        pages = len(list(self.read_slowly()))
        self.assertEqual(pages, 7, "a page has three messages")
        self.assert_delivered(*range(20))
        self.assertEqual(self.broker.losses.gaps, 0)

    def test_messages_that_arrive_between_two_pages_are_delivered_once(self) -> None:
        self.send_in_outage(*self.bodies_sent)
        peers = self.server.connected
        count = 20
        for _ in self.read_slowly():
            [reader] = [each for each in self.server.connected if each not in peers]
            reader.push(CHANNEL, self.server.add(self.body(count, 1)))
            count += 1
        self.assertGreater(count, 26)
        self.assert_delivered(*range(count))
        self.assertEqual(self.broker.losses.gaps, 0)

    def test_entries_that_were_trimmed_between_two_pages_are_a_gap(self) -> None:
        self.send_in_outage(*self.bodies_sent)
        pages = self.read_slowly()
        next(pages)
        del self.server.entries[:10]
        list(pages)
        self.assert_delivered(0, 1, 2, "MISSED", *range(10, 20))
        self.assertEqual(self.broker.losses.gaps, 1)

    def test_a_flush_between_two_pages_is_a_gap(self) -> None:
        self.send_in_outage(*self.bodies_sent)
        pages = self.read_slowly()
        next(pages)
        self.server.lose_everything()
        self.server.add(self.body(30), b"78")
        list(pages)
        self.assert_delivered("MISSED", 30)
        self.assertEqual(self.broker.losses.gaps, 1)

    def test_a_recall_has_all_pages(self) -> None:
        for body in self.bodies_sent:
            self.reader.push(CHANNEL, self.server.add(body))
        recalled = self.broker.recall(topic())
        assert recalled is not None
        self.pass_time(1)
        log = self.successResultOf(recalled)
        self.assertEqual([int(message.body[1:4]) for message, _ in log.messages], [*range(20)])

    def test_a_recall_waits_for_a_reading_that_began_later(self) -> None:
        """That uses up no attempts, whatever number of pages it has."""
        self.patch(broker, "MAX_RECALLS", 0)
        peer = self.reader
        peer.responds = False
        answered = len(peer.commands)
        recalled = self.broker.recall(topic())
        assert recalled is not None
        for body in self.bodies_sent:
            message = self.server.add(body)
        peer.push(CHANNEL, message)  # it does not follow the last one
        while answered < len(peer.commands):
            peer.respond(peer.commands[answered])
            answered += 1
        self.assert_delivered(*range(20))
        self.assertEqual(len(self.successResultOf(recalled).messages), 20)

    def test_a_message_longer_than_a_page_is_read(self) -> None:
        lengths = (1, 3 * PAGE, 2 * MAX_REQUESTED, 1)
        self.send_in_outage(*(self.body(*each) for each in enumerate(lengths)))
        self.pass_time(BACK)
        self.assert_delivered(*range(4))


class PositionTests(RedisTests):
    """Marks and the log of a topic."""

    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.subscribe())

    def add(self, *bodies: bytes) -> None:
        """Another process sends messages."""
        for body in bodies:
            self.reader.push(CHANNEL, self.server.add(body))
            self.clock.advance(0)

    def assert_log(self, start: Mark | None, *bodies: bytes) -> TopicLog:
        """The log has these messages, with the marks with which they were delivered."""
        log = self.recall()
        self.assertEqual([each.body for each, _ in log.messages], list(bodies))
        marks = {each.body: each.mark for each in self.inbox}
        for each, _ in log.messages:
            self.assertEqual(each.mark, marks.get(each.body, each.mark))
        if start is not None:
            self.assertEqual(log.start, (start.id,))
        return log

    def mark(self, body: bytes) -> Mark:
        """The mark with which a message was delivered."""
        [mark] = [each.mark for each in self.inbox if each.body == body]
        assert mark is not None
        return mark

    def test_each_message_has_the_id_of_its_entry(self) -> None:
        self.add(b"1", b"2")
        ids = [Mark(0, id_.decode("ascii")) for id_, _ in self.server.entries]
        self.assertEqual([each.mark for each in self.inbox], ids)
        self.assertEqual(self.missed, [])

    def test_the_log_has_all_messages_with_their_ages(self) -> None:
        self.add(b"1")
        self.pass_time(20)
        self.add(b"2")
        self.pass_time(5)
        log = self.assert_log(None, b"1", b"2")
        self.assertEqual([round(age) for _, age in log.messages], [25, 5])
        self.assertRegex(log.epoch, r"^[0-9a-f]{20}$")
        self.assertRegex(log.start[0], r"^0-[0-9]+$")

    def test_a_message_older_than_the_setting_is_left_out(self) -> None:
        """It stays in the stream until the next one is sent."""
        self.add(b"1")
        self.pass_time(61)
        self.assert_log(self.mark(b"1"))
        self.add(b"2")
        self.assert_log(self.mark(b"1"), b"2")

    def test_after_the_clock_was_set_back_messages_do_not_age(self) -> None:
        """Only the number and the bytes bound the stream: docs/brokers.md says what to do."""
        self.add(b"1")
        self.server.offset = -3_600_000
        self.pass_time(600)
        self.add(b"2")
        log = self.assert_log(None, b"1", b"2")
        self.assertEqual([age for _, age in log.messages], [0.0, 0.0])
        self.assertEqual(self.missed, [])

    def test_a_quiet_topic_stays_provable_after_its_stream_has_ended(self) -> None:
        self.add(b"1")
        epoch = self.assert_log(None, b"1").epoch
        self.server.entries.clear()
        self.assertEqual(self.assert_log(self.mark(b"1")).epoch, epoch)
        self.add(b"2")
        self.assertEqual(self.assert_log(self.mark(b"1"), b"2").epoch, epoch)
        self.assertEqual(self.missed, [])

    def test_an_empty_topic_has_a_provable_place(self) -> None:
        log = self.assert_log(None)
        self.add(b"1")
        self.assertEqual(self.assert_log(None, b"1").start, log.start)

    def test_the_log_ends_before_a_hole(self) -> None:
        """An entry was deleted under us: only what follows it is provable."""
        self.add(b"1", b"2", b"3", b"4")
        del self.server.entries[1]
        self.assert_log(self.mark(b"2"), b"3", b"4")
        del self.server.entries[-1]
        self.assert_log(self.mark(b"4"))

    def test_the_log_is_of_the_moment_of_the_reply(self) -> None:
        """What was sent before the reading is in the log; what was sent later is delivered."""
        self.add(b"1")
        self.reader.responds = False
        recalled = self.broker.recall(topic())
        assert recalled is not None
        self.add(b"2")
        self.reader.respond(self.reader.commands[-1])
        self.add(b"3")
        log = self.successResultOf(recalled)
        self.assertEqual([each.body for each, _ in log.messages], [b"1", b"2"])
        self.assertEqual(self.bodies, [b"1", b"2", b"3"])

    def test_the_connection_is_lost_before_the_log_arrives(self) -> None:
        self.reader.responds = False
        recalled = self.broker.recall(topic())
        assert recalled is not None
        self.reader.close()
        self.failureResultOf(recalled, BrokerUnavailable)

    def test_a_recall_can_be_cancelled(self) -> None:
        recalled = self.broker.recall(topic())
        assert recalled is not None
        recalled.addErrback(lambda _: None)
        recalled.cancel()
        self.pass_time(0)
        self.assert_log(None)

    def test_a_topic_that_is_not_subscribed_has_no_log(self) -> None:
        recalled = self.broker.recall(topic("other"))
        assert recalled is not None
        self.failureResultOf(recalled, BrokerUnavailable)

    def test_an_error_of_redis_fails_the_recall(self) -> None:
        self.server.errors[b"EVAL"] = b"ERR simulated"
        recalled = self.broker.recall(topic())
        assert recalled is not None
        self.clock.advance(0)
        self.failureResultOf(recalled, BrokerUnavailable)

    def test_another_topic_has_another_epoch(self) -> None:
        one = self.recall()
        self.successResultOf(self.subscribe("other"))
        other = self.broker.recall(topic("other"))
        assert other is not None
        self.clock.advance(0)
        self.assertNotEqual(self.successResultOf(other).epoch, one.epoch)

    def test_another_process_has_the_same_log(self) -> None:
        self.add(b"1", b"2")
        mine = self.recall()
        other = RedisBroker(self.server, self.clock, self.session, "t:", self.history)
        other.startService()
        self.pass_time(0)
        other.subscribe(topic(), lambda _: None)
        self.clock.advance(0)
        recalled = other.recall(topic())
        assert recalled is not None
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(recalled), mine)
        stopped = other.stopService()
        self.pass_time(reconnection.STOP_TIMEOUT)
        self.successResultOf(stopped)

    def test_a_message_that_does_not_follow_the_last_one_is_a_gap(self) -> None:
        """The stream lacks what is between them, so the subscribers learn of it first."""
        self.add(b"1")
        self.server.add(b"2")
        lost = self.server.entries.pop()
        self.add(b"3")
        self.assertEqual(self.bodies, [b"1", b"MISSED", b"3"])
        [log] = self.missed
        self.assertEqual(log, TopicLog(self.recall().epoch, (lost[0].decode("ascii"),)))
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertEqual(len(self.log_of("/name: Redis no longer has all messages behind")), 1)

    def test_a_message_that_was_not_published_is_read_from_the_stream(self) -> None:
        self.add(b"1")
        self.server.add(b"2")
        self.add(b"3")
        self.assertEqual(self.bodies, [b"1", b"2", b"3"])
        self.assertEqual((self.missed, self.broker.losses.gaps), ([], 0))

    def test_after_flushall_no_old_place_is_provable(self) -> None:
        self.add(b"1")
        before = self.recall()
        self.server.lose_everything()
        id_ = b"%d-0" % (self.server.time - 1)
        self.reader.push(CHANNEL, self.server.add(b"2", b"78", id_))
        self.pass_time(0)
        self.assertEqual(self.bodies, [b"1", b"MISSED", b"2"], "also with a smaller id")
        after = self.assert_log(None, b"2")
        self.assertNotEqual(after.epoch, before.epoch)
        self.assertEqual(self.missed, [TopicLog(after.epoch, ("0-78",))])

    def test_a_lost_key_of_a_quiet_topic_is_noticed_by_the_next_refresh(self) -> None:
        self.add(b"1")
        self.server.lose_everything()
        self.pass_time(REFRESH_INTERVAL + REFRESH_TICK)
        self.assertEqual(self.bodies, [b"1", b"MISSED"])
        self.add(b"2")
        self.assertEqual(self.bodies, [b"1", b"MISSED", b"2"])

    def test_a_recall_after_a_lost_key_begins_a_new_epoch(self) -> None:
        self.add(b"1")
        before = self.recall()
        self.server.newest = None
        after = self.recall()
        self.assertNotEqual(after.epoch, before.epoch)
        self.assertEqual(self.missed, [TopicLog(after.epoch, after.start)])
        self.assertEqual(after.messages, (), "the entries that are left are of the old epoch")

    def test_keys_of_subscribed_topics_are_kept(self) -> None:
        before = len(self.reader.received(b"EVAL"))
        self.pass_time(REFRESH_INTERVAL - REFRESH_TICK)
        self.assertEqual(len(self.reader.received(b"EVAL")), before)
        self.pass_time(2 * REFRESH_TICK)
        self.assertEqual(len(self.reader.received(b"EVAL")), before + 1)
        self.assertEqual(self.reader.received(b"EVAL")[-1][5:7], [b"", b""])
        self.assertEqual(self.missed, [])

    def test_the_keys_of_many_topics_are_not_refreshed_at_once(self) -> None:
        self.patch(broker, "MAX_REFRESHED", 2)
        for number in range(4):
            self.successResultOf(self.subscribe(f"name{number}"))
        before = len(self.reader.received(b"EVAL"))
        self.pass_time(REFRESH_INTERVAL + REFRESH_TICK)
        counts = []
        for _ in range(3):
            counts.append(len(self.reader.received(b"EVAL")) - before)
            self.pass_time(REFRESH_TICK)
        self.assertIn(counts, ([2, 4, 5], [4, 5, 5]))

    def test_a_full_memory_refuses_no_subscriber_and_no_recall(self) -> None:
        self.server.can_store = False
        self.server.newest = None
        self.add(b"1")
        self.server.newest = None
        self.assertEqual(self.recall().messages, ())
        self.assertEqual(self.recall().epoch, self.recall().epoch)
        self.pass_time(REFRESH_INTERVAL + REFRESH_TICK)
        self.assertEqual(self.bodies, [b"MISSED", b"1"], "the key was lost before the message")


class PositionsOffTests(RedisTests):
    history = HistorySettings(0, 10, 1024)

    def test_without_positions_a_stream_bridges_outages_of_two_minutes(self) -> None:
        self.successResultOf(self.publish())
        [call] = self.sender.received(b"EVAL")
        self.assertEqual(call[10], b"120000")


class IdentityTests(RedisTests):
    """A Redis that may have lost messages is not the same as before."""

    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.subscribe())
        self.reader.push(CHANNEL, self.server.add(b"1"))
        self.before = self.recall()

    def lose_connections(self) -> None:
        for peer in self.server.connected:
            peer.close()

    def test_after_a_restart_messages_may_be_missing(self) -> None:
        """The chain is whole, but accepted messages behind its end may have been lost."""
        self.lose_connections()
        self.server.run_id = "b" * 40
        self.pass_time(BACK)
        self.assertEqual(self.bodies, [b"1", b"MISSED"])
        [log] = self.missed
        assert log is not None and self.inbox[0].mark is not None
        self.assertEqual(log.start, (self.inbox[0].mark.id,))
        self.assertNotEqual(log.epoch, self.before.epoch)
        self.assertEqual(log.epoch, self.recall().epoch)
        self.assertEqual(self.broker.losses.gaps, 1)
        self.assertEqual(len(self.log_of("Redis was restarted or replaced")), 1)
        self.assertEqual(self.log_of("Redis no longer has all messages"), [])

    def test_the_news_come_before_the_messages_of_the_outage(self) -> None:
        self.lose_connections()
        self.server.run_id = "b" * 40
        self.server.add(b"2")
        self.pass_time(BACK)
        self.assertEqual(self.bodies, [b"1", b"MISSED", b"2"])
        self.assertEqual(len(self.missed), 1)

    def test_the_same_redis_is_believed(self) -> None:
        self.lose_connections()
        self.pass_time(BACK)
        self.assertEqual((self.bodies, self.missed), ([b"1"], []))
        self.assertEqual(self.recall().epoch, self.before.epoch)

    def test_a_change_while_connected_is_noticed_by_a_probe(self) -> None:
        """As REPLICAOF does it, which keeps the process and its connections."""
        reader = self.reader
        self.server.run_id = "b" * 40
        self.pass_time(client.PROBE_INTERVAL + 0.5)
        self.assertTrue(reader.is_closed)
        self.assertEqual(len(self.log_of("its identity has changed")), 2)
        self.pass_time(BACK)
        self.assertEqual(self.bodies, [b"1", b"MISSED"])

    def test_a_replica_is_left_by_both_connections_without_a_message(self) -> None:
        self.server.role = "slave"
        self.pass_time(30)
        self.assertFalse(self.broker.is_up)
        self.assertEqual(self.broker.last_error, "it is a replica")
        self.assertEqual(len(self.log_of("it is a replica")), 2)
        self.assertLess(len(self.server.peers), 60, "with delays")
        self.server.role = "master"
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)

    def test_both_connections_lead_to_the_same_redis(self) -> None:
        """If a name leads to another server now, the older connection is left at once."""
        reader = self.reader
        self.server.run_id = "b" * 40
        self.sender.close()
        self.pass_time(0.5)
        self.assertTrue(reader.is_closed)
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.bodies, [b"1", b"MISSED"])


class NoInfoTests(RedisTests):
    """The access control list does not allow INFO."""

    def prepare(self) -> None:
        self.server.errors[b"INFO"] = b"NOPERM this user has no permissions to run 'info'"

    def test_it_is_said_once_and_all_else_works(self) -> None:
        self.successResultOf(self.subscribe())
        self.reader.push(CHANNEL, self.server.add(b"1"))
        self.assertEqual(self.bodies, [b"1"])
        self.assertTrue(self.broker.is_up)
        self.assertIn("allow the user the command INFO", self.broker.limitation)
        self.reader.close()
        self.pass_time(60)
        self.assertEqual(len(self.log_of("allow the user the command INFO")), 1)

    def test_a_position_ends_with_its_connection(self) -> None:
        self.successResultOf(self.subscribe())
        self.reader.push(CHANNEL, self.server.add(b"1"))
        epoch = self.recall().epoch
        self.assertEqual(self.recall().epoch, epoch)
        self.reader.close()
        self.pass_time(BACK)
        self.assertEqual(self.bodies, [b"1", b"MISSED"])
        self.assertNotEqual(self.recall().epoch, epoch)

    def test_after_the_right_was_given_it_works(self) -> None:
        self.server.errors.clear()
        self.reader.close()
        self.pass_time(BACK)
        self.assertEqual(self.broker.limitation, "")


class LeftInOutageTests(RedisTests):
    """The last subscriber of a topic stops while Redis is away."""

    def setUp(self) -> None:
        super().setUp()
        self.staying = self.successResultOf(self.subscribe("other"))
        self.leaving = self.successResultOf(self.subscribe())

    def lose(self) -> None:
        self.server.is_listening = False
        for peer in self.server.connected:
            peer.close()

    def come_back(self) -> None:
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(
            self.reader.received(b"SUBSCRIBE"),
            [[b"SUBSCRIBE", CHANNEL.replace(b".name", b".other")]],
        )

    def leave(self) -> None:
        self.lose()
        self.pass_time(1)
        self.leaving.stop()
        self.come_back()

    def test_the_topic_is_forgotten(self) -> None:
        self.leave()
        reads = len(self.reader.received(b"EVAL"))
        self.pass_time(REFRESH_INTERVAL + REFRESH_TICK)
        self.assertEqual(len(self.reader.received(b"EVAL")), reads + 1, "the other topic only")
        recalled = self.broker.recall(topic())
        assert recalled is not None
        self.failureResultOf(recalled, BrokerUnavailable)

    def test_a_message_that_is_sent_to_it_does_not_have_to_come_back(self) -> None:
        self.leave()
        self.successResultOf(self.publish())
        self.assertTrue(self.broker.is_settled)

    def test_a_new_subscriber_gets_no_old_gap(self) -> None:
        self.leave()
        for body in (b"1", b"2", b"3"):
            self.server.add(body)
        del self.server.entries[:2]
        self.successResultOf(self.subscribe())
        self.reader.push(CHANNEL, self.server.add(b"4"))
        self.assertEqual(self.bodies, [b"4"])
        self.assertEqual(self.broker.losses.gaps, 0)

    def test_the_end_of_the_outage_is_logged_after_it(self) -> None:
        self.lose()
        self.pass_time(1)
        self.leaving.stop()
        self.assertEqual(self.log_of("subscribed again"), [])
        self.come_back()
        self.assertEqual(len(self.log_of("1 topic is subscribed again")), 1)

    def test_all_subscribers_of_all_topics_stop(self) -> None:
        self.lose()
        self.leaving.stop()
        self.staying.stop()
        self.server.is_listening = True
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)
        self.assertEqual(self.reader.received(b"SUBSCRIBE"), [])
        self.pass_time(REFRESH_INTERVAL + REFRESH_TICK)
        self.assertEqual(self.reader.received(b"EVAL"), [])

    def test_an_exception_does_not_keep_other_requests_from_their_result(self) -> None:
        """Each request that waits when the connection is lost has a result."""
        self.reader.responds = False

        def fail(_: object) -> None:
            raise KeyError("simulated")

        self.broker._reader.client.request(("PING",), fail)
        recalled = self.broker.recall(topic())
        assert recalled is not None
        self.reader.close()
        self.failureResultOf(recalled, BrokerUnavailable)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(len(self.log_of("a request to Redis could not be ended")), 1)
        self.pass_time(BACK)
        self.assertTrue(self.broker.is_up)


class LeftOnLossTests(LeftInOutageTests):
    """The same with ``on_loss = "close"``: it stops because Redis is lost."""

    closes_on_loss = True

    def on_lost(self) -> None:
        """The first subscriber that is notified ends the other one too."""
        super().on_lost()
        self.leaving.stop()

    def leave(self) -> None:
        self.lose()
        self.pass_time(1)
        self.assertEqual(self.losses, 1)
        self.come_back()


class CloseOnLossTests(RedisTests):
    closes_on_loss = True

    def test_subscribers_are_notified_when_the_reader_is_lost(self) -> None:
        self.successResultOf(self.subscribe())
        self.sender.close()
        self.pass_time(0)
        self.assertEqual(self.losses, 0)
        self.reader.close()
        self.assertEqual(self.losses, 1)
