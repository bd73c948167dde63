"""Batches of lines, in virtual time; the thread is the test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.cli.line_reader import BATCH_BYTES, BATCH_LINES, BATCH_TIME, LineReader


class FakeReactor(Clock):
    def callFromThread(self, call: Callable[..., Any], *args: Any) -> None:
        call(*args)


class LineReaderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.reader = LineReader([], self.reactor)

    def read(self, *lines: bytes) -> None:
        """Lines arrive; it is not the end."""
        for line in lines:
            self.reader._add(line)

    def test_lines_of_50_ms_are_one_batch(self) -> None:
        batch = self.reader.next_batch()
        self.read(b"1\n")
        self.reactor.advance(BATCH_TIME * 0.9)
        self.read(b"2\n")
        self.assertNoResult(batch)
        self.reactor.advance(BATCH_TIME * 0.1)
        self.assertEqual(self.successResultOf(batch), [b"1\n", b"2\n"])

    def test_a_minute_without_a_line_is_no_end(self) -> None:
        batch = self.reader.next_batch()
        self.reactor.advance(60)
        self.assertNoResult(batch)
        self.read(b"1\n")
        self.reactor.advance(BATCH_TIME)
        self.assertEqual(self.successResultOf(batch), [b"1\n"])

    def test_a_full_batch_does_not_wait(self) -> None:
        self.read(*[b"1\n"] * (BATCH_LINES + 1))
        self.assertEqual(len(self.successResultOf(self.reader.next_batch())), BATCH_LINES)
        rest = self.reader.next_batch()
        self.reactor.advance(BATCH_TIME)
        self.assertEqual(len(self.successResultOf(rest)), 1)
        self.read(b"x" * BATCH_BYTES, b"2\n")
        self.assertEqual(
            [len(line) for line in self.successResultOf(self.reader.next_batch())], [BATCH_BYTES]
        )

    def test_the_end(self) -> None:
        reader = LineReader([b"1\n", b" \n", b"2"], self.reactor)
        reader._read()
        self.assertEqual(self.successResultOf(reader.next_batch()), [b"1\n", b"2"])
        self.assertEqual(self.successResultOf(reader.next_batch()), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_read_error_is_reported_after_the_lines_before_it(self) -> None:
        def lines() -> Any:
            yield b"1\n"
            raise OSError("gone")

        reader = LineReader(lines(), self.reactor)
        reader._read()
        self.assertEqual(self.successResultOf(reader.next_batch()), [b"1\n"])
        self.failureResultOf(reader.next_batch(), OSError)

    def test_only_so_many_are_read_ahead(self) -> None:
        reader = LineReader([], self.reactor)
        for _ in range(2 * BATCH_LINES):
            self.assertTrue(reader._room.acquire(blocking=False))
            reader._add(b"1\n")
        self.assertFalse(reader._room.acquire(blocking=False))
        self.successResultOf(reader.next_batch())
        self.assertTrue(reader._room.acquire(blocking=False))
