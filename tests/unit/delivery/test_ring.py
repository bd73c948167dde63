"""`Ring`: positions, what is kept, and what can be proved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.delivery.ring import ENTRY_OVERHEAD, RING_OVERHEAD, Ring
from topicsvc.interfaces import Mark


def add(ring: Ring, frame: bytes, mark: Mark | None = None, at: float = 0.0) -> str:
    """Add a message, and return the position behind it."""
    mark, position = ring.advance(mark)
    ring.keep(frame, mark, at)
    return position


class NumberedRingTests(SynchronousTestCase):
    """The ring of a broker that keeps nothing."""

    def setUp(self) -> None:
        self.ring = Ring("m4x7", ("0",), is_numbered=True)

    def test_a_position_is_there_before_any_message(self) -> None:
        self.assertEqual(self.ring.position, "m4x7.0")
        self.assertEqual(self.ring.frames_after("m4x7.0"), [])

    def test_the_messages_behind_a_position_in_their_order(self) -> None:
        positions = [add(self.ring, b"%d" % each) for each in range(5)]
        self.assertEqual(positions, [f"m4x7.{each}" for each in range(1, 6)])
        self.assertEqual(self.ring.frames_after("m4x7.0"), [b"0", b"1", b"2", b"3", b"4"])
        self.assertEqual(self.ring.frames_after("m4x7.3"), [b"3", b"4"])
        self.assertEqual(self.ring.frames_after("m4x7.5"), [])

    def test_a_position_that_is_not_provable(self) -> None:
        add(self.ring, b"1")
        for position in (
            "m4x7.2",  # ahead of the newest
            "m4x8.1",  # another epoch
            "m4x7.01",
            "m4x7.-1",
            "m4x7.",
            "m4x7",
            "m4x7.1_0",
            ".1",
            "",
            "!" * 128,
        ):
            with self.subTest(position=position):
                self.assertIsNone(self.ring.frames_after(position))

    def test_a_mark_of_a_broker_is_ignored(self) -> None:
        self.assertEqual(add(self.ring, b"1", Mark(3, "x")), "m4x7.1")

    def test_a_position_older_than_what_is_kept_is_not_provable(self) -> None:
        for each in range(5):
            add(self.ring, b"%d" % each)
        self.ring.trim(3, 100, -1)
        self.assertEqual(self.ring.frames_after("m4x7.2"), [b"2", b"3", b"4"])
        for old in ("m4x7.0", "m4x7.1"):
            self.assertIsNone(self.ring.frames_after(old))

    def test_the_newest_position_stays_provable_without_its_message(self) -> None:
        for each in range(3):
            add(self.ring, b"%d" % each, at=float(each))
        self.ring.trim(100, 100, oldest=2.0)
        self.assertEqual(len(self.ring), 0)
        self.assertEqual(self.ring.frames_after("m4x7.3"), [])
        self.assertIsNone(self.ring.frames_after("m4x7.2"))

    def test_the_limits(self) -> None:
        for each in range(10):
            add(self.ring, b"xy", at=float(each))
        self.ring.trim(8, 100, -1)
        self.assertEqual(len(self.ring), 8)
        self.ring.trim(8, 13, -1)
        self.assertEqual((len(self.ring), self.ring.size), (6, 12))
        self.ring.trim(8, 13, oldest=6.0)
        self.assertEqual(self.ring.frames_after("m4x7.7"), [b"xy"] * 3)
        self.assertEqual(self.ring.memory, 6 + 3 * ENTRY_OVERHEAD + RING_OVERHEAD)
        self.ring.clear()
        self.assertEqual((len(self.ring), self.ring.size, self.ring.memory), (0, 0, RING_OVERHEAD))

    def test_after_a_gap_no_earlier_position_is_provable(self) -> None:
        before = [self.ring.position, add(self.ring, b"1")]
        self.ring.reset("m4x8", ("0",))
        self.assertEqual([self.ring.frames_after(each) for each in before], [None, None])
        self.assertEqual(self.ring.frames_after(self.ring.position), [])
        self.assertEqual(add(self.ring, b"2"), "m4x8.2")
        self.assertEqual(self.ring.frames_after("m4x8.0"), [b"2"])


class LanesTests(SynchronousTestCase):
    """The ring of a broker with several partitions."""

    def setUp(self) -> None:
        self.ring = Ring("k", ("a", "b"))

    def test_a_place_that_it_does_not_know_may_be_ahead(self) -> None:
        add(self.ring, b"1", Mark(1, "b1"))
        for position in ("k.a_b2", "k.a2_b1", "k.a_b_c"):
            self.assertTrue(self.ring.may_be_behind(position), position)
        for position in ("k.a_b1", "k.a_b", "other.a_b2"):
            self.assertFalse(self.ring.may_be_behind(position), position)
        self.ring.reset("k", ("0",), is_numbered=True)
        self.assertFalse(self.ring.may_be_behind("k.7"), "no other process has this log")

    def test_without_a_log_from_here_on_it_numbers_messages_itself(self) -> None:
        """The broker's marks would make the positions too long."""
        self.ring.reset("m4x8", ("0",), is_numbered=True)
        self.assertEqual(add(self.ring, b"1", Mark(1, "b1")), "m4x8.1")
        self.ring.reset("k", ("a", "b"))
        self.assertEqual(add(self.ring, b"2", Mark(1, "b2")), "k.a_b2")

    def test_a_position_has_the_place_in_each_lane(self) -> None:
        self.assertEqual(self.ring.position, "k.a_b")
        self.assertEqual(add(self.ring, b"1", Mark(1, "b1")), "k.a_b1")
        self.assertEqual(add(self.ring, b"2", Mark(0, "a1")), "k.a1_b1")
        self.assertEqual(self.ring.frames_after("k.a_b"), [b"1", b"2"])

    def test_another_process_may_have_another_order_of_lanes(self) -> None:
        for mark in (Mark(1, "b1"), Mark(0, "a1"), Mark(1, "b2"), Mark(0, "a2")):
            add(self.ring, mark.id.encode(), mark)
        # A client read a1 and a2 first, from another process.
        self.assertEqual(self.ring.frames_after("k.a2_b"), [b"b1", b"b2"])
        self.assertEqual(self.ring.frames_after("k.a1_b1"), [b"b2", b"a2"])

    def test_each_lane_is_provable_by_itself(self) -> None:
        for mark in (Mark(0, "a1"), Mark(1, "b1"), Mark(0, "a2")):
            add(self.ring, mark.id.encode(), mark)
        self.ring.trim(2, 100, -1)  # a1 has gone
        self.assertEqual(self.ring.frames_after("k.a1_b"), [b"b1", b"a2"])
        self.assertIsNone(self.ring.frames_after("k.a_b1"))
        self.assertIsNone(self.ring.frames_after("k.a1_b2"))
        self.assertIsNone(self.ring.frames_after("k.b_a1"))

    def test_empty_lanes_of_another_process_that_are_not_known_here(self) -> None:
        """It started after partitions were added, and no message was sent to them."""
        for position in ("k.a_b_", "k.a_b__"):
            self.assertFalse(self.ring.may_be_behind(position), position)
            self.assertEqual(self.ring.frames_after(position), [], position)
        add(self.ring, b"a1", Mark(0, "a1"))
        add(self.ring, b"c1", Mark(2, "c1"))
        self.assertEqual(self.ring.frames_after("k.a_b__"), [b"a1", b"c1"])
        self.assertEqual(self.ring.frames_after("k.a1_b_c1_"), [])
        for position in ("k.a__", "k._b_", "k.a_b_c2_", "k.a_b__d1"):
            self.assertIsNone(self.ring.frames_after(position), position)
            self.assertTrue(self.ring.may_be_behind(position), position)

    def test_a_new_lane_is_read_from_its_beginning(self) -> None:
        self.assertEqual(add(self.ring, b"c1", Mark(2, "c1")), "k.a_b_c1")
        self.assertEqual(self.ring.frames_after("k.a_b"), [b"c1"])
        self.assertEqual(self.ring.frames_after("k.a_b_"), [b"c1"])
        self.assertEqual(self.ring.frames_after("k.a_b_c1"), [])
        add(self.ring, b"c2", Mark(2, "c2"))
        self.ring.trim(1, 100, -1)
        self.assertIsNone(self.ring.frames_after("k.a_b"))  # c1 has gone
        self.assertEqual(self.ring.frames_after("k.a_b_c1_"), [b"c2"])
        self.assertIsNone(self.ring.frames_after("k.a_b_c1_d1"))


class ModelTests(SynchronousTestCase):
    """Whatever is added and removed: a provable position gets all that follows it."""

    @given(
        st.lists(
            st.one_of(
                st.integers(0, 2).map(lambda lane: ("add", lane)),
                st.integers(0, 6).map(lambda count: ("trim", count)),
                st.just(("reset", 0)),
            ),
            max_size=60,
        )
    )
    def test_against_a_list_of_all_messages(self, steps: list[tuple[str, int]]) -> None:
        ring = Ring("e0", ("", ""))
        epoch = 0
        sent: list[tuple[int, bytes]] = []  # since the last gap
        places: dict[str, dict[int, int]] = {ring.position: {}}  # messages of each lane before it
        counts: dict[int, int] = {}
        for number, (step, value) in enumerate(steps):
            if step == "add":
                frame = b"%d" % number
                counts[value] = counts.get(value, 0) + 1
                sent.append((value, frame))
                places[add(ring, frame, Mark(value, f"i{number}"))] = dict(counts)
            elif step == "trim":
                ring.trim(value, 1000, -1)
            else:
                epoch += 1
                ring.reset(f"e{epoch}", ("", ""))
                sent, counts, places = [], {}, {ring.position: {}}
            self.assertEqual(ring.frames_after(ring.position), [])
            for position, before in places.items():
                missed = []
                seen: dict[int, int] = {}
                for lane, frame in sent:
                    seen[lane] = seen.get(lane, 0) + 1
                    if seen[lane] > before.get(lane, 0):
                        missed.append(frame)
                self.assertIn(ring.frames_after(position), (None, missed))
                if (
                    len(missed) <= len(ring)
                    and missed == [each.frame for each in ring._entries][len(ring) - len(missed) :]
                ):
                    self.assertEqual(ring.frames_after(position), missed)
