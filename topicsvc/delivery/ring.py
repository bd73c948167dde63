"""The last messages of one topic, and the positions of clients among them.

A position is text: ``{epoch}.{id}``, with one id for each lane of the broker's log, separated by
``_``. It names the place behind a message. A position is provable if all messages that were
accepted behind it are in the ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from topicsvc.interfaces import Mark

__all__ = ["ENTRY_OVERHEAD", "RING_OVERHEAD", "Ring"]

ENTRY_OVERHEAD = 320
"""Bytes of memory for a message besides its frame."""

RING_OVERHEAD = 3072
"""Bytes of memory for a topic with positions besides its messages."""


class _Entry(NamedTuple):
    frame: bytes
    lane: int
    id: str
    at: float


class Ring:
    """Keeps the last messages of a topic, each as a frame.

    Each lane has a base: the place behind the newest message of the lane that is not kept any
    more. A position is provable if it has the ring's epoch and, for each lane, the id of the base
    or of a kept message.

    Args:
        epoch: see `topicsvc.interfaces.TopicLog`.
        start: for each lane the id of its base.
        is_numbered: whether the ring numbers the messages itself, and ignores their marks.

    Attributes:
        count: messages that were added since the start.
        size: bytes of the kept frames.
        version: changes whenever the kept messages change.
    """

    __slots__ = ("_base", "_entries", "_epoch", "_is_numbered", "_largest", "_newest", "_numbers",
                 "count", "size", "version")  # fmt: skip

    def __init__(self, epoch: str, start: Iterable[str], is_numbered: bool = False) -> None:
        self.count = self.version = 0
        self._is_numbered = is_numbered
        self._reset(epoch, start)

    def _reset(self, epoch: str, start: Iterable[str]) -> None:
        self._epoch = epoch
        self._newest = list(start)
        self._base = list(self._newest)
        # For each lane: after how many messages of the ring each place comes.
        self._numbers: list[dict[str, int]] = [{id_: self.count} for id_ in self._base]
        self._entries: deque[_Entry] = deque()
        self._largest = 0  # the most entries since `_numbers` was made
        self.size = 0
        self.version += 1

    def reset(self, epoch: str, start: Iterable[str], is_numbered: bool = False) -> None:
        """Messages may be missing: no earlier position is provable any more."""
        self._is_numbered = is_numbered
        self._reset(epoch, start)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def memory(self) -> int:
        """Bytes of memory for the ring and its messages."""
        return self.size + len(self._entries) * ENTRY_OVERHEAD + RING_OVERHEAD

    @property
    def position(self) -> str:
        """The position behind the newest message."""
        return f"{self._epoch}.{'_'.join(self._newest)}"

    def advance(self, mark: Mark | None) -> tuple[Mark, str]:
        """Move the position behind a new message; return its mark, and the new position.

        The caller then makes the frame, which contains the position, and calls `keep`.
        """
        if mark is None or self._is_numbered:
            mark = Mark(0, str(self.count + 1))
        lane, id_ = mark
        while lane >= len(self._newest):  # a new partition, from its beginning on
            self._newest.append("")
            self._base.append("")
            self._numbers.append({"": self.count})
        self._newest[lane] = id_
        self.count += 1
        self._numbers[lane][id_] = self.count
        return mark, self.position

    def keep(self, frame: bytes, mark: Mark, at: float) -> None:
        """Keep the frame of the message for which `advance` was called last.

        Args:
            frame: the frame, with its position.
            mark: what `advance` has returned.
            at: when the message arrived, by the monotonic clock.
        """
        self._entries.append(_Entry(frame, *mark, at))
        self._largest = max(self._largest, len(self._entries))
        self.size += len(frame)
        self.version += 1

    def trim(self, messages: int, size: int, oldest: float) -> None:
        """Remove the oldest messages, until none is over a limit.

        Args:
            messages: the most messages.
            size: the most bytes of frames.
            oldest: messages that arrived at this time, or before it, are removed.
        """
        entries = self._entries
        while entries and (self.size > size or len(entries) > messages or entries[0].at <= oldest):
            frame, lane, id_, _ = entries.popleft()
            self.size -= len(frame)
            self.version += 1
            self._numbers[lane].pop(self._base[lane], None)
            self._base[lane] = id_
        if len(entries) < self._largest // 4:
            # A dictionary keeps its memory when its items are deleted, and a deque some blocks.
            self._numbers = [dict(numbers) for numbers in self._numbers]
            self._entries = deque(entries)
            self._largest = len(entries)

    def clear(self) -> None:
        """Remove all messages. The newest position stays provable."""
        self.trim(0, 0, 0.0)

    def may_be_behind(self, position: str) -> bool:
        """Whether `position` is of this log, but not of a place that the ring knows.

        It may be the place behind a message that has not arrived here yet.
        """
        epoch, ids = self._parse(position)
        if epoch != self._epoch or self._is_numbered:
            return False
        return len(ids) > len(self._numbers) or any(
            id_ not in numbers for id_, numbers in zip(ids, self._numbers, strict=False)
        )

    def frames_after(self, position: str) -> list[bytes] | None:
        """Return the frames of all messages behind `position`, in their order.

        Returns:
            None: `position` is not provable.
        """
        epoch, ids = self._parse(position)
        if epoch != self._epoch or len(ids) > len(self._numbers):
            return None
        ids += [""] * (len(self._numbers) - len(ids))  # partitions that are newer than `position`
        places = []
        for id_, numbers in zip(ids, self._numbers, strict=True):
            place = numbers.get(id_)
            if place is None:
                return None
            places.append(place)
        first = self.count - len(self._entries)  # the number of messages before the kept ones
        skipped = max(0, min(places) - first)
        kept = islice(self._entries, skipped, None)
        if len(places) == 1:
            return [entry.frame for entry in kept]
        return [
            entry.frame
            for number, entry in enumerate(kept, first + skipped + 1)
            if number > places[entry.lane]
        ]

    def _parse(self, position: str) -> tuple[str, list[str]]:
        """Return the epoch of a position, and its ids.

        An empty id is the beginning of a lane. A lane that the ring does not know yet is read from
        its beginning, so empty ids of such lanes at the end say nothing, and are left out.
        """
        epoch, _, text = position.partition(".")
        ids = text.split("_")
        while len(ids) > len(self._numbers) and not ids[-1]:
            ids.pop()
        return epoch, ids
