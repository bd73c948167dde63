"""The log file that twistd writes behaves as docs/deployment.md says when others touch it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.python.logfile import LogFile
from twisted.trial.unittest import SynchronousTestCase


class LogFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.log: Any = LogFile.fromFullPath(str(self.path), rotateLength=1_000_000)
        self.addCleanup(self.log.close)
        self.moved = self.path.with_suffix(".moved")
        self.first = Path(f"{self.path}.1")

    def test_sigusr1_rotates_at_once(self) -> None:
        """The handler of twistd calls `rotate`."""
        self.log.write("one\n")
        self.log.rotate()
        self.log.write("two\n")
        self.assertEqual((self.first.read_text(), self.path.read_text()), ("one\n", "two\n"))

    def test_a_moved_file_is_written_on_and_sigusr1_does_nothing(self) -> None:
        self.log.write("one\n")
        self.path.rename(self.moved)
        self.log.rotate()
        self.log.write("two\n")
        self.assertEqual(self.moved.read_text(), "one\ntwo\n")
        self.assertFalse(self.path.exists())

    def test_an_empty_file_and_sigusr1_cure_that(self) -> None:
        for lose in (lambda: self.path.rename(self.moved), self.path.unlink):
            lose()
            self.path.write_text("")
            self.log.rotate()
            self.log.write("two\n")
            self.assertEqual(self.path.read_text(), "two\n")

    def test_a_truncated_file_gets_nul_bytes(self) -> None:
        self.log.write("one\n")
        os.truncate(self.path, 0)
        self.log.write("two\n")
        self.assertEqual(self.path.read_text(), "\0\0\0\0two\n")
