"""Pure: the rule book of one connection.

Inputs are method calls with the time; answers are effects for the connection to carry out
in their order. The states and every row between them are in docs/protocol.md::

    AWAITING --token--> CHECKING --granted--> JOINING --joined--> ACTIVE --token--> ACTIVE,
       |                   |                     |                   |             checking
       '-------------------'----------+----------'-------------------'
                                      v
                                    CLOSED

A session past its expiry is no state of its own: it follows from the time. An active session
may also be checked unasked, to see whether its token was revoked; its client hears of that
only if it was.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from math import floor

from topicsvc.errors import InvalidMessage
from topicsvc.interfaces import Grant
from topicsvc.settings import Timestamps
from topicsvc.websocket import messages

__all__ = [
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "MAX_WAITING_BYTES",
    "MAX_WAITING_REQUESTS",
    "POLICY_VIOLATION",
    "TRY_AGAIN_LATER",
    "UNSUPPORTED_DATA",
    "Begin",
    "Close",
    "Effect",
    "Join",
    "Recheck",
    "Reply",
    "Session",
    "State",
    "Validate",
]

# RFC 6455, section 7.4.1, and the IANA registry for 1013.
GOING_AWAY = 1001
UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013

MAX_WAITING_REQUESTS = 8
"""Most messages that wait while a token is being checked."""


MAX_WAITING_BYTES = messages.MAX_TOKEN
"""Bytes of these past which no more should be read: those of the longest token."""


@dataclass(frozen=True, slots=True)
class Validate:
    """Ask about `token`; answer with ``granted``, ``refused``, ``undecided`` or ``failed``."""

    token: str


@dataclass(frozen=True, slots=True)
class Recheck:
    """Ask anew about `token`, which was granted before; answer as to `Validate`."""

    token: str


@dataclass(frozen=True, slots=True)
class Join:
    """Subscribe to the topic; answer with ``joined``, ``undecided`` or ``failed``."""


@dataclass(frozen=True, slots=True)
class Begin:
    """The session begins: `Success` comes next, for the first time."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Write `frame`."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Leave the topic, drop what is under way, send a close frame."""

    code: int
    reason: str


Effect = Validate | Recheck | Join | Begin | Reply | Close


class _Check(Enum):
    """What an active session is being checked for."""

    NONE = auto()
    ASKED = auto()
    """Its client has shown another token."""
    UNASKED = auto()
    """Its token may have been revoked."""


class State(Enum):
    """Where a session stands."""

    AWAITING = auto()
    CHECKING = auto()
    JOINING = auto()
    ACTIVE = auto()
    CLOSED = auto()


class Session:
    """One session. Times are seconds since the epoch.

    Args:
        timestamps: the unit of the replies' ``Timestamp``.
        keeps_token: whether the token is remembered, so that it can be checked unasked.

    Attributes:
        keeps_token: see above; it may change, for tokens that are shown from then on.
        deliver_until: data may be written before this time, and from it on no more.
    """

    __slots__ = (
        "_check",
        "_expires_at",
        "_is_due",
        "_shown",
        "_state",
        "_timestamps",
        "_token",
        "_waiting",
        "deliver_until",
        "keeps_token",
    )

    def __init__(self, timestamps: Timestamps = "seconds", keeps_token: bool = False) -> None:
        self._timestamps = timestamps
        self.keeps_token = keeps_token
        self._state = State.AWAITING
        self._expires_at = 0.0
        self.deliver_until = 0.0
        self._check = _Check.NONE
        self._is_due = False
        self._shown: str | None = None
        self._token: str | None = None
        self._waiting: deque[tuple[bytes, bool, float]] | None = None

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._state

    def received(self, payload: bytes, is_binary: bool, now: float) -> list[Effect]:
        """A whole message came from the client."""
        if self._state is State.CLOSED:
            return []
        if not self._busy:
            return self._request(payload, is_binary, now, now)
        if self._waiting is None:
            self._waiting = deque()
        if len(self._waiting) == MAX_WAITING_REQUESTS:
            return self._refuse(messages.INVALID_MESSAGE, now)
        self._waiting.append((payload, is_binary, now))
        return []

    def granted(self, grant: Grant, now: float) -> list[Effect]:
        """The token was judged, and this is what it allows."""
        if self._state is State.CLOSED:
            return []
        if not grant.may_receive or grant.is_expired(now):
            return self.refused(now)
        if self._check is _Check.UNASKED and self._expires_at <= now:
            # What came since was not delivered, and the client would not know.
            return self._next(now)
        self._expires_at = grant.expires_at
        if self._state is State.ACTIVE:
            self.deliver_until = grant.expires_at
        if self._check is _Check.UNASKED:
            return self._next(now)
        self._token, self._shown = self._shown, None
        self._is_due = False
        if self._state is State.CHECKING:
            self._state = State.JOINING
            return [Join()]
        return self._welcome(now)

    def joined(self, now: float) -> list[Effect]:
        """The broker has confirmed the subscription."""
        if self._state is not State.JOINING:
            return []
        if self._expires_at <= now:
            return self.refused(now)
        self._state = State.ACTIVE
        self.deliver_until = self._expires_at
        return [Begin(), *self._welcome(now)]

    def refused(self, now: float) -> list[Effect]:
        """The token was judged, and the answer is no."""
        return self._refuse(messages.TOKEN_INACTIVE, now)

    def undecided(self, now: float) -> list[Effect]:
        """The validator or the broker could not be asked."""
        return self._unserved(TRY_AGAIN_LATER, messages.SERVICE_UNAVAILABLE, now)

    def failed(self, now: float) -> list[Effect]:
        """A fault of ours kept the request from being decided."""
        return self._unserved(INTERNAL_ERROR, "Internal error", now)

    def recheck(self, now: float) -> list[Effect]:
        """It is time to see whether the token still holds.

        Nothing is asked while a check is under way: its verdict will do. If it has none, it is
        asked then: whoever keeps showing tokens that cannot be decided is looked at all the same.
        """
        if self._state is not State.ACTIVE or now >= self._expires_at or self._token is None:
            return []
        if self._busy:
            self._is_due = self._check is _Check.ASKED
            return []
        self._is_due = False
        self._check = _Check.UNASKED
        return [Recheck(self._token)]

    def check_expiry(self, now: float) -> list[Effect]:
        """The heart beats: a session that has run out is closed.

        One whose new token is being checked waits for the verdict.
        """
        if self._state is not State.ACTIVE or now < self._expires_at:
            return []
        if self._check is _Check.ASKED or self._waiting:
            return []
        return self._close(POLICY_VIOLATION, messages.SESSION_EXPIRED)

    def token_timeout(self) -> list[Effect]:
        """The time to present a live token is over."""
        if self._state is not State.AWAITING:
            return []
        return self._close(POLICY_VIOLATION, "Token timeout")

    def close(self, code: int, reason: str) -> list[Effect]:
        """Somebody outside the rule book wants it closed."""
        return [] if self._state is State.CLOSED else self._close(code, reason)

    def lost(self) -> None:
        """The connection is gone, or the peer is closing it."""
        self._state = State.CLOSED
        self._waiting = None
        self.deliver_until = 0.0
        self._token = self._shown = None

    @property
    def wants_read_pause(self) -> bool:
        """Whether so much waits that no more should be read until some of it has had its turn."""
        if not self._waiting:
            return False
        return sum(len(payload) for payload, _, _ in self._waiting) > MAX_WAITING_BYTES

    @property
    def _busy(self) -> bool:
        return self._check is not _Check.NONE or self._state in (State.CHECKING, State.JOINING)

    def _request(self, payload: bytes, is_binary: bool, arrived: float, now: float) -> list[Effect]:
        """Take up one message while no other is being decided; in time is what came in time."""
        if self._state is State.ACTIVE and arrived >= self._expires_at:
            return self._refuse(messages.SESSION_EXPIRED, now)
        if is_binary:
            return self._refuse(messages.INVALID_MESSAGE, now, UNSUPPORTED_DATA)
        try:
            token = messages.parse_token(payload)
        except InvalidMessage:
            return self._refuse(messages.INVALID_MESSAGE, now)
        if self.keeps_token:
            self._shown = token
        if self._state is State.ACTIVE:
            self._check = _Check.ASKED
        else:
            self._state = State.CHECKING
        return [Validate(token)]

    def _welcome(self, now: float) -> list[Effect]:
        expires_in = max(1, floor(self._expires_at - now))
        reply = Reply(messages.success_reply(expires_in, now, self._timestamps))
        return [reply, *self._next(now)]

    def _unserved(self, code: int, reason: str, now: float) -> list[Effect]:
        if self._state is State.CLOSED:
            return []
        if self._check is _Check.UNASKED:
            return self._next(now)
        reply = Reply(messages.error_reply(messages.SERVICE_UNAVAILABLE, now, self._timestamps))
        if self._check is _Check.ASKED:
            self._shown = None
            self._check = _Check.NONE
            overdue = self.recheck(now) if self._is_due else []
            return [reply, *(overdue or self._next(now))]
        return [reply, *self._close(code, reason)]

    def _next(self, now: float) -> list[Effect]:
        """One request is decided: take up the next that waits."""
        self._check = _Check.NONE
        if not self._waiting:
            return []
        return self._request(*self._waiting.popleft(), now)

    def _refuse(self, reason: str, now: float, code: int = POLICY_VIOLATION) -> list[Effect]:
        if self._state is State.CLOSED:
            return []
        reply = Reply(messages.error_reply(reason, now, self._timestamps))
        return [reply, *self._close(code, reason)]

    def _close(self, code: int, reason: str) -> list[Effect]:
        self.lost()
        return [Close(code, reason)]
