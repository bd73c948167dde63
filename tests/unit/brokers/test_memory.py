"""The memory broker and the fake broker fulfill the contract."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from tests.support.broker_contract import BrokerContract
from tests.support.fakes import FakeBroker
from topicsvc.brokers.memory import MemoryBroker


class MemoryBrokerTests(BrokerContract, TestCase):
    delivers_while_paused = True

    def setUp(self) -> None:
        self.broker = MemoryBroker()
        self.broker.startService()
        self.addCleanup(self.broker.stopService)

    def test_a_topic_without_subscribers_is_removed(self) -> None:
        subscription = self.successResultOf(self.broker.subscribe(self.topic(), print))
        self.successResultOf(subscription.stop())
        self.assertEqual(self.broker._subscriptions, {})


class FakeBrokerTests(BrokerContract, TestCase):
    def setUp(self) -> None:
        self.broker = FakeBroker(confirms_at_once=True)
