"""How often a repeated log line is written."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.log_throttle import LogThrottle


class LogThrottleTests(SynchronousTestCase):
    def test_the_first_line_is_written(self) -> None:
        self.assertTrue(LogThrottle(60).allow("a", 0))

    def test_a_line_is_written_again_after_the_interval(self) -> None:
        throttle = LogThrottle(60)
        throttle.allow("a", 5)
        self.assertFalse(throttle.allow("a", 64.9))
        self.assertTrue(throttle.allow("a", 65))
        self.assertFalse(throttle.allow("a", 66))

    def test_a_suppressed_line_does_not_extend_the_interval(self) -> None:
        throttle = LogThrottle(60)
        throttle.allow("a", 0)
        throttle.allow("a", 59)
        self.assertTrue(throttle.allow("a", 60))

    def test_each_key_has_its_own_interval(self) -> None:
        throttle = LogThrottle(60)
        throttle.allow("a", 0)
        self.assertTrue(throttle.allow("b", 30))
        self.assertTrue(throttle.allow("a", 60))
        self.assertFalse(throttle.allow("b", 60))

    def test_without_an_interval_a_key_is_written_once_until_the_reset(self) -> None:
        throttle = LogThrottle()
        throttle.allow("a", 0)
        self.assertFalse(throttle.allow("a", 1e9))
        throttle.reset()
        self.assertTrue(throttle.allow("a", 1e9))

    def test_the_number_of_keys_is_bounded(self) -> None:
        throttle = LogThrottle(60, max_keys=2)
        self.assertEqual([throttle.allow(key, 0) for key in "aabbc"], [1, 0, 1, 0, 0])

    def test_an_expired_key_makes_room_for_another(self) -> None:
        throttle = LogThrottle(60, max_keys=2)
        throttle.allow("a", 0)
        throttle.allow("b", 30)
        self.assertFalse(throttle.allow("c", 59))
        self.assertTrue(throttle.allow("c", 60))
        self.assertFalse(throttle.allow("a", 60))

    def test_a_known_key_is_written_again_although_all_keys_are_in_use(self) -> None:
        throttle = LogThrottle(60, max_keys=2)
        throttle.allow("a", 0)
        throttle.allow("b", 30)
        self.assertTrue(throttle.allow("a", 60))
