"""docs/operations.md, the dashboard and the alerts use metrics, labels and values that exist."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.docs.test_docs import page, settings
from tests.support import promql
from tests.support.control import FakeControl
from topicsvc import demo, workers
from topicsvc import service as service_module
from topicsvc.admin import query, site
from topicsvc.admin.answers import Answer
from topicsvc.admin.request import AdminRequest
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.scheduling import heavy_hitters, minute_counts
from topicsvc.service import TopicService
from topicsvc.settings import OperatorSettings
from topicsvc.validators.introspection import _difference
from topicsvc.validators.token_id import ID_LENGTH
from topicsvc.web import senders
from topicsvc.websocket import close_reasons, server, session_log
from topicsvc.websocket.session_log import (
    _UNKNOWN,
    ADVICE_INTERVAL,
    LOSSES_FOR_ADVICE,
    MAX_SUBJECT,
    UNKNOWN_INTERVAL,
    UNKNOWN_PER_SECOND,
    SessionLog,
)
from topicsvc.workers import admin_pages, merged_lists
from topicsvc.workers.admin_pages import AskedWorker, WorkersTree
from topicsvc.workers.merged_metrics import GAUGES

PAGE = "docs/operations.md"
SCRAPE_LABELS = {"job", "instance"}
"""Labels that Prometheus adds."""


def scrape() -> list[Metric]:
    """Return the metrics of a service without clients."""
    service = TopicService(demo.settings([], None), reactor)
    _, text = service.metrics.page("")
    return list(text_string_to_metric_families(text.decode()))


def scrape_workers() -> list[Metric]:
    """Return the metrics of two workers without clients."""
    service = TopicService(demo.settings([], None), reactor)
    _, text = service.metrics.page("")
    controls = [FakeControl(Clock()) for _ in range(2)]
    for control in controls:
        control.answers["/metrics"] = 200, text.decode()
    asked = [AskedWorker(n, n, True, control) for n, control in enumerate(controls, 1)]
    clock = Clock()
    tree = WorkersTree(lambda: asked, 2, dict, lambda: None, clock, OperatorSettings())
    found: list[Answer] = []
    tree.respond(AdminRequest(b"GET", b"/metrics")).addCallback(found.append)
    while not found:
        clock.advance(0)
    return list(text_string_to_metric_families(found[0].body.decode()))


def constants(file: Path) -> str:
    """Return the strings in a module, each on a line; those of an f-string are in parts."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return "\n".join(str(node.value) for node in nodes if isinstance(node, ast.Constant))


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


class PageTests(SynchronousTestCase):
    def test_the_page_lists_exactly_the_metrics_with_type_and_labels(self) -> None:
        rows = re.findall(r"^\| `(topicsvc_\w+)` \| (\w+) \|([^|]*)\|", page(PAGE), re.MULTILINE)
        documented = {
            name: (type_, set(re.findall(r"`(\w+)`", labels))) for name, type_, labels in rows
        }
        single, merged = scrape(), scrape_workers()
        names = {family.name for family in single}
        known = {}
        for family in [*single, *(each for each in merged if each.name not in names)]:
            if family.name.startswith("topicsvc_"):
                name = family.name + ("_total" if family.type == "counter" else "")
                known[name] = (family.type, labels_of(family))
        self.assertEqual(documented, known)
        self.assertGreater(len(known), 20)

    def test_the_page_names_the_metrics_of_each_worker(self) -> None:
        labelled = {family.name for family in scrape_workers() if "worker" in labels_of(family)} - {
            "topicsvc_worker_restarts",
            "topicsvc_workers_unanswered",
        }
        expected = {each.name for each in scrape() if each.name.startswith("process_")}
        self.assertEqual(labelled, expected | {"topicsvc_reactor_lag_seconds"})
        self.assertIn(
            "The metrics of a process and `topicsvc_reactor_lag_seconds` have the label `worker`",
            page(PAGE),
        )
        for name, merge in GAUGES.items():
            if merge is not sum and name != "topicsvc_build_info":
                section = page(PAGE).partition("\n### Metrics of workers")[2]
                self.assertIn(f"`{name}`", section.partition("\n## ")[0])

    def test_the_figures_about_workers(self) -> None:
        text = " ".join(page(PAGE).split())
        topics = [f"{merged_lists.topics_of_each(count):,}" for count in (2, 4, 20, 64)]
        self.assertEqual(topics[2:], ["1,000", "1,000"])
        for figure in (
            f"{admin_pages.TIMEOUT:.0f} s for health and metrics, {admin_pages.LIST_TIMEOUT:.0f} s "
            f"for lists, and {admin_pages.END_TIMEOUT:.0f} s for the end of sessions",
            f"more than {topics[0]} topics ({topics[1]} with four workers, {topics[2]} with twenty",
            f"the last {server.MAX_ENDED:,} connections of each worker",
        ):
            self.assertIn(figure, text)

    def test_the_lines_about_workers_are_those_of_the_log(self) -> None:
        section = page(PAGE).partition("\n### Lines about workers\n")[2].partition("\n### ")[0]
        samples = re.findall(r"^(?:\| `|    )([^|`]+?)(?:` \|.*)?$", section, re.MULTILINE)
        self.assertGreater(len(samples), 12)
        sources = [*Path(workers.__path__[0]).glob("*.py"), Path(str(service_module.__file__))]
        known = "\n".join(map(constants, sources)) + os.strerror(errno.EMFILE)
        for sample in samples:
            for part in re.split(r"\.\.\.|\d+(?:\.\d)?| ?s$|[:;]|validator.key_file", sample):
                self.assertIn(part.strip(), known, sample)

    def test_the_page_lists_exactly_the_process_metrics(self) -> None:
        documented = set(re.findall(r"`(process_\w+)`", page(PAGE)))
        known = {
            sample.name for family in scrape() for sample in family.samples
            if family.name.startswith("process_")
        }  # fmt: skip
        self.assertEqual(documented, known)

    def test_the_page_lists_the_values_of_labels(self) -> None:
        for metric, label in (
            ("topicsvc_sessions", "state"),
            ("topicsvc_token_checks_total", "outcome"),
            ("topicsvc_refused_tokens_total", "use"),
        ):
            row = re.search(rf"^\| `{metric}` .*$", page(PAGE), re.MULTILINE)
            assert row is not None
            known = {
                sample.labels[label]
                for family in scrape()
                for sample in family.samples
                if sample.name == metric
            }
            listed = set(re.findall(r'"(\w+)"', row[0]))
            if row[0].endswith("below |"):
                listed |= set(re.findall(r'^\* "(\w+)":', page(PAGE), re.MULTILINE))
            self.assertEqual(listed, known)

    def test_the_page_lists_exactly_the_close_reasons_with_their_labels(self) -> None:
        rows = re.findall(r"^\| ([A-Z][\w \-]+) \| `(\w+)` \|[^|]*\|$", page(PAGE), re.MULTILINE)
        self.assertEqual(
            dict(rows),
            {reason: close_reasons.metric_label(reason) for reason in close_reasons.CLOSE_REASONS},
        )

    def test_the_page_lists_exactly_the_advice(self) -> None:
        rows = re.findall(r"^\| ([A-Z][\w \-]+) \| ([^`|]+) \|$", page(PAGE), re.MULTILINE)
        self.assertEqual(
            dict(rows),
            {reason: advice for reason, advice in close_reasons.CLOSE_REASONS.items() if advice},
        )

    def test_the_samples_of_log_lines_are_exact(self) -> None:
        text = " ".join(page(PAGE).split())
        advice = close_reasons.advice("Slow consumer")
        self.assertIn(f": Slow consumer (1092610 bytes waited); {advice} ", text)
        refusal = Refusal(
            RefusalReason.AUDIENCE,
            _difference("https://push.example/", "https://api.example/"),
        )
        self.assertIn(f"Token inactive ({refusal}); {refusal.advice} ", text)
        expired = Refusal(RefusalReason.EXPIRED)
        self.assertIn(
            f"is refused: {expired}; {expired.advice}; refused sends for this reason", text
        )
        self.assertIn(f'"system":"{SessionLog._log.namespace}", "message"', text)

    def test_the_page_lists_exactly_the_reasons_of_refused_tokens(self) -> None:
        text = re.sub(r"\n +", " ", page(PAGE))
        rows = re.findall(r"^\* `(\w+)`, ([^:`]+): (.*)\.$", text, re.MULTILINE)
        known = [(reason.label, reason.text, reason.advice) for reason in RefusalReason]
        self.assertEqual(rows, known)

    def test_the_figures_about_the_session_log(self) -> None:
        text = " ".join(page(PAGE).split())
        self.assertEqual(ADVICE_INTERVAL, 60)
        self.assertIn(f"at most {MAX_SUBJECT} characters", text)
        self.assertIn(f"after {LOSSES_FOR_ADVICE} sessions were lost within a minute", text)
        self.assertIn("(token 3f9a1c02 of", text)
        self.assertEqual(len("3f9a1c02"), ID_LENGTH)
        self.assertIn(f"{UNKNOWN_PER_SECOND} are logged in a second. ", text)
        self.assertIn(f"{UNKNOWN_INTERVAL:.0f} s after the first one that is left out", text)
        sample = _UNKNOWN.format(
            count=22, seconds=60, reasons="Connection lost 17, Client closed 5"
        )
        self.assertIn(sample, text)

    def test_each_setting_in_an_advice_exists(self) -> None:
        advices = [
            *close_reasons.CLOSE_REASONS.values(),
            *(reason.advice for reason in RefusalReason),
        ]
        for advice in advices:
            for name in re.findall(r"\b[a-z]+\.[a-z]+_[a-z_]+\b", advice):
                self.assertIn(name, settings())

    def test_each_figure_of_the_admin_endpoint_is_that_of_the_code(self) -> None:
        text = " ".join(page(PAGE).split())
        work = round(site.WORK_PER_ITERATION * 1000)
        for figure in (
            f"use at most {work} ms of each reactor iteration",
            f"At most {site.MAX_IN_PROGRESS} requests may be in progress",
            f"`limit` is {query.DEFAULT_LIMIT} by default and {query.MAX_LIMIT} at most",
            f"at most {session_log.MAX_SUBJECT} characters; null",
            f"the last {server.MAX_ENDED:,} connections that ended",
            f"If more than {heavy_hitters.MAX_KEYS:,} senders send within "
            f"{minute_counts.TICK:.0f} seconds",
            f"a `reason` of at most {query.MAX_REASON} characters",
            f"the body is longer than {site.MAX_BODY >> 10} KiB",
        ):
            self.assertIn(figure, text)
        self.assertEqual(senders.MAX_SUBJECT, session_log.MAX_SUBJECT)

    def test_the_samples_of_lists_have_the_members_of_the_code(self) -> None:
        """tests.unit.admin.test_inspection has the same members."""
        text = " ".join(page(PAGE).split())
        for sample, members in (
            ("topics", "topic sessions messages_per_minute bytes_per_minute queued_bytes"),
            (
                "sessions",
                "id topic address subject token age expires_in messages queued_bytes",
            ),
            ("senders", "subject address sends_per_minute"),
        ):
            [found] = re.findall(rf'"{sample}": \[(\{{.*?\}})\]', text)
            self.assertEqual(list(json.loads(found)), members.split())

    def test_the_page_lists_exactly_the_parts_of_readiness(self) -> None:
        service = TopicService(demo.settings([], None), reactor)
        health = page(PAGE).partition("\n## Health")[2].partition("\n## ")[0]
        documented = re.findall(r"^\| `(\w+)` \| (?!\w+ \|)", health, re.MULTILINE)
        self.assertEqual(set(documented), {*service._health_parts(), "keys"})
        sample = re.search(r'^    (\{"ready".*\})$', page(PAGE), re.MULTILINE)
        assert sample is not None
        self.assertEqual(set(json.loads(sample[1])["parts"]), set(service._health_parts()))


class QueryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.families = scrape_workers()  # these have all metrics, and the label "worker"
        self.samples = {
            sample.name: family for family in self.families for sample in family.samples
        }

    def check(self, expression: str) -> promql.Expression:
        """Check the names, labels, values and functions of `expression`."""
        found = promql.read(expression)
        self.assertTrue(found.uses, expression)
        allowed = set(SCRAPE_LABELS)
        for use in found.uses:
            if use.name == "up":  # a metric of Prometheus itself
                continue
            self.assertIn(use.name, self.samples, expression)
            family = self.samples[use.name]
            labels = labels_of(family)
            if use.name.endswith("_bucket"):
                labels.add("le")
                self.assertIn("histogram_quantile", use.functions)
            allowed |= labels
            is_counted = bool(promql.OVER_TIME & set(use.functions))
            self.assertEqual(is_counted, family.type in ("counter", "histogram"), expression)
            for label, operator, value in use.matchers:
                self.assertIn(label, labels | SCRAPE_LABELS, expression)
                if label not in SCRAPE_LABELS:
                    self.assertIn(operator, ("=", "=~"))
                    values = {sample.labels.get(label) for sample in family.samples}
                    self.assertLessEqual(set(value.split("|")), values, expression)
        self.assertLessEqual(set(found.groups), allowed, expression)
        if "histogram_quantile" in expression:
            self.assertIn("le", found.groups)
        return found

    def test_a_wrong_query_fails_the_check(self) -> None:
        for wrong in (
            "topicsvc_session",
            'topicsvc_sessions{stat="active"}',
            'topicsvc_sessions{state="sleeping"}',
            "sum by (topic) (topicsvc_sessions)",
            "topicsvc_messages_total",
            "rate(topicsvc_sessions[5m])",
            "histogram_quantile(0.5, sum by (state) (rate(topicsvc_fan_out_seconds_bucket[5m])))",
            "rate(topicsvc_fan_out_seconds_buckets[5m])",
            "rates(topicsvc_messages_total[5m])",
            "1",
        ):
            try:
                self.check(wrong)
            except (AssertionError, ValueError):
                continue
            self.fail(f"{wrong} passes")

    def panels(self) -> list[dict[str, Any]]:
        dashboard = json.loads(page("examples/grafana-dashboard.json"))
        return [panel for panel in dashboard["panels"] if panel["type"] != "row"]

    def test_each_query_of_the_dashboard_passes_the_check(self) -> None:
        used = set()
        for panel in self.panels():
            for target in panel["targets"]:
                found = self.check(target["expr"])
                used |= {use.name for use in found.uses}
                labels = {
                    label for use in found.uses for label in labels_of(self.samples[use.name])
                }
                by = set(found.groups) or SCRAPE_LABELS | labels
                legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                self.assertLessEqual(legend, by, panel["title"])
                for use in found.uses:  # only the processes that the user has selected
                    matched = [(label, value) for label, _, value in use.matchers]
                    self.assertIn(("job", "$job"), matched)
                    self.assertIn(("instance", "$instance"), matched)
        known = {family.name for family in self.families if family.name.startswith("topicsvc_")}
        self.assertEqual(known - {self.samples[name].name for name in used}, set())

    def test_the_user_selects_the_data_source_of_the_dashboard(self) -> None:
        dashboard = json.loads(page("examples/grafana-dashboard.json"))
        variables = {each["name"]: each for each in dashboard["templating"]["list"]}
        self.assertEqual(variables["datasource"]["type"], "datasource")
        for panel in self.panels():
            self.assertEqual(panel["datasource"]["uid"], "${datasource}")
        for name in SCRAPE_LABELS:
            query = variables[name]["query"]["query"]
            match = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", query)
            assert match is not None
            self.assertEqual((match[1] in self.samples, match[2]), (True, name))

    def test_panels_do_not_overlap_and_have_different_titles(self) -> None:
        dashboard = json.loads(page("examples/grafana-dashboard.json"))
        occupied, ids, titles = set(), set(), set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            self.assertFalse(cells & occupied, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            occupied |= cells
            ids.add(panel["id"])
            titles.add((panel["type"], panel["title"]))
        self.assertEqual(len(ids), len(dashboard["panels"]))
        self.assertEqual(len(titles), len(dashboard["panels"]))

    def test_each_alert_passes_the_check(self) -> None:
        text = page("examples/prometheus-alerts.yml")
        alerts = re.findall(r"- alert: (\w+)\n +expr: (?:>-\n((?: {10}.*\n)+)|(.*)\n)", text)
        self.assertEqual(len(alerts), text.count("- alert:"))
        for _, folded, plain in alerts:
            self.check(" ".join((folded or plain).split()))
