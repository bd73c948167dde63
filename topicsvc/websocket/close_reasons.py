"""The reasons for which connections end, and advice for operators.

The set is small and fixed, so that connections can be counted by reason.
"""

from __future__ import annotations

__all__ = ["CLOSE_REASONS", "OTHER", "advice", "metric_label"]

OTHER = "Other"
"""Counts any reason that is not in `CLOSE_REASONS`."""

CLOSE_REASONS = {
    # Reasons in close frames, as in docs/protocol.md.
    "Going away": "",
    "Token inactive": "if many clients are refused, compare the clocks of this host and of the "
    "token issuer",
    "Invalid message": "the client sent something other than a token message: see docs/protocol.md",
    "Session expired": "",
    "Token timeout": "the client presented no token in time; for slow clients raise "
    "session.token_timeout",
    "No pong": "the client or its network is down: see session.ping_interval and "
    "session.ping_limit",
    "Slow consumer": "the client reads too slowly for its topic; for short bursts raise "
    "session.send_queue",
    "Too many messages": "clients rarely need this many; if yours do, raise "
    "limits.messages_per_minute",
    "Too many frames": "clients rarely need this many; if yours do, raise "
    "limits.frames_per_message",
    "Internal error": "a bug in topicsvc: please report it with the traceback in the log",
    "Service unavailable": "check the validator and the broker: see /health/ready and earlier "
    "lines of the log",
    # Closes by the client, and violations of the WebSocket protocol.
    "Protocol error": "the client violates the WebSocket protocol (RFC 6455)",
    "Invalid UTF-8": "the client violates the WebSocket protocol (RFC 6455)",
    "Message too big": "if your tokens are this long, raise session.max_message",
    "Client closed": "",
    "Connection lost": "if many are lost at once: a proxy's read timeout must be longer than "
    "session.ping_interval",
    OTHER: "",
}
"""Each reason with its advice; empty: no action is needed."""


def metric_label(reason: str) -> str:
    """Return the metric label under which a reason is counted."""
    known = reason if reason in CLOSE_REASONS else OTHER
    return known.lower().replace(" ", "_").replace("-", "")


def advice(reason: str) -> str:
    """Return what an operator can do about a reason; empty: no action is needed."""
    return CLOSE_REASONS.get(reason, "")
