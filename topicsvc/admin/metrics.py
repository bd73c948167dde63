"""Adapter: the numbers of the service in Prometheus' words, read when it asks.

Nothing here is on the way of a message. No label grows with users: no topic, cell or address.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from twisted.copyright import version as twisted_version

from topicsvc import __version__
from topicsvc.admission.limits import Limits
from topicsvc.delivery.hub import Hub
from topicsvc.histogram import Histogram
from topicsvc.interfaces import Broker
from topicsvc.process.reactor_lag import ReactorLag
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.web.site import TopicSite
from topicsvc.websocket import close_reasons
from topicsvc.websocket.server import WebSocketServer

__all__ = ["Metrics", "Sources"]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are.

    Attributes:
        websocket_server: sessions and slow readers.
        hub: messages and their fan-out.
        broker: whether it is up, and what it lost.
        site: HTTP connections and sends.
        limits: what was refused.
        checks: of tokens.
        lag: how late the loop is.
        kinds: tells which validator and which broker there are, by name.
    """

    websocket_server: WebSocketServer
    hub: Hub
    broker: Broker
    site: TopicSite
    limits: Limits
    checks: TokenCheckStats
    lag: ReactorLag
    kinds: Callable[[], Mapping[str, str]]


class Metrics:
    """What a scrape gets. Each service has a registry of its own.

    Args:
        sources: where the numbers are.
    """

    def __init__(self, sources: Sources) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Service(sources))
        ProcessCollector(registry=self.registry)

    def page(self, accept: str) -> tuple[str, bytes]:
        """The content type and the text, in the newest format that `accept` names."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # it names a version that is none
            encode, content_type = choose_encoder("")
        return content_type, encode(self.registry)


class _Service(Collector):
    """Reads the sources."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources

    def collect(self) -> Iterator[Metric]:
        yield self._build()
        yield from self._sessions()
        yield from self._data()
        yield from self._slow_readers()
        yield from self._checks()
        yield from self._broker()
        yield from self._http()
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_limit_hits",
            "Times that a bound of [limits] has refused something.",
            "limit",
            self._from.limits.refusals,
        )
        yield _histogram(
            "topicsvc_reactor_lag_seconds",
            "How late the reactor called what was due.",
            self._from.lag.seconds,
        )

    def _build(self) -> Metric:
        about = {
            "version": __version__,
            "python": platform.python_version(),
            "twisted": twisted_version,
            **self._from.kinds(),
        }
        build = GaugeMetricFamily(
            "topicsvc_build_info", "What is running; always 1.", labels=list(about)
        )
        build.add_metric(list(about.values()), 1)
        return build

    def _sessions(self) -> Iterator[Metric]:
        journal = self._from.websocket_server.context.session_log
        yield _labelled(
            GaugeMetricFamily,
            "topicsvc_sessions",
            "WebSocket connections, by what their session does.",
            "state",
            journal.states,
        )
        yield CounterMetricFamily(
            "topicsvc_websockets_opened", "WebSocket connections opened.", journal.opened
        )
        yield CounterMetricFamily(
            "topicsvc_sessions_started", "Sessions whose client was told Success.", journal.began
        )
        ended = {
            close_reasons.metric_label(reason): 0 for reason in close_reasons.CLOSE_REASONS
        } | journal.ended
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_sessions_ended",
            "WebSocket connections ended, whether or not their session had started.",
            "reason",
            ended,
        )

    def _data(self) -> Iterator[Metric]:
        hub = self._from.hub
        messages, size = self._from.websocket_server.delivered
        yield GaugeMetricFamily("topicsvc_topics", "Topics that somebody listens to.", hub.topics)
        yield CounterMetricFamily(
            "topicsvc_messages", "Messages that the broker brought for a listener.", hub.messages
        )
        yield CounterMetricFamily(
            "topicsvc_deliveries", "Messages handed to sessions, once for each.", messages
        )
        yield CounterMetricFamily(
            "topicsvc_delivered_bytes", "Bytes of these, as WebSocket frames.", size
        )
        yield GaugeMetricFamily(
            "topicsvc_hub_queued_bytes",
            "Bytes of messages that have not been handed to all of their sessions.",
            hub.queued,
        )
        yield _histogram(
            "topicsvc_fan_out_seconds",
            "From the broker's delivery of a message until its last session was served.",
            hub.fan_out,
        )

    def _slow_readers(self) -> Iterator[Metric]:
        backlog = self._from.websocket_server.context.slow_consumers
        yield GaugeMetricFamily(
            "topicsvc_slow_readers", "Sessions that have not taken all yet.", len(backlog)
        )
        yield GaugeMetricFamily("topicsvc_queued_bytes", "Bytes that wait for them.", backlog.total)

    def _checks(self) -> Iterator[Metric]:
        checks = self._from.checks
        yield GaugeMetricFamily(
            "topicsvc_token_checks_in_progress",
            "Checks of tokens under way or waiting for their turn.",
            checks.in_flight,
        )
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_token_checks",
            "Checks of tokens by the validator.",
            "outcome",
            checks.outcomes,
        )
        yield _histogram(
            "topicsvc_token_check_seconds", "How long the validator took to answer.", checks.seconds
        )
        yield CounterMetricFamily(
            "topicsvc_token_cache_hits", "Grants taken from memory.", checks.cache_hits
        )
        yield CounterMetricFamily(
            "topicsvc_token_cache_misses", "Tokens that memory did not know.", checks.cache_misses
        )

    def _broker(self) -> Iterator[Metric]:
        broker, losses = self._from.broker, self._from.broker.losses
        yield GaugeMetricFamily(
            "topicsvc_broker_up", "Whether messages can flow: 1 or 0.", int(broker.is_up)
        )
        yield CounterMetricFamily(
            "topicsvc_broker_reconnects", "WebSocketServer made again.", losses.reconnects
        )
        yield CounterMetricFamily(
            "topicsvc_broker_gaps", "Times that messages may have been missed.", losses.gaps
        )
        yield CounterMetricFamily(
            "topicsvc_broker_gap_seconds", "How long these lasted.", losses.seconds
        )
        yield CounterMetricFamily(
            "topicsvc_broker_misrouted_messages",
            "Messages of a topic that was not subscribed, dropped.",
            losses.misrouted,
        )

    def _http(self) -> Iterator[Metric]:
        site = self._from.site
        yield GaugeMetricFamily(
            "topicsvc_http_connections", "WebSocketServer that are no WebSocket.", site.connections
        )
        yield _labelled(
            CounterMetricFamily,
            "topicsvc_sends",
            "POST and PUT requests answered.",
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
