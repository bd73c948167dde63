"""When many connections have gone, their memory goes too."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process import memory
from topicsvc.process.memory import INTERVAL, MANY, MemoryTrimmer


class EbbTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.count = 0
        self.calls = 0
        self.ebb = MemoryTrimmer(self.clock, lambda: self.count, self.note)
        self.ebb.startService()

    def note(self) -> None:
        self.calls += 1

    def calls_after(self, *counts: int) -> int:
        """How often it was called in all, when so many are there at the next looks."""
        for self.count in counts:
            self.clock.advance(INTERVAL)
        return self.calls

    def test_few_that_go_are_nothing(self) -> None:
        self.assertEqual(self.calls_after(1000, 1001 - MANY, 1000, 1001 - MANY), 0)

    def test_many_are(self) -> None:
        self.assertEqual(self.calls_after(1000, 1000 - MANY), 1)

    def test_many_that_go_one_by_one_are_too(self) -> None:
        self.assertEqual(self.calls_after(*range(1000, 1000 - MANY, -1)), 0)
        self.assertEqual(self.calls_after(1000 - MANY), 1)

    def test_once_for_those_who_have_gone(self) -> None:
        self.assertEqual(self.calls_after(1000, 100, 100, 101, 100), 1)
        self.assertEqual(self.calls_after(1000, 1000, 0), 2)

    def test_more_may_come_and_go_between_two_looks(self) -> None:
        self.assertEqual(self.calls_after(0), 0)
        self.count = 10_000
        self.clock.advance(INTERVAL / 2)
        self.assertEqual(self.calls_after(0), 0)

    def test_a_fault_of_what_is_done_does_not_end_it(self) -> None:
        self.ebb._gone = lambda: 1 / 0
        self.assertEqual(self.calls_after(1000, 0), 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.ebb._gone = self.note
        self.assertEqual(self.calls_after(1000, 0), 1)

    def test_it_leaves_no_timer(self) -> None:
        self.clock.advance(INTERVAL)
        self.ebb.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])


def resident() -> int:
    """Bytes of memory that this process has."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


class HeapTests(SynchronousTestCase):
    def test_what_is_free_below_something_that_lives_goes_back(self) -> None:
        blocks = [bytes(2000) for _ in range(20_000)]
        last = blocks[-1]
        del blocks
        before = resident()
        memory.malloc_trim()
        self.assertGreater(before - resident(), 20_000_000, len(last))

    def test_where_there_is_no_such_thing_nothing_happens(self) -> None:
        self.patch(memory, "_MALLOC_TRIM", None)
        memory.malloc_trim()
