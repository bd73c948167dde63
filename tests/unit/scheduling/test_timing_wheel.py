"""`TimingWheel`: each member once a round."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.scheduling.timing_wheel import SLOTS, TimingWheel


class TimingWheelTests(SynchronousTestCase):
    @given(st.lists(st.integers(0, 3 * SLOTS), max_size=30))
    def test_each_member_is_returned_once_a_round(self, starts: list[int]) -> None:
        wheel: TimingWheel[tuple[int, int]] = TimingWheel()
        returned: dict[tuple[int, int], list[int]] = {}
        for step in range(6 * SLOTS):
            for member in wheel.advance():
                returned.setdefault(member, []).append(step)
            for number, start in enumerate(starts):
                if start == step:
                    wheel.add((number, start))
        for number, start in enumerate(starts):
            expected = list(range(start + SLOTS, 6 * SLOTS, SLOTS))
            self.assertEqual(returned[number, start], expected)

    def test_removed_members_are_not_returned(self) -> None:
        wheel: TimingWheel[str] = TimingWheel()
        wheel.add("a")
        wheel.add("b")
        wheel.discard("a")
        wheel.discard("a")
        self.assertEqual([wheel.advance() for _ in range(SLOTS)][-1], ("b",))
        self.assertEqual((len(wheel), list(wheel)), (1, ["b"]))
