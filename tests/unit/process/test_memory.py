"""Freed memory is returned to the operating system after many connections have closed."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process import memory
from topicsvc.process.memory import INTERVAL, MIN_CLOSED, MemoryTrimmer


class MemoryTrimmerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.count = 0
        self.trims = 0
        self.trimmer = MemoryTrimmer(self.clock, lambda: self.count, self.trim)
        self.trimmer.startService()

    def trim(self) -> None:
        self.trims += 1

    def trims_after(self, *counts: int) -> int:
        """Run one check for each number of connections; returns all calls of `trim` so far."""
        for self.count in counts:
            self.clock.advance(INTERVAL)
        return self.trims

    def test_a_small_fall_is_ignored(self) -> None:
        self.assertEqual(self.trims_after(1000, 1001 - MIN_CLOSED, 1000, 1001 - MIN_CLOSED), 0)

    def test_a_large_fall_trims(self) -> None:
        self.assertEqual(self.trims_after(1000, 1000 - MIN_CLOSED), 1)

    def test_a_slow_fall_trims_too(self) -> None:
        self.assertEqual(self.trims_after(*range(1000, 1000 - MIN_CLOSED, -1)), 0)
        self.assertEqual(self.trims_after(1000 - MIN_CLOSED), 1)

    def test_one_fall_trims_once(self) -> None:
        self.assertEqual(self.trims_after(1000, 100, 100, 101, 100), 1)
        self.assertEqual(self.trims_after(1000, 1000, 0), 2)

    def test_connections_between_two_checks_are_not_counted(self) -> None:
        self.assertEqual(self.trims_after(0), 0)
        self.count = 10_000
        self.clock.advance(INTERVAL / 2)
        self.assertEqual(self.trims_after(0), 0)

    def test_an_error_while_trimming_does_not_stop_the_checks(self) -> None:
        self.trimmer._trim = lambda: 1 / 0
        self.assertEqual(self.trims_after(1000, 0), 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.trimmer._trim = self.trim
        self.assertEqual(self.trims_after(1000, 0), 1)

    def test_one_that_was_not_started_can_be_stopped(self) -> None:
        trimmer = MemoryTrimmer(self.clock, lambda: 0, self.trim)
        self.assertIsNone(trimmer.stopService())

    def test_it_leaves_no_timer(self) -> None:
        self.clock.advance(INTERVAL)
        self.trimmer.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])


def resident() -> int:
    """The resident memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


class MallocTrimTests(SynchronousTestCase):
    def test_free_pages_below_a_live_object_are_returned(self) -> None:
        blocks = [bytes(2000) for _ in range(20_000)]
        last = blocks[-1]
        del blocks
        before = resident()
        memory.malloc_trim()
        self.assertGreater(before - resident(), 20_000_000, len(last))

    def test_without_malloc_trim_nothing_happens(self) -> None:
        self.patch(memory, "_MALLOC_TRIM", None)
        memory.malloc_trim()
