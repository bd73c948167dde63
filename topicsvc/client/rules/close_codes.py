"""What a client does when a connection has ended: the table of docs/protocol.md."""

from __future__ import annotations

from enum import Enum

__all__ = [
    "LOST",
    "SESSION_EXPIRED",
    "TOKEN_INACTIVE",
    "Next",
    "after_close",
    "after_error_reply",
    "after_refusal",
    "code_of",
]

LOST = 1006
"""The connection ended without a close frame (RFC 6455, section 7.1.5)."""

SERVICE_UNAVAILABLE = "Service unavailable"
SESSION_EXPIRED = "Session expired"
TOKEN_INACTIVE = "Token inactive"


class Next(Enum):
    """What to do next."""

    AGAIN = "connect again after a pause"
    NEW_TOKEN = "connect again after a pause, with a fresh token"
    GIVE_UP = "another connection would fail in the same way"


_POLICY_VIOLATION = 1008
_TRY_AGAIN_LATER = 1013
_FAULTS = {1002, 1003, 1007, 1009}
_AGAIN_REASONS = {SESSION_EXPIRED, "Token timeout", "No pong", "Slow consumer"}
_FINAL_REASONS = {"Invalid message", "Too many messages", "Too many frames", "Ended by operator"}
_LATER_STATUSES = {408, 425, 429}


def after_close(code: int, reason: str) -> Next:
    """Decide by the close code (RFC 6455, section 7.4) and its reason.

    Args:
        code: 1005 without a code, 1006 without a close frame.
        reason: of the close frame.
    """
    if code == _POLICY_VIOLATION:
        if reason == TOKEN_INACTIVE:
            return Next.NEW_TOKEN
        return Next.AGAIN if reason in _AGAIN_REASONS else Next.GIVE_UP
    return Next.GIVE_UP if code in _FAULTS else Next.AGAIN


def after_error_reply(reason: str) -> Next:
    """Decide by the reason of an error reply.

    Units close with 1000 and no reason, whatever the reply before it says.
    """
    if reason == TOKEN_INACTIVE:
        return Next.NEW_TOKEN
    return Next.GIVE_UP if reason in _FINAL_REASONS else Next.AGAIN


def code_of(reason: str) -> int:
    """The close code with which topicsvc ends a session after an error reply."""
    return _TRY_AGAIN_LATER if reason == SERVICE_UNAVAILABLE else _POLICY_VIOLATION


def after_refusal(status: int | None) -> Next:
    """Decide by the HTTP status that refused the opening handshake; None: there was none."""
    if status is None or status in _LATER_STATUSES or not 300 <= status < 500:
        return Next.AGAIN
    return Next.GIVE_UP
