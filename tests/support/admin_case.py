"""The admin site in memory and in virtual time."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.harness import Client, ServiceTestCase
from topicsvc.admin.metrics import Metrics, Sources
from topicsvc.admin.pages import AdminTree
from topicsvc.admin.site import AdminSite
from topicsvc.process.reactor_lag import ReactorLag
from topicsvc.settings import OperatorSettings, SessionSettings
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.wrappers.measured import MeasuredValidator

__all__ = ["AdminTestCase"]


class AdminTestCase(ServiceTestCase):
    """A service with an admin site."""

    settings = SessionSettings(send_queue=100_000)
    operator = OperatorSettings()

    def setUp(self) -> None:
        super().setUp()
        self.checks = TokenCheckStats()
        self.websocket_server.context.validator = MeasuredValidator(
            self.validator, self.clock, self.checks
        )
        self.certificate_expiry: float | None = None
        self.lag = ReactorLag(self.clock)
        self.lag.startService()
        self.metrics = Metrics(
            Sources(
                websocket_server=self.websocket_server,
                hub=self.hub,
                broker=self.broker,
                site=self.site,
                limits=self.limits,
                refused_sends=self.refused_sends,
                checks=self.checks,
                keys_age=lambda: 0,
                certificate_expiry=lambda: self.certificate_expiry,
                lag=self.lag,
                kinds=lambda: {"validator": "local", "broker": "memory"},
            )
        )
        self.parts = {"listening": True, "accepting": True, "broker": True}
        self.admin_tree = AdminTree(
            lambda: self.parts,
            self.metrics,
            self.websocket_server,
            self.send_resource,
            self.clock,
            self.operator,
        )
        self.admin = AdminSite(self.admin_tree, self.clock)

    def request(self, path: str, method: str = "GET", headers: Any = None) -> tuple[Client, bytes]:
        """Send one request to the admin site; return its client and the body."""
        client = Client(self, site=self.admin)
        body = client.request(method, path, headers)
        client.disconnect()
        return client, body

    def scrape(self) -> dict[str, float]:
        """All samples, by name and labels in Prometheus' text form."""
        _, body = self.request("/metrics")
        samples = {}
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples

    def assert_metrics(self, expected: dict[str, float]) -> None:
        samples = self.scrape()
        found = {name: samples.get(f"topicsvc_{name}") for name in expected}
        self.assertEqual(found, expected)
