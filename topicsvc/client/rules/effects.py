"""What a session of a client asks its user to do, and what it tells the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from .close_codes import LOST

__all__ = [
    "CancelGap",
    "CancelToken",
    "Connect",
    "Disconnect",
    "Effect",
    "End",
    "Gap",
    "GapFound",
    "GetToken",
    "Note",
    "Ping",
    "Reason",
    "Send",
    "State",
    "StateChanged",
]

_NO_CODE = 1005

State: TypeAlias = Literal["idle", "connecting", "live", "waiting", "closed", "failed"]
"""idle: not started. connecting: gets a token, connects, or waits for the first reply. live:
messages arrive. waiting: a pause before the next connection. closed: ended by the application.
failed: another connection would fail in the same way."""

Reason: TypeAlias = Literal["first", "expiring", "refused"]
"""Why a token is needed. first: there was none yet. expiring: the old one expires soon, or has
expired. refused: the service has refused the last one."""


@dataclass(frozen=True, slots=True)
class End:
    """Why a connection ended, or was not made.

    Attributes:
        code: the close code; 1005 without one, 1006 without a close frame.
        reason: the reason in the close frame or in the error reply.
        detail: what happened, in words; empty if code and reason say it.
        status: the HTTP status that refused the opening handshake, if one did.
        was_open: whether the opening handshake had succeeded.
    """

    code: int = LOST
    reason: str = ""
    detail: str = ""
    status: int | None = None
    was_open: bool = True

    def __str__(self) -> str:
        if self.detail:
            return self.detail
        if self.code == LOST:
            return "the connection was lost"
        what = self.reason or "the service closed the connection"
        return what if self.code == _NO_CODE else f"{what} ({self.code})"


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages may be missing between two places.

    Attributes:
        since: the position of the last message before; None: there was no position.
        position: the position behind which messages go on; None: the service has none.
    """

    since: str | None
    position: str | None

    def __str__(self) -> str:
        return f"messages may be missing between {self.since} and {self.position}"


@dataclass(frozen=True, slots=True)
class GetToken:
    """Get a token, then call `Session.token`, `Session.token_failed` or `Session.no_token`."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class CancelToken:
    """The token that was asked for is not needed. Call none of these methods."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect, then call `Session.opened` or `Session.not_opened`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a text message."""

    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Send a ping; call `Session.heard` when its answer arrives."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection with 1000, or stop connecting. What it still brings does not count."""


@dataclass(frozen=True, slots=True)
class GapFound:
    """Tell the application of a gap. `Session.take` returns it where it belongs."""

    gap: Gap


@dataclass(frozen=True, slots=True)
class CancelGap:
    """The gap that was taken last is replaced by another. Stop handling it."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """Tell the application the new state."""

    state: State


@dataclass(frozen=True, slots=True)
class Note:
    """Tell the application something that it need not act on."""

    text: str


Effect: TypeAlias = (
    GetToken
    | CancelToken
    | Connect
    | Send
    | Ping
    | Disconnect
    | GapFound
    | CancelGap
    | StateChanged
    | Note
)
