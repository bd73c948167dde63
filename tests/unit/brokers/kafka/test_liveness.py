"""Whether Kafka is up, found out by probes."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.kafka.liveness import PROBE_INTERVAL, PROBE_RETRY_DELAY, LivenessProbe
from topicsvc.errors import BrokerUnavailable

TIMEOUT = 4.0
"""Seconds after which a probe without a response fails."""

NOTICED = 20
"""Seconds within which a broker that does not respond is noticed."""


class LivenessProbeTests(SynchronousTestCase):
    """The broker responds, does not respond, or refuses."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.probes: list[Deferred[None]] = []
        self.calls: list[str] = []
        self.responds = True
        self.refuses = False
        self.refusal: Exception = BrokerUnavailable("refused")
        self.liveness = LivenessProbe(
            self.clock,
            self.probe,
            lambda: self.calls.append("on_up"),
            lambda why: self.calls.append(f"on_down: {why}"),
            lambda why: self.calls.append(f"on_silence: {why}"),
        )
        self.addCleanup(self.stop)

    def stop(self) -> None:
        self.liveness.stop()
        self.responds = True
        self.clock.advance(TIMEOUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def probe(self) -> Deferred[None]:
        probe: Deferred[None] = Deferred()
        self.probes.append(probe)
        if self.refuses:
            probe.errback(self.refusal)
        elif self.responds:
            probe.callback(None)
        else:
            self.clock.callLater(TIMEOUT, probe.errback, BrokerUnavailable("timed out"))
        return probe

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)

    def test_it_is_up_after_the_first_response(self) -> None:
        self.assertFalse(self.liveness.is_up)
        self.liveness.start()
        self.assertTrue(self.liveness.is_up)
        self.assertEqual(self.calls, ["on_up"])

    def test_it_probes_regularly_without_further_calls(self) -> None:
        self.liveness.start()
        self.pass_time(10 * PROBE_INTERVAL)
        self.assertEqual(len(self.probes), 11)
        self.assertEqual(self.calls, ["on_up"])

    def test_it_is_down_after_two_failed_probes(self) -> None:
        self.liveness.start()
        self.responds = False
        self.pass_time(PROBE_INTERVAL + TIMEOUT)
        self.assertTrue(self.liveness.is_up)
        self.pass_time(NOTICED - PROBE_INTERVAL - TIMEOUT)
        self.assertFalse(self.liveness.is_up)
        self.assertEqual(self.calls[1], "on_down: timed out")

    def test_a_pause_of_the_process_is_not_a_loss(self) -> None:
        self.liveness.start()
        self.responds = False
        self.pass_time(PROBE_INTERVAL)
        self.responds = True
        self.clock.advance(3600)
        self.pass_time(PROBE_INTERVAL)
        self.assertEqual(self.calls, ["on_up"])

    def test_a_suspicion_is_probed_at_once(self) -> None:
        self.liveness.start()
        self.refuses = True
        self.liveness.suspect()
        self.clock.advance(0)
        self.assertEqual(self.calls, ["on_up", "on_down: refused"])

    def test_a_wrong_suspicion_is_forgotten(self) -> None:
        self.liveness.start()
        self.liveness.suspect()
        self.clock.advance(0)
        self.assertEqual(len(self.probes), 2)
        self.refuses = True
        self.pass_time(PROBE_INTERVAL)
        self.assertEqual(self.calls, ["on_up"])
        self.pass_time(PROBE_RETRY_DELAY)
        self.assertEqual(self.calls, ["on_up", "on_down: refused"])

    def test_probes_are_frequent_while_it_is_down_and_the_return_is_noticed(self) -> None:
        self.refuses = True
        self.liveness.start()
        self.pass_time(10)
        self.assertEqual(set(self.calls), {"on_silence: refused"})
        self.assertEqual(len(self.probes), 1 + 10 / PROBE_RETRY_DELAY)
        self.refuses = False
        self.pass_time(PROBE_RETRY_DELAY)
        self.assertEqual(self.calls[-1], "on_up")
        self.liveness.suspect()
        self.pass_time(PROBE_INTERVAL)
        self.assertTrue(self.liveness.is_up)

    def test_an_internal_error_is_logged_and_counts_as_a_failed_probe(self) -> None:
        self.liveness.start()
        self.refusal = RuntimeError("simulated")
        self.refuses = True
        self.pass_time(PROBE_INTERVAL + PROBE_RETRY_DELAY)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        self.assertEqual(self.calls[-1], "on_down: simulated")

    def test_there_are_no_calls_after_stop(self) -> None:
        self.responds = False
        self.liveness.start()
        self.liveness.stop()
        self.pass_time(10)
        self.assertEqual(self.calls, [])
        self.assertFalse(self.liveness.is_up)
