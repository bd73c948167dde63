"""The metrics of several workers are merged into those of one service."""

from __future__ import annotations

from math import isnan, nan

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from topicsvc import demo
from topicsvc.service import TopicService
from topicsvc.workers.merged_metrics import (
    GAUGES,
    OF_EACH_WORKER,
    MergedMetrics,
    Scrape,
    read_metrics,
)

HEAD = "# HELP {0} Some help.\n# TYPE {0} {1}\n"


def page(type_: str, name: str, **samples: float) -> str:
    """One family: ``page("gauge", "x", a=1)`` has ``x{l="a"} 1``; the label ``_`` has none."""
    lines = [
        f"{name} {value}\n" if label == "_" else f'{name}{{l="{label}"}} {value}\n'
        for label, value in samples.items()
    ]
    return HEAD.format(name, type_) + "".join(lines)


def families(text: str) -> tuple[Metric, ...]:
    work = read_metrics(text)
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: tuple[Metric, ...] = end.value
            return found


class MergeTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.metrics = MergedMetrics()

    def merge(
        self, texts: dict[int, str], running: set[int] | None = None, replaced: tuple[int, ...] = ()
    ) -> dict[str, float]:
        """Merge the answers of workers; worker 1 has place 1. Return samples by name and labels."""
        scrapes = [
            Scrape(worker, str(worker % 10), worker in replaced, families(text))
            for worker, text in texts.items()
        ]
        self.merged = self.metrics.merge(scrapes, set(texts) if running is None else running)
        samples = [each for family in self.merged for each in family.samples]
        names = [
            " ".join([each.name, *(f"{key}={value}" for key, value in each.labels.items())])
            for each in samples
        ]
        self.assertEqual(len(set(names)), len(names), names)
        return {name: each.value for name, each in zip(names, samples, strict=True)}


class CounterTests(MergeTestCase):
    def test_counters_are_summed_over_equal_labels(self) -> None:
        found = self.merge(
            {
                1: page("counter", "topicsvc_sends_total", a=1, b=2),
                2: page("counter", "topicsvc_sends_total", b=3, c=4),
            }
        )
        self.assertEqual(
            found,
            {
                "topicsvc_sends_total l=a": 1,
                "topicsvc_sends_total l=b": 5,
                "topicsvc_sends_total l=c": 4,
            },
        )

    def test_histograms_are_summed_bucket_by_bucket(self) -> None:
        text = HEAD.format("x", "histogram") + (
            'x_bucket{le="0.1"} 1\nx_bucket{le="+Inf"} 3\nx_count 3\nx_sum 0.5\n'
        )
        found = self.merge({1: text, 2: text, 3: text})
        self.assertEqual(
            found, {"x_bucket le=0.1": 3, "x_bucket le=+Inf": 9, "x_count": 9, "x_sum": 1.5}
        )

    def counter(self, value: float) -> str:
        return page("counter", "x_total", _=value)

    def test_a_worker_that_has_ended_stays_in_the_sum(self) -> None:
        self.merge({1: self.counter(10), 2: self.counter(20)})
        self.assertEqual(self.merge({1: self.counter(11)})["x_total"], 31)
        self.assertEqual(self.merge({1: self.counter(12), 11: self.counter(5)})["x_total"], 37)
        self.assertEqual(self.merge({1: self.counter(12)})["x_total"], 37)

    def test_a_worker_that_does_not_answer_keeps_its_last_value(self) -> None:
        self.merge({1: self.counter(10), 2: self.counter(20)})
        self.assertEqual(self.merge({1: self.counter(11)}, {1, 2})["x_total"], 31)
        self.assertEqual(self.merge({1: self.counter(11), 2: self.counter(25)})["x_total"], 36)

    def test_a_counter_never_falls_whatever_the_workers_do(self) -> None:
        before = 0.0
        for texts, running in (
            ({1: 5, 2: 7}, {1, 2}),
            ({1: 6}, {1, 2}),
            ({}, {1, 2}),
            ({1: 6}, {1}),
            ({1: 6, 3: 0}, {1, 3}),
            ({3: 1}, {3}),
            ({}, set()),
            ({4: 1}, {4}),
        ):
            found = self.merge({each: self.counter(n) for each, n in texts.items()}, running)
            self.assertGreaterEqual(found["x_total"], before, (texts, running))
            before = found["x_total"]
        self.assertEqual(before, 6 + 7 + 1 + 1)

    def test_an_answer_of_a_worker_that_has_ended_since_counts_once(self) -> None:
        self.merge({1: self.counter(10), 2: self.counter(20)})
        for _ in range(3):
            found = self.merge({1: self.counter(10), 2: self.counter(22)}, {1})
            self.assertEqual(found["x_total"], 32)
        self.assertEqual(self.merge({1: self.counter(10)}, {1})["x_total"], 32)

    def test_an_older_answer_that_comes_later_lowers_nothing(self) -> None:
        self.merge({1: self.counter(10)})
        self.assertEqual(self.merge({1: self.counter(9)})["x_total"], 10)

    def test_what_a_worker_tells_at_its_end_counts_once(self) -> None:
        self.merge({1: self.counter(10), 2: self.counter(20)})
        self.metrics.keep(2, families(self.counter(27)))
        self.metrics.keep(3, families(self.counter(1)))  # it was never asked
        for running in ({1, 2, 3}, {1}, {1}):
            self.assertEqual(self.merge({1: self.counter(10)}, running)["x_total"], 38)

    def test_many_restarts_need_no_memory(self) -> None:
        for worker in range(1, 500):
            found = self.merge({worker: self.counter(1)})
        self.assertEqual(found["x_total"], 499)
        self.assertEqual((len(self.metrics._last), len(self.metrics._ended)), (1, 1))


class GaugeTests(MergeTestCase):
    def gauge(self, name: str, *values: float, replaced: tuple[int, ...] = ()) -> float:
        texts = {
            number: page("gauge", name, _=value) for number, value in enumerate(values, 1)
        }  # fmt: skip
        [value] = self.merge(texts, replaced=replaced).values()
        return value

    def test_each_gauge_is_merged_by_its_meaning(self) -> None:
        for name, expected in (
            ("topicsvc_sessions", 6),
            ("topicsvc_keys_age_seconds", 3),
            ("topicsvc_build_info", 3),
            ("topicsvc_broker_up", 1),
            ("topicsvc_certificate_expiry_timestamp_seconds", 1),
        ):
            self.assertEqual(self.gauge(name, 2, 1, 3), expected, name)

    def test_the_broker_is_up_if_it_is_so_for_all_workers(self) -> None:
        self.assertEqual(self.gauge("topicsvc_broker_up", 1, 0), 0)
        self.assertEqual(self.gauge("topicsvc_broker_up", 1, 1), 1)

    def test_a_worker_without_tls_has_no_part_in_the_first_expiry(self) -> None:
        name = "topicsvc_certificate_expiry_timestamp_seconds"
        self.assertEqual(self.gauge(name, nan, 7), 7)
        self.assertTrue(isnan(self.gauge(name, nan, nan)))

    def test_a_worker_that_does_not_answer_has_no_part_in_gauges(self) -> None:
        text = page("gauge", "topicsvc_sessions", _=5)
        self.assertEqual(self.merge({1: text, 2: text}), {"topicsvc_sessions": 10})
        self.assertEqual(self.merge({1: text}, {1, 2}), {"topicsvc_sessions": 5})
        self.assertEqual(self.merge({}, {1, 2}), {})

    def test_a_worker_that_is_replaced_has_a_part_in_sums_alone(self) -> None:
        self.assertEqual(self.gauge("topicsvc_sessions", 2, 1, replaced=(2,)), 3)
        self.assertEqual(self.gauge("topicsvc_broker_up", 1, 0, replaced=(2,)), 1)

    def test_figures_of_a_process_carry_its_place(self) -> None:
        text = page("counter", "process_cpu_seconds_total", _=1)
        text += page("gauge", "process_open_fds", _=2)
        text += page("histogram", "topicsvc_reactor_lag_seconds_count", _=3)
        found = self.merge({1: text, 2: text, 11: text}, replaced=(1,))
        self.assertEqual(
            found,
            {
                f"{name} worker={worker}": value
                for name, value in (
                    ("process_cpu_seconds_total", 1),
                    ("process_open_fds", 2),
                    ("topicsvc_reactor_lag_seconds_count", 3),
                )
                for worker in (1, 2)
            },
        )

    def test_a_gauge_that_is_not_known_carries_its_place(self) -> None:
        found = self.merge({1: page("gauge", "new", _=1), 2: page("gauge", "new", _=2)})
        self.assertEqual(found, {"new worker=1": 1, "new worker=2": 2})


class ServiceTests(MergeTestCase):
    """The metrics of a real service."""

    def setUp(self) -> None:
        super().setUp()
        service = TopicService(demo.settings([], None), reactor)
        _, page = service.metrics.page("")
        self.text = page.decode()
        self.single = list(text_string_to_metric_families(self.text))

    def test_each_gauge_of_the_service_has_a_rule(self) -> None:
        gauges = {
            each.name for each in self.single
            if each.type == "gauge" and not each.name.startswith(OF_EACH_WORKER)
        }  # fmt: skip
        self.assertEqual(set(GAUGES), gauges)

    def test_one_worker_has_the_samples_of_a_service_without_workers(self) -> None:
        self.merge({1: self.text})
        for merged, single in zip(self.merged, self.single, strict=True):
            self.assertEqual(
                (merged.name, merged.type, merged.documentation),
                (single.name, single.type, single.documentation),
            )
            for one, other in zip(merged.samples, single.samples, strict=True):
                labels = {key: value for key, value in one.labels.items() if key != "worker"}
                self.assertEqual((one.name, labels), (other.name, other.labels))
                self.assertTrue(one.value == other.value or isnan(other.value), one)

    def test_both_formats_have_each_head_once_and_can_be_read(self) -> None:
        self.merge({1: self.text, 2: self.text, 3: self.text})
        registry = CollectorRegistry()
        merged = self.merged

        class Collector:
            def collect(self) -> list[Metric]:
                return merged

        registry.register(Collector())  # type: ignore[arg-type]
        for write, read in (
            (generate_latest, text_string_to_metric_families),
            (openmetrics, read_openmetrics),
        ):
            text = write(registry).decode()
            heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
            self.assertEqual((len(heads), len(set(heads))), (len(merged), len(merged)))
            again = list(read(text))
            self.assertEqual([each.name for each in again], [each.name for each in merged])

    def test_a_page_is_read_in_pieces(self) -> None:
        self.assertEqual(sum(1 for _ in read_metrics(self.text)), len(self.single))
