"""The hub after the loss of a broker."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeBroker
from topicsvc.delivery.hub import Hub
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message
from topicsvc.topics import TopicAddress
from topicsvc.websocket.messages import data_frame

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
OTHER = TopicAddress("cell1", "box1", ("col",), "other")


class FakeMember:
    """Counts the calls of the hub.

    Attributes:
        messages: delivered messages.
        losses: calls of `broker_lost`.
        fails: whether `broker_lost` raises.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.losses = 0
        self.fails = False

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        self.messages += count

    def broker_lost(self) -> None:
        self.losses += 1
        if self.fails:
            raise RuntimeError("injected by the test")


class BrokerLossTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = FakeBroker(confirms_at_once=True)
        self.hub = Hub(self.broker, self.clock, self.clock.seconds, data_frame)

    def join(self, topic: TopicAddress = TOPIC) -> FakeMember:
        member = FakeMember()
        self.successResultOf(self.hub.join(topic, member))
        return member

    def iterate(self, count: int = 10) -> None:
        self.clock.pump([0] * count)

    def test_every_member_of_every_topic_is_notified_once(self) -> None:
        members = [self.join(TOPIC), self.join(TOPIC), self.join(OTHER)]
        self.broker.lose_subscriptions()
        self.iterate()
        self.assertEqual([member.losses for member in members], [1, 1, 1])

    def test_nothing_is_left_of_a_lost_topic(self) -> None:
        self.join()
        self.broker.lose_subscriptions()
        self.assertEqual(self.hub.topics, 0)
        self.assertEqual(self.broker.active, [])

    def test_members_of_other_topics_are_not_notified(self) -> None:
        mine, other = self.join(TOPIC), self.join(OTHER)
        lost = self.broker.subscriptions[0].lost
        assert lost is not None
        lost()
        lost()
        self.iterate()
        self.assertEqual((mine.losses, other.losses), (1, 0))
        self.broker.deliver(Message(OTHER, None, b"1"))
        self.iterate()
        self.assertEqual(other.messages, 1)

    def test_messages_from_before_the_loss_are_delivered(self) -> None:
        member = self.join()
        self.broker.deliver(Message(TOPIC, None, b"1"))
        self.broker.lose_subscriptions()
        self.iterate()
        self.assertEqual((member.messages, member.losses), (1, 1))

    def test_a_later_member_gets_a_new_subscription(self) -> None:
        self.join()
        self.broker.lose_subscriptions()
        late = FakeMember()
        joining = self.hub.join(TOPIC, late)
        self.assertNoResult(joining)  # the earlier members are notified first
        self.iterate()
        self.successResultOf(joining)
        self.broker.deliver(Message(TOPIC, None, b"1"))
        self.iterate()
        self.assertEqual((late.messages, late.losses), (1, 0))
        self.assertEqual(len(self.broker.subscriptions), 2)

    def test_an_error_of_one_member_does_not_affect_the_others(self) -> None:
        first, second = self.join(), self.join()
        first.fails = True
        self.broker.lose_subscriptions()
        self.iterate()
        self.assertEqual(second.losses, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_each_reactor_iteration_notifies_a_limited_number(self) -> None:
        self.hub._notifications.per_iteration = 2
        members = [self.join() for _ in range(5)]
        self.iterate()
        seen = []

        def look() -> None:
            """Another call of the reactor."""
            seen.append(sum(member.losses for member in members))
            if seen[-1] < len(members):
                self.clock.callLater(0, look)

        self.broker.lose_subscriptions()
        self.clock.callLater(0, look)
        self.iterate()
        self.assertEqual(seen, [2, 4, 5])

    def test_no_member_can_join_while_the_broker_is_unavailable(self) -> None:
        stays = self.join()
        self.broker.is_down = True
        self.failureResultOf(self.hub.join(TOPIC, FakeMember()), BrokerUnavailable)
        self.failureResultOf(self.hub.join(OTHER, FakeMember()), BrokerUnavailable)
        self.broker.is_down = False
        self.join(TOPIC)
        self.broker.deliver(Message(TOPIC, None, b"1"))
        self.iterate()
        self.assertEqual((stays.messages, stays.losses), (1, 0))
