"""Lines of standard input, read by a thread and given in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Semaphore, Thread
from typing import Any, Final

from twisted.internet.defer import Deferred

__all__ = ["BATCH_BYTES", "BATCH_LINES", "BATCH_TIME", "LineReader"]

BATCH_LINES: Final = 1000
"""Most lines of one batch."""

BATCH_BYTES: Final = 524288
"""Bytes after which a batch ends: half of what a service takes in one request by default."""

BATCH_TIME: Final = 0.05
"""Seconds that a batch waits for more lines, from its first one."""


class LineReader:
    """Reads lines in a thread, because a read of standard input blocks.

    Args:
        lines: the lines, each with its newline. Reading may block.
        reactor: runs everything but the thread.
    """

    def __init__(self, lines: Iterable[bytes], reactor: Any) -> None:
        self._source = lines
        self._reactor = reactor
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._room = Semaphore(2 * BATCH_LINES)
        self._has_ended = False
        self._error: Exception | None = None
        self._waiting: Deferred[list[bytes]] | None = None
        self._timer: Any = None

    def start(self) -> None:
        """Begin to read. The thread does not keep the process alive."""
        Thread(target=self._read, name="standard input", daemon=True).start()

    def next_batch(self) -> Deferred[list[bytes]]:
        """Fires with the next lines that are not blank; an empty list at the end.

        Fails with:
            OSError: the lines cannot be read.
        """
        self._waiting = Deferred()
        waiting = self._waiting
        self._look()
        return waiting

    def _read(self) -> None:
        """Read all lines, in the thread."""
        error: Exception | None = None
        try:
            for line in self._source:
                if line.strip():
                    self._room.acquire()
                    self._reactor.callFromThread(self._add, line)
        except Exception as reason:
            error = reason
        self._reactor.callFromThread(self._end, error)

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        self._look()

    def _end(self, error: Exception | None) -> None:
        self._has_ended = True
        self._error = error
        self._look()

    def _look(self) -> None:
        """Give the batch, if one is waited for and complete."""
        if self._waiting is None:
            return
        is_full = len(self._lines) >= BATCH_LINES or self._size >= BATCH_BYTES
        if is_full or self._has_ended:
            self._give()
        elif self._lines and self._timer is None:
            self._timer = self._reactor.callLater(BATCH_TIME, self._give)

    def _give(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        batch: list[bytes] = []
        size = 0
        while self._lines and len(batch) < BATCH_LINES:
            if batch and size + len(self._lines[0]) > BATCH_BYTES:
                break
            line = self._lines.popleft()
            size += len(line)
            batch.append(line)
            self._room.release()
        self._size -= size
        if not batch and self._error is not None:
            waiting.errback(self._error)
        else:
            waiting.callback(batch)
