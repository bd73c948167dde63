"""Reads streams page by page, and limits the replies that Redis has to keep for the connection.

Redis closes a connection with subscriptions if too many bytes wait for it: by default 32 MiB, or
8 MiB for a minute (``client-output-buffer-limit pubsub``). So only some pages are requested at a
time, and the others wait in a queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from topicsvc.brokers.redis.client import Command, OnReply
from topicsvc.brokers.redis.scripts import Entry, History, InvalidReply, parse_history
from topicsvc.errors import BrokerUnavailable
from topicsvc.scheduling.concurrency import ConcurrencyQueue

__all__ = ["MAX_REQUESTED", "PAGE", "OnHistory", "Since", "StreamReads"]

PAGE = 256 * 1024
"""Most bytes of a page. A longer entry has a page of its own."""

MAX_REQUESTED = 6 * 1024 * 1024
"""Most bytes of all pages that are requested at a time; a single one may be longer."""

Since = tuple[str, str | int]
"""Id and generation of the place behind which a stream is read."""

OnHistory = Callable[[History | BrokerUnavailable], None]
"""Is called once with the whole result."""


class StreamReads:
    """A queue of reads.

    All reads are in one queue, whatever they are for: each one waits only for those before it. A
    read that has begun requests its next page at once.

    Args:
        request: sends a command; see `topicsvc.brokers.redis.client.RedisClient.request`.
    """

    def __init__(self, request: Callable[[Command, OnReply], None]) -> None:
        self._request = request
        self._requested = 0
        self._queue = ConcurrencyQueue[_Read](self._start, self._may_start)

    def __len__(self) -> int:
        """The number of reads whose reply is due."""
        return len(self._queue.in_progress)

    def read(
        self,
        command: Callable[[Since, int], Command],
        since: Since,
        on_history: OnHistory,
        is_wanted: Callable[[], bool],
    ) -> None:
        """Read a stream; `on_history` is called while the last reply is handled.

        Args:
            command: returns the command for one page: of what follows a place, with the most bytes.
            since: the place.
            on_history: is called with the result. `History.rest` is 0.
            is_wanted: whether the result is still of use. Otherwise no page is requested any more,
                and the result is a `BrokerUnavailable`.
        """
        self._queue.add(_Read(command, since, on_history, is_wanted))
        self._queue.fill()

    def _may_start(self, read: _Read) -> bool:
        return not self._requested or self._requested + read.limit <= MAX_REQUESTED

    def _start(self, read: _Read) -> bool:
        self._requested += read.limit
        self._request_page(read)
        return True

    def _request_page(self, read: _Read) -> None:
        def on_reply(reply: Any) -> None:
            self._on_reply(read, reply)

        if read.is_wanted():
            self._request(read.command(read.since, read.limit), on_reply)
        else:
            on_reply(BrokerUnavailable("the topic was unsubscribed"))

    def _on_reply(self, read: _Read, reply: Any) -> None:
        history: History | BrokerUnavailable
        try:
            if isinstance(reply, BrokerUnavailable):
                raise reply
            history = read.add(parse_history(reply))
        except (BrokerUnavailable, InvalidReply) as error:
            history = BrokerUnavailable(str(error))
        if isinstance(history, History) and 0 < history.rest <= read.limit == PAGE:
            self._request_page(read)
            return
        self._requested -= read.limit
        self._queue.done(read)
        try:
            if isinstance(history, History) and history.rest:
                read.limit = max(PAGE, history.rest)
                self._queue.add(read)
            else:
                read.on_history(history)
        finally:
            self._queue.fill()


class _Read:
    """One read.

    Attributes:
        since: the place behind the pages that have arrived.
        limit: most bytes of the next page.
        command, on_history, is_wanted: see `StreamReads.read`.
    """

    __slots__ = ("_entries", "_generation", "command", "is_wanted", "limit", "on_history", "since")

    def __init__(
        self,
        command: Callable[[Since, int], Command],
        since: Since,
        on_history: OnHistory,
        is_wanted: Callable[[], bool],
    ) -> None:
        self.command = command
        self.since = since
        self.on_history = on_history
        self.is_wanted = is_wanted
        self.limit = PAGE
        self._generation: int | None = None
        self._entries: list[Entry] = []

    def add(self, page: History) -> History:
        """Add a page; return all that was read, with the newest place of this page."""
        generation = page.newest.generation
        if generation != self._generation:
            self._generation = generation
            self._entries.clear()  # Redis no longer has them, and begins again
        self._entries += page.entries
        if page.entries:
            self.since = str(page.entries[-1].id), generation
        return replace(page, entries=tuple(self._entries) if not page.rest else ())
