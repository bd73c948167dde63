"""docs/brokers.md shows the figures of the code."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.docs.test_docs import page
from topicsvc.brokers import in_flight, reconnection, subscriptions
from topicsvc.brokers.activemq import broker, stomp_client, stomp_frames
from topicsvc.brokers.kafka import (
    lanes,
    liveness,
    log_reader,
    metadata,
    options,
    reader,
    recall,
    record_queue,
)
from topicsvc.brokers.redis import broker as redis_broker
from topicsvc.brokers.redis import client as redis
from topicsvc.brokers.redis import reads
from topicsvc.delivery import hub
from topicsvc.settings import HistorySettings


class FigureTests(SynchronousTestCase):
    def test_each_figure_is_that_of_the_code(self) -> None:
        text = " ".join(page("docs/brokers.md").split())
        interval = stomp_client.HEARTBEAT_INTERVAL
        silent = stomp_client.SILENT_CHECKS_BEFORE_PROBE
        unanswered = stomp_client.MAX_UNANSWERED_CHECKS
        creation = reader.MAX_TOPIC_RETRIES * reader.TOPIC_RETRY_DELAY
        propagation = options.PRODUCER["topic.metadata.propagation.max.ms"] / 1000
        for figure in (
            f"If {hub.HIGH_WATER >> 20} MiB of messages wait",
            f"{hub.HIGH_WATER >> 20} MiB in total; then reading pauses until "
            f"{hub.LOW_WATER >> 20} MiB are left",
            f"{in_flight.MAX_IN_FLIGHT:,}, and {in_flight.MAX_BYTES_IN_FLIGHT >> 20} MiB in total",
            f"kept for {subscriptions.UNSUBSCRIBE_DELAY:.0f} s after the last listener",
            f"and for {subscriptions.UNSUBSCRIBE_DELAY:.0f} s after the last listener",
            f"| headers of a message | {stomp_frames.MAX_HEAD >> 10} KiB |",
            f"| body of a message | {stomp_frames.MAX_BODY >> 20} MiB |",
            {3600: "| time to live | one hour |"}[broker.TIME_TO_LIVE],
            f"for {(silent - 1) * interval:g} to {silent * interval:g} s, and no confirmation",
            f"for {(unanswered - 1) * interval:g} to {unanswered * interval:g} s, while any",
            f"given up after {(unanswered - 1) * interval:g} to {unanswered * interval:g} s if",
            f"otherwise after {(silent + unanswered - 1) * interval:g} to "
            f"{(silent + unanswered) * interval:g} s",
            f"A heartbeat is due every {stomp_client._OFFERED_INTERVAL / 1000:g} s",
            f"follows after {reconnection.INITIAL_RETRY_DELAY:g} s",
            f"doubles with each attempt up to {reconnection.MAX_RETRY_DELAY:g} s",
            f"Every {liveness.PROBE_INTERVAL:g} s topicsvc probes",
            {0.5: "probes twice a second"}[liveness.PROBE_RETRY_DELAY],
            f"about {record_queue.MAX_RECORDS:,} or {record_queue.MAX_BYTES >> 20} MiB",
            f"{options.CONSUMER['queued.max.messages.kbytes'] >> 10} MiB more",
            f'"Service unavailable" after {creation:.0f} to 10 s',
            f"a send gets 503 after {propagation:.0f} s",
            f"After {options.PRODUCER['message.timeout.ms'] / 1000:.0f} s the broker does not",
            f"one reply or message of Redis | {redis.MAX_REPLY >> 20} MiB |",
            f"| a page of a stream | {reads.PAGE >> 10} KiB; a longer message",
            f"requested at a time | {reads.MAX_REQUESTED >> 20} MiB in total",
            f"lost while {reads.MAX_REQUESTED // reads.PAGE} reads of streams waited for a reply",
            f"does not respond within {redis.PROBE_INTERVAL * (redis.MAX_UNANSWERED + 1):g} s",
            f"cannot be read back within {log_reader.TIMEOUT:g} s",
            f"Positions have at most {lanes.MAX_POSITION} characters",
            f"at most {metadata.TIMEOUT:g} s, {recall.MAX_HELD_RECORDS:,} records or "
            f"{recall.MAX_HELD_BYTES >> 20} MiB",
            f"| topics that are read back together | {recall.MAX_TOPICS_READ}; others wait |",
            {60: "for up to a minute, a topic that was deleted"}[reader.PARTITION_CHECK_INTERVAL],
            f"lives for {redis_broker.PLACE_LIFETIME // 3600} hours after the last message",
            {3600: "and for one hour if there was none"}[redis_broker.UNUSED_PLACE_LIFETIME],
            f"renews it every {redis_broker.REFRESH_INTERVAL / 60:.0f} minutes",
            f"compares it at each connection, and every {redis.PROBE_INTERVAL:g} s",
            f"The streams then keep messages for {HistorySettings().seconds} s",
            {60: "reads the new ones within a minute"}[reader.PARTITION_CHECK_INTERVAL],
        ):
            self.assertTrue(figure in text, figure)
