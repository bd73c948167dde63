"""Whatever happens to Redis: a position is proved only if nothing behind it is missing."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.support.scripted_redis import ScriptedRedis
from topicsvc.brokers import reconnection
from topicsvc.brokers.redis.broker import RedisBroker
from topicsvc.brokers.redis.client import Session
from topicsvc.interfaces import Message, TopicLog
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
CHANNEL = b"t:channel:{cell1.box1.col.topic.name}"


class RedisMachine(RuleBasedStateMachine):
    """A broker that listens, others that send, and an operator who does harm.

    Attributes:
        accepted: all messages that Redis has ever confirmed.
        delivered: those that the listener got.
        positions: where clients are, how many messages were accepted before, and which messages
            were lost before.
        lost: the messages that a restart with a snapshot has lost.
        told: after how many delivered messages the listener was told of a gap.
        saved: entries and newest place of a snapshot. After a loss of the key there is none: a
            restored snapshot of an older generation would bring messages again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.server = ScriptedRedis(self.clock)
        self.broker = RedisBroker(
            self.server, self.clock, Session(), "t:", HistorySettings(60, 1000), False, Random(1)
        )
        self.accepted: list[bytes] = []
        self.delivered: list[bytes] = []
        self.positions: list[tuple[str, str, int, frozenset[bytes]]] = []
        self.lost: frozenset[bytes] = frozenset()
        self.told: list[int] = []
        self.epoch = ""
        self.generations = 0
        self.saved: tuple[list[tuple[bytes, list[bytes]]], tuple[bytes, bytes] | None] = [], None
        self.broker.startService()
        self.settle()
        self.broker.subscribe(TOPIC, self.on_message, None, self.on_missed)
        self.settle()
        log = self.recall()
        assert log is not None
        self.epoch = log.epoch
        self.positions.append((log.epoch, log.start[0], 0, frozenset()))

    def teardown(self) -> None:
        self.broker.stopService()
        self.settle(reconnection.STOP_TIMEOUT)

    def settle(self, seconds: float = 0) -> None:
        steps = min(40, round(seconds / 0.5))
        for _ in range(4):
            self.clock.advance(0)
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            self.clock.advance(0)

    def on_message(self, message: Message) -> None:
        assert message.mark is not None
        self.delivered.append(message.body)
        place = self.accepted.index(message.body) + 1
        self.positions.append((self.epoch, message.mark.id, place, self.lost))

    def on_missed(self, log: TopicLog | None) -> None:
        assert log is not None
        self.epoch = log.epoch
        self.told.append(len(self.delivered))

    def recall(self) -> TopicLog | None:
        """The log, or None if Redis is away."""
        results: list[TopicLog | Failure] = []
        recalled: Deferred[TopicLog] | None = self.broker.recall(TOPIC)
        assert recalled is not None
        recalled.addBoth(results.append)
        self.settle()
        [result] = results
        return None if isinstance(result, Failure) else result

    def add(self) -> bytes:
        self.generations += 1
        body = b"%d" % (len(self.accepted) + 1)
        payload = self.server.add(body, b"%d" % (10_000 + self.generations))
        self.accepted.append(body)
        return payload

    @property
    def is_connected(self) -> bool:
        return self.server.is_listening and bool(self.server.connected)

    # What happens.

    @rule(count=st.integers(1, 3))
    def another_process_sends(self, count: int) -> None:
        for _ in range(count):
            payload = self.add()
            if self.is_connected:
                self.server.connected[0].push(CHANNEL, payload)
            self.settle()

    @rule()
    def a_message_is_stored_and_not_published(self) -> None:
        self.add()

    @rule(seconds=st.sampled_from([1, 30, 100, 1300]))
    def time_passes(self, seconds: int) -> None:
        self.settle(seconds)

    @rule()
    def the_connection_is_lost(self) -> None:
        self.server.is_listening = False
        for peer in self.server.connected:
            peer.close()
        self.settle()

    @rule()
    def the_connection_is_back(self) -> None:
        self.server.is_listening = True
        self.settle(5)

    @rule(kept=st.integers(0, 3))
    def the_stream_is_trimmed(self, kept: int) -> None:
        del self.server.entries[: max(0, len(self.server.entries) - kept)]

    @rule(number=st.integers(0, 9))
    def an_entry_is_deleted(self, number: int) -> None:
        if number < len(self.server.entries):
            del self.server.entries[-1 - number]

    @rule()
    def the_key_is_evicted(self) -> None:
        self.server.newest = None
        self.saved = [], None

    @rule()
    def everything_is_flushed(self) -> None:
        self.server.lose_everything()
        self.saved = [], None

    @rule(seconds=st.sampled_from([1, 100]))
    def the_clock_of_redis_goes_back(self, seconds: int) -> None:
        self.server.offset -= seconds * 1000

    @rule()
    def a_snapshot_is_saved(self) -> None:
        self.saved = list(self.server.entries), self.server.newest

    @rule()
    def redis_restarts_with_the_snapshot(self) -> None:
        entries, self.server.newest = self.saved
        kept = [fields for _, fields in entries]
        self.lost |= {fields[3] for _, fields in self.server.entries if fields not in kept}
        self.server.entries[:] = entries
        self.generations += 1
        self.server.run_id = f"run{self.generations}"
        for peer in self.server.connected:
            peer.close()
        self.settle(5)

    # What must hold.

    @invariant()
    def each_position_leads_to_all_that_follows_or_is_void(self) -> None:
        log = self.recall()
        if log is None or (log.messages and log.messages[-1][0].body not in self.delivered):
            return
        places = [log.start[0], *(each.mark.id for each, _ in log.messages if each.mark)]
        assert len(set(places)) == len(places)
        bodies = [each.body for each, _ in log.messages]
        for epoch, id_, count, lost in self.positions:
            if epoch == log.epoch and id_ in places:
                # `on_missed` has reported these losses. The client got its position after that.
                following = [body for body in self.accepted[count:] if body not in lost]
                assert bodies[places.index(id_) :] == following, (id_, count)

    @invariant()
    def nothing_is_doubled_or_out_of_order_and_each_hole_was_told(self) -> None:
        numbers = [int(body) for body in self.delivered]
        assert numbers == sorted(set(numbers))
        for place, (number, following) in enumerate(pairwise(numbers), 1):
            assert following == number + 1 or place in self.told, (number, following)


class HonestyTests(SynchronousTestCase):
    def test_no_position_is_proved_wrongly_and_no_hole_is_silent(self) -> None:
        try:
            run_state_machine_as_test(
                RedisMachine,
                settings=settings(
                    max_examples=150,
                    stateful_step_count=25,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        except Exception as error:
            # The steps that fail. Trial prints no notes.
            steps = "\n".join(getattr(error, "__notes__", []))
            raise AssertionError(f"{error}\n{steps}") from error

    def test_a_position_does_not_lead_to_what_was_lost_before_it_was_given(self) -> None:
        """A restart while there was no connection has lost the newest message."""
        machine = RedisMachine()
        self.addCleanup(machine.teardown)
        machine.the_connection_is_lost()
        machine.a_message_is_stored_and_not_published()
        machine.a_snapshot_is_saved()
        machine.a_message_is_stored_and_not_published()
        machine.redis_restarts_with_the_snapshot()
        machine.the_connection_is_back()
        machine.each_position_leads_to_all_that_follows_or_is_void()
        self.assertEqual(machine.told, [0], "the subscriber knows that messages are missing")
        self.assertEqual(machine.delivered, [b"1"])
        machine.another_process_sends(1)
        machine.each_position_leads_to_all_that_follows_or_is_void()
        self.assertEqual(machine.delivered, [b"1", b"3"])
