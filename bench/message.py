"""The messages: the same size for each server."""

from __future__ import annotations

__all__ = ["BODY", "SENDER", "body", "frame_size", "payload_size"]

SENDER = "https://cell2.unit1.example/"

BODY = 93
"""Size of a body, in bytes. The whole message has 140."""


def body(size: int = BODY) -> bytes:
    """Return a JSON string of `size` bytes."""
    return b'"%s"' % (b"0" * (size - 2))


def payload_size(size: int = BODY) -> int:
    """Return the bytes of topicsvc's message with such a body; each peer sends as many."""
    return len(f'{{"From":"{SENDER}","Body":}}') + size


def frame_size(payload: int) -> int:
    """Return the bytes of a WebSocket frame (RFC 6455, section 5.2)."""
    return payload + (2 if payload < 126 else 4 if payload < 65536 else 10)
