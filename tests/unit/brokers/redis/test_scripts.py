"""The results of the scripts, without Redis."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.redis.scripts import (
    NONE,
    Entry,
    EntryId,
    History,
    InvalidReply,
    parse_history,
    parse_id,
    parse_payload,
)

KEPT = 120.0


def entry(id_: EntryId, previous: EntryId) -> Entry:
    return Entry(id_, None, b"1", previous)


class ParseTests(SynchronousTestCase):
    def test_ids_are_ordered_by_number(self) -> None:
        self.assertEqual(parse_id(b"1526919030474-55"), EntryId(1526919030474, 55))
        self.assertLess(parse_id(b"9-9"), parse_id(b"10-1"))
        self.assertLess(parse_id(b"9-9"), parse_id(b"9-10"))
        self.assertEqual(str(EntryId(1, 2)), "1-2")

    def test_a_payload(self) -> None:
        found = parse_payload(b'1-2\nhttps://cell.example/\n{"a":\n1}')
        self.assertEqual(found, Entry(EntryId(1, 2), "https://cell.example/", b'{"a":\n1}'))
        self.assertIsNone(parse_payload(b"1-2\n\n1").sender)

    def test_a_history(self) -> None:
        fields = [b"f", b"https://c/", b"b", b"1", b"p", b"3-0", b"t", b"7"]
        found = parse_history([b"5-0", b"9", [[b"5-0", fields]]])
        self.assertEqual(
            found,
            History(EntryId(5, 0), 9, (Entry(EntryId(5, 0), "https://c/", b"1", EntryId(3, 0)),)),
        )

    def test_other_values_are_refused(self) -> None:
        for value in (None, 1, b"", b"1", b"1-", b"-1", b"a-1", "1-1", [b"1-1"]):
            self.assertRaises(InvalidReply, parse_id, value)
        for value in (None, 5, b"", b"1-1", b"1-1\nx", b"x\n\n1", [b"1-1", b"", b""]):
            self.assertRaises(InvalidReply, parse_payload, value)
        good = [b"f", b"", b"b", b"1", b"p", b"3-0", b"t", b"7"]
        for value in (
            None,
            [],
            [b"5-0", b"9"],
            [b"5-0", b"x", []],
            [b"5-0", b"9", None],
            [b"5-0", b"9", [[b"5-0"]]],
            [b"5-0", b"9", [[b"5-0", good[:6]]]],
            [b"5-0", b"9", [[b"5-0", [b"x", *good[1:]]]]],
            [b"5-0", b"9", [[b"x", good]]],
        ):
            self.assertRaises(InvalidReply, parse_history, value)


class CompletenessTests(SynchronousTestCase):
    """Whether a client has missed a message, after an outage of the reading connection."""

    def check(
        self, expected: bool, position: EntryId, history: History, outage: float = 5.0
    ) -> None:
        self.assertIs(history.is_complete_after(position, outage, KEPT), expected)

    def test_nothing_was_sent(self) -> None:
        at = EntryId(1_000_000, 0)
        self.check(True, at, History(at, 1_005_000, ()))
        self.check(True, at, History(at, 9_000_000, ()), outage=10 * KEPT)

    def test_all_entries_follow(self) -> None:
        at, first, second = EntryId(1000, 0), EntryId(2000, 0), EntryId(2000, 1)
        entries = (entry(first, at), entry(second, first))
        self.check(True, at, History(second, 2500, entries), outage=10 * KEPT)

    def test_entries_were_trimmed(self) -> None:
        at, first, second = EntryId(1000, 0), EntryId(2000, 0), EntryId(2000, 1)
        self.check(False, at, History(second, 2500, (entry(second, first),)))

    def test_the_newest_entries_are_gone(self) -> None:
        self.check(False, EntryId(1000, 0), History(EntryId(900, 0), 2500, ()))

    def test_there_was_no_stream_and_is_none(self) -> None:
        self.check(True, NONE, History(NONE, 5000, ()))
        self.check(False, NONE, History(NONE, 5000, ()), outage=KEPT)

    def test_a_stream_began(self) -> None:
        new = EntryId(2000, 0)
        self.check(True, NONE, History(new, 5000, (entry(new, NONE),)))
        self.check(False, NONE, History(new, 5000, (entry(new, NONE),)), outage=KEPT)

    def test_the_stream_has_ended_in_its_time(self) -> None:
        at = EntryId(1000, 0)
        self.check(True, at, History(NONE, 1000 + 120_000, ()))
        self.check(False, at, History(NONE, 1000 + 120_000, ()), outage=KEPT)
        new = EntryId(1000 + 120_000, 0)
        self.check(True, at, History(new, 200_000, (entry(new, NONE),)))

    def test_the_stream_is_gone_before_its_time(self) -> None:
        at = EntryId(1000, 0)
        self.check(False, at, History(NONE, 1000 + 119_999, ()))
        new = EntryId(1000 + 119_999, 0)
        self.check(False, at, History(new, 200_000, (entry(new, NONE),)))
