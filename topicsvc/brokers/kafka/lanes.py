"""Places in the partitions of a topic, and the part of the log that proves positions.

A place is named by the leader epoch and the offset of the record before it. Kafka gives each leader
of a partition an epoch of its own. So two logs of a partition with the same record at the same
place are the same up to this place, and an offset that is used again after an unclean election is
another place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from secrets import randbelow
from typing import NamedTuple

from topicsvc.interfaces import Message, TopicLog
from topicsvc.settings import HistorySettings

__all__ = [
    "Description",
    "Entry",
    "Lane",
    "fits",
    "is_short",
    "join_log",
    "longer_from",
    "place_id",
    "topic_epoch",
    "unknown_place",
]

MAX_POSITION = 128
"""The most characters of a position (docs/protocol.md)."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS: list[str] = [high + low for high in _DIGITS for low in _DIGITS]
_SHORT: list[str] = [*_DIGITS, *_PAIRS[36:]]  # without leading zeros
_BASE = 1296
_UNKNOWN = "~"
_UNKNOWN_RANGE = 36**6
_EPOCH_BYTES = 6
_MAX_EPOCH_LENGTH = 11
_MIN_WIDTH = 7  # of an unknown place


class Lane:
    """How far the records of a partition are delivered.

    Attributes:
        next: the offset of the next record.
        epoch: leader epoch of the last record; None: not known.
        place: the place before the next record; None: it has no name yet.
        longer_from: the offset from which on places may be longer than the last one.
    """

    __slots__ = ("_block", "_head", "_head_epoch", "epoch", "longer_from", "next", "place")

    def __init__(self, next_: int) -> None:
        self._head = ""
        self._head_epoch: int | None = None
        self._block = -1
        self.longer_from = 0
        self.next = next_
        # Before offset 0 is no record, and the first leader has the epoch 0.
        self.epoch: int | None = None if next_ else 0
        self.place: str | None = None if next_ else ""

    def advance(self, epoch: int | None, offset: int) -> str:
        """Move behind a record, and return the place there. Equal to `place_id`, but faster."""
        block, rest = divmod(offset, _BASE)
        if block != self._block or epoch != self._head_epoch or block == 0:
            place = place_id(epoch, offset)
            self._block, self._head_epoch, self._head = block, epoch, place[:-2]
        else:
            place = self._head + _PAIRS[rest]
        self.next = offset + 1
        self.epoch = epoch
        self.place = place
        return place

    def named_place(self) -> str:
        """The place before the next record."""
        if self.place is None:
            self.place = unknown_place()
        return self.place


class Entry(NamedTuple):
    """A record of a log.

    Attributes:
        partition: its partition.
        epoch: its leader epoch; None: the broker does not tell it.
        offset: its offset.
        time: when it was written: the time of day, in seconds.
        message: its message.
    """

    partition: int
    epoch: int | None
    offset: int
    time: float
    message: Message

    @property
    def place(self) -> str:
        """The place behind it."""
        return place_id(self.epoch, self.offset)


@dataclass(frozen=True, slots=True)
class Description:
    """What the cluster says of a topic.

    Attributes:
        epoch: differs for a topic that was deleted and created again.
        is_clean: whether the election of a leader keeps all accepted records.
        is_whole: whether Kafka deletes only the oldest records.
    """

    epoch: str
    is_clean: bool
    is_whole: bool


def place_id(epoch: int | None, offset: int) -> str:
    """Name the place behind a record."""
    if epoch is None:
        return f"{_PROCESS}-{_compact(offset)}"
    return f"{_compact(epoch)}-{_compact(offset)}"


def unknown_place() -> str:
    """Name a place behind an unknown record: no other process has the same name for a place."""
    return _UNKNOWN + _compact(randbelow(_UNKNOWN_RANGE))


def topic_epoch(identity: str) -> str:
    """Name a topic by its id in the cluster."""
    digest = sha256(b"kafka\0" + identity.encode("utf-8")).digest()
    return "k" + _compact(int.from_bytes(digest[:_EPOCH_BYTES], "big"))


def fits(offsets: Iterable[int]) -> bool:
    """Whether positions are short enough, also with 36 times as many records in each partition.

    Args:
        offsets: the next offset of each partition.
    """
    return is_short(f"zz-{_compact(offset)}0".ljust(_MIN_WIDTH) for offset in offsets)


def is_short(places: Iterable[str]) -> bool:
    """Whether a position of these places is short enough."""
    return _MAX_EPOCH_LENGTH + sum(len(place) + 1 for place in places) <= MAX_POSITION


def longer_from(offset: int) -> int:
    """The next offset whose name is longer than that of `offset`."""
    return int(36 ** len(_compact(offset)))


def join_log(
    topic: Description,
    floors: Mapping[int, int],
    read: Mapping[int, Sequence[Entry] | None],
    live: Sequence[Entry],
    history: HistorySettings,
    now: float,
) -> TopicLog:
    """Join what was read back with what has arrived meanwhile.

    A client that comes back at a place of the log gets all accepted messages behind it. So the log
    begins behind the last place where accepted messages may have been lost.

    Args:
        topic: of the log.
        floors: for each partition the offset at which `live` begins.
        read: for each partition its records below this offset, without a hole in between that
            reading has made; None: they could not be read.
        live: the records from this offset on, in the order of their delivery.
        history: what to keep.
        now: the time of day, in seconds.
    """
    starts: dict[int, str] = {}
    begins: dict[int, int] = {}
    older: list[Entry] = []
    for partition, floor in floors.items():
        start, entries = _lane_log(floor, read.get(partition))
        arrived = [entry for entry in live if entry.partition == partition]
        first = 0
        before: tuple[int | None, int] | None = (0, -1)
        if start:
            before = (entries[0].epoch, entries[0].offset) if entries else None
            entries = entries[1:]
        kept = [*entries, *arrived]
        for index, entry in enumerate(kept):
            if before is not None and _may_have_lost(topic, before, entry):
                start, first = unknown_place(), index
            before = (entry.epoch, entry.offset)
        starts[partition] = start
        begins[partition] = kept[first].offset if kept else floor
        older += [entry for entry in kept[first:] if entry.offset < floor]
    older.sort(key=lambda entry: entry.time)
    joined = [*older, *(each for each in live if each.offset >= begins.get(each.partition, 0))]
    kept_from = _first_to_keep(joined, history, now)
    for entry in joined[:kept_from]:
        starts[entry.partition] = entry.place
    messages = tuple((each.message, max(0.0, now - each.time)) for each in joined[kept_from:])
    return TopicLog(topic.epoch, tuple(starts[each] for each in sorted(starts)), messages)


def _lane_log(floor: int, read: Sequence[Entry] | None) -> tuple[str, list[Entry]]:
    """The place at which a partition's log begins, and the records from the one before it on.

    Each record's time is at least that of the record before it: a sender's clock may be slow, but
    Kafka keeps the order in which it has accepted the records.
    """
    if floor == 0:
        return "", []
    if not read:
        return unknown_place(), []
    entries = []
    time = 0.0
    for entry in read:
        time = max(time, entry.time)
        entries.append(Entry(*entry[:3], time, entry.message))
    return ("" if entries[0].offset == 0 else entries[0].place), entries


def _may_have_lost(topic: Description, before: tuple[int | None, int], entry: Entry) -> bool:
    """Whether accepted records may have been lost before `entry`."""
    epoch, offset = before
    if entry.epoch != epoch and not topic.is_clean:
        return True
    return entry.offset != offset + 1 and not topic.is_whole


def _first_to_keep(entries: Sequence[Entry], history: HistorySettings, now: float) -> int:
    """The index of the oldest record within `history`; the newest is kept whatever its length."""
    size = 0
    first = len(entries)
    while first > 0 and len(entries) - first < history.messages:
        entry = entries[first - 1]
        size += len(entry.message.body)
        if now - entry.time > history.seconds or (size > history.bytes and first < len(entries)):
            break
        first -= 1
    return first


def _compact(number: int) -> str:
    """`number` with the base 36."""
    text = ""
    while number >= _BASE:
        number, rest = divmod(number, _BASE)
        text = _PAIRS[rest] + text
    return _SHORT[number] + text


_PROCESS = unknown_place()
