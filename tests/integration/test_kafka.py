"""A real Kafka, and whole topicsvc processes."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import TestCase

from tests.broker_contract import BrokerContract
from tests.integration.kafka_server import Kafka
from tests.integration.processes import Shared, until
from topicsvc.brokers.kafka import KafkaBroker
from topicsvc.brokers.kafka_options import connection_options

shared = Shared(Kafka)


class AdapterTests(TestCase):
    """Fixture: the adapter in this process, beside the shared broker."""

    timeout = 60

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server: Kafka = yield shared.get()
        self.broker = KafkaBroker(connection_options(self.server.bootstrap), reactor)
        self.broker.startService()
        self.addCleanup(self.broker.stopService)
        yield until(lambda: self.broker.is_up, "the broker is up", 15)


class KafkaContractTests(BrokerContract, AdapterTests):
    name = "contract"
