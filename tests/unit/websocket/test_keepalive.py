"""Pings and their answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.websocket.keepalive import PingTracker


class PingTrackerTests(SynchronousTestCase):
    def test_there_is_no_next_ping_after_too_many_unanswered_ones(self) -> None:
        pings = PingTracker(3)
        self.assertEqual(len({pings.next_ping() for _ in range(3)}), 3)
        self.assertIsNone(pings.next_ping())

    def test_an_answer_to_any_outstanding_ping_resets_the_count(self) -> None:
        pings = PingTracker(3)
        first, second, _ = (pings.next_ping() for _ in range(3))
        pings.pong(first)
        self.assertEqual(pings.unanswered, 0)
        pings.pong(second)
        self.assertEqual([pings.next_ping() is None for _ in range(4)], [False, False, False, True])

    @given(st.lists(st.binary(max_size=6)), st.integers(1, 5))
    def test_other_pongs_do_not_count(self, pongs: list[bytes], limit: int) -> None:
        pings = PingTracker(limit)
        for pong in pongs:
            pings.pong(pong)
        for _ in range(limit):
            self.assertIsNotNone(pings.next_ping())
        self.assertIsNone(pings.next_ping())
