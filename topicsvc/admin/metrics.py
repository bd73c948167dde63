"""Metrics in Prometheus' formats, collected when Prometheus scrapes.

Delivering a message does not run any of this code. No label grows with the number of users:
there is none for topics, cells or addresses.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import nan

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from twisted.copyright import version as twisted_version

from topicsvc import __version__
from topicsvc.admission.limits import Limits
from topicsvc.delivery.hub import Hub
from topicsvc.histogram import Histogram
from topicsvc.interfaces import Broker
from topicsvc.process.reactor_lag import ReactorLag
from topicsvc.process.usage import read_usage
from topicsvc.refusals import RefusalReason
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.web.refused_sends import RefusedSends
from topicsvc.web.site import TopicSite
from topicsvc.websocket import close_reasons
from topicsvc.websocket.server import WebSocketServer

__all__ = ["Metrics", "ProcessMetrics", "Sources", "certificate_metric", "encode"]


@dataclass(frozen=True, slots=True)
class Sources:
    """The objects that the metrics are read from.

    Attributes:
        websocket_server: sessions and slow readers.
        hub: messages and their fan-out.
        broker: its state and losses.
        site: HTTP connections and sends.
        limits: refusals by limits.
        refused_sends: sends with a refused token.
        checks: token checks.
        keys_age: returns the seconds since the keys of JWTs were fetched.
        certificate_expiry: returns when the first certificate in use expires, in seconds since
            the epoch; None: none is in use.
        lag: reactor lag.
        kinds: returns the kinds of validator and broker, by label.
    """

    websocket_server: WebSocketServer
    hub: Hub
    broker: Broker
    site: TopicSite
    limits: Limits
    refused_sends: RefusedSends
    checks: TokenCheckStats
    keys_age: Callable[[], float]
    certificate_expiry: Callable[[], float | None]
    lag: ReactorLag
    kinds: Callable[[], Mapping[str, str]]


class Metrics:
    """The metrics of one service, in a registry of its own.

    Args:
        sources: the objects that the metrics are read from.
    """

    def __init__(self, sources: Sources) -> None:
        self.registry = CollectorRegistry()
        self._process = ProcessMetrics()
        self.registry.register(_Service(sources))
        self.registry.register(self._process)

    def page(self, accept: str, open_files: int = 0) -> tuple[str, bytes]:
        """Return the content type and the text, in the format that `accept` asks for.

        Args:
            accept: the value of the header ``Accept``.
            open_files: the number of open files, which is slow to count.
        """
        self._process.open_files = open_files
        return encode(self.registry.collect(), accept)


def certificate_metric(expiry: float | None) -> Metric:
    """The metric of the first certificate that expires.

    Args:
        expiry: when, in seconds since the epoch; None: there is no certificate.
    """
    return GaugeMetricFamily(
        "topicsvc_certificate_expiry_timestamp_seconds",
        "When the first certificate in use expires; NaN without TLS.",
        nan if expiry is None else expiry,
    )


def encode(metrics: Iterable[Metric], accept: str) -> tuple[str, bytes]:
    """Return the content type and the text, in the format that `accept` asks for.

    Args:
        metrics: all metrics.
        accept: the value of the header ``Accept``.
    """
    try:
        encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # an invalid version in `accept`
        encoder, content_type = choose_encoder("")
    return content_type, encoder(_Collected(metrics))


class _Collected(Collector):
    """Metrics that are collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class ProcessMetrics(Collector):
    """Collects the metrics of the process, with the names of prometheus_client's collector.

    Attributes:
        open_files: the number of open files, which is slow to count.
    """

    open_files = 0

    def collect(self) -> Iterator[Metric]:
        usage = read_usage()
        if usage is None:
            return
        yield CounterMetricFamily(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds.",
            usage.cpu_time,
        )
        for name, documentation, value in (
            ("virtual_memory_bytes", "Virtual memory size in bytes.", usage.virtual_memory),
            ("resident_memory_bytes", "Resident memory size in bytes.", usage.resident_memory),
            (
                "start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                usage.started_at,
            ),
            ("max_fds", "Maximum number of open file descriptors.", usage.max_open_files),
            ("open_fds", "Number of open file descriptors.", self.open_files),
        ):
            yield GaugeMetricFamily(f"process_{name}", documentation, value)


class _Service(Collector):
    """Collects the metrics of the service."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        yield self._build_info()
        yield from self._sessions()
        yield from self._data()
        yield from self._positions()
        yield from self._slow_readers()
        yield from self._checks()
        yield from self._broker()
        yield from self._http()
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_limit_hits",
            "Refusals by a limit of [limits].",
            "limit",
            self._sources.limits.refusals,
        )
        yield certificate_metric(self._sources.certificate_expiry())
        yield _histogram(
            "topicsvc_reactor_lag_seconds",
            "Delay of a timer of the reactor.",
            self._sources.lag.seconds,
        )

    def _build_info(self) -> Metric:
        labels = {
            "version": __version__,
            "python": platform.python_version(),
            "twisted": twisted_version,
            **self._sources.kinds(),
        }
        build = GaugeMetricFamily(
            "topicsvc_build_info", "Versions and kinds in use; always 1.", labels=list(labels)
        )
        build.add_metric(list(labels.values()), 1)
        return build

    def _sessions(self) -> Iterator[Metric]:
        session_log = self._sources.websocket_server.context.session_log
        yield _labelled(
            GaugeMetricFamily,
            "topicsvc_sessions",
            "WebSocket connections, by the state of their session.",
            "state",
            session_log.states,
        )
        yield CounterMetricFamily(
            "topicsvc_websockets_opened", "WebSocket connections opened.", session_log.opened
        )
        yield CounterMetricFamily(
            "topicsvc_sessions_started", "Sessions that started with Success.", session_log.began
        )
        ended = {
            close_reasons.metric_label(reason): 0 for reason in close_reasons.CLOSE_REASONS
        } | session_log.ended
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_sessions_ended",
            "WebSocket connections ended, whether or not their session had started.",
            "reason",
            ended,
        )

    def _data(self) -> Iterator[Metric]:
        hub = self._sources.hub
        messages, size = self._sources.websocket_server.delivered
        yield GaugeMetricFamily("topicsvc_topics", "Topics with at least one session.", hub.topics)
        yield CounterMetricFamily(
            "topicsvc_messages", "Messages from the broker for at least one session.", hub.messages
        )
        yield CounterMetricFamily(
            "topicsvc_deliveries", "Messages delivered, counted once per session.", messages
        )
        yield CounterMetricFamily(
            "topicsvc_delivered_bytes", "Bytes delivered, as WebSocket frames.", size
        )
        yield GaugeMetricFamily(
            "topicsvc_hub_queued_bytes",
            "Bytes of messages that wait for delivery to some of their sessions.",
            hub.queued,
        )
        yield _histogram(
            "topicsvc_fan_out_seconds",
            "From the receipt of a message until it was delivered to its last session.",
            hub.fan_out,
        )

    def _positions(self) -> Iterator[Metric]:
        stats, history = self._sources.hub.position_stats, self._sources.hub.history
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_returns",
            "Sessions that started behind a position, by whether messages may be missing.",
            "missed",
            {"false": stats.proved, "true": stats.missed},
        )
        yield CounterMetricFamily(
            "topicsvc_replayed_messages",
            "Messages sent to sessions that had missed them.",
            stats.replayed,
        )
        yield CounterMetricFamily(
            "topicsvc_gaps_told",
            "Sessions with positions told that messages may be missing while they were connected.",
            stats.gaps,
        )
        yield GaugeMetricFamily(
            "topicsvc_history_topics",
            "Topics with kept messages.",
            0 if history is None else len(history),
        )
        yield GaugeMetricFamily(
            "topicsvc_history_messages",
            "Messages kept for sessions that return.",
            0 if history is None else history.messages,
        )
        yield GaugeMetricFamily(
            "topicsvc_history_bytes",
            "Memory for these messages and their topics; limited by history.total.",
            0 if history is None else history.memory,
        )
        yield CounterMetricFamily(
            "topicsvc_history_evictions",
            "Times that a topic's kept messages were removed because of history.total.",
            0 if history is None else history.evicted,
        )

    def _slow_readers(self) -> Iterator[Metric]:
        slow_consumers = self._sources.websocket_server.context.slow_consumers
        yield GaugeMetricFamily(
            "topicsvc_slow_readers", "Clients with queued data.", len(slow_consumers)
        )
        yield GaugeMetricFamily(
            "topicsvc_queued_bytes", "Bytes queued for slow readers.", slow_consumers.total
        )

    def _checks(self) -> Iterator[Metric]:
        checks = self._sources.checks
        yield GaugeMetricFamily(
            "topicsvc_token_checks_in_progress",
            "Token checks in progress or queued.",
            checks.in_flight,
        )
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_token_checks",
            "Token checks by the validator.",
            "outcome",
            checks.outcomes,
        )
        yield self._refused_tokens()
        yield _histogram(
            "topicsvc_token_check_seconds", "Duration of a token check.", checks.seconds
        )
        yield CounterMetricFamily(
            "topicsvc_token_cache_hits", "Grants found in the cache.", checks.cache_hits
        )
        yield CounterMetricFamily(
            "topicsvc_token_cache_misses", "Tokens not found in the cache.", checks.cache_misses
        )
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_key_fetches",
            "Fetches of the keys of JWTs.",
            "outcome",
            checks.key_fetches,
        )
        yield GaugeMetricFamily(
            "topicsvc_keys_age_seconds",
            "Time since the keys of JWTs were fetched; 0 without such a validator.",
            self._sources.keys_age(),
        )

    def _refused_tokens(self) -> Metric:
        refused = CounterMetricFamily(
            "topicsvc_refused_tokens",
            "Tokens refused, of sessions and of sends, by the reason.",
            labels=["use", "reason"],
        )
        session_log = self._sources.websocket_server.context.session_log
        uses = {"session": session_log.refusals, "send": self._sources.refused_sends.refusals}
        for use, refusals in uses.items():
            for reason in RefusalReason:
                refused.add_metric([use, reason.label], refusals[reason])
        return refused

    def _broker(self) -> Iterator[Metric]:
        broker, losses = self._sources.broker, self._sources.broker.losses
        yield GaugeMetricFamily(
            "topicsvc_broker_up", "Whether the broker can be used: 1 or 0.", int(broker.is_up)
        )
        yield CounterMetricFamily(
            "topicsvc_broker_reconnects", "Reconnections to the broker.", losses.reconnects
        )
        yield CounterMetricFamily(
            "topicsvc_broker_gaps", "Times that messages may have been missed.", losses.gaps
        )
        yield CounterMetricFamily(
            "topicsvc_broker_gap_seconds", "Duration of these gaps.", losses.seconds
        )
        yield CounterMetricFamily(
            "topicsvc_broker_misrouted_messages",
            "Messages of another topic than subscribed, dropped.",
            losses.misrouted,
        )

    def _http(self) -> Iterator[Metric]:
        site = self._sources.site
        yield GaugeMetricFamily(
            "topicsvc_http_connections",
            "Open connections that are not a WebSocket.",
            site.connections,
        )
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_sends",
            "Completed POST and PUT requests.",
            "status",
            {str(status): count for status, count in sorted(site.sends.items())},
        )


def _labelled(
    family: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    documentation: str,
    label: str,
    values: Mapping[str, int],
) -> Metric:
    metric = family(name, documentation, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    buckets = [(floatToGoString(bound), count) for bound, count in histogram.cumulative()]
    return HistogramMetricFamily(name, documentation, buckets, histogram.sum)
