"""Who is pinged when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.timing_wheel import SLOTS, TimingWheel
from topicsvc.websocket.keepalive import PingTracker


class PulseTests(SynchronousTestCase):
    def test_it_ends_when_the_limit_is_unanswered(self) -> None:
        pings = PingTracker(3)
        self.assertEqual(len({pings.next_ping() for _ in range(3)}), 3)
        self.assertIsNone(pings.next_ping())

    def test_an_answer_to_any_outstanding_ping_starts_anew(self) -> None:
        pings = PingTracker(3)
        first, second, _ = (pings.next_ping() for _ in range(3))
        pings.pong(first)
        self.assertEqual(pings.unanswered, 0)
        pings.pong(second)
        self.assertEqual([pings.next_ping() is None for _ in range(4)], [False, False, False, True])

    @given(st.lists(st.binary(max_size=6)), st.integers(1, 5))
    def test_what_answers_no_ping_counts_for_nothing(self, pongs: list[bytes], limit: int) -> None:
        pings = PingTracker(limit)
        for pong in pongs:
            pings.pong(pong)
        for _ in range(limit):
            self.assertIsNotNone(pings.next_ping())
        self.assertIsNone(pings.next_ping())


class WheelTests(SynchronousTestCase):
    @given(st.lists(st.integers(0, 3 * SLOTS), max_size=30))
    def test_each_member_has_its_turn_once_a_round_from_its_own_beginning(
        self, beginnings: list[int]
    ) -> None:
        wheel: TimingWheel[tuple[int, int]] = TimingWheel()
        turns: dict[tuple[int, int], list[int]] = {}
        for beat in range(6 * SLOTS):
            for member in wheel.advance():
                turns.setdefault(member, []).append(beat)
            for number, beginning in enumerate(beginnings):
                if beginning == beat:
                    wheel.add((number, beginning))
        for number, beginning in enumerate(beginnings):
            expected = list(range(beginning + SLOTS, 6 * SLOTS, SLOTS))
            self.assertEqual(turns[number, beginning], expected)

    def test_those_who_left_have_no_turn(self) -> None:
        wheel: TimingWheel[str] = TimingWheel()
        wheel.add("a")
        wheel.add("b")
        wheel.discard("a")
        wheel.discard("a")
        self.assertEqual([wheel.advance() for _ in range(SLOTS)][-1], ("b",))
        self.assertEqual((len(wheel), list(wheel)), (1, ["b"]))
