r"""The Lua scripts that run in Redis, and their results.

A topic has a stream, which keeps its newest messages, and a channel, which delivers them. An entry
of a stream has these fields, in this order:

* ``f``: the sender; empty: unknown
* ``b``: the body
* ``p``: the id of the entry before it, also if that has been removed; ``0-0``: there was none
* ``t``: bytes of all bodies since the stream was created

A channel carries ``{id}\n{sender}\n{body}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

__all__ = ["NONE", "READ", "SEND", "Entry", "EntryId", "History", "InvalidReply", "parse_history",
           "parse_id", "parse_payload"]  # fmt: skip

SEND: Final = b"""\
local p, t = '0-0', 0
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if last then p, t = last[1], tonumber(last[2][8]) end
t = t + #ARGV[3]
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[4], '*',
  'f', ARGV[2], 'b', ARGV[3], 'p', p, 't', string.format('%.0f', t))
local ms = tonumber(string.match(id, '^%d+'))
redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f', ms - ARGV[6]))
local limit = tonumber(ARGV[5])
while true do
  local e = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if e[1] == id or t - tonumber(e[2][8]) + #e[2][4] <= limit then break end
  redis.call('XDEL', KEYS[1], e[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PUBLISH', ARGV[1], id .. '\\n' .. ARGV[2] .. '\\n' .. ARGV[3])
return id
"""
"""Appends a message to its stream, removes old ones, and publishes it; returns its id.

``KEYS[1]``: the stream. ``ARGV``: channel, sender, body, most messages, most bytes, and most
milliseconds that the stream keeps.
"""

READ: Final = b"""\
local time = redis.call('TIME')
local ms = time[1] .. string.sub('000000' .. time[2], -6, -4)
if redis.call('EXISTS', KEYS[1]) == 0 then return {'0-0', ms, {}} end
local e = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local id = e and e[1] or '0-0'
if ARGV[1] == '' then return {id, ms, {}} end
return {id, ms, redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+')}
"""
"""Returns the id of the newest entry, the time in milliseconds, and all entries after ``ARGV[1]``.

If ``ARGV[1]`` is empty, it returns no entries. ``KEYS[1]`` is the stream.
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


NONE = EntryId(0, 0)
"""In place of the id of an entry that does not exist; less than all others."""


class InvalidReply(Exception):
    """Redis has sent something that is not from the scripts of this module."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message.

    Attributes:
        id: its id in the stream.
        sender: URL of the cell that sent it; None: unknown.
        body: the body, as it was sent.
        previous: the id of the entry before it; None: not known, because the message came
            through the channel.
    """

    id: EntryId
    sender: str | None
    body: bytes
    previous: EntryId | None = None


@dataclass(frozen=True, slots=True)
class History:
    """The result of `READ`.

    Attributes:
        newest: id of the newest entry; `NONE`: there is no stream.
        time: Redis's time, in milliseconds since the epoch.
        entries: the requested entries, the oldest first.
    """

    newest: EntryId
    time: int
    entries: tuple[Entry, ...]

    def is_complete_after(self, position: EntryId, outage: float, kept: float) -> bool:
        """Whether no message after `position` is missing.

        A stream ends when it gets no message for `kept` seconds. A missing stream proves that no
        message was sent, if all messages of the outage would still be kept, and if the stream of
        `position` is old enough to have ended.

        Args:
            position: the newest entry that was seen; `NONE`: there was no stream.
            outage: seconds for which no message was seen, because nothing was read.
            kept: seconds for which a stream is kept after its newest message.
        """
        if self.entries:
            first = self.entries[0]
            if first.previous != NONE:
                return first.previous == position
            ended_by = first.id.milliseconds
        elif self.newest != NONE:
            return self.newest == position
        else:
            ended_by = self.time
        has_ended = position == NONE or ended_by - position.milliseconds >= kept * 1000
        return has_ended and outage < kept


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


def parse_payload(payload: Any) -> Entry:
    """Parse what a channel carries.

    Raises:
        InvalidReply: it has another form.
    """
    try:
        id_, sender, body = payload.split(b"\n", 2)
    except (AttributeError, TypeError, ValueError):
        raise InvalidReply("not a message of topicsvc") from None
    return Entry(parse_id(id_), _sender(sender), body)


def parse_history(reply: Any) -> History:
    """Parse the reply to `READ`.

    Raises:
        InvalidReply: it has another form.
    """
    try:
        newest, time, entries = reply
        parsed = tuple(_entry(id_, fields) for id_, fields in entries)
        return History(parse_id(newest), int(time), parsed)
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
