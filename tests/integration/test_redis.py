"""The Redis broker with a real Redis and topicsvc processes."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks, succeed
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.docs.test_docs import page
from tests.integration.support.broker_cases import (
    CELL,
    CloseOnLossCases,
    HostileNamesCases,
    KeepOnLossCases,
    PressureCases,
    RightAfterSuccessCases,
    directory,
)
from tests.integration.support.redis_server import Redis, need_redis
from tests.support.broker_contract import BrokerContract, Inbox, LogContract
from tests.support.certificates import Authority
from tests.support.processes import Shared, until
from topicsvc.brokers.factory import make_broker
from topicsvc.brokers.redis.broker import RedisBroker
from topicsvc.config.files import read_authorities
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message
from topicsvc.settings import HistorySettings, Login, RedisSettings
from topicsvc.topics import TopicAddress

shared = Shared(Redis)


class RedisTestCase(TestCase):
    """Fixture: a `RedisBroker` in this process, connected to a server that all tests share."""

    timeout = 150

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server: Redis = yield shared.get()
        self.broker = yield self.connected(self.server)

    def make(self, server: Redis, **settings: Any) -> RedisBroker:
        host = "localhost" if server.is_tls else "127.0.0.1"
        made = make_broker(
            RedisSettings(host, server.port, is_tls=server.is_tls, **settings),
            reactor,
            reactor.seconds,
        )
        assert isinstance(made, RedisBroker)
        made.startService()
        self.addCleanup(made.stopService)
        return made

    @inlineCallbacks
    def connected(self, server: Redis, **settings: Any) -> Any:
        broker = self.make(server, **settings)
        yield until(lambda: broker.is_up, "the broker is up", 60)
        return broker


class RedisContractTests(BrokerContract, RedisTestCase):
    name = "contract"


class RedisLogContractTests(LogContract, RedisTestCase):
    def make_other(self) -> Any:
        return self.connected(self.server)


class PressureTests(PressureCases, RedisTestCase):
    # Redis ends the connection of a subscriber that lets 32 MiB wait; the streams have the rest.
    pass


class RedisSpecificTests(RedisTestCase):
    def topic(self, name: str) -> TopicAddress:
        return TopicAddress("cell1", "box1", ("specific",), name)

    def stream(self, name: str) -> str:
        return f"topicsvc:stream:{{{self.topic(name).broker_name}}}"

    def send(self, name: str, *bodies: bytes, broker: RedisBroker | None = None) -> Any:
        return [
            (broker or self.broker).publish(Message(self.topic(name), CELL, body))
            for body in bodies
        ]

    @inlineCallbacks
    def test_a_stream_keeps_the_newest_messages(self) -> Any:
        history = HistorySettings(seconds=60, messages=3, bytes=1024)
        broker = yield self.connected(self.server, history=history)
        yield from self.send("count", *(b"%d" % each for each in range(10)), broker=broker)
        self.assertEqual(self.server.command("XLEN", self.stream("count")), "3")
        big = b'"%s"' % (b"x" * 500)
        yield from self.send("bytes", big, big, big, broker=broker)
        self.assertEqual(self.server.command("XLEN", self.stream("bytes")), "2")
        huge = b'"%s"' % (b"x" * 2000)
        yield from self.send("bytes", huge, broker=broker)
        self.assertEqual(self.server.command("XLEN", self.stream("bytes")), "1")
        lifetime = int(self.server.command("PTTL", self.stream("bytes")))
        self.assertTrue(0 < lifetime <= 60000, lifetime)

    @inlineCallbacks
    def test_old_messages_leave_a_stream_in_use(self) -> Any:
        """Whenever a message is sent, those go that are then older than the history."""
        seconds = 4
        broker = yield self.connected(self.server, history=HistorySettings(seconds=seconds))
        inbox = Inbox()
        yield broker.subscribe(self.topic("age"), inbox)
        kept: list[str] = []
        while not 1 < len(kept) < len(inbox.messages):
            sent = len(inbox.messages)
            yield from self.send("age", b"%d" % sent, broker=broker)
            yield inbox.holds(sent + 1)
            ids = [each.mark.id for each in inbox.messages if each.mark]
            times = {each: int(each.partition("-")[0]) for each in ids}
            kept = [each for each in ids if times[each] >= times[ids[-1]] - seconds * 1000]
            self.assertEqual(self.ids(self.stream("age")), kept)
            yield deferLater(reactor, 0.7)
        yield until(
            lambda: self.server.command("EXISTS", self.stream("age")) == "0", "the stream has ended"
        )

    def ids(self, key: str) -> list[str]:
        """The ids of the entries of a stream."""
        lines = self.server.command("XRANGE", key, "-", "+").splitlines()
        return lines[:: 1 + 2 * 4]  # an entry has four fields

    @inlineCallbacks
    def test_ids_go_on_if_the_clock_was_set_back_after_the_end_of_the_stream(self) -> Any:
        """XADD alone would give a smaller id, or one that was given before."""
        newest = self.stream("back").replace("stream", "newest", 1)
        self.server.command("SET", newest, "99999999999999-7 5 0", "PX", "60000")
        inbox = Inbox()
        yield self.broker.subscribe(self.topic("back"), inbox)
        yield from self.send("back", b"1", b"2")
        yield inbox.holds(2)
        marks = [each.mark and each.mark.id for each in inbox.messages]
        self.assertEqual(marks, ["100000000000000-0", "100000000000000-1"])
        log = yield self.broker.recall(self.topic("back"))
        self.assertEqual(log.start, ("99999999999999-7",))
        self.assertEqual([each.body for each, _ in log.messages], [b"1", b"2"])
        self.assertEqual(self.broker.losses.gaps, 0)

    @inlineCallbacks
    def test_after_the_clock_was_set_back_a_flush_begins_at_the_present_time(self) -> Any:
        """As docs/brokers.md says. The clock was an hour ahead."""
        newest = self.stream("flush").replace("stream", "newest", 1)
        ahead = (self.redis_seconds() + 3600) * 1000
        self.server.command("SET", newest, f"{ahead}-7 5 0", "PX", "600000")
        inbox = Inbox()
        missed: list[Any] = []
        yield self.broker.subscribe(self.topic("flush"), inbox, missed=missed.append)
        yield from self.send("flush", b"1")
        yield inbox.holds(1)
        mark = inbox.messages[0].mark
        assert mark is not None
        self.assertEqual(mark.id, f"{ahead + 1}-0")
        log = yield self.broker.recall(self.topic("flush"))
        self.assertEqual([age for _, age in log.messages], [0.0])
        self.server.command("FLUSHDB")
        before = self.redis_seconds()
        yield from self.send("flush", b"2")
        yield inbox.holds(2)
        mark = inbox.messages[1].mark
        assert mark is not None
        seconds = int(mark.id.partition("-")[0]) // 1000
        self.assertTrue(before <= seconds <= self.redis_seconds(), mark.id)
        self.assertEqual(len(missed), 1)

    def redis_seconds(self) -> int:
        return int(self.server.command("TIME").split()[0])

    def end_readers(self) -> None:
        """End all reading connections at the server. A paused broker notices it later."""
        self.server.command("CLIENT", "KILL", "TYPE", "pubsub")

    @inlineCallbacks
    def returns(self) -> Any:
        """The paused broker reads again, and notices that it has lost its connection."""
        reconnects = self.broker.losses.reconnects
        self.broker.resume()
        yield until(lambda: self.broker.losses.reconnects > reconnects, "it is connected again")
        yield until(lambda: self.broker.is_up, "the broker is up again")

    @inlineCallbacks
    def test_messages_sent_while_the_reader_was_lost_are_delivered(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(self.topic("again"), inbox)
        yield from self.send("again", b"1")
        yield inbox.holds(1)
        self.broker.pause()
        self.end_readers()
        yield from self.send("again", *(b"%d" % each for each in range(2, 100)))
        yield self.returns()
        yield from self.send("again", b"100")
        yield inbox.holds(100)
        self.assertEqual(inbox.bodies, [b"%d" % each for each in range(1, 101)])
        self.assertEqual(self.broker.losses.gaps, 0)

    @inlineCallbacks
    def test_a_topic_without_messages_has_no_gap(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(self.topic("silent"), inbox)
        self.broker.pause()
        self.end_readers()
        yield self.returns()
        yield from self.send("silent", b"1")
        yield inbox.holds(1)
        self.assertEqual(self.broker.losses.gaps, 0)

    @inlineCallbacks
    def outage(self, name: str, change: Any) -> Any:
        """Lose the reader while `change` happens to the stream of a topic.

        Fires with whether only this topic has a gap, its messages, and the number of gaps.
        """
        gaps: list[str] = []

        def observe(event: Any) -> None:
            if "no longer has all messages" in str(event.get("log_format")):
                gaps.append(event["topic"])

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        broker = self.broker
        inboxes = {each: Inbox() for each in (name, "whole")}
        for each, inbox in inboxes.items():
            yield broker.subscribe(self.topic(each), inbox)
            yield from self.send(each, b"1")
            yield inbox.holds(1)
        broker.pause()
        self.end_readers()
        yield from self.send("whole", b"2")
        yield from self.send(name, b"2", b"3", b"4")
        change(self.stream(name))
        yield self.returns()
        yield inboxes["whole"].holds(2)
        paths = [self.topic(name).path]
        return gaps == paths, inboxes[name].bodies, broker.losses.gaps

    @inlineCallbacks
    def test_a_stream_that_was_trimmed_is_a_gap(self) -> Any:
        def trim(key: str) -> None:
            self.server.command("XTRIM", key, "MAXLEN", "1")

        self.assertEqual((yield self.outage("trimmed", trim)), (True, [b"1", b"4"], 1))

    @inlineCallbacks
    def test_a_stream_that_was_lost_is_a_gap(self) -> Any:
        def delete(key: str) -> None:
            self.server.command("DEL", key)

        self.assertEqual((yield self.outage("deleted", delete)), (True, [b"1"], 1))

    @inlineCallbacks
    def test_a_stream_that_lost_its_newest_messages_is_a_gap(self) -> Any:
        """As after a failover to a replica that lacks them."""

        def cut(key: str) -> None:
            for entry in self.ids(key):
                self.server.command("XDEL", key, entry)

        self.assertEqual((yield self.outage("cut", cut)), (True, [b"1"], 1))

    @inlineCallbacks
    def test_memory_is_full(self) -> Any:
        server = Redis("maxmemory 3mb\nmaxmemory-policy noeviction")
        self.addCleanup(server.remove)
        yield server.start()
        broker = yield self.connected(server)
        big = b'"%s"' % (b"x" * 400_000)
        results = []
        for number in range(12):
            sent = broker.publish(Message(self.topic(f"full{number}"), CELL, big))
            results.append((yield sent.addCallbacks(lambda _: "", lambda why: why.value)))
        failed = [each for each in results if each]
        self.assertTrue(failed)
        for error in failed:
            self.assertIsInstance(error, BrokerUnavailable)
            self.assertIn("OOM", str(error))
        self.assertIn("OOM", broker.last_error)
        self.assertTrue(broker.is_up)

    @inlineCallbacks
    def test_the_script_cache_is_flushed(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(self.topic("flush"), inbox)
        for number in range(50):
            if number % 10 == 5:
                self.server.command("SCRIPT", "FLUSH")
            yield from self.send("flush", b"%d" % number)
        yield inbox.holds(50)
        self.assertEqual(inbox.bodies, [b"%d" % each for each in range(50)])

    @inlineCallbacks
    def test_a_foreign_message_is_dropped(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(self.topic("foreign"), inbox)
        channel = self.stream("foreign").replace("stream", "channel", 1)
        for payload in ("hello", "1-1\nx", "no-id\n\n1"):
            self.server.command("PUBLISH", channel, payload)
        yield from self.send("foreign", b"1")
        yield inbox.holds(1)
        self.assertEqual(inbox.bodies, [b"1"])
        self.assertEqual(self.broker.losses.misrouted, 3)


class LoginTests(RedisTestCase):
    """Servers of their own: passwords and TLS."""

    def setUp(self) -> None:
        need_redis()

    @inlineCallbacks
    def works(self, broker: RedisBroker) -> Any:
        inbox = Inbox()
        topic = TopicAddress("cell1", "box1", ("login",), "name")
        yield broker.subscribe(topic, inbox)
        yield broker.publish(Message(topic, CELL, b"1"))
        yield inbox.holds(1)

    @inlineCallbacks
    def test_a_password(self) -> Any:
        server = Redis("requirepass secret-word\nuser app on >other-word ~* &* +@all")
        self.addCleanup(server.remove)
        yield server.start()
        for login in (Login("default", "secret-word"), Login("app", "other-word")):
            yield self.works((yield self.connected(server, login=login)))
        for login, why in (
            (None, "Redis wants a password"),
            (Login("default", "wrong-word"), "WRONGPASS"),
            (Login("nobody", "secret-word"), "WRONGPASS"),
        ):
            broker = self.make(server, login=login)
            # A connection that a loaded machine was late with has another reason.
            yield until(lambda broker=broker, why=why: why in broker.last_error, why)
            self.assertIn("broker.password_file", broker.last_error)
            self.assertNotIn("word", broker.last_error.replace("password", ""))
            self.assertFalse(broker.is_up)

    @inlineCallbacks
    def test_the_commands_of_the_manual_are_enough(self) -> Any:
        """A user with an access control list; without INFO it is told, and all else works."""
        text = page("docs/brokers.md").partition("and these commands:")[2]
        commands = [word for line in text.split("\n")[2:4] for word in line.split()]
        self.assertIn("XRANGE", commands)
        allowed = " ".join(f"+{command.lower()}" for command in commands)
        users = [
            f"user app on >word ~topicsvc:* &topicsvc:* -@all {allowed}",
            f"user limited on >word ~topicsvc:* &topicsvc:* -@all {allowed} -info",
        ]
        server = Redis("\n".join(users))
        self.addCleanup(server.remove)
        yield server.start()
        for name, limitation in (("app", ""), ("limited", "allow the user the command INFO")):
            broker = yield self.connected(server, login=Login(name, "word"), database=1)
            yield self.works(broker)
            yield broker.recall(TopicAddress("cell1", "box1", ("login",), "name"))
            self.assertIn(limitation, broker.limitation)
            self.assertEqual(bool(broker.limitation), bool(limitation))
            # A reconnect uses the remaining command.
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
            yield until(lambda broker=broker: broker.losses.reconnects, "it is connected again")
            yield until(lambda broker=broker: broker.is_up, "it is up again")
            self.assertEqual(broker.losses.gaps, int(bool(limitation)))

    @inlineCallbacks
    def test_a_password_that_changes_while_connected(self) -> Any:
        server = Redis("requirepass one")
        self.addCleanup(server.remove)
        yield server.start()
        broker = yield self.connected(server, login=Login("default", "one"))
        server.command("-a", "one", "CONFIG", "SET", "requirepass", "two")
        yield self.works(broker)

    @inlineCallbacks
    def test_tls_with_verified_names(self) -> Any:
        where = directory(self)
        authority = Authority(where)
        key, cert = authority.issue("localhost", name="redis")
        server = Redis(tls=(cert, key, authority.ca_file))
        self.addCleanup(server.remove)
        yield server.start()
        trusted = read_authorities(authority.ca_file)
        yield self.works((yield self.connected(server, authorities=trusted)))
        broker = self.make(server)
        yield until(lambda: broker.last_error, "an unknown authority is refused")
        self.assertIn("certificate verify failed", broker.last_error)

    @inlineCallbacks
    def test_a_database_by_number(self) -> Any:
        server = Redis()
        self.addCleanup(server.remove)
        yield server.start()
        yield self.works((yield self.connected(server, database=3)))
        self.assertIn("keys=2", server.command("INFO", "keyspace"))
        self.assertIn("db3", server.command("INFO", "keyspace"))


class RightAfterSuccessTests(RightAfterSuccessCases, RedisTestCase):
    pass


class KeepOnLossTests(KeepOnLossCases, TestCase):
    """A server with persistent data: sessions receive the messages of its outage."""

    def make_server(self) -> Redis:
        return Redis(keeps_data=True)

    @inlineCallbacks
    def send_many(self, count: int) -> Any:
        broker = make_broker(RedisSettings("127.0.0.1", self.server.port), reactor, reactor.seconds)
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the other sender is up")
        for number in range(0, count, 1000):
            yield from [
                broker.publish(Message(self.topic, CELL, b'{"number":%d}' % each))
                for each in range(number, number + 1000)
            ]

    def check_numbers(self, numbers: list[int]) -> None:
        # Redis may accept message 2 after SIGCONT, although its sender got 503.
        self.assertIn(numbers, ([1, 4], [1, 2, 4]))

    def check_log(self, log: str) -> None:
        self.assertEqual(log.count("nothing until Redis is back"), 1)
        restarts = log.count("Redis was restarted or replaced")
        self.assertIn(f"{restarts} of them may have missed messages", log)
        self.assertEqual(restarts, int("kill" in self._testMethodName))


class CloseOnLossTests(CloseOnLossCases, TestCase):
    """A server that loses its data."""

    def make_server(self) -> Redis:
        return Redis()


class HostileNamesTests(HostileNamesCases, RedisTestCase):
    def names_at_the_broker(self) -> Any:
        keys = self.server.command("KEYS", "topicsvc:stream:*").splitlines()
        names = {key.partition("{")[2].removesuffix("}") for key in keys}
        # A topic that was only subscribed has a channel and no stream.
        channels = self.server.command("PUBSUB", "CHANNELS", "topicsvc:*").splitlines()
        return succeed(
            sorted(names | {each.partition("{")[2].removesuffix("}") for each in channels})
        )
