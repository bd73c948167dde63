"""How late the loop is."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process.reactor_lag import INTERVAL, ReactorLag


class ReactorLagTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lag = ReactorLag(self.clock)
        self.lag.startService()

    def test_a_loop_in_time_has_none(self) -> None:
        for _ in range(10):
            self.clock.advance(INTERVAL)
        self.assertEqual(self.lag.seconds.cumulative()[0][1], 10)
        self.assertEqual(self.lag.seconds.sum, 0)

    def test_a_loop_that_was_busy_is_late_by_as_much(self) -> None:
        self.clock.advance(INTERVAL + 0.2)
        self.assertAlmostEqual(self.lag.seconds.sum, 0.2)
        self.clock.advance(INTERVAL)
        self.assertAlmostEqual(self.lag.seconds.sum, 0.2)
        self.assertEqual(sum(self.lag.seconds.counts), 2)

    def test_it_leaves_no_timer(self) -> None:
        self.clock.advance(INTERVAL)
        self.lag.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
