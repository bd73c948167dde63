"""The metrics of a process agree with the actions of its clients, and Prometheus can use them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic
from twisted.trial.unittest import SynchronousTestCase
from websockets.exceptions import ConnectionClosed

from tests.integration.support.requirements import need
from tests.support.processes import Process, TwistdProcess, free_port
from tests.support.websocket_client import WebSocketClient
from topicsvc.validators.local import make_key, sign_token, write_key
from topicsvc.websocket.close_reasons import CLOSE_REASONS, metric_label

ROOT = Path(__file__).parent.parent.parent
HOST = "cell1.unit1.example"
WEBSOCKET_PATH = "/__topic/box1/col.topic."
SEND_PATH = "/box1/col/topic/"
SUBJECT = "https://cell2.unit1.example/#me"
LOOPBACK = "tcp:0:interface=127.0.0.1"
TIMEOUT = 120.0
"""Seconds for a condition, whatever the speed of the machine."""
_CLOSE_FRAME = b"\x88\x82\0\0\0\0\x03\xe8"
SLOW_BODY = b'"%s"' % (b"x" * 900_000)


class MetricsTestCase(SynchronousTestCase):
    """Fixture: a service with a JSON log."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key = make_key()
        key_file = self.directory / "key"
        write_key(key_file, self.key)
        file = self.directory / "topicsvc.toml"
        file.write_text(
            f"""
            listen = ["{LOOPBACK}"]
            admin = "{LOOPBACK}"
            unit_url = "https://unit1.example/"
            [session]
            ping_interval = 1
            ping_limit = 100
            token_timeout = 10
            [send]
            max_body = 1000000
            [validator]
            kind = "local"
            key_file = "{key_file}"
            cache = 3600  # longer than the test
            [stop]
            drain = 0
            """
        )
        twistd = ("--logger", "topicsvc.logs.json_lines")
        self.service = TwistdProcess("--config", str(file), directory=self.directory, twistd=twistd)
        self.addCleanup(self.service.stop)
        self.port, self.admin = self.service.ports

    def token(self, *may: str, lifetime: int = 3600) -> str:
        rights = may or ("receive", "send")
        return sign_token(self.key, SUBJECT, ["/cell1/*"], rights, int(time.time()) + lifetime)

    def connect(self, topic: str = "name") -> WebSocketClient:
        client = WebSocketClient(self.port, HOST, WEBSOCKET_PATH + topic)
        self.addCleanup(client.close)
        return client

    def subscribe(self, token: str, topic: str = "name") -> WebSocketClient:
        client = self.connect(topic)
        client.send(json.dumps({"AccessToken": token}))
        self.assertEqual(json.loads(client.recv())["Result"], "Success")
        return client

    def http(self, token: str | None, body: bytes = b"1", path: str = SEND_PATH + "name") -> int:
        """Send a message; return the status."""
        authorization = "" if token is None else f"Authorization: Bearer {token}\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT) as raw:
            raw.sendall(
                f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{authorization}"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            with raw.makefile("rb") as response:
                return int(response.read().split(b" ")[1])

    def raw(self, topic: str = "name") -> socket.socket:
        """Return a socket after the opening handshake."""
        raw = socket.socket()
        self.addCleanup(raw.close)
        raw.settimeout(TIMEOUT)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", self.port))
        raw.sendall(
            f"GET {WEBSOCKET_PATH}{topic} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += raw.recv(1)
        self.assertIn(b" 101 ", head)
        return raw

    def fetch(self, accept: str = "text/plain") -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.admin}/metrics", headers={"Accept": accept}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return str(response.read().decode())

    def scrape(self) -> dict[str, float]:
        """Return all samples by name: ``name`` or ``name label value ...``."""
        return {
            " ".join([sample.name, *(word for pair in sample.labels.items() for word in pair)]):
            sample.value
            for family in classic(self.fetch())
            for sample in family.samples
        }  # fmt: skip

    def until(self, condition: Callable[[], object], description: str) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            self.assertLess(time.monotonic(), end, description)
            time.sleep(0.1)

    def ended(self) -> list[dict[str, Any]]:
        """The log records of ended sessions."""
        records = [json.loads(line) for line in self.service.text.splitlines()]
        return [record for record in records if "has_begun" in record]


class ScrapeTests(MetricsTestCase):
    def test_the_metrics_agree_with_the_clients(self) -> None:
        sends: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        checks: Counter[str] = Counter()
        token, receive_token = self.token(), self.token("receive")
        checks["granted"] += 2  # once for each token: then they are cached

        # Five sessions stay open.
        listeners = [self.subscribe(token) for _ in range(5)]
        started, hits = 5, 4
        # Two sessions expire, after they have started even on a slow machine.
        for lifetime in (10, 11):
            self.subscribe(self.token(lifetime=lifetime), "other")
            checks["granted"] += 1
            started += 1
            reasons["Session expired"] += 1
        # Two tokens are refused.
        for refused_token in ("nonsense", self.token("send")):
            client = self.connect()
            client.send(json.dumps({"AccessToken": refused_token}))
            self.assertEqual(json.loads(client.recv())["Reason"], "Token inactive")
            reasons["Token inactive"] += 1
        checks["refused"] += 1
        checks["granted"] += 1  # the token is valid, but may not receive
        # Some clients break the protocol, and one sends no token.
        for message in ("hello", b"hello", '{"AccessToken":""}'):
            self.connect().send(message)
            reasons["Invalid message"] += 1
        self.connect().send("x" * 100_000)
        reasons["Message too big"] += 1
        self.raw().sendall(b"\x81\x85\0\0\0\0\xff\xff\xff\xff\xff")
        reasons["Invalid UTF-8"] += 1
        self.raw().sendall(b"\x83\x80\0\0\0\0")
        reasons["Protocol error"] += 1
        self.raw()
        reasons["Token timeout"] += 1

        # Messages reach all five sessions.
        messages = 20
        for number in range(messages):
            self.assertEqual(self.http(token, b"%d" % number), 200)
            sends["200"] += 1
            hits += 1
        size = 0
        for client in listeners:
            for number in range(messages):
                text = client.recv()
                self.assertEqual(json.loads(text)["Body"], number)
                size += len(text) + 2  # the head of a short frame
        # Invalid send requests.
        for send_token, body, status in (
            (None, b"1", 401),
            ("nonsense", b"1", 401),
            (receive_token, b"1", 403),
            (token, b"no json", 400),
            (token, b"1" * 1_000_001, 413),
        ):
            self.assertEqual(self.http(send_token, body), status)
            sends[str(status)] += 1
        checks["refused"] += 1
        hits += 1
        self.assertEqual(self.http(token, path="/nowhere"), 404)
        sends["404"] += 1

        # A session that reads nothing is closed; another one of the topic receives all messages.
        slow, quick = self.raw("big"), self.subscribe(token, "big")
        checks["granted"] += 1  # another topic: not cached
        started += 2
        slow.sendall(_text(json.dumps({"AccessToken": token}).encode()))
        self.assertIn(b"Success", slow.recv(200))
        hits += 1
        big = 0
        while not any(each["reason"] == "Slow consumer" for each in self.ended()):
            self.assertLess(big, 100, "no slow consumer")
            self.assertEqual(self.http(token, SLOW_BODY, SEND_PATH + "big"), 200)
            self.assertEqual(len(json.loads(quick.recv())["Body"]), 900_000)
            sends["200"] += 1
            hits += 1
            big += 1
        reasons["Slow consumer"] += 1
        slow.close()

        # One client sends too many messages.
        talker = self.subscribe(token)
        started += 1
        hits += 1
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                talker.send(json.dumps({"AccessToken": token}))
                self.assertEqual(json.loads(talker.recv())["Result"], "Success")
                hits += 1
        reasons["Too many messages"] += 1
        # One client sends a close frame, one closes the connection.
        for reason, last_frame in (("Client closed", _CLOSE_FRAME), ("Connection lost", b"")):
            leaving = self.raw()
            leaving.sendall(_text(json.dumps({"AccessToken": token}).encode()))
            self.assertIn(b"Success", leaving.recv(200))
            started += 1
            hits += 1
            leaving.sendall(last_frame)
            leaving.close()
            reasons[reason] += 1

        self.until(lambda: len(self.ended()) == sum(reasons.values()), "all sessions have ended")
        self.until(
            lambda: self.scrape()["topicsvc_sessions state closing"] == 0,
            "all connections are closed",
        )
        lines = self.ended()
        samples = self.scrape()
        limit_hits = {name: n for name, n in samples.items() if "_limit_hits_" in name and n}
        self.assertEqual(limit_hits, {"topicsvc_limit_hits_total limit messages_per_minute": 1})
        self.assertEqual(Counter(line["reason"] for line in lines), reasons)
        self.assertEqual(
            {reason: samples[f"topicsvc_sessions_ended_total reason {metric_label(reason)}"]
             for reason in CLOSE_REASONS},
            {reason: reasons[reason] for reason in CLOSE_REASONS},
        )  # fmt: skip
        active = len(listeners) + 1
        self.assertEqual(samples["topicsvc_sessions state active"], active)
        self.assertEqual(samples["topicsvc_sessions state waiting"], 0)
        self.assertEqual(samples["topicsvc_sessions_started_total"], started)
        self.assertEqual(
            samples["topicsvc_websockets_opened_total"], active + sum(reasons.values())
        )
        self.assertEqual(len({line["session"] for line in lines}), len(lines))
        self.assertEqual(sum(line["has_begun"] for line in lines), started - active)

        [received] = [line["messages"] for line in lines if line["reason"] == "Slow consumer"]
        self.assertTrue(1 <= received <= big, received)
        head = len('{"From":"https://cell2.unit1.example/","Body":}') + 10
        self.assertEqual(samples["topicsvc_messages_total"], messages + big)
        self.assertEqual(samples["topicsvc_deliveries_total"], 5 * messages + big + received)
        self.assertEqual(
            samples["topicsvc_delivered_bytes_total"],
            size + (big + received) * (len(SLOW_BODY) + head),
        )
        self.assertEqual(samples["topicsvc_topics"], 2)
        fan_outs = samples["topicsvc_fan_out_seconds_count"]
        self.assertTrue(1 <= fan_outs <= messages + big, fan_outs)
        self.assertEqual(samples["topicsvc_slow_readers"], 0)
        self.assertEqual(samples["topicsvc_queued_bytes"], 0)
        self.assertEqual(samples["topicsvc_hub_queued_bytes"], 0)

        for status in ("200", "400", "401", "403", "404", "405", "413", "500", "503"):
            self.assertEqual(samples[f"topicsvc_sends_total status {status}"], sends[status])
        self.assertEqual(samples["topicsvc_http_connections"], 0)
        for outcome in ("granted", "refused", "unavailable", "cancelled", "failed"):
            self.assertEqual(
                samples[f"topicsvc_token_checks_total outcome {outcome}"], checks[outcome], outcome
            )
        self.assertEqual(samples["topicsvc_token_check_seconds_count"], sum(checks.values()))
        self.assertEqual(samples["topicsvc_token_cache_misses_total"], sum(checks.values()))
        self.assertEqual(samples["topicsvc_token_cache_hits_total"], hits)
        self.assertEqual(samples["topicsvc_broker_up"], 1)
        self.assertGreater(samples["topicsvc_reactor_lag_seconds_count"], 1)
        self.assertGreater(samples["process_open_fds"], active)
        self.assertGreater(samples["process_resident_memory_bytes"], 10_000_000)
        open_metrics = self.fetch("application/openmetrics-text; version=1.0.0")
        self.assertEqual(
            {family.name for family in openmetrics(open_metrics)},
            {family.name for family in classic(self.fetch())},
        )


def _text(payload: bytes) -> bytes:
    """Encode a text frame of a client."""
    return b"\x81\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload


DAY = 86400

ALERTS: dict[str, tuple[str, str, str]] = {
    # alert: a series, its values when the alert fires, and when it does not, one a minute
    "TopicsvcDown": ('up{job="topicsvc"}', "0x30", "1x30"),
    "TopicsvcBrokerDown": ("topicsvc_broker_up", "0x30", "1x30"),
    "TopicsvcWorkerNotReady": ("topicsvc_workers_ready", "3x30", "4x30"),
    "TopicsvcWorkerRestarted": (
        'topicsvc_worker_restarts_total{worker="2"}', "0x26 1x4", "1x30"
    ),
    "TopicsvcMessagesMissed": ("topicsvc_broker_gaps_total", "0x26 1x4", "1x30"),
    "TopicsvcTokensCannotBeValidated": (
        'topicsvc_token_checks_total{outcome="unavailable"}', "0+20x30", "0+5x30"
    ),
    "TopicsvcKeysCannotBeFetched": (
        'topicsvc_key_fetches_total{outcome="failed"}', "0+1x30", "3x30"
    ),
    "TopicsvcInternalErrors": (
        'topicsvc_sessions_ended_total{reason="internal_error"}', "0x26 1x4", "0x30"
    ),
    "TopicsvcFanOutSlow": (
        'topicsvc_fan_out_seconds_bucket{le="1.0"}', "0+90x30", "0+100x30"
    ),
    "TopicsvcReactorLag": (
        'topicsvc_reactor_lag_seconds_bucket{le="0.25"}', "0+50x30", "0+100x30"
    ),
    "TopicsvcSlowReaders": (
        'topicsvc_sessions_ended_total{reason="slow_consumer"}', "0+10x30", "0+2x30"
    ),
    "TopicsvcFilesShort": ('process_open_fds{job="topicsvc"}', "950x30", "500x30"),
    "TopicsvcServiceFull": ('topicsvc_limit_hits_total{limit="connections"}', "0+1x30", "7x30"),
    "TopicsvcLimitReached": (
        'topicsvc_limit_hits_total{limit="failed_tokens_per_minute"}', "0+20x30", "0+5x30"
    ),
    "TopicsvcTokensRefused": (
        'topicsvc_refused_tokens_total{use="send",reason="wrong_audience"}', "0+20x30", "0+5x30"
    ),
    "TopicsvcSendsUnavailable": (
        'topicsvc_sends_total{status="503"}', "0+10x30", "0+2x30"
    ),
    "TopicsvcCertificateExpiresSoon": (
        "topicsvc_certificate_expiry_timestamp_seconds", f"{13 * DAY}x30", f"{15 * DAY}x30"
    ),
    "TopicsvcCertificateExpires": (
        "topicsvc_certificate_expiry_timestamp_seconds", f"{DAY}x30", "NaN " * 31
    ),
}  # fmt: skip

OTHER_SERIES = {
    "TopicsvcWorkerNotReady": [("topicsvc_workers", "4x30")],
    "TopicsvcTokensCannotBeValidated": [
        ('topicsvc_token_checks_total{outcome="granted"}', "0+100x30")
    ],
    "TopicsvcFanOutSlow": [
        ('topicsvc_fan_out_seconds_bucket{le="2.5"}', "0+100x30"),
        ('topicsvc_fan_out_seconds_bucket{le="+Inf"}', "0+100x30"),
    ],
    "TopicsvcReactorLag": [
        ('topicsvc_reactor_lag_seconds_bucket{le="0.5"}', "0+100x30"),
        ('topicsvc_reactor_lag_seconds_bucket{le="+Inf"}', "0+100x30"),
    ],
    "TopicsvcFilesShort": [('process_max_fds{job="topicsvc"}', "1000x30")],
    "TopicsvcSendsUnavailable": [('topicsvc_sends_total{status="200"}', "0+100x30")],
}
"""Series that an alert needs besides its own."""

SLOWNESS = {"TopicsvcReactorLag", "TopicsvcFanOutSlow"}
"""Alerts that a machine can raise by being slow. They are pending for minutes before they fire."""


class AlertTests(SynchronousTestCase):
    """promtool evaluates each alert: above its threshold it fires, below it does not."""

    def setUp(self) -> None:
        need(shutil.which("promtool"), "promtool (tests/integration/install.sh)")
        self.alerts = ROOT / "examples" / "prometheus-alerts.yml"

    def fires(self, alert: str, values: str) -> str:
        """Return promtool's error if `alert` does not fire after 30 minutes of `values`."""
        series = [(ALERTS[alert][0], values), *OTHER_SERIES.get(alert, ())]
        test = {
            "rule_files": [str(self.alerts)],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": value} for name, value in series],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                            "eval_time": "30m",
                            "exp_samples": [{"labels": "{}", "value": 1}],
                        }
                    ],
                }
            ],
        }
        file = Path(self.mktemp()).absolute()
        file.write_text(json.dumps(test))
        done = subprocess.run(
            ["promtool", "test", "rules", str(file)],
            capture_output=True,
            check=False,
            text=True,
            timeout=TIMEOUT,
        )
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def test_every_alert_is_tested(self) -> None:
        names = re.findall(r"- alert: (\w+)", self.alerts.read_text("utf-8"))
        self.assertEqual(set(names), set(ALERTS))

    def test_each_alert_fires_above_its_threshold_only(self) -> None:
        for alert, (_, firing, quiet) in ALERTS.items():
            with self.subTest(alert=alert):
                self.assertEqual(self.fires(alert, firing), "")
                self.assertIn("got: nil", self.fires(alert, quiet))


class PrometheusTests(MetricsTestCase):
    """A real Prometheus scrapes the service and runs the queries of the dashboard."""

    def setUp(self) -> None:
        need(
            shutil.which("prometheus") and shutil.which("promtool"),
            "prometheus (tests/integration/install.sh)",
        )
        super().setUp()
        self.prometheus_port = free_port()
        file = self.directory / "prometheus.yml"
        alerts = ROOT / "examples" / "prometheus-alerts.yml"
        file.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{json.dumps(str(alerts))}]\n"
            "scrape_configs:\n"
            "  - job_name: topicsvc\n"
            f'    static_configs: [{{targets: ["127.0.0.1:{self.admin}"]}}]\n'
        )
        self.assert_promtool("check", "config", str(file))
        prometheus = Process(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={self.directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.prometheus_port}",
            ]
        )
        self.addCleanup(prometheus.stop)
        prometheus.wait_for("Server is ready to receive web requests")

    def assert_promtool(self, *arguments: str, text: str | None = None) -> None:
        done = subprocess.run(
            ["promtool", *arguments],
            input=text,
            capture_output=True,
            check=False,
            text=True,
            timeout=TIMEOUT,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)

    def call(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result = self.call("query", query=expression)["result"]
        assert isinstance(result, list)
        return result

    def test_each_panel_of_the_dashboard_has_data_and_no_alert_fires(self) -> None:
        self.assert_promtool("check", "metrics", text=self.fetch())
        self.until(lambda: self.query("topicsvc_sends_total"), "the first scrape")
        token = self.token()
        listener = self.subscribe(token)
        self.assertEqual(self.http(token), 200)
        self.assertEqual(json.loads(listener.recv())["Body"], 1)
        self.connect().send("hello")
        self.until(
            lambda: (
                self.query('rate(topicsvc_sends_total{status="200"}[5m]) > 0')
                and self.query("rate(topicsvc_sessions_ended_total[5m]) > 0")
            ),
            "the events are scraped",
        )
        [active] = self.query('topicsvc_sessions{state="active"}')
        self.assertEqual(active["value"][1], "1")
        dashboard = json.loads((ROOT / "examples" / "grafana-dashboard.json").read_text("utf-8"))
        count = 0
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$__rate_interval", "5m")
                expression = re.sub(r"\$(job|instance)", ".*", expression)
                if not re.search(
                    "limit_hits|refused_tokens|certificate_expiry|_worker", expression
                ):  # tests.integration.test_workers_admin has several workers
                    self.assertTrue(self.query(expression), expression)
                count += 1
        self.assertGreater(count, 25)
        self.until(lambda: self.rules_with("unknown") == [], "all rules were evaluated")
        self.assertEqual(len(self.rules_with("ok")), len(ALERTS))
        self.until(lambda: self.raised() <= SLOWNESS, "no alert is raised")
        self.assertEqual(self.raised("firing"), set())

    def test_a_service_that_is_down_raises_an_alert(self) -> None:
        self.until(lambda: self.query("topicsvc_broker_up == 1"), "the first scrape")
        self.service.stop()
        self.until(
            lambda: "TopicsvcDown" in str(self.call("alerts")), "the alert is pending or firing"
        )

    def raised(self, *states: str) -> set[str]:
        """The names of the alerts in these states; by default, of all that are raised."""
        return {
            each["labels"]["alertname"]
            for each in self.call("alerts")["alerts"]
            if each["state"] in (states or ("pending", "firing"))
        }

    def rules_with(self, health: str) -> list[str]:
        return [
            rule["name"]
            for group in self.call("rules")["groups"]
            for rule in group["rules"]
            if rule["health"] == health
        ]
