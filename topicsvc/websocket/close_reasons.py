"""Pure: why connections end, and what an operator can do about it.

The reasons are few and known, so that they can be counted by name.
"""

from __future__ import annotations

__all__ = ["CLOSE_REASONS", "OTHER", "advice", "metric_label"]

OTHER = "Other"
"""Stands for a reason that is missing below."""

CLOSE_REASONS = {
    # The texts of close frames, as in docs/protocol.md.
    "Going away": "",
    "Token inactive": "if many clients are refused, compare the clocks of this host and of who "
    "issues their tokens",
    "Invalid message": "this client sends what is no token message: see docs/protocol.md",
    "Session expired": "",
    "Token timeout": "this client shows no token; slow ones need a longer session.token_timeout",
    "No pong": "the client or the way to it is gone: see session.ping_interval and "
    "session.ping_limit",
    "Slow consumer": "it reads more slowly than its topic is sent to; for short bursts raise "
    "session.send_queue",
    "Too many messages": "no client needs so many messages or pings; if yours does, raise "
    "limits.messages_per_minute",
    "Too many frames": "no client needs to cut a message so small; if yours does, raise "
    "limits.frames_per_message",
    "Internal error": "a fault of topicsvc: please report it with the traceback that is logged",
    "Service unavailable": "look at the validator and the broker: /health/ready, and what was "
    "logged before this",
    # What the other end does, and what the WebSocket protocol forbids.
    "Protocol error": "this client breaks the WebSocket protocol (RFC 6455)",
    "Invalid UTF-8": "this client breaks the WebSocket protocol (RFC 6455)",
    "Message too big": "tokens that are this long need a higher session.max_message",
    "Client closed": "",
    "Connection lost": "if many are lost at once, look at what is between: the read timeout of a "
    "proxy must be longer than session.ping_interval",
    OTHER: "",
}
"""Reasons, and what to do; nothing where nothing need be done."""


def metric_label(reason: str) -> str:
    """The name under which a reason is counted."""
    known = reason if reason in CLOSE_REASONS else OTHER
    return known.lower().replace(" ", "_").replace("-", "")


def advice(reason: str) -> str:
    """What an operator can do about it; nothing: nothing need be done."""
    return CLOSE_REASONS.get(reason, "")
