"""The admin side: health and metrics, in memory and in virtual time."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from tests.support.harness import SEND_PATH, SENDER, TOPIC, Client, ServiceTestCase
from topicsvc import __version__
from topicsvc.admin.metrics import Metrics, Sources
from topicsvc.admin.site import AdminSite, AdminTree
from topicsvc.interfaces import Losses, Message
from topicsvc.process.reactor_lag import INTERVAL, ReactorLag
from topicsvc.settings import SessionSettings
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.wrappers.measured import MeasuredValidator
from topicsvc.websocket import close_reasons

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class AdminTestCase(ServiceTestCase):
    settings = SessionSettings(send_queue=100_000)

    def setUp(self) -> None:
        super().setUp()
        self.checks = TokenCheckStats()
        self.websocket_server.context.validator = MeasuredValidator(
            self.validator, self.clock, self.checks
        )
        self.lag = ReactorLag(self.clock)
        self.lag.startService()
        self.metrics = Metrics(
            Sources(
                websocket_server=self.websocket_server,
                hub=self.hub,
                broker=self.broker,
                site=self.site,
                limits=self.limits,
                checks=self.checks,
                lag=self.lag,
                kinds=lambda: {"validator": "local", "broker": "memory"},
            )
        )
        self.parts = {"listening": True, "accepting": True, "broker": True}
        self.admin = AdminSite(AdminTree(lambda: self.parts, self.metrics), self.clock)

    def ask(self, path: str, method: str = "GET", headers: Any = None) -> tuple[Client, bytes]:
        """One request to the admin side."""
        client = Client(self, site=self.admin)
        body = client.request(method, path, headers)
        client.disconnect()
        return client, body

    def scrape(self) -> dict[str, float]:
        """All samples, by name and labels as Prometheus writes them."""
        _, body = self.ask("/metrics")
        samples = {}
        for family in classic(body.decode()):
            for sample in family.samples:
                labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples

    def assert_figures(self, figures: dict[str, float]) -> None:
        samples = self.scrape()
        found = {name: samples.get(f"topicsvc_{name}") for name in figures}
        self.assertEqual(found, figures)


class HealthTests(AdminTestCase):
    def test_it_is_alive(self) -> None:
        client, body = self.ask("/health/live")
        self.assertEqual((client.status, body), (200, b"alive\n"))

    def test_ready_says_which_part_is_not(self) -> None:
        client, body = self.ask("/health/ready")
        self.assertEqual(client.status, 200)
        self.assertEqual(json.loads(body), {"ready": True, "parts": self.parts})
        for part in self.parts:
            self.parts[part] = False
            client, body = self.ask("/health/ready")
            self.assertEqual(client.status, 503)
            self.assertEqual(client.headers["content-type"], ["application/json"])
            self.assertEqual(json.loads(body), {"ready": False, "parts": self.parts})
            self.parts[part] = True

    def test_head_tells_the_status_and_the_length(self) -> None:
        self.parts["broker"] = False
        for path, status in (("/health/live", 200), ("/health/ready", 503), ("/metrics", 200)):
            _, body = self.ask(path)
            client, nothing = self.ask(path, "HEAD")
            self.assertEqual((client.status, nothing), (status, b""))
            if path != "/metrics":  # whose process figures move
                self.assertEqual(client.headers["content-length"], [str(len(body))])

    def test_nothing_else_is_there_and_nothing_tells_who_answers(self) -> None:
        for path in ("/", "/health", "/health/live/", "/health/live/x", "/metrics/", "/x?y"):
            client, body = self.ask(path)
            self.assertEqual((client.status, body), (404, b"not found\n"), path)
            self.assertNotIn("server", client.headers)
        client, body = self.ask("/metrics", "POST")
        self.assertEqual((client.status, client.headers["allow"]), (405, ["GET, HEAD"]))
        for path in ("/health/live", "/health/ready", "/metrics"):
            client, _ = self.ask(path)
            self.assertNotIn("server", client.headers)
            self.assertEqual(client.headers["cache-control"], ["no-store"])

    def test_a_question_asks_neither_broker_nor_validator(self) -> None:
        for path in ("/health/live", "/health/ready", "/metrics"):
            self.ask(path)
        self.assertEqual((self.broker.subscriptions, self.broker.published), ([], []))
        self.assertEqual(self.validator.questions, [])


class FormatTests(AdminTestCase):
    def test_both_formats_are_read_by_their_parsers(self) -> None:
        client, body = self.ask("/metrics")
        self.assertIn("text/plain; version=0.0.4", client.headers["content-type"][0])
        first = {each.name for each in classic(body.decode())}
        client, body = self.ask("/metrics", headers=OPENMETRICS)
        self.assertIn("application/openmetrics-text", client.headers["content-type"][0])
        self.assertEqual({each.name for each in openmetrics(body.decode())}, first)

    def test_an_accept_that_makes_no_sense_gets_the_plain_format(self) -> None:
        for accept in (
            "text/plain; version=abc",
            "application/openmetrics-text; version=x",
            ";,=",
            "\xff",
        ):
            client, _ = self.ask("/metrics", headers={"Accept": accept})
            self.assertEqual(client.status, 200)
            self.assertIn("text/plain; version=0.0.4", client.headers["content-type"][0])

    def test_names_follow_the_conventions(self) -> None:
        _, body = self.ask("/metrics", headers=OPENMETRICS)
        for family in openmetrics(body.decode()):
            self.assertRegex(family.name, r"^(topicsvc|process)_[a-z_]+$")
            self.assertRegex(family.documentation, r"^[A-Z].*\.$")
            if family.type == "histogram":
                self.assertTrue(family.name.endswith("_seconds"))
            for sample in family.samples:
                self.assertEqual(sample.name.endswith("_total"), family.type == "counter")

    def test_no_label_grows_with_users(self) -> None:
        before = set(self.scrape())
        for _ in range(3):
            client = self.subscribe()
            client.send_text("hello")
        self.connect(path="/__topic/box1/col.topic.other")
        self.client().request("POST", SEND_PATH)
        self.assertEqual(set(self.scrape()), before)

    def test_every_reason_has_its_figure_from_the_start(self) -> None:
        samples = self.scrape()
        for reason in close_reasons.CLOSE_REASONS:
            name = f'topicsvc_sessions_ended_total{{reason="{close_reasons.metric_label(reason)}"}}'
            self.assertEqual(samples[name], 0)

    def test_the_page_does_not_grow_with_sessions(self) -> None:
        _, before = self.ask("/metrics")
        for _ in range(20):
            self.subscribe()
        _, after = self.ask("/metrics")
        self.assertEqual(len(after.splitlines()), len(before.splitlines()))


class FigureTests(AdminTestCase):
    def test_what_is_running(self) -> None:
        [name] = [name for name in self.scrape() if name.startswith("topicsvc_build_info")]
        self.assertIn(f'version="{__version__}"', name)
        for label in ("python", "twisted", "validator", "broker"):
            self.assertRegex(name, f'{label}="[^"]+"')

    def test_sessions(self) -> None:
        self.connect()
        self.subscribe()
        refused = self.connect()
        refused.present("a-token")
        self.validator.last.refuse()
        self.assert_figures(
            {
                'sessions{state="waiting"}': 1,
                'sessions{state="active"}': 1,
                'sessions{state="closing"}': 1,
                "websockets_opened_total": 3,
                "sessions_started_total": 1,
                'sessions_ended_total{reason="token_inactive"}': 1,
                'sessions_ended_total{reason="connection_lost"}': 0,
            }
        )
        refused.disconnect()
        self.assert_figures({'sessions{state="closing"}': 0, "topics": 1})

    def test_data(self) -> None:
        clients = [self.subscribe() for _ in range(3)]
        self.deliver(b"1")
        self.deliver(b"22")
        size = sum(len(payload) + 2 for _, payload in clients[0].frames())
        self.assert_figures(
            {
                "messages_total": 2,
                "deliveries_total": 6,
                "delivered_bytes_total": 3 * size,
                "fan_out_seconds_count": 2,
            }
        )

    def test_what_waits_for_its_delivery(self) -> None:
        client = self.subscribe()
        self.broker.bring(Message(TOPIC, SENDER, b"1"))
        size = len(b'{"From":"%s","Body":1}' % SENDER.encode()) + 2
        self.assert_figures({"hub_queued_bytes": size})
        self.iterate()
        self.assertEqual(len(client.texts()), 1)
        self.assert_figures({"hub_queued_bytes": 0})

    def test_slow_readers(self) -> None:
        slow, _ = self.subscribe(), self.subscribe()
        slow.transport.is_congested = True
        for _ in range(5):
            self.deliver(b'"%s"' % (b"x" * 20000))
        samples = self.scrape()
        self.assertEqual(samples["topicsvc_slow_readers"], 1)
        # What a transport of the plain kind holds is known as a bound: see transmit.
        self.assertGreater(samples["topicsvc_queued_bytes"], 65536)
        slow.transport.drain()
        self.assert_figures({"slow_readers": 0, "queued_bytes": 0})

    def test_checks(self) -> None:
        for outcome in ("granted", "refused", "unavailable", "cancelled", "failed"):
            client = self.connect()
            client.present("a-token")
            self.assert_figures({"token_checks_in_progress": 1})
            self.clock.advance(0.2)
            question = self.validator.last
            match outcome:
                case "granted":
                    question.grant(self.now + 60)
                case "refused":
                    question.refuse()
                case "unavailable":
                    question.be_unavailable()
                case "cancelled":
                    client.disconnect()
                case "failed":
                    question.answer.errback(ZeroDivisionError())
                    self.flushLoggedErrors(ZeroDivisionError)
            self.assert_figures(
                {
                    f'token_checks_total{{outcome="{outcome}"}}': 1,
                    "token_checks_in_progress": 0,
                }
            )
        samples = self.scrape()
        self.assertEqual(samples["topicsvc_token_check_seconds_count"], 4)
        self.assertAlmostEqual(samples["topicsvc_token_check_seconds_sum"], 0.8, 5)
        self.assertEqual(samples['topicsvc_token_check_seconds_bucket{le="0.1"}'], 0)
        self.assertEqual(samples['topicsvc_token_check_seconds_bucket{le="0.25"}'], 4)

    def test_the_cache(self) -> None:
        self.checks.cache_hits, self.checks.cache_misses = 5, 2
        self.assert_figures({"token_cache_hits_total": 5, "token_cache_misses_total": 2})

    def test_the_broker(self) -> None:
        self.assert_figures({"broker_up": 1})
        self.broker.is_down = True
        self.broker.losses = Losses(reconnects=3, gaps=2, seconds=1.5, misrouted=1)
        self.assert_figures(
            {
                "broker_up": 0,
                "broker_reconnects_total": 3,
                "broker_gaps_total": 2,
                "broker_gap_seconds_total": 1.5,
                "broker_misrouted_messages_total": 1,
            }
        )

    def test_sends(self) -> None:
        bearer = {"Authorization": "Bearer a-token"}
        self.client().request("POST", SEND_PATH, bearer, b"1")
        self.validator.last.grant(self.now + 60)
        self.client().request("PUT", SEND_PATH, bearer, b"nonsense")
        self.validator.last.grant(self.now + 60)
        self.client().request("POST", SEND_PATH, body=b"1")
        self.client().request("POST", SEND_PATH, bearer, b"1" * 2000)
        self.client().request("GET", SEND_PATH)
        self.assert_figures(
            {
                'sends_total{status="200"}': 1,
                'sends_total{status="400"}': 1,
                'sends_total{status="401"}': 1,
                'sends_total{status="413"}': 1,
                'sends_total{status="405"}': 0,
            }
        )

    def test_http_connections(self) -> None:
        first, _ = self.client(), self.client()
        self.connect()
        self.assert_figures({"http_connections": 2})
        first.disconnect()
        self.assert_figures({"http_connections": 1, 'sessions{state="waiting"}': 1})

    def test_lag(self) -> None:
        self.clock.advance(INTERVAL + 0.3)
        samples = self.scrape()
        self.assertAlmostEqual(samples["topicsvc_reactor_lag_seconds_sum"], 0.3)
        self.assertEqual(samples["topicsvc_reactor_lag_seconds_count"], 1)
