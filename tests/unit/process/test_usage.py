"""The resources that the process uses."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process.usage import count_open_files, read_usage


def count(directory: Path) -> tuple[int, int]:
    """Return the number of files and that of the pieces."""
    pieces = 0
    counting = count_open_files(directory)
    while True:
        try:
            next(counting)
        except StopIteration as end:
            return end.value, pieces
        pieces += 1


class ReadUsageTests(SynchronousTestCase):
    def test_the_values_are_those_of_this_process(self) -> None:
        usage = read_usage()
        assert usage is not None
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        self.assertLess(abs(usage.cpu_time - used), 1)
        self.assertLess(usage.started_at, time.time())
        self.assertGreater(usage.started_at, time.time() - 86400)
        self.assertTrue(2**20 < usage.resident_memory < usage.virtual_memory)
        self.assertEqual(usage.max_open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def test_a_name_with_blanks_and_parentheses(self) -> None:
        proc = Path(self.mktemp())
        (proc / "self").mkdir(parents=True)
        fields = " ".join(str(number) for number in range(3, 53))
        (proc / "self/stat").write_text(f"1 (a) b) {fields}")
        (proc / "stat").write_text("cpu 1\nbtime 1000\nx 1\n")
        usage = read_usage(proc)
        assert usage is not None
        ticks = os.sysconf("SC_CLK_TCK")
        self.assertEqual(usage.cpu_time, (14 + 15) / ticks)
        self.assertEqual(usage.virtual_memory, 23)
        self.assertEqual(usage.resident_memory, 24 * os.sysconf("SC_PAGE_SIZE"))
        self.assertEqual(usage.started_at, 1000 + 22 / ticks)

    def test_a_system_without_proc(self) -> None:
        self.assertIsNone(read_usage(Path(self.mktemp())))


class CountOpenFilesTests(SynchronousTestCase):
    def test_the_files_of_this_process(self) -> None:
        before, _ = count(Path("/proc/self/fd"))
        with open(os.devnull), open(os.devnull):
            self.assertEqual(count(Path("/proc/self/fd"))[0], before + 2)

    def test_without_their_number_the_files_are_listed_in_pieces(self) -> None:
        """A kernel before 6.2 reports the size 0, as the patched `stat` does."""
        directory = Path(self.mktemp())
        directory.mkdir()
        for number in range(1001):
            (directory / str(number)).touch()
        self.patch(Path, "stat", lambda _: os.stat_result([0] * 10))
        self.assertEqual(count(directory), (1000, 3))

    def test_a_system_without_such_a_directory(self) -> None:
        self.assertEqual(count(Path(self.mktemp())), (0, 0))
