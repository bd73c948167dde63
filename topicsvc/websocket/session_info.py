"""What operators can see of one session."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EndedSession", "SessionInfo"]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session at one moment.

    Attributes:
        number: identifies the session, here and in the log; unique in this process, and
            among workers.
        topic: path of the topic.
        address: address of the client, without a port.
        subject: the subject of its last valid token; None: not known.
        token: identifies the token, without revealing it; empty: none was presented.
        age: seconds since the connection was opened.
        expires_in: seconds until the token expires; None: no token was valid.
        messages: data messages delivered to it.
        queued: bytes that wait for it.
    """

    number: int
    topic: str
    address: str
    subject: str | None
    token: str
    age: float
    expires_in: float | None
    messages: int
    queued: int


@dataclass(frozen=True, slots=True)
class EndedSession:
    """A connection when it ended.

    Attributes:
        session: what it was at that moment.
        reason: one of `topicsvc.websocket.close_reasons.CLOSE_REASONS`.
        detail: details of the reason; empty: none.
        ended_at: the time of the end, by the reactor's clock.
    """

    session: SessionInfo
    reason: str
    detail: str
    ended_at: float
