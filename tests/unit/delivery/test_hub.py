"""From one subscription a topic to all its members."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeBroker
from topicsvc.delivery import hub as module
from topicsvc.delivery.hub import (
    MAX_DELIVERIES_PER_ITERATION,
    MAX_JOINED,
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
    """A member that remembers."""

    def __init__(self, fails: bool = False) -> None:
        self.taken: list[tuple[bytes, int]] = []
        self.fails = fails

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        self.taken.append((frames, count))
        if self.fails:
            raise RuntimeError("said the test")

    def broker_lost(self) -> None:
        self.taken.append((b"lost", 0))

    @property
    def frames(self) -> bytes:
        return b"".join(frames for frames, _ in self.taken)


class Slow:
    """A member that counts, and takes its time."""

    def __init__(self, takes: Callable[[], None] = lambda: None) -> None:
        self.takes = takes
        self.count = 0

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        self.takes()
        self.count += count

    def broker_lost(self) -> None:
        raise AssertionError("nothing is lost here")


class HubTests(SynchronousTestCase):
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
            self.turn()

    def bring(self, body: bytes, topic: TopicAddress = TOPIC) -> None:
        self.broker.bring(Message(topic, None, body))

    def turn(self) -> None:
        """Run what is due now, as a reactor does: not what that makes due."""
        for call in tuple(self.clock.getDelayedCalls()):
            self.clock.calls.remove(call)
            call.called = True
            call.func(*call.args, **call.kw)


class MembershipTests(HubTests):
    def test_the_first_member_waits_for_the_confirmation_the_next_do_not(self) -> None:
        first = self.hub.join(TOPIC, Listener())
        second = self.hub.join(TOPIC, Listener())
        self.assertNoResult(first)
        self.assertNoResult(second)
        self.broker.confirm()
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(self.hub.join(TOPIC, Listener()))
        self.assertEqual(len(self.broker.subscriptions), 1)

    def test_a_denied_subscription_is_told_to_all_who_wait(self) -> None:
        joinings = [self.hub.join(TOPIC, Listener()) for _ in range(3)]
        self.broker.deny()
        for joining in joinings:
            self.failureResultOf(joining, BrokerUnavailable)
        self.assertEqual(self.hub.topics, 0)
        self.join()

    def test_a_broker_that_raises_is_a_failure_of_the_join(self) -> None:
        self.patch(self.broker, "subscribe", lambda *_: 1 // 0)
        self.failureResultOf(self.hub.join(TOPIC, Listener()), ZeroDivisionError)

    def test_the_last_to_leave_ends_the_subscription(self) -> None:
        one, two = self.join(), self.join()
        self.hub.leave(TOPIC, one)
        self.assertEqual(len(self.broker.live), 1)
        self.hub.leave(TOPIC, two)
        self.hub.leave(TOPIC, two)
        self.assertEqual((self.broker.live, self.hub.topics), ([], 0))
        self.assertEqual(self.broker.subscriptions[0].stops, 1)

    def test_a_topic_can_be_joined_again(self) -> None:
        self.hub.leave(TOPIC, self.join())
        again = self.join()
        self.bring(b"1")
        self.turn()
        self.assertEqual(again.frames, b"<1>")

    def test_a_wish_withdrawn_before_the_confirmation_leaves_nothing(self) -> None:
        joining = self.hub.join(TOPIC, Listener())
        joining.cancel()
        self.failureResultOf(joining, CancelledError)
        self.broker.confirm()
        self.assertEqual((self.broker.live, self.hub.topics), ([], 0))

    def test_one_who_withdraws_does_not_take_the_others_along(self) -> None:
        withdrawn, kept = self.hub.join(TOPIC, Listener()), self.hub.join(TOPIC, Listener())
        withdrawn.cancel()
        self.failureResultOf(withdrawn, CancelledError)
        self.broker.confirm()
        self.successResultOf(kept)

    def test_many_who_wait_are_welcomed_in_slices(self) -> None:
        listeners = [Listener() for _ in range(2 * NOTIFY_PER_ITERATION + 10)]
        joins = [self.hub.join(TOPIC, listener) for listener in listeners]
        self.broker.confirm()
        welcomed = []
        for _ in range(4):
            welcomed.append(sum(joining.called for joining in joins))
            self.bring(b"%d" % len(welcomed))
            self.turn()
        self.assertEqual(
            welcomed,
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

    def test_many_confirmations_of_one_turn_share_its_slice(self) -> None:
        self.broker.confirms_at_once = True
        topics = [
            TopicAddress("cell1", "box1", ("col",), f"t{n}")
            for n in range(2 * NOTIFY_PER_ITERATION + 10)
        ]
        joins = [self.hub.join(topic, Listener()) for topic in topics]
        welcomed = []
        for _ in range(3):
            welcomed.append(sum(joining.called for joining in joins))
            self.turn()
        self.assertEqual(
            welcomed,
            [NOTIFY_PER_ITERATION, 2 * NOTIFY_PER_ITERATION, 2 * NOTIFY_PER_ITERATION + 10],
        )

    def test_many_who_are_denied_hear_it_in_slices(self) -> None:
        joins = [self.hub.join(TOPIC, Listener()) for _ in range(NOTIFY_PER_ITERATION + 1)]
        withdrawn = joins.pop()
        self.broker.deny(BrokerUnavailable("not today"))
        withdrawn.cancel()
        self.failureResultOf(withdrawn, CancelledError)
        self.assertEqual(sum(joining.called for joining in joins), NOTIFY_PER_ITERATION)
        self.turn()
        for joining in joins:
            self.failureResultOf(joining, BrokerUnavailable)

    def test_a_promise_broken_before_all_were_welcomed_is_no_membership(self) -> None:
        listeners = [Listener() for _ in range(NOTIFY_PER_ITERATION + 1)]
        joins = [self.hub.join(TOPIC, listener) for listener in listeners]
        self.broker.confirm()
        self.broker.break_promises()
        self.turn()
        for joining in joins[:-1]:
            self.successResultOf(joining)
        self.turn()
        self.assertEqual([each.frames for each in listeners[:-1]], [b"lost"] * NOTIFY_PER_ITERATION)
        self.failureResultOf(joins[-1], BrokerUnavailable)
        self.assertEqual((self.hub.topics, self.broker.live), (0, []))

    def test_nobody_is_welcomed_while_the_broker_is_away(self) -> None:
        joins = [self.hub.join(TOPIC, Listener()) for _ in range(NOTIFY_PER_ITERATION + 1)]
        self.broker.confirm()
        self.broker.is_down = True  # which it outlives, with all its subscriptions
        self.turn()
        self.failureResultOf(joins[-1], BrokerUnavailable)
        self.assertEqual(self.hub.topics, 1)

    def test_a_subscription_ends_when_those_not_yet_welcomed_withdraw(self) -> None:
        listeners = [Listener() for _ in range(NOTIFY_PER_ITERATION + 1)]
        joins = [self.hub.join(TOPIC, listener) for listener in listeners]
        self.broker.confirm()
        for listener in listeners[:-1]:
            self.hub.leave(TOPIC, listener)
        joins[-1].cancel()
        self.failureResultOf(joins[-1], CancelledError)
        self.turn()
        self.assertEqual((self.hub.topics, self.broker.live), (0, []))

    def test_one_may_leave_in_the_turn_of_its_confirmation(self) -> None:
        listener = Listener()
        joining = self.hub.join(TOPIC, listener)
        joining.addCallback(lambda _: self.hub.leave(TOPIC, listener))
        self.broker.confirm()
        self.assertEqual((self.broker.live, self.hub.topics), ([], 0))

    def test_a_subscription_that_cannot_be_ended_is_logged(self) -> None:
        listener = self.join()
        broken: Deferred[None] = Deferred()
        self.patch(self.broker.subscriptions[0], "stop", lambda: broken)
        self.hub.leave(TOPIC, listener)
        broken.errback(RuntimeError("said the test"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class DeliveryTests(HubTests):
    def test_all_messages_of_one_turn_are_encoded_once_and_joined_once(self) -> None:
        listeners = [self.join() for _ in range(3)]
        for body in (b"1", b"2", b"3"):
            self.bring(body)
        self.assertEqual([listener.taken for listener in listeners], [[]] * 3)
        self.turn()
        self.assertEqual([listener.taken for listener in listeners], [[(b"<1><2><3>", 3)]] * 3)
        self.assertIs(listeners[0].taken[0][0], listeners[1].taken[0][0])
        self.assertEqual(len(self.encoded), 3)

    def test_a_walk_is_timed_from_its_first_message_to_its_last_member(self) -> None:
        for _ in range(
            TOPIC_QUANTUM
        ):  # the last of them ends a share, and the walk with the next turn
            self.join()
        self.bring(b"1")
        self.clock.rightNow += 0.25
        self.bring(b"2")
        self.clock.rightNow += 0.25
        self.turn()
        self.turn()
        self.assertEqual((self.hub.fan_out.sum, sum(self.hub.fan_out.counts)), (0.5, 1))
        self.clock.rightNow += 5
        self.bring(b"3")
        self.turn()
        self.turn()
        self.assertEqual((self.hub.fan_out.sum, sum(self.hub.fan_out.counts)), (0.5, 2))
        self.assertEqual(self.hub.messages, 3)

    def test_messages_that_come_during_a_walk_wait_for_it_and_that_is_timed(self) -> None:
        for _ in range(MAX_DELIVERIES_PER_ITERATION + 1):
            self.join()
        self.bring(b"1")
        self.turn()
        self.clock.rightNow += 1
        self.bring(b"2")
        self.clock.rightNow += 2
        for _ in range(3):
            self.turn()
        self.assertEqual((self.hub.fan_out.sum, sum(self.hub.fan_out.counts)), (3 + 2, 2))

    def test_a_message_for_nobody_costs_nothing(self) -> None:
        listener = self.join()
        self.turn()
        self.hub.leave(TOPIC, listener)
        self.broker.subscriptions[0].deliver(Message(TOPIC, None, b"1"))
        self.assertEqual((self.encoded, self.clock.getDelayedCalls()), ([], []))

    def test_one_bad_member_never_stops_the_walk(self) -> None:
        good, bad, also_good = self.join(), self.join(fails=True), self.join()
        self.bring(b"1")
        self.turn()
        self.assertEqual([each.frames for each in (good, bad, also_good)], [b"<1>"] * 3)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_message_that_cannot_be_encoded_is_dropped_alone(self) -> None:
        listener = self.join()
        self.hub._encode = lambda message: b"<%d>" % (1 // int(message.body))
        for body in (b"1", b"0", b"1"):
            self.bring(body)
        self.turn()
        self.assertEqual(listener.frames, b"<1><1>")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_long_walk_is_cut_into_slices(self) -> None:
        listeners = [self.join() for _ in range(2 * MAX_DELIVERIES_PER_ITERATION + 10)]
        self.bring(b"1")
        reached = []
        for _ in range(4):
            self.turn()
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

    def test_a_slice_of_long_messages_ends_in_time(self) -> None:
        """The longest message to 10,000 members, of whom each takes as long as over slow TLS."""
        members = [Slow() for _ in range(10_000)]
        self.join_all(members)
        for size, takes in ((1048576, 0.005), (MAX_JOINED - 2, 0.0015), (160, 0.00003)):
            for member in members:
                member.takes = partial(self.clock.advance, takes)
            self.bring(b"x" * size)
            longest = 0.0
            while not self.hub.is_idle:
                before = self.clock.seconds()
                self.turn()
                longest = max(longest, self.clock.seconds() - before)
            self.assertTrue(0.01 <= longest <= 0.02, (size, longest))
        self.assertEqual({member.count for member in members}, {3})

    def test_one_topic_of_long_messages_does_not_hold_up_another(self) -> None:
        slow = [Slow(partial(self.clock.advance, 0.005)) for _ in range(TOPIC_QUANTUM)]
        self.join_all(slow)
        quick = self.join(OTHER)
        self.bring(b"x" * 1048576)
        self.bring(b"1", OTHER)
        self.turn()
        self.turn()
        self.assertEqual(quick.frames, b"<1>")
        self.assertLess(sum(member.count for member in slow), 10)

    def test_messages_that_come_during_a_walk_follow_in_order(self) -> None:
        listeners = [self.join() for _ in range(MAX_DELIVERIES_PER_ITERATION + 10)]
        self.bring(b"1")
        self.turn()
        self.bring(b"2")
        self.bring(b"3")
        for _ in range(3):
            self.turn()
        self.assertEqual({listener.frames for listener in listeners}, {b"<1><2><3>"})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_those_who_join_during_a_walk_get_what_comes_after(self) -> None:
        for _ in range(MAX_DELIVERIES_PER_ITERATION + 10):
            self.join()
        self.bring(b"1")
        self.turn()
        late = self.join()
        self.bring(b"2")
        for _ in range(3):
            self.turn()
        self.assertEqual(late.frames, b"<2>")

    def test_a_big_topic_does_not_hold_up_a_small_one(self) -> None:
        big = [self.join() for _ in range(3 * MAX_DELIVERIES_PER_ITERATION)]
        small = self.join(OTHER)
        self.bring(b"1")
        self.bring(b"2", OTHER)
        self.turn()
        self.assertEqual(small.frames, b"<2>")
        self.assertEqual(
            sum(bool(listener.taken) for listener in big), MAX_DELIVERIES_PER_ITERATION - 1
        )
        self.assertLess(TOPIC_QUANTUM, MAX_DELIVERIES_PER_ITERATION)

    def test_a_flood_is_not_joined_without_bound(self) -> None:
        listener = self.join()
        for _ in range(3):
            self.bring(b"x" * (MAX_JOINED // 2))
        while self.clock.getDelayedCalls():
            self.turn()
        self.assertEqual([count for _, count in listener.taken], [1, 1, 1])

    def test_a_message_longer_than_that_is_still_delivered(self) -> None:
        listener = self.join()
        self.bring(b"x" * (2 * MAX_JOINED))
        self.turn()
        self.assertEqual(len(listener.frames), 2 * MAX_JOINED + 2)


class PressureTests(HubTests):
    """More comes than can be delivered; the marks are 30 and 12 bytes."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(module, "HIGH_WATER", 30)
        self.patch(module, "LOW_WATER", 12)
        self.patch(module, "MAX_JOINED", 10)

    def bring_many(self, count: int, topic: TopicAddress = TOPIC) -> bytes:
        """Messages of ten bytes; returns all that a member gets."""
        for number in range(count):
            self.bring(b"%08d" % number, topic)
        return b"".join(b"<%08d>" % number for number in range(count))

    def test_the_broker_stops_at_the_high_mark_and_goes_on_at_the_low_one(self) -> None:
        self.join()
        self.bring_many(3)
        self.assertEqual((self.hub.queued, self.hub.is_full), (30, False))
        self.assertFalse(self.broker.is_paused)
        self.bring(b"x" * 8)
        self.patch(module, "MAX_DELIVERIES_PER_ITERATION", 1)
        seen = []
        for _ in range(4):
            seen.append((self.hub.queued, self.hub.is_full, self.broker.is_paused))
            self.turn()  # delivers
            self.turn()  # finds that this was the last member
        self.assertEqual(
            seen,
            [(40, True, True), (30, True, True), (20, True, True), (10, False, False)],
        )
        self.assertEqual(self.hub.queued, 0)

    def test_all_topics_count_together(self) -> None:
        for topic in (TOPIC, OTHER):
            self.join(topic)
            self.bring_many(2, topic)
        self.assertTrue(self.hub.is_full)
        self.turn()
        self.assertEqual((self.hub.queued, self.hub.is_full), (0, False))

    def test_what_is_being_delivered_counts_until_the_last_has_it(self) -> None:
        for _ in range(MAX_DELIVERIES_PER_ITERATION + 1):
            self.join()
        self.bring(b"x" * 40)
        self.turn()
        self.assertTrue(self.hub.is_full)
        self.turn()
        self.assertFalse(self.hub.is_full)

    def test_nothing_is_lost_and_the_order_stays(self) -> None:
        listener = self.join()
        expected = self.bring_many(100)
        self.assertEqual(len(self.broker.waiting), 96)
        while self.clock.getDelayedCalls():
            self.turn()
        self.assertEqual(listener.frames, expected)
        self.assertEqual((self.hub.queued, self.hub.is_full), (0, False))

    def test_one_who_cannot_wait_is_served_all_the_same(self) -> None:
        listener = self.join()
        self.patch(self.broker, "pause", lambda: None)
        expected = self.bring_many(100)
        while self.clock.getDelayedCalls():
            self.turn()
        self.assertEqual(listener.frames, expected)
        self.assertFalse(self.hub.is_full)

    def test_a_message_longer_than_the_mark_is_delivered(self) -> None:
        listener = self.join()
        self.bring(b"x" * 1000)
        self.assertTrue(self.hub.is_full)
        self.turn()
        self.assertEqual((len(listener.frames), self.hub.is_full), (1002, False))

    def test_topics_that_all_leave_are_not_full_for_ever(self) -> None:
        listener = self.join()
        self.bring_many(10)
        self.hub.leave(TOPIC, listener)
        while self.clock.getDelayedCalls():
            self.turn()
        self.assertEqual((self.hub.queued, self.hub.is_full), (0, False))
        self.assertFalse(self.broker.is_paused)
