"""What is sent: the same for all who are measured."""

from __future__ import annotations

__all__ = ["BODY", "SENDER", "body", "frame_size", "payload_size"]

SENDER = "https://cell2.unit1.example/"

BODY = 93
"""Bytes of a body: with all around it a message has 140."""


def body(size: int = BODY) -> bytes:
    """A JSON string."""
    return b'"%s"' % (b"0" * (size - 2))


def payload_size(size: int = BODY) -> int:
    """Bytes of topicsvc's message around such a body: every peer sends as much."""
    return len(f'{{"From":"{SENDER}","Body":}}') + size


def frame_size(payload: int) -> int:
    """Bytes of a message on the wire (RFC 6455, section 5.2)."""
    return payload + (2 if payload < 126 else 4 if payload < 65536 else 10)
