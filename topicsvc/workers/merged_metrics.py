"""Merges the metrics of several workers into those of one service.

Counters and histograms are summed. They include the last known values of workers that have ended
or do not answer: Prometheus takes a counter that falls for one that has started again at 0, and
would count all of it twice. Gauges are those of the workers that answer.

What says something about one process has the label ``worker`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from topicsvc.scheduling.pieces import Pieces

__all__ = ["GAUGES", "OF_EACH_WORKER", "MergedMetrics", "Scrape", "read_metrics"]

WORKER = "worker"
"""The label of a metric that is not merged. Its value is the place of the worker."""

OF_EACH_WORKER = ("process_", "topicsvc_reactor_lag_seconds")
"""How the names of these metrics begin."""


def _earliest(values: Sequence[float]) -> float:
    """The lowest of the values that are numbers."""
    return min((value for value in values if not isnan(value)), default=nan)


GAUGES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "topicsvc_build_info": max,
    "topicsvc_sessions": sum,
    "topicsvc_topics": sum,
    "topicsvc_hub_queued_bytes": sum,
    "topicsvc_history_topics": sum,
    "topicsvc_history_messages": sum,
    "topicsvc_history_bytes": sum,
    "topicsvc_slow_readers": sum,
    "topicsvc_queued_bytes": sum,
    "topicsvc_token_checks_in_progress": sum,
    "topicsvc_keys_age_seconds": max,
    "topicsvc_broker_up": min,
    "topicsvc_http_connections": sum,
    "topicsvc_certificate_expiry_timestamp_seconds": _earliest,
}
"""How the values of a gauge are merged. Another gauge gets the label of its worker."""

_Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""Family, name of the sample, labels."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The answer of one worker.

    Attributes:
        worker: its number; no other worker has had it.
        place: its place, the label: another worker may take it.
        is_replaced: whether another worker has taken its place, and it ends soon.
        families: its metrics.
    """

    worker: int
    place: str
    is_replaced: bool
    families: tuple[Metric, ...]


def read_metrics(text: str) -> Pieces[tuple[Metric, ...]]:
    """Read metrics in Prometheus' text format, in pieces.

    Raises:
        ValueError: it is another format.
    """
    families = []
    for family in text_string_to_metric_families(text):
        families.append(family)
        yield
    return tuple(families)


class MergedMetrics:
    """Merges the metrics of all workers, and remembers their counters."""

    def __init__(self) -> None:
        self._types: dict[str, tuple[str, str]] = {}  # type and documentation, by family
        self._last: dict[int, dict[_Key, float]] = {}  # counters, by worker
        self._ended: dict[_Key, float] = {}  # the sum of workers that have ended

    def merge(self, scrapes: Collection[Scrape], running: Collection[int]) -> list[Metric]:
        """Return the metrics of the service.

        Args:
            scrapes: the answers of the workers that have answered in time.
            running: the workers that run, whether or not they have answered.
        """
        for scrape in scrapes:
            # A worker may have ended since it answered. Then its counters are known already,
            # and count once more if they are kept again.
            if scrape.worker in running or scrape.worker in self._last:
                self.keep(scrape.worker, scrape.families)
        for worker in self._last.keys() - set(running):
            for key, value in self._last.pop(worker).items():
                self._ended[key] = self._ended.get(key, 0.0) + value
        alive = [scrape for scrape in scrapes if scrape.worker in running]
        return list(self._families([*self._counters(), *_gauges(alive), *_labelled(alive)]))

    def keep(self, worker: int, families: Iterable[Metric]) -> None:
        """Keep the counters of a worker, which has not ended."""
        last = self._last.setdefault(worker, {})
        for family in families:
            self._types[family.name] = family.type, family.documentation
            if _is_summed(family):
                for sample in family.samples:
                    key = _key(family, sample)
                    # Of two requests at the same time, the older one may be answered last.
                    last[key] = max(last.get(key, 0.0), sample.value)

    def _counters(self) -> Iterator[tuple[_Key, float]]:
        sums = dict(self._ended)
        for counts in self._last.values():
            for key, value in counts.items():
                sums[key] = sums.get(key, 0.0) + value
        return iter(sums.items())

    def _families(self, samples: Iterable[tuple[_Key, float]]) -> Iterator[Metric]:
        found: dict[str, list[Sample]] = {name: [] for name in self._types}
        for (family, name, labels), value in samples:
            found[family].append(Sample(name, dict(labels), value))
        for family, each in found.items():
            if each:
                type_, documentation = self._types[family]
                metric = Metric(family, documentation, type_)
                metric.samples = each
                yield metric


def _gauges(scrapes: Iterable[Scrape]) -> Iterator[tuple[_Key, float]]:
    """The gauges that are merged. Of a worker that is replaced, only sums count."""
    values: dict[_Key, list[float]] = {}
    for scrape in scrapes:
        for family in scrape.families:
            merge = GAUGES.get(family.name)
            if merge is None or (scrape.is_replaced and merge is not sum):
                continue
            for sample in family.samples:
                values.setdefault(_key(family, sample), []).append(sample.value)
    for key, each in values.items():
        yield key, GAUGES[key[0]](each)


def _labelled(scrapes: Iterable[Scrape]) -> Iterator[tuple[_Key, float]]:
    """The metrics with the label of their worker."""
    for scrape in scrapes:
        if scrape.is_replaced:  # the worker in its place has the same label
            continue
        for family in scrape.families:
            if not _is_summed(family) and family.name not in GAUGES:
                for sample in family.samples:
                    name, each, labels = _key(family, sample)
                    yield (name, each, ((WORKER, scrape.place), *labels)), sample.value


def _is_summed(family: Metric) -> bool:
    return family.type in ("counter", "histogram") and not family.name.startswith(OF_EACH_WORKER)


def _key(family: Metric, sample: Sample) -> _Key:
    return family.name, sample.name, tuple(sample.labels.items())
