"""`Hub`: subscriptions, membership, delivery and pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeBroker
from topicsvc.delivery import channel
from topicsvc.delivery import hub as module
from topicsvc.delivery.channel import MAX_JOINED
from topicsvc.delivery.hub import (
    MAX_DELIVERIES_PER_ITERATION,
    NOTIFY_PER_ITERATION,
    TOPIC_QUANTUM,
    Hub,
)
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Member, Message
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
OTHER = TopicAddress("cell1", "box1", ("col",), "other")


class Listener:
    """A member that records its messages."""

    def __init__(self, fails: bool = False) -> None:
        self.taken: list[tuple[bytes, int]] = []
        self.fails = fails

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        self.taken.append((frames, count))
        if self.fails:
            raise RuntimeError("injected by the test")

    def broker_lost(self) -> None:
        self.taken.append((b"lost", 0))

    @property
    def frames(self) -> bytes:
        return b"".join(frames for frames, _ in self.taken)


class SlowMember:
    """A member that counts its messages, and takes some time for each."""

    def __init__(self, takes: Callable[[], None] = lambda: None) -> None:
        self.takes = takes
        self.count = 0

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        self.takes()
        self.count += count

    def broker_lost(self) -> None:
        raise AssertionError("nothing is lost here")


class HubTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = FakeBroker()
        self.encoded: list[Message] = []
        self.hub = Hub(self.broker, self.clock, self.clock.seconds, self.encode)

    def encode(self, message: Message) -> bytes:
        self.encoded.append(message)
        return b"<%s>" % message.body

    def join(self, topic: TopicAddress = TOPIC, fails: bool = False) -> Listener:
        listener = Listener(fails)
        joining = self.hub.join(topic, listener)
        if not joining.called:
            self.broker.confirm()
        self.successResultOf(joining)
        return listener

    def join_all(self, members: Iterable[Member]) -> None:
        for member in members:
            self.hub.join(TOPIC, member)
        self.broker.confirm()
        while self.clock.getDelayedCalls():
            self.iterate()

    def publish(self, body: bytes, topic: TopicAddress = TOPIC) -> None:
        self.broker.deliver(Message(topic, None, body))

    def iterate(self) -> None:
        """One reactor iteration: a call that it schedules runs in the next one."""
        for call in tuple(self.clock.getDelayedCalls()):
            self.clock.calls.remove(call)
            call.called = True
            call.func(*call.args, **call.kw)


class MembershipTests(HubTestCase):
    def test_members_that_join_after_the_confirmation_do_not_wait(self) -> None:
        first = self.hub.join(TOPIC, Listener())
        second = self.hub.join(TOPIC, Listener())
        self.assertNoResult(first)
        self.assertNoResult(second)
        self.broker.confirm()
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(self.hub.join(TOPIC, Listener()))
        self.assertEqual(len(self.broker.subscriptions), 1)

    def test_a_member_joins_at_once_only_if_the_broker_has_confirmed(self) -> None:
        listener = Listener()
        self.assertFalse(self.hub.join_now(TOPIC, listener))
        self.hub.join(TOPIC, Listener())
        self.assertFalse(self.hub.join_now(TOPIC, listener))
        self.broker.confirm()
        self.broker.is_down = True
        self.assertFalse(self.hub.join_now(TOPIC, listener))
        self.broker.is_down = False
        self.assertTrue(self.hub.join_now(TOPIC, listener))
        self.publish(b"1")
        self.iterate()
        self.assertIn(b"1", listener.frames)

    def test_a_failed_subscription_fails_all_joins(self) -> None:
        joins = [self.hub.join(TOPIC, Listener()) for _ in range(3)]
        self.broker.reject()
        for joining in joins:
            self.failureResultOf(joining, BrokerUnavailable)
        self.assertEqual(self.hub.topics, 0)
        self.join()

    def test_an_exception_of_the_broker_fails_the_join(self) -> None:
        self.patch(self.broker, "subscribe", lambda *_: 1 // 0)
        self.failureResultOf(self.hub.join(TOPIC, Listener()), ZeroDivisionError)

    def test_the_last_member_that_leaves_ends_the_subscription(self) -> None:
        one, two = self.join(), self.join()
        self.hub.leave(TOPIC, one)
        self.assertEqual(len(self.broker.active), 1)
        self.hub.leave(TOPIC, two)
        self.hub.leave(TOPIC, two)
        self.assertEqual((self.broker.active, self.hub.topics), ([], 0))
        self.assertEqual(self.broker.subscriptions[0].stops, 1)

    def test_a_topic_can_be_joined_again(self) -> None:
        self.hub.leave(TOPIC, self.join())
        again = self.join()
        self.publish(b"1")
        self.iterate()
        self.assertEqual(again.frames, b"<1>")

    def test_a_wish_withdrawn_before_the_confirmation_leaves_nothing(self) -> None:
        joining = self.hub.join(TOPIC, Listener())
        joining.cancel()
        self.failureResultOf(joining, CancelledError)
        self.broker.confirm()
        self.assertEqual((self.broker.active, self.hub.topics), ([], 0))

    def test_cancelling_one_join_does_not_affect_the_others(self) -> None:
        withdrawn, kept = self.hub.join(TOPIC, Listener()), self.hub.join(TOPIC, Listener())
        withdrawn.cancel()
        self.failureResultOf(withdrawn, CancelledError)
        self.broker.confirm()
        self.successResultOf(kept)

    def test_many_joins_complete_over_several_iterations(self) -> None:
        listeners = [Listener() for _ in range(2 * NOTIFY_PER_ITERATION + 10)]
        joins = [self.hub.join(TOPIC, listener) for listener in listeners]
        self.broker.confirm()
        completed = []
        for _ in range(4):
            completed.append(sum(joining.called for joining in joins))
            self.publish(b"%d" % len(completed))
            self.iterate()
        self.assertEqual(
            completed,
            [
                NOTIFY_PER_ITERATION,
                2 * NOTIFY_PER_ITERATION,
                2 * NOTIFY_PER_ITERATION + 10,
                2 * NOTIFY_PER_ITERATION + 10,
            ],
        )
        self.assertEqual(listeners[0].frames, b"<1><2><3><4>")
        self.assertEqual(listeners[NOTIFY_PER_ITERATION].frames, b"<1><2><3><4>")
        self.assertEqual(listeners[-1].frames, b"<2><3><4>")
        for listener in listeners:
            self.hub.leave(TOPIC, listener)
        self.assertEqual(self.hub.topics, 0)

    def test_confirmations_of_one_iteration_share_its_limit(self) -> None:
        self.broker.confirms_at_once = True
        topics = [
            TopicAddress("cell1", "box1", ("col",), f"t{n}")
            for n in range(2 * NOTIFY_PER_ITERATION + 10)
        ]
        joins = [self.hub.join(topic, Listener()) for topic in topics]
        completed = []
        for _ in range(3):
            completed.append(sum(joining.called for joining in joins))
            self.iterate()
        self.assertEqual(
            completed,
            [NOTIFY_PER_ITERATION, 2 * NOTIFY_PER_ITERATION, 2 * NOTIFY_PER_ITERATION + 10],
        )

    def test_many_joins_fail_over_several_iterations(self) -> None:
        joins = [self.hub.join(TOPIC, Listener()) for _ in range(NOTIFY_PER_ITERATION + 1)]
        withdrawn = joins.pop()
        self.broker.reject(BrokerUnavailable("not today"))
        withdrawn.cancel()
        self.failureResultOf(withdrawn, CancelledError)
        self.assertEqual(sum(joining.called for joining in joins), NOTIFY_PER_ITERATION)
        self.iterate()
        for joining in joins:
            self.failureResultOf(joining, BrokerUnavailable)

    def test_a_subscription_lost_before_all_joins_completed(self) -> None:
        listeners = [Listener() for _ in range(NOTIFY_PER_ITERATION + 1)]
        joins = [self.hub.join(TOPIC, listener) for listener in listeners]
        self.broker.confirm()
        self.broker.lose_subscriptions()
        self.iterate()
        for joining in joins[:-1]:
            self.successResultOf(joining)
        self.iterate()
        self.assertEqual([each.frames for each in listeners[:-1]], [b"lost"] * NOTIFY_PER_ITERATION)
        self.failureResultOf(joins[-1], BrokerUnavailable)
        self.assertEqual((self.hub.topics, self.broker.active), (0, []))

    def test_no_join_completes_while_the_broker_is_down(self) -> None:
        joins = [self.hub.join(TOPIC, Listener()) for _ in range(NOTIFY_PER_ITERATION + 1)]
        self.broker.confirm()
        self.broker.is_down = True  # and keeps all its subscriptions
        self.iterate()
        self.failureResultOf(joins[-1], BrokerUnavailable)
        self.assertEqual(self.hub.topics, 1)

    def test_a_subscription_ends_when_the_last_joins_are_cancelled(self) -> None:
        listeners = [Listener() for _ in range(NOTIFY_PER_ITERATION + 1)]
        joins = [self.hub.join(TOPIC, listener) for listener in listeners]
        self.broker.confirm()
        for listener in listeners[:-1]:
            self.hub.leave(TOPIC, listener)
        joins[-1].cancel()
        self.failureResultOf(joins[-1], CancelledError)
        self.iterate()
        self.assertEqual((self.hub.topics, self.broker.active), (0, []))

    def test_a_member_may_leave_when_its_join_completes(self) -> None:
        listener = Listener()
        joining = self.hub.join(TOPIC, listener)
        joining.addCallback(lambda _: self.hub.leave(TOPIC, listener))
        self.broker.confirm()
        self.assertEqual((self.broker.active, self.hub.topics), ([], 0))

    def test_a_subscription_that_cannot_be_ended_is_logged(self) -> None:
        listener = self.join()
        broken: Deferred[None] = Deferred()
        self.patch(self.broker.subscriptions[0], "stop", lambda: broken)
        self.hub.leave(TOPIC, listener)
        broken.errback(RuntimeError("injected by the test"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class DeliveryTests(HubTestCase):
    def test_messages_of_one_iteration_are_encoded_and_joined_once(self) -> None:
        listeners = [self.join() for _ in range(3)]
        for body in (b"1", b"2", b"3"):
            self.publish(body)
        self.assertEqual([listener.taken for listener in listeners], [[]] * 3)
        self.iterate()
        self.assertEqual([listener.taken for listener in listeners], [[(b"<1><2><3>", 3)]] * 3)
        self.assertIs(listeners[0].taken[0][0], listeners[1].taken[0][0])
        self.assertEqual(len(self.encoded), 3)

    def test_fan_out_time_is_from_the_first_message_to_the_last_member(self) -> None:
        # The last of them ends a quantum, and the next iteration ends the batch.
        for _ in range(TOPIC_QUANTUM):
            self.join()
        self.publish(b"1")
        self.clock.rightNow += 0.25
        self.publish(b"2")
        self.clock.rightNow += 0.25
        self.iterate()
        self.iterate()
        self.assertEqual((self.hub.fan_out.sum, sum(self.hub.fan_out.counts)), (0.5, 1))
        self.clock.rightNow += 5
        self.publish(b"3")
        self.iterate()
        self.iterate()
        self.assertEqual((self.hub.fan_out.sum, sum(self.hub.fan_out.counts)), (0.5, 2))
        self.assertEqual(self.hub.messages, 3)

    def test_fan_out_time_includes_the_wait_for_an_earlier_batch(self) -> None:
        for _ in range(MAX_DELIVERIES_PER_ITERATION + 1):
            self.join()
        self.publish(b"1")
        self.iterate()
        self.clock.rightNow += 1
        self.publish(b"2")
        self.clock.rightNow += 2
        for _ in range(3):
            self.iterate()
        self.assertEqual((self.hub.fan_out.sum, sum(self.hub.fan_out.counts)), (3 + 2, 2))

    def test_a_message_without_members_is_not_encoded(self) -> None:
        listener = self.join()
        self.iterate()
        self.hub.leave(TOPIC, listener)
        self.broker.subscriptions[0].deliver(Message(TOPIC, None, b"1"))
        self.assertEqual((self.encoded, self.clock.getDelayedCalls()), ([], []))

    def test_a_member_that_fails_does_not_stop_the_others(self) -> None:
        good, bad, also_good = self.join(), self.join(fails=True), self.join()
        self.publish(b"1")
        self.iterate()
        self.assertEqual([each.frames for each in (good, bad, also_good)], [b"<1>"] * 3)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_only_a_message_that_cannot_be_encoded_is_dropped(self) -> None:
        listener = self.join()
        self.hub._encode = lambda message: b"<%d>" % (1 // int(message.body))
        for body in (b"1", b"0", b"1"):
            self.publish(body)
        self.iterate()
        self.assertEqual(listener.frames, b"<1><1>")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_many_deliveries_are_spread_over_iterations(self) -> None:
        listeners = [self.join() for _ in range(2 * MAX_DELIVERIES_PER_ITERATION + 10)]
        self.publish(b"1")
        reached = []
        for _ in range(4):
            self.iterate()
            reached.append(sum(bool(listener.taken) for listener in listeners))
        self.assertEqual(
            reached,
            [
                MAX_DELIVERIES_PER_ITERATION,
                2 * MAX_DELIVERIES_PER_ITERATION,
                2 * MAX_DELIVERIES_PER_ITERATION + 10,
                2 * MAX_DELIVERIES_PER_ITERATION + 10,
            ],
        )

    def test_an_iteration_with_long_messages_ends_in_time(self) -> None:
        """The longest message to 10,000 members, where each delivery takes as long as slow TLS."""
        members = [SlowMember() for _ in range(10_000)]
        self.join_all(members)
        for size, takes in ((1048576, 0.005), (MAX_JOINED - 2, 0.0015), (160, 0.00003)):
            for member in members:
                member.takes = partial(self.clock.advance, takes)
            self.publish(b"x" * size)
            longest = 0.0
            while not self.hub.is_idle:
                before = self.clock.seconds()
                self.iterate()
                longest = max(longest, self.clock.seconds() - before)
            self.assertTrue(0.01 <= longest <= 0.02, (size, longest))
        self.assertEqual({member.count for member in members}, {3})

    def test_a_topic_with_long_messages_does_not_delay_another(self) -> None:
        slow = [SlowMember(partial(self.clock.advance, 0.005)) for _ in range(TOPIC_QUANTUM)]
        self.join_all(slow)
        quick = self.join(OTHER)
        self.publish(b"x" * 1048576)
        self.publish(b"1", OTHER)
        self.iterate()
        self.iterate()
        self.assertEqual(quick.frames, b"<1>")
        self.assertLess(sum(member.count for member in slow), 10)

    def test_messages_that_arrive_during_a_batch_follow_in_order(self) -> None:
        listeners = [self.join() for _ in range(MAX_DELIVERIES_PER_ITERATION + 10)]
        self.publish(b"1")
        self.iterate()
        self.publish(b"2")
        self.publish(b"3")
        for _ in range(3):
            self.iterate()
        self.assertEqual({listener.frames for listener in listeners}, {b"<1><2><3>"})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_member_that_joins_during_a_batch_gets_the_next_one(self) -> None:
        for _ in range(MAX_DELIVERIES_PER_ITERATION + 10):
            self.join()
        self.publish(b"1")
        self.iterate()
        late = self.join()
        self.publish(b"2")
        for _ in range(3):
            self.iterate()
        self.assertEqual(late.frames, b"<2>")

    def test_a_big_topic_does_not_delay_a_small_one(self) -> None:
        big = [self.join() for _ in range(3 * MAX_DELIVERIES_PER_ITERATION)]
        small = self.join(OTHER)
        self.publish(b"1")
        self.publish(b"2", OTHER)
        self.iterate()
        self.assertEqual(small.frames, b"<2>")
        self.assertEqual(
            sum(bool(listener.taken) for listener in big), MAX_DELIVERIES_PER_ITERATION - 1
        )
        self.assertLess(TOPIC_QUANTUM, MAX_DELIVERIES_PER_ITERATION)

    def test_the_joined_bytes_are_limited(self) -> None:
        listener = self.join()
        for _ in range(3):
            self.publish(b"x" * (MAX_JOINED // 2))
        while self.clock.getDelayedCalls():
            self.iterate()
        self.assertEqual([count for _, count in listener.taken], [1, 1, 1])

    def test_a_message_longer_than_that_is_delivered(self) -> None:
        listener = self.join()
        self.publish(b"x" * (2 * MAX_JOINED))
        self.iterate()
        self.assertEqual(len(listener.frames), 2 * MAX_JOINED + 2)


class BackpressureTests(HubTestCase):
    """More messages than can be delivered; the marks are 30 and 12 bytes."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(module, "HIGH_WATER", 30)
        self.patch(module, "LOW_WATER", 12)
        self.patch(channel, "MAX_JOINED", 10)

    def publish_many(self, count: int, topic: TopicAddress = TOPIC) -> bytes:
        """Publish messages of ten bytes; return all bytes that a member gets."""
        for number in range(count):
            self.publish(b"%08d" % number, topic)
        return b"".join(b"<%08d>" % number for number in range(count))

    def test_the_broker_is_paused_and_resumed_at_the_marks(self) -> None:
        self.join()
        self.publish_many(3)
        self.assertEqual((self.hub.queued, self.hub.is_full), (30, False))
        self.assertFalse(self.broker.is_paused)
        self.publish(b"x" * 8)
        self.patch(module, "MAX_DELIVERIES_PER_ITERATION", 1)
        seen = []
        for _ in range(4):
            seen.append((self.hub.queued, self.hub.is_full, self.broker.is_paused))
            self.iterate()  # delivers
            self.iterate()  # finds that this was the last member
        self.assertEqual(
            seen,
            [(40, True, True), (30, True, True), (20, True, True), (10, False, False)],
        )
        self.assertEqual(self.hub.queued, 0)

    def test_the_bytes_of_all_topics_count_together(self) -> None:
        for topic in (TOPIC, OTHER):
            self.join(topic)
            self.publish_many(2, topic)
        self.assertTrue(self.hub.is_full)
        self.iterate()
        self.assertEqual((self.hub.queued, self.hub.is_full), (0, False))

    def test_a_batch_counts_until_its_last_delivery(self) -> None:
        for _ in range(MAX_DELIVERIES_PER_ITERATION + 1):
            self.join()
        self.publish(b"x" * 40)
        self.iterate()
        self.assertTrue(self.hub.is_full)
        self.iterate()
        self.assertFalse(self.hub.is_full)

    def test_nothing_is_lost_and_the_order_is_kept(self) -> None:
        listener = self.join()
        expected = self.publish_many(100)
        self.assertEqual(len(self.broker.waiting), 96)
        while self.clock.getDelayedCalls():
            self.iterate()
        self.assertEqual(listener.frames, expected)
        self.assertEqual((self.hub.queued, self.hub.is_full), (0, False))

    def test_messages_of_a_broker_that_cannot_pause_are_delivered(self) -> None:
        listener = self.join()
        self.patch(self.broker, "pause", lambda: None)
        expected = self.publish_many(100)
        while self.clock.getDelayedCalls():
            self.iterate()
        self.assertEqual(listener.frames, expected)
        self.assertFalse(self.hub.is_full)

    def test_a_message_longer_than_the_high_mark_is_delivered(self) -> None:
        listener = self.join()
        self.publish(b"x" * 1000)
        self.assertTrue(self.hub.is_full)
        self.iterate()
        self.assertEqual((len(listener.frames), self.hub.is_full), (1002, False))

    def test_the_queues_of_topics_without_members_are_emptied(self) -> None:
        listener = self.join()
        self.publish_many(10)
        self.hub.leave(TOPIC, listener)
        while self.clock.getDelayedCalls():
            self.iterate()
        self.assertEqual((self.hub.queued, self.hub.is_full), (0, False))
        self.assertFalse(self.broker.is_paused)
