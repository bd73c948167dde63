"""The queue of reads, and their pages."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.redis.client import Command, OnReply
from topicsvc.brokers.redis.reads import MAX_REQUESTED, PAGE, Since, StreamReads
from topicsvc.brokers.redis.scripts import EntryId, History
from topicsvc.errors import BrokerUnavailable

PAGES = MAX_REQUESTED // PAGE
"""How many reads may be requested at a time."""

BEGINNING: Since = ("0-0", "")


def page(*ids: int, newest: int, rest: int = 0, generation: int = 7) -> list[Any]:
    """A reply of Redis with the entries of these ids."""
    entries = [
        [b"%d-0" % id_, [b"f", b"", b"b", b"%d" % id_, b"p", b"%d-0" % (id_ - 1), b"t", b"1"]]
        for id_ in ids
    ]
    return [b"%d-0" % newest, b"%d" % generation, 1, b"9", entries, rest]


class StreamReadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.requests: list[Command] = []
        self.replies: list[OnReply] = []
        self.results: dict[str, History | BrokerUnavailable] = {}
        self.unwanted: set[str] = set()
        self.is_up = True
        self.reads = StreamReads(self.request)

    def request(self, command: Command, on_reply: OnReply) -> None:
        if self.is_up:
            self.requests.append(command)
            self.replies.append(on_reply)
        else:
            on_reply(BrokerUnavailable("not connected"))

    def read(self, *names: str, since: Since = BEGINNING) -> None:
        for name in names:

            def command(since: Since, limit: int, name: str = name) -> Command:
                return (name, *since, limit)

            def on_history(history: History | BrokerUnavailable, name: str = name) -> None:
                self.assertNotIn(name, self.results)
                self.results[name] = history

            def is_wanted(name: str = name) -> bool:
                return name not in self.unwanted

            self.reads.read(command, since, on_history, is_wanted)

    def reply(self, reply: Any) -> None:
        """Reply to the oldest request."""
        self.replies.pop(0)(reply)

    def ids(self, name: str) -> list[int]:
        """The entries that were read."""
        history = self.results[name]
        assert isinstance(history, History), history
        self.assertEqual(history.rest, 0)
        return [entry.id.milliseconds for entry in history.entries]

    def test_the_pages_without_a_reply_are_bounded_and_in_order(self) -> None:
        names = [f"n{number}" for number in range(5 * PAGES)]
        self.read(*names)
        for answered in range(len(names)):
            self.assertEqual(len(self.requests), min(answered + PAGES, len(names)))
            self.assertEqual(len(self.reads), len(self.requests) - answered)
            self.reply(page(1, newest=1))
        self.assertEqual([command[0] for command in self.requests], names)
        self.assertEqual([self.ids(name) for name in names], [[1]] * len(names))
        self.assertEqual(len(self.reads), 0)

    def test_the_bound_is_below_what_redis_keeps(self) -> None:
        """``client-output-buffer-limit pubsub 32mb 8mb 60`` is the default of Redis."""
        self.assertLessEqual(MAX_REQUESTED, 6 * 2**20)

    def test_a_long_stream_is_read_in_pages(self) -> None:
        self.read("long")
        self.reply(page(1, 2, newest=3, rest=300))
        self.assertEqual(self.results, {})
        self.reply(page(3, 4, newest=4, rest=300))
        self.reply(page(5, newest=5))
        self.assertEqual(
            self.requests,
            [("long", "0-0", "", PAGE), ("long", "2-0", 7, PAGE), ("long", "4-0", 7, PAGE)],
        )
        self.assertEqual(self.ids("long"), [1, 2, 3, 4, 5])
        history = self.results["long"]
        assert isinstance(history, History)
        self.assertEqual(history.newest.id, EntryId(5, 0), "that of the last page")

    def test_a_read_that_has_begun_goes_on_at_once(self) -> None:
        names = [f"n{number}" for number in range(PAGES + 1)]
        self.read(*names)
        self.reply(page(1, newest=2, rest=300))
        self.assertEqual(self.requests[-1], ("n0", "1-0", 7, PAGE))
        for _ in range(PAGES - 1):
            self.reply(page(newest=1))
        self.assertEqual(self.requests[-1][0], names[-1])

    def test_a_long_entry_has_a_page_of_its_own_behind_the_others(self) -> None:
        size = MAX_REQUESTED // 2
        names = [f"n{number}" for number in range(PAGES)]
        self.read(*names)
        self.reply(page(1, newest=2, rest=size))
        self.read("later")
        self.assertEqual(len(self.requests), PAGES, "there is no room for it")
        for _ in range(PAGES // 2 - 1):
            self.reply(page(newest=1))
        self.assertEqual(self.requests[PAGES:], [("n0", "1-0", 7, size)])
        self.reply(page(newest=1))
        self.assertEqual(self.requests[-1][0], "later")
        while len(self.replies) > 2:
            self.reply(page(newest=1))
        self.reply(page(2, newest=3, rest=300))
        self.assertEqual(self.requests[-1], ("n0", "2-0", 7, PAGE))
        self.reply(page(newest=1))
        self.reply(page(3, newest=3))
        self.assertEqual(self.ids("n0"), [1, 2, 3])

    def test_an_entry_longer_than_all_room_is_read_alone(self) -> None:
        size = 3 * MAX_REQUESTED
        self.read("long")
        self.reply(page(newest=1, rest=size))
        self.read("other")
        self.assertEqual(self.requests[-1], ("long", "0-0", "", size))
        self.reply(page(1, newest=1))
        self.assertEqual(self.ids("long"), [1])
        self.assertEqual(self.requests[-1][0], "other")

    def test_a_new_generation_between_two_pages_begins_again(self) -> None:
        """Redis was flushed meanwhile: it no longer has the entries of the first page."""
        self.read("name")
        self.reply(page(1, 2, newest=3, rest=300))
        self.reply(page(5, newest=5, generation=8))
        self.assertEqual(self.ids("name"), [5])

    def test_after_a_lost_connection_each_read_has_a_result(self) -> None:
        names = [f"n{number}" for number in range(3 * PAGES)]
        self.read(*names)
        self.is_up = False
        while self.replies:
            self.reply(BrokerUnavailable("the connection was lost"))
        self.assertEqual(set(self.results), set(names))
        for result in self.results.values():
            self.assertIsInstance(result, BrokerUnavailable)
        self.assertEqual(len(self.requests), PAGES)
        self.is_up = True
        self.read("new")
        self.reply(page(1, newest=1))
        self.assertEqual(self.ids("new"), [1])

    def test_what_is_no_longer_wanted_is_not_requested(self) -> None:
        names = [f"n{number}" for number in range(PAGES)]
        self.read(*names, "gone", "new")
        self.unwanted |= {"gone", "n0"}
        self.reply(page(1, newest=2, rest=300))
        self.assertIsInstance(self.results["n0"], BrokerUnavailable)
        self.assertIsInstance(self.results["gone"], BrokerUnavailable)
        self.assertEqual([command[0] for command in self.requests], [*names, "new"])

    def test_a_reply_in_another_form_is_an_error(self) -> None:
        self.read("name")
        self.reply([b"1-0"])
        self.assertIsInstance(self.results["name"], BrokerUnavailable)

    def test_an_exception_does_not_stop_the_others(self) -> None:
        def fail(_: object) -> None:
            raise KeyError("simulated")

        self.reads.read(lambda *_: ("bad",), BEGINNING, fail, lambda: True)
        names = [f"n{number}" for number in range(PAGES)]
        self.read(*names)
        self.assertNotIn(names[-1], [command[0] for command in self.requests])
        self.assertRaises(KeyError, self.reply, page(1, newest=1))
        self.assertEqual(self.requests[-1][0], names[-1])
