"""The reasons for which connections end, and advice for operators.

The set is small and fixed, so that connections can be counted by reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from topicsvc.errors import Unavailable
from topicsvc.refusals import Refusal, RefusalReason

__all__ = [
    "CLOSE_REASONS",
    "CONNECTION_LOST",
    "ENDED_BY_OPERATOR",
    "NO_CAUSE",
    "OTHER",
    "Cause",
    "advice",
    "metric_label",
]

OTHER = "Other"
"""Counts any reason that is not in `CLOSE_REASONS`."""

CONNECTION_LOST = "Connection lost"
"""The connection ended without a close frame, which is normal for some clients."""

ENDED_BY_OPERATOR = "Ended by operator"
"""An operator ended the session on the admin endpoint."""

CLOSE_REASONS = {
    # Reasons in close frames, as in docs/protocol.md.
    "Going away": "",
    "Token inactive": "",  # each `Refusal` has advice of its own
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
    ENDED_BY_OPERATOR: "",
    "Internal error": "a bug in topicsvc: please report it with the traceback in the log",
    "Service unavailable": Unavailable.advice,
    # Closes by the client, and violations of the WebSocket protocol.
    "Protocol error": "the client violates the WebSocket protocol (RFC 6455)",
    "Invalid UTF-8": "the client violates the WebSocket protocol (RFC 6455)",
    "Message too big": "if your tokens are this long, raise session.max_message",
    "Client closed": "",
    CONNECTION_LOST: "many connections were lost within a minute; a proxy must wait longer than "
    "session.ping_interval",
    OTHER: "",
}
"""Each reason with its advice; empty: no action is needed."""

_MAX_DETAIL = 200
"""Most characters of the text of an error; brokers and validators write parts of it."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a connection ends for its reason, for the log.

    Attributes:
        detail: details of the reason, without a token or a secret; empty: none.
        advice: replaces the advice of the reason; None: that advice fits.
        refusal: why the token was refused; None: it was not.
    """

    detail: str = ""
    advice: str | None = None
    refusal: RefusalReason | None = None

    @classmethod
    def of_refusal(cls, refusal: Refusal, prefix: str = "") -> Cause:
        """The cause of a refused token.

        Args:
            refusal: why it is refused.
            prefix: precedes the detail.
        """
        return cls(f"{prefix}{refusal}", refusal.advice, refusal.reason)

    @classmethod
    def of_error(cls, error: Unavailable) -> Cause:
        """The cause of a failed check or subscription."""
        return cls(" ".join(str(error).split())[:_MAX_DETAIL], error.advice)


NO_CAUSE = Cause()
"""There is nothing to add to the reason."""


def metric_label(reason: str) -> str:
    """Return the metric label under which a reason is counted."""
    known = reason if reason in CLOSE_REASONS else OTHER
    return known.lower().replace(" ", "_").replace("-", "")


def advice(reason: str) -> str:
    """Return what an operator can do about a reason; empty: no action is needed."""
    return CLOSE_REASONS.get(reason, "")
