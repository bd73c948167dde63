"""How late the reactor calls its timers."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process.reactor_lag import INTERVAL, ReactorLag


class ReactorLagTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lag = ReactorLag(self.clock)
        self.lag.startService()

    def test_calls_in_time_have_no_lag(self) -> None:
        for _ in range(10):
            self.clock.advance(INTERVAL)
        self.assertEqual(self.lag.seconds.cumulative()[0][1], 10)
        self.assertEqual(self.lag.seconds.sum, 0)

    def test_a_late_call_is_measured_and_does_not_affect_the_next(self) -> None:
        self.clock.advance(INTERVAL + 0.2)
        self.assertAlmostEqual(self.lag.seconds.sum, 0.2)
        self.clock.advance(INTERVAL)
        self.assertAlmostEqual(self.lag.seconds.sum, 0.2)
        self.assertEqual(sum(self.lag.seconds.counts), 2)

    def test_it_leaves_no_timer(self) -> None:
        self.clock.advance(INTERVAL)
        self.lag.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
