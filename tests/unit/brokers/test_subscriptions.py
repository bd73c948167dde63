"""The subscriptions that all brokers share."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.subscriptions import UNSUBSCRIBE_DELAY, Subscriptions, TopicSubscription
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Subscription
from topicsvc.topics import TopicAddress

ADDRESS = TopicAddress("cell1", "box1", ("col",), "name")


class SubscriptionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.requested: list[TopicSubscription] = []
        self.unsubscribed: list[TopicSubscription] = []
        self.forgotten: list[TopicSubscription] = []
        self.lost = 0
        self.subscriptions = Subscriptions(
            self.clock,
            lambda address: address.broker_name,
            self.request,
            self.unsubscribed.append,
            self.forgotten.append,
        )

    def request(self, topic: TopicSubscription) -> None:
        self.subscriptions.new_id(topic)
        self.requested.append(topic)

    def on_lost(self) -> None:
        self.lost += 1

    def subscribe(self) -> Deferred[Subscription]:
        return self.subscriptions.subscribe(ADDRESS, lambda _: None, self.on_lost)

    def subscribed(self) -> Subscription:
        confirmed = self.subscribe()
        self.subscriptions.confirm(self.requested[-1])
        return self.successResultOf(confirmed)

    def fail_all(self) -> None:
        self.subscriptions.fail(self.subscriptions, BrokerUnavailable("simulated"))

    def test_a_topic_whose_last_subscriber_stops_is_unsubscribed(self) -> None:
        self.subscribed().stop()
        self.clock.advance(UNSUBSCRIBE_DELAY)
        self.assertEqual((self.unsubscribed, self.forgotten), (self.requested, []))

    def test_a_topic_whose_last_subscriber_stops_after_a_loss_is_forgotten(self) -> None:
        """It is not requested, so the broker has nothing to unsubscribe."""
        subscription = self.subscribed()
        self.fail_all()
        self.assertEqual((len(self.subscriptions), self.forgotten), (1, []))
        subscription.stop()
        subscription.stop()
        self.assertEqual((self.unsubscribed, self.forgotten), ([], self.requested))
        self.assertEqual(len(self.subscriptions), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_topic_without_subscribers_is_forgotten_by_the_loss(self) -> None:
        pending = self.subscribe()
        self.fail_all()
        self.failureResultOf(pending, BrokerUnavailable)
        self.subscribed().stop()
        self.fail_all()
        self.assertEqual((self.unsubscribed, self.forgotten), ([], self.requested))
        self.assertEqual(len(self.requested), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_refusal_notifies_all_subscribers(self) -> None:
        self.subscribed()
        self.subscriptions.refuse(self.requested[0], BrokerUnavailable("simulated"))
        self.assertEqual((self.lost, len(self.subscriptions)), (1, 0))
        self.assertEqual(self.unsubscribed, self.requested)

    def test_a_refusal_of_a_topic_that_is_not_requested_changes_nothing(self) -> None:
        self.subscribed()
        for _ in range(2):
            self.fail_all()
            self.subscriptions.refuse(self.requested[0], BrokerUnavailable("simulated"))
        self.assertEqual((self.lost, self.unsubscribed), (0, []))
        self.assertEqual(len(self.subscriptions), 1)
