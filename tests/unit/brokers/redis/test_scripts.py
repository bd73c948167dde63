"""The results of the scripts, without Redis."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.redis.scripts import (
    Entry,
    EntryId,
    History,
    InvalidReply,
    StreamPlace,
    parse_history,
    parse_id,
    split_payload,
)

GENERATION = 7
START = EntryId(0, GENERATION)


def entry(id_: EntryId, previous: EntryId) -> Entry:
    return Entry(id_, None, b"1", previous)


def chain(*ids: EntryId, after: EntryId = START) -> tuple[Entry, ...]:
    """Entries that follow one another."""
    return tuple(entry(id_, previous) for previous, id_ in zip((after, *ids), ids, strict=False))


def history(
    newest: EntryId, *entries: Entry, generation: int = GENERATION, time: int = 9000
) -> History:
    return History(StreamPlace(generation, newest), True, time, entries)


class ParseTests(SynchronousTestCase):
    def test_ids_are_ordered_by_number(self) -> None:
        self.assertEqual(parse_id(b"1526919030474-55"), EntryId(1526919030474, 55))
        self.assertLess(parse_id(b"9-9"), parse_id(b"10-1"))
        self.assertLess(parse_id(b"9-9"), parse_id(b"9-10"))
        self.assertEqual(str(EntryId(1, 2)), "1-2")

    def test_a_payload(self) -> None:
        found = split_payload(b'1-1 1-2\nhttps://cell.example/\n{"a":\n1}')
        self.assertEqual(found, (b"1-1", b"1-2", "https://cell.example/", b'{"a":\n1}'))
        self.assertIsNone(split_payload(b"0-7 1-2\n\n1")[2])

    def test_a_history(self) -> None:
        fields = [b"f", b"https://c/", b"b", b"1", b"p", b"3-0", b"t", b"7"]
        found = parse_history([b"5-0", b"8", 1, b"9", [[b"5-0", fields]], 0])
        one = Entry(EntryId(5, 0), "https://c/", b"1", EntryId(3, 0))
        self.assertEqual(found, History(StreamPlace(8, EntryId(5, 0)), True, 9, (one,)))

    def test_other_values_are_refused(self) -> None:
        for value in (None, 1, b"", b"1", b"1-", b"-1", b"a-1", "1-1", [b"1-1"]):
            self.assertRaises(InvalidReply, parse_id, value)
        for value in (
            None,
            5,
            b"",
            b"1-1",
            b"1-0 1-1\nx",
            b"x\n\n1",
            b"1-1\n\n1",
            b"1-0 x\n\n1",
            7,
        ):
            self.assertRaises(InvalidReply, split_payload, value)
        good = [b"f", b"", b"b", b"1", b"p", b"3-0", b"t", b"7"]
        for value in (
            None,
            [],
            [b"5-0", b"8", 1, b"9"],
            [b"5-0", b"x", 1, b"9", [], 0],
            [b"5-0", b"8", 1, b"x", [], 0],
            [b"x", b"8", 1, b"9", []],
            [b"5-0", b"8", 1, b"9", None, 0],
            [b"5-0", b"8", 1, b"9", [[b"5-0"]], 0],
            [b"5-0", b"8", 1, b"9", [[b"5-0", good[:6]]], 0],
            [b"5-0", b"8", 1, b"9", [[b"5-0", [b"x", *good[1:]]]], 0],
            [b"5-0", b"8", 1, b"9", [[b"x", good]], 0],
        ):
            self.assertRaises(InvalidReply, parse_history, value)


class LastTests(SynchronousTestCase):
    """The entries that lead to the newest place."""

    def check(self, history: History, start: EntryId, *entries: Entry) -> None:
        self.assertEqual(history.last(4.0), (start, entries))

    def test_all_entries_since_the_beginning(self) -> None:
        entries = chain(EntryId(6000, 0), EntryId(6000, 1), EntryId(8000, 0))
        self.check(history(EntryId(8000, 0), *entries), START, *entries)

    def test_entries_before_a_hole_are_left_out(self) -> None:
        first, second, third = chain(EntryId(6000, 0), EntryId(7000, 0), EntryId(8000, 0))
        self.check(history(third.id, first, third), second.id, third)

    def test_without_the_newest_entry_there_is_nothing(self) -> None:
        first, second = chain(EntryId(6000, 0), EntryId(7000, 0))
        self.check(history(second.id, first), second.id)
        self.check(history(second.id), second.id)

    def test_old_entries_are_left_out(self) -> None:
        first, second = chain(EntryId(4999, 0), EntryId(5000, 0))
        self.check(history(second.id, first, second), first.id, second)

    def test_entries_of_an_old_generation_are_left_out(self) -> None:
        old, (new,) = chain(EntryId(6000, 0)), chain(EntryId(7000, 0), after=EntryId(0, 8))
        self.check(history(new.id, *old, new, generation=8), EntryId(0, 8), new)


class AfterTests(SynchronousTestCase):
    """What a client has missed, after an outage of the reading connection."""

    def check(
        self,
        place: EntryId,
        history: History,
        *expected: tuple[EntryId, bool],
        is_cut: bool = False,
    ) -> None:
        """`expected`: the id of each message, and whether messages before it may be missing."""
        steps, found = history.after(StreamPlace(GENERATION, place))
        self.assertEqual([(step.entry.id, step.is_gap) for step in steps], list(expected))
        self.assertIs(found, is_cut)
        if steps:
            self.assertEqual(steps[-1].place.generation, history.newest.generation)

    def test_nothing_was_sent(self) -> None:
        self.check(START, history(START))
        self.check(EntryId(1000, 0), history(EntryId(1000, 0)))

    def test_all_entries_follow(self) -> None:
        at, first, second = EntryId(1000, 0), EntryId(2000, 0), EntryId(2000, 1)
        entries = chain(first, second, after=at)
        self.check(at, history(second, *entries), (first, False), (second, False))
        self.check(START, history(first, *chain(first)), (first, False))

    def test_entries_were_trimmed(self) -> None:
        at, first, second = EntryId(1000, 0), EntryId(2000, 0), EntryId(2000, 1)
        self.check(at, history(second, entry(second, first)), (second, True))

    def test_an_entry_between_others_is_gone(self) -> None:
        ids = [EntryId(number, 0) for number in range(1, 5)]
        one, _, three, four = chain(*ids)
        found = history(ids[3], one, three, four)
        self.check(START, found, (ids[0], False), (ids[2], True), (ids[3], False))

    def test_the_newest_entries_are_gone(self) -> None:
        at, first, second = EntryId(1000, 0), EntryId(2000, 0), EntryId(3000, 0)
        self.check(at, history(second, entry(first, at)), (first, False), is_cut=True)
        self.check(at, history(second), is_cut=True)

    def test_redis_is_behind(self) -> None:
        """As after a failover to a replica that lacks the newest entries."""
        self.check(EntryId(1000, 0), history(EntryId(900, 0)), is_cut=True)

    def test_the_key_was_lost(self) -> None:
        at, new, start = EntryId(1000, 0), EntryId(2000, 0), EntryId(0, 8)
        self.check(at, history(start, generation=8), is_cut=True)
        self.check(at, history(new, *chain(new, after=start), generation=8), (new, True))

    def test_ids_of_a_new_generation_may_be_smaller(self) -> None:
        """The clock of Redis was set back, and everything was lost."""
        at, new, start = EntryId(1000, 0), EntryId(500, 0), EntryId(0, 8)
        self.check(at, history(new, *chain(new, after=start), generation=8), (new, True))

    def test_equal_ids_of_two_generations_are_two_places(self) -> None:
        at = EntryId(1000, 0)
        again = history(at, *chain(at, after=EntryId(0, 8)), generation=8)
        self.check(at, again, (at, True))
