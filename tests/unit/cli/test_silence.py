"""When a connection that only receives is dead."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.cli.silence import MAX_SILENCE, MIN_SILENCE, Silence


class SilenceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.silence = Silence(0.0)

    def ping(self, *times: float) -> None:
        for now in times:
            self.silence.heard(now)
            self.silence.pinged(now)

    def test_three_default_ping_intervals_without_a_byte(self) -> None:
        self.assertEqual(MAX_SILENCE, 3 * 60)
        self.silence.heard(10.0)
        self.assertFalse(self.silence.is_dead(189.9))
        self.assertTrue(self.silence.is_dead(190.0))

    def test_a_service_that_pings_more_often_is_missed_earlier(self) -> None:
        self.ping(0, 20, 40.5, 60)
        self.assertEqual(self.silence.limit, 3 * 20.5)
        self.assertFalse(self.silence.is_dead(121.4))
        self.assertTrue(self.silence.is_dead(121.5))

    def test_frequent_pings_do_not_make_a_short_pause_a_loss(self) -> None:
        self.ping(0, 1, 2, 3)
        self.assertEqual(self.silence.limit, MIN_SILENCE)

    def test_delayed_pings_that_arrive_together_do_not_shorten_the_limit(self) -> None:
        self.ping(0, 60, 60.1, 60.2)
        self.assertEqual(self.silence.limit, MAX_SILENCE)

    def test_rare_pings_do_not_extend_the_limit(self) -> None:
        self.ping(0, 600, 1200, 1800)
        self.assertEqual(self.silence.limit, MAX_SILENCE)
