r"""The Lua scripts that run in Redis, and their results.

A topic has a stream, which keeps its newest messages, a small key with its newest place, and a
channel, which delivers its messages. An entry of the stream has these fields, in this order:

* ``f``: the sender; empty: unknown
* ``b``: the body
* ``p``: the place before it: the id of the entry before it, also if that has been removed
* ``t``: bytes of all bodies since the key was created

The key holds ``{id} {generation} {t}`` of the newest entry, and lives far longer than the stream.
Whenever it is missing, it begins with a generation that no topic has had, and the id
``0-{generation}``, which no entry can have. Entries of older generations are then removed. So after
a loss of the key no old place is found again, and an id that comes again is another place.

A channel carries ``{p} {id}\n{sender}\n{body}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

__all__ = ["BEGINNING", "READ", "SEND", "Entry", "EntryId", "History", "InvalidReply", "Step",
           "StreamPlace", "parse_history", "parse_id", "split_payload"]  # fmt: skip

SEND: Final = b"""\
local newest, p, g, t = redis.call('GET', KEYS[2])
if newest then p, g, t = string.match(newest, '^(%d+%-%d+) (%d+) (%d+)$') end
local begins = not p
if begins then p, g, t = '0-' .. ARGV[7], ARGV[7], 0 end
t = t + #ARGV[3]
local total = string.format('%.0f', t)
local function add(id)
  return redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[4], id,
    'f', ARGV[2], 'b', ARGV[3], 'p', p, 't', total)
end
local id = add('*')
local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
local pms, pseq = string.match(p, '^(%d+)%-(%d+)$')
ms, pms = tonumber(ms), tonumber(pms)
if ms < pms or ms == pms and tonumber(seq) <= tonumber(pseq) then
  redis.call('XDEL', KEYS[1], id)
  ms = pms + 1
  id = add(string.format('%.0f-0', ms))
end
local oldest = begins and id or string.format('%.0f', ms - ARGV[6])
redis.call('XTRIM', KEYS[1], 'MINID', '=', oldest)
local limit = tonumber(ARGV[5])
while true do
  local e = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if e[1] == id or t - tonumber(e[2][8]) + #e[2][4] <= limit then break end
  redis.call('XDEL', KEYS[1], e[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('SET', KEYS[2], id .. ' ' .. g .. ' ' .. total, 'PX', ARGV[8])
redis.call('PUBLISH', ARGV[1], p .. ' ' .. id .. '\\n' .. ARGV[2] .. '\\n' .. ARGV[3])
return id
"""
"""Appends a message to its stream, removes old ones, and publishes it; returns its id.

``KEYS``: the stream and the key of the newest place. ``ARGV``: channel, sender, body, most
messages, most bytes, and most milliseconds that the stream keeps, a new generation, and the
milliseconds for which the key is kept.

If the stream has ended and the clock of Redis was set back, XADD would give an id again. The script
then gives an id itself.
"""

READ: Final = b"""\
local time = redis.call('TIME')
local ms = time[1] .. string.sub('000000' .. time[2], -6, -4)
local newest, id, g = redis.call('GET', KEYS[2])
if newest then id, g = string.match(newest, '^(%d+%-%d+) (%d+) %d+$') end
local is_kept, result = 1
if not id then
  id, g = '0-' .. ARGV[3], ARGV[3]
  result = redis.pcall('SET', KEYS[2], id .. ' ' .. g .. ' 0', 'PX', ARGV[5])
  if result.err then is_kept = 0 else redis.call('XTRIM', KEYS[1], 'MAXLEN', 0) end
else
  local kept = string.sub(id, 1, 2) == '0-' and ARGV[5] or ARGV[4]
  result = redis.pcall('PEXPIRE', KEYS[2], kept)
end
local why = type(result) == 'table' and result.err
if why then
  local code = string.match(why, '^%-?(%u+)')
  if code ~= 'OOM' and code ~= 'MISCONF' and code ~= 'NOREPLICAS' then return result end
end
if ARGV[1] == '' or is_kept == 0 then return {id, g, is_kept, ms, {}, 0} end
local since = g == ARGV[2] and ARGV[1] or '0-0'
local limit, size, rest, entries = tonumber(ARGV[6]), 0, 0, {}
local count, some = 1
repeat
  if #entries > 0 then count = math.floor((limit - size) * #entries / size) end
  count = math.min(math.max(count, 1), 100)
  some = redis.call('XRANGE', KEYS[1], '(' .. since, '+', 'COUNT', count)
  for _, e in ipairs(some) do
    local length = 256
    for _, value in ipairs(e[2]) do length = length + #value end
    if size + length > limit then rest = length break end
    size = size + length
    entries[#entries + 1] = e
    since = e[1]
  end
until rest > 0 or #some < count
return {id, g, is_kept, ms, entries, rest}
"""
"""Returns the newest place and the entries after another place.

The reply: id and generation of the newest place; 0 if Redis could not store that place, otherwise
1; Redis's time in milliseconds; the entries; the bytes of the first entry that is left out because
the reply would be too long, 0 if none is left out.

``KEYS``: the stream and the key of the newest place. ``ARGV``: id and generation of the other
place, a new generation, the milliseconds for which the key is kept, with and without a message, and
the most bytes of the entries. An entry counts 256 bytes more than its values.

If the id is empty, or the newest place could not be stored, the script returns no entries. If Redis
has another generation, the script returns all entries.

The script reads about as many entries at a time as will fit, by the mean length of those before.

A full memory, a full disk of Redis, or missing replicas do not fail the script.
"""


class EntryId(NamedTuple):
    """The id of a stream's entry. Ids of one stream are ordered.

    Attributes:
        milliseconds: the time of Redis when the entry was added, since the epoch.
        sequence: the number of the entry within this millisecond.
    """

    milliseconds: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"


BEGINNING = EntryId(0, 0)
"""Less than all other ids."""


class StreamPlace(NamedTuple):
    """The place behind an entry.

    Attributes:
        generation: of the key with the newest place; another one after each loss of this key.
        id: of the entry; ``0-{generation}`` before the first entry.
    """

    generation: int
    id: EntryId

    @classmethod
    def beginning(cls, generation: int) -> StreamPlace:
        """The place before the first entry of a generation."""
        return cls(generation, EntryId(0, generation))


class InvalidReply(Exception):
    """Redis has sent something that is not from the scripts of this module."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message.

    Attributes:
        id: its id in the stream.
        sender: URL of the cell that sent it; None: unknown.
        body: the body, as it was sent.
        previous: the id of the place before it.
    """

    id: EntryId
    sender: str | None
    body: bytes
    previous: EntryId


@dataclass(frozen=True, slots=True)
class Step:
    """A message that was read after an outage.

    Attributes:
        entry: the message.
        place: the place behind it.
        is_gap: whether messages before it may be missing.
    """

    entry: Entry
    place: StreamPlace
    is_gap: bool


@dataclass(frozen=True, slots=True)
class History:
    """The result of `READ`.

    Attributes:
        newest: the newest place.
        is_kept: whether Redis has this place; otherwise it had none and could not store this one.
        time: Redis's time, in milliseconds since the epoch.
        entries: the requested entries, the oldest first.
        rest: bytes of the first entry that did not fit into the reply; 0: there is none.
    """

    newest: StreamPlace
    is_kept: bool
    time: int
    entries: tuple[Entry, ...]
    rest: int = 0

    def last(self, seconds: float) -> tuple[EntryId, tuple[Entry, ...]]:
        """Return the entries that lead to the newest place without a hole.

        Args:
            seconds: the greatest age of an entry.

        Returns:
            The id of the place before the first of them, and the entries.
        """
        oldest = self.time - seconds * 1000
        start = self.newest.id
        kept: list[Entry] = []
        for entry in reversed(self.entries):
            if entry.id != start or entry.id.milliseconds < oldest:
                break
            kept.append(entry)
            start = entry.previous
        return start, tuple(reversed(kept))

    def after(self, place: StreamPlace) -> tuple[list[Step], bool]:
        """Return what follows `place`.

        Returns:
            The messages, and whether some may be missing behind the last of them.
        """
        steps: list[Step] = []
        at, generation = place, self.newest.generation
        for entry in self.entries:
            is_gap = at != (generation, entry.previous)
            at = StreamPlace(generation, entry.id)
            steps.append(Step(entry, at, is_gap))
        return steps, at != self.newest


def parse_id(text: Any) -> EntryId:
    """Parse ``1526919030474-55``.

    Raises:
        InvalidReply: it is not an id.
    """
    try:
        milliseconds, _, sequence = text.partition(b"-")
        return EntryId(int(milliseconds), int(sequence))
    except (AttributeError, TypeError, ValueError):
        raise InvalidReply("not the id of an entry") from None


def split_payload(payload: Any) -> tuple[bytes, bytes, str | None, bytes]:
    """Split what a channel carries.

    Returns:
        The id of the place before the message and its own id, both unparsed; sender and body.

    Raises:
        InvalidReply: it has another form.
    """
    try:
        head, sender, body = payload.split(b"\n", 2)
        previous, id_ = head.split(b" ")
        milliseconds, _, sequence = id_.partition(b"-")
        if not (milliseconds.isdigit() and sequence.isdigit()):
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise InvalidReply("not a message of topicsvc") from None
    return previous, id_, _sender(sender), body


def parse_history(reply: Any) -> History:
    """Parse the reply to `READ`.

    Raises:
        InvalidReply: it has another form.
    """
    try:
        newest, generation, is_kept, time, entries, rest = reply
        parsed = tuple(_entry(id_, fields) for id_, fields in entries)
        place = StreamPlace(int(generation), parse_id(newest))
        return History(place, bool(is_kept), int(time), parsed, int(rest))
    except (TypeError, ValueError):
        raise InvalidReply("not the entries of a stream") from None


def _entry(id_: Any, fields: Any) -> Entry:
    keys, values = fields[::2], fields[1::2]
    if keys != [b"f", b"b", b"p", b"t"]:
        raise InvalidReply("not an entry of topicsvc")
    sender, body, previous, _ = values
    return Entry(parse_id(id_), _sender(sender), body, parse_id(previous))


def _sender(text: bytes) -> str | None:
    return text.decode("utf-8", "replace") or None
