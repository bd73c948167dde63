"""Metrics: formats, names, and what each metric counts."""

from __future__ import annotations

from math import isnan

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from tests.support.admin_case import AdminTestCase
from tests.support.harness import SEND_PATH, SENDER, TOPIC
from topicsvc import __version__
from topicsvc.interfaces import Losses, Message
from topicsvc.process.reactor_lag import INTERVAL
from topicsvc.refusals import RefusalReason
from topicsvc.websocket import close_reasons

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class FormatTests(AdminTestCase):
    def test_both_formats_can_be_parsed(self) -> None:
        client, body = self.request("/metrics")
        self.assertIn("text/plain; version=0.0.4", client.headers["content-type"][0])
        first = {each.name for each in classic(body.decode())}
        client, body = self.request("/metrics", headers=OPENMETRICS)
        self.assertIn("application/openmetrics-text", client.headers["content-type"][0])
        self.assertEqual({each.name for each in openmetrics(body.decode())}, first)

    def test_an_invalid_accept_header_gets_the_text_format(self) -> None:
        for accept in (
            "text/plain; version=abc",
            "application/openmetrics-text; version=x",
            ";,=",
            "\xff",
        ):
            client, _ = self.request("/metrics", headers={"Accept": accept})
            self.assertEqual(client.status, 200)
            self.assertIn("text/plain; version=0.0.4", client.headers["content-type"][0])

    def test_names_follow_the_conventions(self) -> None:
        _, body = self.request("/metrics", headers=OPENMETRICS)
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

    def test_every_close_reason_is_counted_from_0(self) -> None:
        samples = self.scrape()
        for reason in close_reasons.CLOSE_REASONS:
            name = f'topicsvc_sessions_ended_total{{reason="{close_reasons.metric_label(reason)}"}}'
            self.assertEqual(samples[name], 0)

    def test_the_page_does_not_grow_with_sessions(self) -> None:
        _, before = self.request("/metrics")
        for _ in range(20):
            self.subscribe()
        _, after = self.request("/metrics")
        self.assertEqual(len(after.splitlines()), len(before.splitlines()))


class MetricTests(AdminTestCase):
    def test_build_info(self) -> None:
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
        self.assert_metrics(
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
        self.assert_metrics({'sessions{state="closing"}': 0, "topics": 1})

    def test_refused_tokens(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.refuse()
        self.client().request("POST", SEND_PATH, {"Authorization": "Bearer a b"}, b"1")
        self.assert_metrics(
            {
                'refused_tokens_total{reason="other",use="session"}': 1,
                'refused_tokens_total{reason="other",use="send"}': 0,
                'refused_tokens_total{reason="malformed",use="send"}': 1,
            }
        )
        samples = self.scrape()
        for reason in RefusalReason:
            for use in ("session", "send"):
                name = f'topicsvc_refused_tokens_total{{reason="{reason.label}",use="{use}"}}'
                self.assertIn(name, samples)

    def test_the_expiry_of_the_first_certificate(self) -> None:
        name = "topicsvc_certificate_expiry_timestamp_seconds"
        self.assertTrue(isnan(self.scrape()[name]))
        self.certificate_expiry = 1600000000.0
        self.assertEqual(self.scrape()[name], 1600000000)

    def test_messages(self) -> None:
        clients = [self.subscribe() for _ in range(3)]
        self.deliver(b"1")
        self.deliver(b"22")
        size = sum(len(payload) + 2 for _, payload in clients[0].frames())
        self.assert_metrics(
            {
                "messages_total": 2,
                "deliveries_total": 6,
                "delivered_bytes_total": 3 * size,
                "fan_out_seconds_count": 2,
            }
        )

    def test_messages_queued_in_the_hub(self) -> None:
        client = self.subscribe()
        self.broker.deliver(Message(TOPIC, SENDER, b"1"))
        size = len(b'{"From":"%s","Body":1}' % SENDER.encode()) + 2
        self.assert_metrics({"hub_queued_bytes": size})
        self.iterate()
        self.assertEqual(len(client.texts()), 1)
        self.assert_metrics({"hub_queued_bytes": 0})

    def test_slow_readers(self) -> None:
        slow, _ = self.subscribe(), self.subscribe()
        slow.transport.is_congested = True
        for _ in range(5):
            self.deliver(b'"%s"' % (b"x" * 20000))
        samples = self.scrape()
        self.assertEqual(samples["topicsvc_slow_readers"], 1)
        # For the bytes in a transport's own buffer only an upper bound is known: see
        # topicsvc.delivery.transports.
        self.assertGreater(samples["topicsvc_queued_bytes"], 65536)
        slow.transport.drain()
        self.assert_metrics({"slow_readers": 0, "queued_bytes": 0})

    def test_token_checks(self) -> None:
        for outcome in ("granted", "refused", "unavailable", "cancelled", "failed"):
            client = self.connect()
            client.present("a-token")
            self.assert_metrics({"token_checks_in_progress": 1})
            self.clock.advance(0.2)
            check = self.validator.last
            match outcome:
                case "granted":
                    check.grant(self.now + 60)
                case "refused":
                    check.refuse()
                case "unavailable":
                    check.be_unavailable()
                case "cancelled":
                    client.disconnect()
                case "failed":
                    check.result.errback(ZeroDivisionError())
                    self.flushLoggedErrors(ZeroDivisionError)
            self.assert_metrics(
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

    def test_the_token_cache(self) -> None:
        self.checks.cache_hits, self.checks.cache_misses = 5, 2
        self.assert_metrics({"token_cache_hits_total": 5, "token_cache_misses_total": 2})

    def test_the_broker(self) -> None:
        self.assert_metrics({"broker_up": 1})
        self.broker.is_down = True
        self.broker.losses = Losses(reconnects=3, gaps=2, seconds=1.5, misrouted=1)
        self.assert_metrics(
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
        self.assert_metrics(
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
        self.assert_metrics({"http_connections": 2})
        first.disconnect()
        self.assert_metrics({"http_connections": 1, 'sessions{state="waiting"}': 1})

    def test_reactor_lag(self) -> None:
        self.clock.advance(INTERVAL + 0.3)
        samples = self.scrape()
        self.assertAlmostEqual(samples["topicsvc_reactor_lag_seconds_sum"], 0.3)
        self.assertEqual(samples["topicsvc_reactor_lag_seconds_count"], 1)
