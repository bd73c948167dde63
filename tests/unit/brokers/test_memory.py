"""The memory broker and the fake broker fulfill the contract."""

from __future__ import annotations

from twisted.logger import globalLogPublisher
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

    def test_it_is_always_up_and_logs_that_it_serves_one_process(self) -> None:
        texts: list[str] = []
        observer = lambda event: texts.append(event["log_format"])  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        broker = MemoryBroker()
        broker.startService()
        self.assertTrue(broker.is_up)
        self.assertEqual(len([text for text in texts if "one process" in text]), 1)


class FakeBrokerTests(BrokerContract, TestCase):
    def setUp(self) -> None:
        self.broker = FakeBroker(confirms_at_once=True)
