"""Places in partitions, and the part of a log that proves positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.kafka_fakes import CLEAN
from topicsvc.brokers.kafka.lanes import (
    MAX_POSITION,
    Entry,
    Lane,
    fits,
    join_log,
    longer_from,
    place_id,
    topic_epoch,
    unknown_place,
)
from topicsvc.interfaces import Mark, Message, TopicLog
from topicsvc.settings import HistorySettings
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
NOW = 1000.0


def entry(
    offset: int, partition: int = 0, epoch: int | None = 3, age: float = 1.0, size: int = 4
) -> Entry:
    """A record; its body is its offset, and as long as `size`."""
    mark = Mark(partition, place_id(epoch, offset))
    message = Message(TOPIC, None, b"%0*d" % (size, offset), mark)
    return Entry(partition, epoch, offset, NOW - age, message)


def entries(*offsets: int, **more: int) -> list[Entry]:
    return [entry(offset, **more) for offset in offsets]


class PlaceTests(SynchronousTestCase):
    def test_a_place_is_named_by_leader_epoch_and_offset(self) -> None:
        self.assertEqual(place_id(0, 0), "0-0")
        self.assertEqual(place_id(40, 35), "14-z")
        self.assertEqual(place_id(5, 10**9), "5-gjdgxs")

    @given(st.tuples(st.integers(0, 10**6), st.integers(0, 2**62)))
    def test_the_name_can_be_read_back(self, place: tuple[int, int]) -> None:
        """So two places never have the same name."""
        epoch, _, offset = place_id(*place).partition("-")
        self.assertEqual((int(epoch, 36), int(offset, 36)), place)

    def test_an_offset_that_is_used_again_by_another_leader_is_another_place(self) -> None:
        self.assertNotEqual(place_id(1, 5), place_id(2, 5))

    def test_names_are_visible_ascii_without_dots_and_underscores(self) -> None:
        for name in (place_id(9, 99), place_id(None, 9), unknown_place(), topic_epoch("x")):
            self.assertRegex(name, r"\A[!-~]+\Z")
            self.assertNotRegex(name, r"[._]")

    def test_a_place_behind_an_unknown_record_has_a_name_of_its_own(self) -> None:
        names = {unknown_place() for _ in range(100)}
        self.assertEqual(len(names), 100)
        self.assertEqual({name[0] for name in names}, {"~"})

    def test_without_a_leader_epoch_the_name_is_valid_in_this_process_only(self) -> None:
        self.assertEqual(place_id(None, 5), place_id(None, 5))
        self.assertTrue(place_id(None, 5).startswith("~"))

    def test_topics_with_another_id_have_another_epoch(self) -> None:
        self.assertEqual(topic_epoch("one"), topic_epoch("one"))
        self.assertNotEqual(topic_epoch("one"), topic_epoch("two"))

    def test_a_partition_without_records_begins_with_the_empty_place(self) -> None:
        self.assertEqual((Lane(0).place, Lane(0).epoch), ("", 0))
        self.assertEqual((Lane(5).place, Lane(5).epoch), (None, None))

    @given(st.lists(st.tuples(st.none() | st.integers(0, 3), st.integers(0, 2**30)), max_size=9))
    def test_a_partition_advances_to_the_place_of_each_record(
        self, records: list[tuple[int | None, int]]
    ) -> None:
        lane = Lane(0)
        for epoch, start in records:
            for offset in (start, start + 1, start + 2000):
                self.assertEqual(lane.advance(epoch, offset), place_id(epoch, offset))
                self.assertEqual(lane.place, place_id(epoch, offset))
                self.assertEqual((lane.epoch, lane.next), (epoch, offset + 1))

    def test_an_unknown_place_keeps_its_name(self) -> None:
        lane = Lane(5)
        self.assertEqual(lane.named_place(), lane.named_place())


class FitTests(SynchronousTestCase):
    def test_ten_partitions_with_two_billion_records_fit_and_eleven_do_not(self) -> None:
        self.assertTrue(fits([2 * 10**9] * 10))
        self.assertFalse(fits([2 * 10**9] * 11))

    def test_more_partitions_fit_if_they_have_few_records(self) -> None:
        self.assertTrue(fits([1000] * 14))
        self.assertFalse(fits([1000] * 15))

    @given(st.integers(0, 2**62))
    def test_the_next_longer_name_is_known(self, offset: int) -> None:
        longer = longer_from(offset)
        self.assertEqual(len(place_id(0, longer - 1)), len(place_id(0, offset)))
        self.assertEqual(len(place_id(0, longer)), len(place_id(0, offset)) + 1)

    @given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 1295))
    def test_positions_that_fit_are_short_enough(self, offsets: list[int], epoch: int) -> None:
        """Also with 36 times as many records."""
        places = [place_id(epoch, offset * 36 + 35) for offset in offsets]
        position = f"{topic_epoch('x')}.{'_'.join(places)}"
        if fits(offsets):
            self.assertLessEqual(len(position), MAX_POSITION)


class LogTestCase(SynchronousTestCase):
    def join(
        self,
        read: dict[int, Sequence[Entry] | None],
        live: Sequence[Entry] = (),
        topic: object = CLEAN,
        floors: dict[int, int] | None = None,
        **history: int,
    ) -> TopicLog:
        if floors is None:
            floors = {
                each: records[-1].offset + 1 if records else 9 for each, records in read.items()
            }
        kept = HistorySettings(**history)
        return join_log(topic, floors, read, live, kept, NOW)  # type: ignore[arg-type]

    def bodies(self, log: TopicLog) -> list[int]:
        return [int(message.body) for message, _ in log.messages]


class JoinTests(LogTestCase):
    def test_it_begins_behind_the_oldest_record(self) -> None:
        """The oldest record is not kept: it names the place before the others."""
        log = self.join({0: entries(5, 6, 7)})
        self.assertEqual(log.start, ("3-5",))
        self.assertEqual(self.bodies(log), [6, 7])
        self.assertEqual(log.epoch, "k1")

    def test_a_log_that_was_read_from_its_beginning_has_all_records(self) -> None:
        log = self.join({0: entries(0, 1, epoch=0)})
        self.assertEqual((log.start, self.bodies(log)), (("",), [0, 1]))

    def test_a_beginning_that_was_deleted_is_no_beginning(self) -> None:
        log = self.join({0: entries(1, 2, epoch=0)})
        self.assertEqual((log.start, self.bodies(log)), (("0-1",), [2]))

    def test_live_records_follow(self) -> None:
        log = self.join({0: entries(5, 6)}, entries(7, 8))
        self.assertEqual((log.start, self.bodies(log)), (("3-5",), [6, 7, 8]))

    def test_an_empty_partition_begins_with_the_empty_place(self) -> None:
        log = self.join({0: None}, entries(0, epoch=0), floors={0: 0})
        self.assertEqual((log.start, self.bodies(log)), (("",), [0]))

    def test_without_the_last_record_the_start_is_unknown(self) -> None:
        for read in (None, []):
            log = self.join({0: read}, entries(9))
            self.assertTrue(log.start[0].startswith("~"))
            self.assertEqual(self.bodies(log), [9])

    def test_a_quiet_topic_begins_behind_its_last_record(self) -> None:
        log = self.join({0: [entry(5, age=500), entry(6, age=400)]})
        self.assertEqual((log.start, log.messages), (("3-6",), ()))

    def test_records_older_than_the_history_are_left_out(self) -> None:
        log = self.join({0: [entry(5, age=122), entry(6, age=121), entry(7, age=119)]}, seconds=120)
        self.assertEqual((log.start, self.bodies(log)), (("3-6",), [7]))

    def test_ages_are_seconds_since_the_record_was_written(self) -> None:
        log = self.join({0: [entry(5), entry(6, age=20), entry(7, age=-50)]})
        self.assertEqual([age for _, age in log.messages], [1, 0])

    def test_a_record_is_not_older_than_the_one_before_it(self) -> None:
        """A sender's slow clock does not remove the messages of the others."""
        log = self.join({0: [entry(5, age=30), entry(6, age=20), entry(7, age=900)]})
        self.assertEqual([age for _, age in log.messages], [20, 20])

    def test_the_number_of_messages_is_limited(self) -> None:
        log = self.join({0: entries(5, 6, 7)}, entries(8), messages=2)
        self.assertEqual((log.start, self.bodies(log)), (("3-6",), [7, 8]))

    def test_their_length_is_limited_but_the_newest_is_kept(self) -> None:
        records = entries(5, 6, 7, 8, size=100)
        log = self.join({0: records}, bytes=250)
        self.assertEqual((log.start, self.bodies(log)), (("3-6",), [7, 8]))
        log = self.join({0: records}, bytes=50)
        self.assertEqual((log.start, self.bodies(log)), (("3-7",), [8]))

    def test_partitions_are_joined_by_time_and_each_keeps_its_order(self) -> None:
        read = {
            0: [entry(5, 0, age=9), entry(6, 0, age=7), entry(7, 0, age=2)],
            1: [entry(1, 1, age=8), entry(2, 1, age=5), entry(3, 1, age=4)],
        }
        log = self.join(read, [entry(4, 1), entry(8, 0)])
        self.assertEqual(log.start, ("3-5", "3-1"))
        self.assertEqual(self.bodies(log), [6, 2, 3, 7, 4, 8])

    def test_a_limit_moves_the_start_of_each_partition(self) -> None:
        read = {
            0: [entry(5, 0, age=9), entry(6, 0, age=7), entry(7, 0, age=2)],
            1: [entry(1, 1, age=8), entry(2, 1, age=5), entry(3, 1, age=4)],
        }
        log = self.join(read, messages=2)
        self.assertEqual((log.start, self.bodies(log)), (("3-6", "3-2"), [3, 7]))

    def test_one_partition_that_was_not_read_does_not_affect_the_others(self) -> None:
        log = self.join({0: entries(5, 6), 1: None}, [entry(9, 1)])
        self.assertEqual((log.start[0], log.start[1][0]), ("3-5", "~"))
        self.assertEqual(self.bodies(log), [6, 9])


class LossTests(LogTestCase):
    """A log begins behind the last place where accepted records may have been lost."""

    unclean = replace(CLEAN, is_clean=False)
    compacted = replace(CLEAN, is_whole=False)

    def test_an_election_that_may_have_lost_records_begins_the_log(self) -> None:
        read = [*entries(5, 6, epoch=3), *entries(7, 8, epoch=4)]
        log = self.join({0: read}, topic=self.unclean)
        self.assertTrue(log.start[0].startswith("~"))
        self.assertEqual(self.bodies(log), [7, 8])

    def test_so_does_an_election_before_a_live_record(self) -> None:
        log = self.join({0: entries(5, 6, 7)}, entries(8, epoch=4), topic=self.unclean)
        self.assertTrue(log.start[0].startswith("~"))
        self.assertEqual(self.bodies(log), [8])

    def test_so_does_one_before_the_first_record_of_all(self) -> None:
        log = self.join({0: entries(0, 1, epoch=2)}, topic=self.unclean)
        self.assertTrue(log.start[0].startswith("~"))
        self.assertEqual(self.bodies(log), [0, 1])

    def test_a_clean_election_does_not(self) -> None:
        log = self.join({0: [*entries(5, 6), *entries(7, epoch=4)]}, entries(8, epoch=5))
        self.assertEqual((log.start, self.bodies(log)), (("3-5",), [6, 7, 8]))

    def test_a_hole_that_may_be_a_deleted_record_begins_the_log(self) -> None:
        log = self.join({0: entries(5, 6, 8, 9)}, topic=self.compacted)
        self.assertTrue(log.start[0].startswith("~"))
        self.assertEqual(self.bodies(log), [8, 9])

    def test_the_marker_of_a_transaction_does_not(self) -> None:
        log = self.join({0: entries(5, 6, 8, 9)})
        self.assertEqual((log.start, self.bodies(log)), (("3-5",), [6, 8, 9]))

    def test_a_loss_in_one_partition_does_not_affect_the_others(self) -> None:
        read = {0: entries(5, 6), 1: [entry(5, 1, epoch=3), entry(6, 1, epoch=4)]}
        log = self.join(read, topic=self.unclean)
        self.assertEqual((log.start[0], log.start[1][0]), ("3-5", "~"))
        self.assertEqual(sorted(self.bodies(log)), [6, 6])
