"""docs/operations.md, the dashboard and the alerts speak of what is really there."""

from __future__ import annotations

import json
import re
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from tests.docs.test_docs import page, settings
from tests.support import promql
from topicsvc import demo
from topicsvc.service import TopicService
from topicsvc.websocket import close_reasons
from topicsvc.websocket.session_log import SessionLog

PAGE = "docs/operations.md"
OF_THE_SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds."""


def scrape() -> list[Metric]:
    """What a service without clients shows."""
    service = TopicService(demo.settings([], None), reactor)
    _, text = service.metrics.page("")
    return list(text_string_to_metric_families(text.decode()))


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


class PageTests(SynchronousTestCase):
    def test_every_metric_is_there_with_its_type_and_labels_and_no_other(self) -> None:
        rows = re.findall(r"^\| `(topicsvc_\w+)` \| (\w+) \|([^|]*)\|", page(PAGE), re.MULTILINE)
        told = {name: (type_, set(re.findall(r"`(\w+)`", labels))) for name, type_, labels in rows}
        known = {}
        for family in scrape():
            if family.name.startswith("topicsvc_"):
                name = family.name + ("_total" if family.type == "counter" else "")
                known[name] = (family.type, labels_of(family))
        self.assertEqual(told, known)
        self.assertGreater(len(known), 20)

    def test_the_process_metrics_that_it_names_are_there_and_no_other(self) -> None:
        told = set(re.findall(r"`(process_\w+)`", page(PAGE)))
        known = {
            sample.name for family in scrape() for sample in family.samples
            if family.name.startswith("process_")
        }  # fmt: skip
        self.assertEqual(told, known)

    def test_the_values_of_labels_that_it_names_are_the_true_ones(self) -> None:
        for metric, label in (
            ("topicsvc_sessions", "state"),
            ("topicsvc_token_checks_total", "outcome"),
        ):
            row = re.search(rf"^\| `{metric}` .*$", page(PAGE), re.MULTILINE)
            assert row is not None
            known = {
                sample.labels[label]
                for family in scrape()
                for sample in family.samples
                if sample.name == metric
            }
            self.assertEqual(set(re.findall(r'"(\w+)"', row[0])), known)

    def test_every_reason_is_there_with_its_label_and_no_other(self) -> None:
        rows = re.findall(r"^\| ([A-Z][\w \-]+) \| `(\w+)` \|[^|]*\|$", page(PAGE), re.MULTILINE)
        self.assertEqual(
            dict(rows),
            {reason: close_reasons.metric_label(reason) for reason in close_reasons.CLOSE_REASONS},
        )

    def test_every_advice_is_there_word_by_word_and_no_other(self) -> None:
        rows = re.findall(r"^\| ([A-Z][\w \-]+) \| ([^`|]+) \|$", page(PAGE), re.MULTILINE)
        self.assertEqual(
            dict(rows),
            {reason: advice for reason, advice in close_reasons.CLOSE_REASONS.items() if advice},
        )

    def test_the_samples_are_in_the_form_of_the_log(self) -> None:
        text = " ".join(page(PAGE).split())
        advice = close_reasons.advice("Slow consumer")
        self.assertIn(f": Slow consumer (1092610 bytes waited); {advice} ", text)
        self.assertIn(f'"system":"{SessionLog._log.namespace}", "message"', text)

    def test_the_settings_that_an_advice_names_exist(self) -> None:
        for advice in close_reasons.CLOSE_REASONS.values():
            for name in re.findall(r"\b[a-z]+\.[a-z]+_[a-z_]+\b", advice):
                self.assertIn(name, settings())

    def test_every_part_of_readiness_is_there_and_no_other(self) -> None:
        service = TopicService(demo.settings([], None), reactor)
        told = re.findall(r"^\| `(\w+)` \| (?!\w+ \|)", page(PAGE), re.MULTILINE)
        self.assertEqual(set(told), set(service._parts()))
        sample = re.search(r'^    (\{"ready".*\})$', page(PAGE), re.MULTILINE)
        assert sample is not None
        self.assertEqual(set(json.loads(sample[1])["parts"]), set(service._parts()))


class QueryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.families = scrape()
        self.samples = {
            sample.name: family for family in self.families for sample in family.samples
        }

    def check(self, expression: str) -> promql.Expression:
        """Every name, label and value in `expression` is real, and counters are used as such."""
        found = promql.read(expression)
        self.assertTrue(found.uses, expression)
        allowed = set(OF_THE_SCRAPE)
        for use in found.uses:
            if use.name == "up":  # Prometheus' own
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
                self.assertIn(label, labels | OF_THE_SCRAPE, expression)
                if label not in OF_THE_SCRAPE:
                    self.assertIn(operator, ("=", "=~"))
                    real = {sample.labels.get(label) for sample in family.samples}
                    self.assertLessEqual(set(value.split("|")), real, expression)
        self.assertLessEqual(set(found.groups), allowed, expression)
        if "histogram_quantile" in expression:
            self.assertIn("le", found.groups)
        return found

    def test_a_query_that_is_wrong_is_noticed(self) -> None:
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

    def test_every_query_of_the_dashboard_is_about_what_is_there(self) -> None:
        used = set()
        for panel in self.panels():
            for target in panel["targets"]:
                found = self.check(target["expr"])
                used |= {use.name for use in found.uses}
                by = set(found.groups) or OF_THE_SCRAPE
                legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                self.assertLessEqual(legend, by, panel["title"])
                for use in found.uses:  # of the processes that are chosen, and no others
                    matched = [(label, value) for label, _, value in use.matchers]
                    self.assertIn(("job", "$job"), matched)
                    self.assertIn(("instance", "$instance"), matched)
        known = {family.name for family in self.families if family.name.startswith("topicsvc_")}
        self.assertEqual(known - {self.samples[name].name for name in used}, set())

    def test_the_dashboard_s_data_source_is_chosen_when_it_is_shown(self) -> None:
        dashboard = json.loads(page("examples/grafana-dashboard.json"))
        variables = {each["name"]: each for each in dashboard["templating"]["list"]}
        self.assertEqual(variables["datasource"]["type"], "datasource")
        for panel in self.panels():
            self.assertEqual(panel["datasource"]["uid"], "${datasource}")
        for name in OF_THE_SCRAPE:
            query = variables[name]["query"]["query"]
            match = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", query)
            assert match is not None
            self.assertEqual((match[1] in self.samples, match[2]), (True, name))

    def test_panels_do_not_overlap_and_have_names_of_their_own(self) -> None:
        dashboard = json.loads(page("examples/grafana-dashboard.json"))
        taken, ids, titles = set(), set(), set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells
            ids.add(panel["id"])
            titles.add((panel["type"], panel["title"]))
        self.assertEqual(len(ids), len(dashboard["panels"]))
        self.assertEqual(len(titles), len(dashboard["panels"]))

    def test_every_alert_is_about_what_is_there(self) -> None:
        text = page("examples/prometheus-alerts.yml")
        alerts = re.findall(r"- alert: (\w+)\n +expr: (?:>-\n((?: {10}.*\n)+)|(.*)\n)", text)
        self.assertEqual(len(alerts), text.count("- alert:"))
        for _, folded, plain in alerts:
            self.check(" ".join((folded or plain).split()))
