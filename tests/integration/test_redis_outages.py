"""What is lost in outages of a real Redis, and what subscribers learn of it.

A position must not be proved if a message that Redis had accepted may be missing. So in each test,
each position from before the outage either leads to exactly the messages that were accepted behind
it, or is not provable.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Protocol
from twisted.logger import LogEvent, globalLogPublisher
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.trial.unittest import TestCase

from tests.integration.support.broker_cases import CELL, figure
from tests.integration.support.redis_server import Redis, Sentinel
from tests.support.processes import free_port, until
from tests.support.scripted_broker import log_lines
from topicsvc.brokers.factory import make_broker
from topicsvc.brokers.redis import client
from topicsvc.brokers.redis.broker import RedisBroker
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message, TopicLog
from topicsvc.settings import HistorySettings, Login, RedisSettings
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("outages",), "name")
STREAM = f"topicsvc:stream:{{{TOPIC.broker_name}}}"
NEWEST = f"topicsvc:newest:{{{TOPIC.broker_name}}}"

Position = tuple[str, str]
"""Epoch and id, as a client has them."""


class Link:
    """A TCP proxy in front of Redis, which can be cut and led to another server."""

    def __init__(self, port: int) -> None:
        self._connections: set[Protocol] = set()
        connections = self._connections

        class Server(ProxyServer):
            def connectionMade(self) -> None:
                super().connectionMade()
                connections.add(self)

            def connectionLost(self, reason: Any) -> None:
                connections.discard(self)
                super().connectionLost(reason)

        self._factory = ProxyFactory("127.0.0.1", port)
        self._factory.noisy = False
        self._factory.protocol = Server
        self._listening: IListeningPort | None = None
        self.port = free_port()  # one that no client takes while the proxy is cut
        self.restore()

    def restore(self) -> None:
        self._listening = reactor.listenTCP(self.port, self._factory, interface="127.0.0.1")

    def cut(self) -> Any:
        """Close all connections and accept no more; fires when this is done."""
        assert self._listening is not None
        stopped, self._listening = self._listening.stopListening(), None
        for each in tuple(self._connections):
            each.transport.abortConnection()
        return stopped

    def lead_to(self, port: int) -> None:
        """Lead new connections to another server."""
        self._factory.port = port

    def stop(self) -> Any:
        return self.cut() if self._listening is not None else None


class Listener:
    """A subscriber in the place of the hub, and a client that is there all the time.

    Attributes:
        bodies: what was delivered.
        position: where the client is.
        missed: how often it was told that messages may be missing.
    """

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker
        self.bodies: list[bytes] = []
        self.position: Position = ("", "")
        self.missed = 0

    @inlineCallbacks
    def start(self) -> Any:
        yield self._broker.subscribe(TOPIC, self._deliver, self._lost, self._missed)
        log = yield self._broker.recall(TOPIC)
        self.position = (log.epoch, places(log)[-1])

    def _deliver(self, message: Message) -> None:
        self.bodies.append(message.body)
        assert message.mark is not None
        self.position = (self.position[0], message.mark.id)

    def _missed(self, log: TopicLog | None) -> None:
        assert log is not None
        self.missed += 1
        self.position = (log.epoch, log.start[0])

    def _lost(self) -> None:
        raise AssertionError("the topic was refused")


def places(log: TopicLog) -> list[str]:
    """The ids of all places of a log, the last one at the end."""
    return [*log.start, *(message.mark.id for message, _ in log.messages if message.mark)]


def replay(log: TopicLog, position: Position) -> list[bytes] | None:
    """What a client gets that comes back with `position`; None: ``Missed`` is true."""
    epoch, id_ = position
    if epoch != log.epoch or id_ not in places(log):
        return None
    return [message.body for message, _ in log.messages][places(log).index(id_) :]


class OutageTestCase(TestCase):
    """Fixture: Redis, one broker that listens through a `Link`, and one that sends."""

    timeout = 300
    configuration = ""
    keeps_data = False
    login: Login | None = None
    probe_interval = 1.0

    @inlineCallbacks
    def setUp(self) -> Any:
        self.patch(client, "PROBE_INTERVAL", self.probe_interval)
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.server = Redis(self.configuration, self.keeps_data)
        self.addCleanup(self.server.remove)
        yield self.server.start()
        yield self.prepare()
        self.link = Link(self.server.port)
        self.addCleanup(self.link.stop)
        self.broker = yield self.connect(self.link.port)
        self.other = yield self.connect(self.server.port)
        self.accepted: list[bytes] = []
        self.positions: list[tuple[Position, int]] = []
        self.listener = Listener(self.broker)
        yield self.listener.start()
        self.keep_position()

    def prepare(self) -> Any:
        """Called after the start of Redis, before the brokers connect."""

    @inlineCallbacks
    def connect(self, port: int, **settings: Any) -> Any:
        settings = {"login": self.login, "history": HistorySettings(messages=100)} | settings
        broker = make_broker(RedisSettings("127.0.0.1", port, **settings), reactor, time.time)
        assert isinstance(broker, RedisBroker)
        broker.startService()
        self.addCleanup(broker.stopService)
        yield self.until_up(broker)
        return broker

    def until_up(self, broker: RedisBroker) -> Deferred[float]:
        return until(lambda: broker.is_up, "the broker is up", 30)

    def until_down(self, broker: RedisBroker) -> Deferred[float]:
        return until(lambda: not broker.is_up, "the loss is noticed", 30)

    @inlineCallbacks
    def send(self, count: int, broker: RedisBroker | None = None) -> Any:
        """Send messages, one after another; fires with the number of those that were accepted."""
        accepted = 0
        for _ in range(count):
            body = b"%d" % (len(self.accepted) + 1)
            try:
                yield (broker or self.other).publish(Message(TOPIC, CELL, body))
            except BrokerUnavailable:
                continue
            accepted += 1
            self.accepted.append(body)
        return accepted

    def keep_position(self) -> None:
        """Keep the listener's position, and how many messages were accepted before it."""
        self.positions.append((self.listener.position, len(self.accepted)))

    @inlineCallbacks
    def send_and_read(self, count: int) -> Any:
        """Send messages that the listener gets, and keep its position behind each of them."""
        for _ in range(count):
            read = len(self.listener.bodies)
            self.assertEqual((yield self.send(1)), 1)
            yield until(
                lambda read=read: len(self.listener.bodies) > read, "the message is delivered"
            )
            self.keep_position()

    @inlineCallbacks
    def assert_honest(self, lost: int, missed: int, provable: int | None = None) -> Any:
        """Check what was lost in an outage, and what clients learn.

        Args:
            lost: accepted messages that were not delivered.
            missed: how often a client was told that messages may be missing.
            provable: positions from before the outage that are provable.
        """
        before = len(self.positions)
        yield self.send_and_read(2)
        gone = [body for body in self.accepted if body not in self.listener.bodies]
        self.assertEqual(len(gone), lost, gone)
        self.assertEqual(self.listener.bodies, [each for each in self.accepted if each not in gone])
        self.assertEqual(self.listener.missed, missed)
        self.assertEqual(self.broker.losses.gaps, missed)
        newcomer = yield self.connect(self.server.port)
        yield Listener(newcomer).start()
        for broker in (self.broker, newcomer):
            log = yield broker.recall(TOPIC)
            found = 0
            for number, (position, count) in enumerate(self.positions):
                replayed = replay(log, position)
                if replayed is not None:
                    found += number < before
                    self.assertEqual(replayed, self.accepted[count:])
            if provable is not None:
                self.assertEqual(found, provable)
            self.assertIsNotNone(replay(log, self.listener.position))
        figure(f"{self.id().rsplit('.', 1)[1]}: lost", lost, f"and told {missed} times")

    def assert_log(self, word: str, lines: int = 1) -> None:
        self.assertEqual(len(log_lines(self.events, word)), lines, word)


class ConnectionTests(OutageTestCase):
    """The listener loses its connection, and others send meanwhile."""

    @inlineCallbacks
    def test_nothing_is_lost_while_the_stream_reaches(self) -> Any:
        yield self.send_and_read(3)
        yield self.link.cut()
        yield self.until_down(self.broker)
        yield self.send(50)
        self.link.restore()
        yield self.until_up(self.broker)
        yield self.assert_honest(lost=0, missed=0, provable=4)
        self.assert_log("0 of them may have missed messages")

    @inlineCallbacks
    def test_a_stream_that_does_not_reach_is_a_gap(self) -> Any:
        """The stream keeps 100 messages, and 120 were sent."""
        yield self.send_and_read(3)
        yield self.link.cut()
        yield self.until_down(self.broker)
        yield self.send(120)
        self.link.restore()
        yield self.until_up(self.broker)
        yield self.assert_honest(lost=20, missed=1, provable=0)
        self.assert_log("Redis no longer has all messages behind")
        self.assert_log("1 of them may have missed messages")

    @inlineCallbacks
    def test_a_stream_that_was_trimmed_is_a_gap(self) -> Any:
        yield self.send_and_read(3)
        yield self.link.cut()
        yield self.until_down(self.broker)
        yield self.send(5)
        self.server.command("XTRIM", STREAM, "MAXLEN", "2")
        self.link.restore()
        yield self.until_up(self.broker)
        yield self.assert_honest(lost=3, missed=1, provable=0)

    @inlineCallbacks
    def test_everything_was_flushed_is_a_gap(self) -> Any:
        yield self.send_and_read(3)
        yield self.link.cut()
        yield self.until_down(self.broker)
        yield self.send(5)
        self.server.command("FLUSHALL")
        yield self.send(2)
        self.link.restore()
        yield self.until_up(self.broker)
        yield self.assert_honest(lost=5, missed=1, provable=0)

    @inlineCallbacks
    def test_an_empty_topic_has_no_gap(self) -> Any:
        yield self.link.cut()
        yield self.until_down(self.broker)
        self.link.restore()
        yield self.until_up(self.broker)
        yield self.assert_honest(lost=0, missed=0, provable=1)


class ManyTopicsTests(OutageTestCase):
    """The streams of all topics together have far more than Redis buffers for the reader."""

    probe_interval = 2.5  # a loaded machine must not add a reconnect
    TOPICS = 200
    MESSAGES = 10
    BODY = 50_000

    @inlineCallbacks
    def test_all_topics_are_read_again_by_one_connection(self) -> Any:
        """100 MB are kept, and Redis closes a reader for which 32 MiB wait."""
        limit = self.server.command("CONFIG", "GET", "client-output-buffer-limit")
        self.assertIn(f"pubsub {32 << 20} {8 << 20} 60", limit)
        topics = [
            TopicAddress("cell1", "box1", ("outages",), f"t{number}")
            for number in range(self.TOPICS)
        ]
        received: dict[TopicAddress, list[bytes]] = {topic: [] for topic in topics}
        missed: list[TopicLog | None] = []

        def deliver(message: Message) -> None:
            received[message.topic].append(message.body[:3])

        yield gatherResults(
            [self.broker.subscribe(topic, deliver, missed=missed.append) for topic in topics]
        )
        before = self.broker.losses.reconnects
        yield self.link.cut()
        yield self.until_down(self.broker)
        for number in range(self.MESSAGES):
            body = b'"%02d%s"' % (number, b"x" * self.BODY)
            yield gatherResults(
                [self.other.publish(Message(topic, CELL, body)) for topic in topics]
            )
        began = time.monotonic()
        self.link.restore()
        yield self.until_up(self.broker)
        seconds = time.monotonic() - began
        expected = [b'"%02d' % number for number in range(self.MESSAGES)]
        self.assertEqual([topic for topic in topics if received[topic] != expected], [])
        self.assertEqual((missed, self.broker.losses.gaps), ([], 0))
        # The reader and the sender, once each.
        self.assertEqual(self.broker.losses.reconnects - before, 2)
        self.assert_log("client-output-buffer-limit", 0)
        figure(f"{self.TOPICS} topics with 500 kB each are read again", seconds)
        logs = yield gatherResults([self.broker.recall(topic) for topic in topics])
        self.assertEqual([len(log.messages) for log in logs], [self.MESSAGES] * self.TOPICS)
        self.assertEqual(self.broker.losses.reconnects - before, 2)


class ConnectedTests(OutageTestCase):
    """Something happens to the data of Redis, and all connections stay."""

    @inlineCallbacks
    def test_a_trimmed_stream_loses_nothing(self) -> Any:
        yield self.send_and_read(3)
        self.server.command("XTRIM", STREAM, "MAXLEN", "1")
        yield self.assert_honest(lost=0, missed=0, provable=2)

    @inlineCallbacks
    def test_a_deleted_stream_loses_nothing(self) -> Any:
        """As when it has ended: the key with the newest place is left."""
        yield self.send_and_read(3)
        self.server.command("DEL", STREAM)
        yield self.assert_honest(lost=0, missed=0, provable=1)

    @inlineCallbacks
    def test_after_flushall_all_positions_are_void(self) -> Any:
        yield self.send_and_read(3)
        self.server.command("FLUSHALL")
        yield self.assert_honest(lost=0, missed=1, provable=0)
        self.assert_log("Redis no longer has all messages behind")

    @inlineCallbacks
    def test_an_evicted_key_voids_all_positions(self) -> Any:
        yield self.send_and_read(3)
        self.server.command("DEL", NEWEST)
        yield self.assert_honest(lost=0, missed=1, provable=0)

    @inlineCallbacks
    def test_flushed_scripts_change_nothing(self) -> Any:
        yield self.send_and_read(3)
        self.server.command("SCRIPT", "FLUSH")
        yield self.assert_honest(lost=0, missed=0, provable=4)

    @inlineCallbacks
    def test_a_deleted_entry_is_never_skipped(self) -> Any:
        yield self.send_and_read(3)
        position, _ = self.positions[2]
        self.server.command("XDEL", STREAM, position[1])
        yield self.assert_honest(lost=0, missed=0, provable=2)

    @inlineCallbacks
    def test_redis_was_the_replica_of_another_one_for_a_moment(self) -> Any:
        """Its data were replaced, and the process and its connections stayed."""
        yield self.send_and_read(3)
        other = Redis("repl-diskless-sync-delay 0")
        self.addCleanup(other.remove)
        yield other.start()
        self.server.command("REPLICAOF", "127.0.0.1", str(other.port))
        yield until(lambda: "link_status:up" in self.server.command("INFO"), "it is a replica")
        self.server.command("REPLICAOF", "NO", "ONE")
        # Each of the two brokers finds out by a probe of its own.
        for broker in (self.broker, self.other):
            yield until(lambda each=broker: each.losses.reconnects, "the change is noticed")
        yield self.until_up(self.broker)
        yield self.until_up(self.other)
        yield self.assert_honest(lost=0, missed=1, provable=0)
        self.assert_log("Redis was restarted or replaced", 2)


class FullMemoryTests(OutageTestCase):
    """``maxmemory`` with ``noeviction``."""

    configuration = "maxmemory-policy noeviction"

    @inlineCallbacks
    def test_sends_are_refused_and_nothing_else(self) -> Any:
        yield self.send_and_read(3)
        self.server.command("CONFIG", "SET", "maxmemory", "1")
        self.assertEqual((yield self.send(3)), 0)
        self.assert_log("OOM command not allowed")
        log = yield self.broker.recall(TOPIC)
        self.assertEqual(replay(log, self.positions[0][0]), self.accepted)
        # The listener can come back, and others can join a topic that has no key yet.
        yield self.link.cut()
        yield self.until_down(self.broker)
        self.link.restore()
        yield self.until_up(self.broker)
        new = TopicAddress("cell1", "box1", ("outages",), "new")
        yield self.broker.subscribe(new, lambda _: None)
        empty = yield self.broker.recall(new)
        self.assertEqual(empty.messages, ())
        self.server.command("CONFIG", "SET", "maxmemory", "0")
        yield self.assert_honest(lost=0, missed=0, provable=4)


class PasswordTests(OutageTestCase):
    configuration = "requirepass one"
    login = Login("default", "one")

    @inlineCallbacks
    def test_a_password_that_changes_while_connected(self) -> Any:
        """Connections stay; a new one is refused until the old password is valid again."""
        yield self.send_and_read(3)
        self.server.command("-a", "one", "CONFIG", "SET", "requirepass", "two")
        yield self.send_and_read(2)
        yield self.link.cut()
        yield self.until_down(self.broker)
        self.link.restore()
        yield until(lambda: "WRONGPASS" in self.broker.last_error, "it is refused")
        self.assertEqual((yield self.send(5)), 5)
        self.assertFalse(self.broker.is_up)
        self.server.command("-a", "two", "CONFIG", "SET", "requirepass", "one")
        yield self.until_up(self.broker)
        yield self.assert_honest(lost=0, missed=0, provable=6)
        # One line for each of the two connections, unless the sender was not tried meanwhile.
        self.assertIn(len(log_lines(self.events, "WRONGPASS")), (1, 2))
        self.assertEqual(log_lines(self.events, "two"), [])


class FrozenTests(OutageTestCase):
    probe_interval = 0.5  # a loaded machine may not run Redis for a second

    @inlineCallbacks
    def test_a_frozen_redis_loses_nothing(self) -> Any:
        yield self.send_and_read(3)
        self.server.program.pause()
        yield self.until_down(self.broker)
        yield self.until_down(self.other)
        self.server.program.resume()
        yield self.until_up(self.broker)
        yield self.until_up(self.other)
        yield self.assert_honest(lost=0, missed=0, provable=4)
        self.assertTrue(log_lines(self.events, "it does not respond"))


class RestartCases:
    """Redis is killed while the listener does not read, and started again."""

    keeps_data = False

    @inlineCallbacks
    def restart(self) -> Any:
        yield self.send_and_read(3)
        yield self.link.cut()
        yield self.until_down(self.broker)
        self.assertEqual((yield self.send(4)), 4)
        self.server.program.kill()
        yield self.until_down(self.other)
        yield self.server.start()
        self.link.restore()
        yield self.until_up(self.other)
        yield self.until_up(self.broker)


class RestartTests(RestartCases, OutageTestCase):
    @inlineCallbacks
    def test_without_a_file_messages_are_lost_and_it_is_told(self) -> Any:
        yield self.restart()
        yield self.assert_honest(lost=4, missed=1, provable=0)
        self.assert_log("Redis was restarted or replaced", 2)


class RestartWithFileTests(RestartCases, OutageTestCase):
    keeps_data = True

    @inlineCallbacks
    def test_with_a_file_nothing_is_lost_but_this_is_not_provable(self) -> Any:
        yield self.restart()
        yield self.assert_honest(lost=0, missed=1, provable=0)


class RestartWithSnapshotTests(RestartCases, OutageTestCase):
    """The snapshot is older than what Redis has confirmed."""

    @inlineCallbacks
    def test_with_an_old_snapshot_messages_are_lost_and_it_is_told(self) -> Any:
        yield self.send_and_read(2)
        self.server.command("SAVE")
        yield self.restart()
        self.assertEqual(self.server.command("XLEN", STREAM), "2")
        yield self.assert_honest(lost=4, missed=1, provable=0)


class FailoverTests(OutageTestCase):
    """A replica becomes the primary. It may lack messages that the old one has confirmed."""

    @inlineCallbacks
    def prepare(self) -> Any:
        self.replication = Link(self.server.port)
        self.addCleanup(self.replication.stop)
        self.replica = Redis(f"replicaof 127.0.0.1 {self.replication.port}")
        self.addCleanup(self.replica.remove)
        self.server.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        yield self.replica.start()
        yield until(lambda: "link_status:up" in self.replica.command("INFO"), "it follows", 60)

    def until_replicated(self, count: int) -> Any:
        """Fires when the replica has so many messages."""
        return until(
            lambda: self.replica.command("XLEN", STREAM) == str(count), "the replica has them"
        )

    @inlineCallbacks
    def use_replica(self) -> Any:
        """Lead the listener and the sender to the new primary."""
        self.link.lead_to(self.replica.port)
        self.server = self.replica
        self.other = yield self.connect(self.replica.port)
        yield self.until_up(self.broker)

    @inlineCallbacks
    def test_a_promoted_replica_has_lost_messages_and_it_is_told(self) -> Any:
        yield self.send_and_read(3)
        yield self.until_replicated(3)
        yield self.replication.cut()
        yield self.send_and_read(2)
        yield self.link.cut()
        yield self.until_down(self.broker)
        self.assertEqual((yield self.send(4)), 4)
        self.server.program.kill()
        self.replica.command("REPLICAOF", "NO", "ONE")
        self.link.restore()
        yield self.use_replica()
        yield self.assert_honest(lost=4, missed=1, provable=0)
        self.assert_log("Redis was restarted or replaced")

    @inlineCallbacks
    def test_a_failover_by_sentinel(self) -> Any:
        """Behind a name that leads to the primary, as Sentinel names it."""
        sentinel = Sentinel(self.server.port)
        self.addCleanup(sentinel.remove)
        yield sentinel.start()
        yield until(lambda: sentinel.replicas == 1, "Sentinel knows the replica", 30)
        yield self.send_and_read(3)
        yield self.until_replicated(3)
        self.server.program.kill()
        yield until(lambda: sentinel.primary == self.replica.port, "it is promoted", 120)
        yield self.use_replica()
        yield self.assert_honest(lost=0, missed=1, provable=0)

    @inlineCallbacks
    def test_a_replica_is_not_used(self) -> Any:
        yield self.send_and_read(3)
        yield self.link.cut()
        yield self.until_down(self.broker)
        self.link.lead_to(self.replica.port)
        self.link.restore()
        yield until(lambda: self.broker.last_error == "it is a replica", "it is refused")
        self.assertEqual((yield self.send(4)), 4)
        yield self.link.cut()
        self.link.lead_to(self.server.port)
        self.link.restore()
        yield self.until_up(self.broker)
        yield self.assert_honest(lost=0, missed=0, provable=4)
