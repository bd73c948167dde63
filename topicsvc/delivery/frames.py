"""Finds the ends of WebSocket frames in the bytes that the hub delivers.

The bytes are frames of a server: whole and unmasked (RFC 6455, section 5.2).
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

__all__ = ["frame_end"]

_TWO_BYTES, _EIGHT_BYTES = 126, 127
"""Values of the length that stand for a length in two or eight more bytes."""


def frame_end(frames: bytes, position: int) -> int:
    """Return the end of the frame that contains the byte at `position`."""
    first = _end(frames, 0)
    if position < first:
        return first
    ends = _ends(frames)
    return ends[bisect_right(ends, position)]


# The same bytes go to all members of a topic, one after another. They are at most
# `topicsvc.delivery.channel.MAX_JOINED`, because a longer message is not joined with others.
@lru_cache(maxsize=1)
def _ends(frames: bytes) -> tuple[int, ...]:
    ends = []
    end, size = 0, len(frames)
    while end < size:
        end = _end(frames, end)
        ends.append(end)
    return tuple(ends)


def _end(frames: bytes, start: int) -> int:
    """Return the end of the frame that starts at `start`."""
    length = frames[start + 1]
    start += 2
    if length == _TWO_BYTES:
        return start + 2 + int.from_bytes(frames[start : start + 2], "big")
    if length == _EIGHT_BYTES:
        return start + 8 + int.from_bytes(frames[start : start + 8], "big")
    return start + length
