"""`frame_end`: where the frames of joined messages end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.harness import TOPIC
from topicsvc.delivery.frames import frame_end
from topicsvc.interfaces import Message
from topicsvc.websocket.messages import data_frame

sizes = st.sampled_from([0, 1, 80, 90, 120, 200, 65_400, 65_500, 70_000])


def frame(size: int) -> bytes:
    return data_frame(Message(TOPIC, None, b"1" * (size + 1)))


class FrameTests(SynchronousTestCase):
    @given(st.lists(sizes, min_size=1, max_size=6), st.data())
    def test_each_byte_belongs_to_one_frame(self, sizes: list[int], data: st.DataObject) -> None:
        frames = [frame(size) for size in sizes]
        joined = b"".join(frames)
        position = data.draw(st.integers(0, len(joined) - 1))
        end = 0
        for each in frames:
            end += len(each)
            if position < end:
                break
        self.assertEqual(frame_end(joined, position), end)

    def test_the_borders_of_a_frame(self) -> None:
        one, two = frame(0), frame(200)
        joined = one + two
        for position, end in (
            (0, len(one)),
            (len(one) - 1, len(one)),
            (len(one), len(joined)),
            (len(joined) - 1, len(joined)),
        ):
            self.assertEqual(frame_end(joined, position), end)
