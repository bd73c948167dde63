"""The state machine of one session.

Each input is a method call with the time. It returns the effects that the connection has to
carry out, in this order. docs/protocol.md lists every transition::

    AWAITING --token--> CHECKING --granted--> JOINING --joined--> ACTIVE --token--> ACTIVE,
       |                   |                     |                   |             checking
       '-------------------'----------+----------'-------------------'
                                      v
                                    CLOSED

Expiry is no state of its own: it follows from the time. An active session's token may also be
checked again without a request of the client, to notice a revocation; the client gets a reply
only if the token was revoked.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from math import floor

from topicsvc.errors import InvalidMessage, Unavailable
from topicsvc.interfaces import Grant, Place
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.settings import Timestamps
from topicsvc.websocket import messages
from topicsvc.websocket.close_reasons import NO_CAUSE, Cause

__all__ = [
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "MAX_WAITING_BYTES",
    "MAX_WAITING_BYTES_WITHOUT_TOKEN",
    "MAX_WAITING_REQUESTS",
    "POLICY_VIOLATION",
    "TRY_AGAIN_LATER",
    "UNSUPPORTED_DATA",
    "Begin",
    "Close",
    "Effect",
    "Join",
    "Recheck",
    "Replay",
    "Reply",
    "Resume",
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

_INVALID_TOKEN = (messages.TOKEN_INACTIVE, messages.SESSION_EXPIRED)
"""Reasons after which no data that waits is sent."""

MAX_WAITING_REQUESTS = 8
"""Most messages that wait while a token is checked."""

MAX_WAITING_BYTES = messages.MAX_TOKEN
"""If more bytes than this wait, reading pauses: the length of the longest token."""

MAX_WAITING_BYTES_WITHOUT_TOKEN = 4096
"""The same, incomplete messages included, for a client that has not presented a valid token."""


@dataclass(frozen=True, slots=True)
class Validate:
    """Validate `token`; then call ``granted``, ``refused``, ``undecided`` or ``failed``."""

    token: str


@dataclass(frozen=True, slots=True)
class Recheck:
    """Validate again `token`, which was granted before; then call the same as for `Validate`."""

    token: str


@dataclass(frozen=True, slots=True)
class Join:
    """Subscribe to the topic; then call ``joined``, ``refused``, ``undecided`` or ``failed``.

    Attributes:
        has_positions: whether the client asks for positions; ``joined`` then needs its place.
        since: the client's position; None: it begins now.
    """

    has_positions: bool = False
    since: str | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Find out what a session with positions has not got; then call ``resumed``."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Log that the session starts. The first `Success` follows."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Write `frame`.

    A frame that names a position is `data`: if the messages before it are dropped, it is dropped
    too.
    """

    frame: bytes
    is_data: bool = False


@dataclass(frozen=True, slots=True)
class Replay:
    """Deliver `count` messages that the client has missed."""

    frames: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Close:
    """Leave the topic, cancel the check in progress, send a close frame.

    The client gets `code` and `reason`. The log also gets `cause`. If the token is no longer valid,
    `drops_data` is set: data that waits for the client is dropped.
    """

    code: int
    reason: str
    cause: Cause = NO_CAUSE
    drops_data: bool = False


Effect = Validate | Recheck | Join | Resume | Begin | Reply | Replay | Close


_PLAIN_JOIN = Join()


class _Check(Enum):
    """The check in progress on an active session."""

    NONE = auto()
    REQUESTED = auto()
    """The client has presented another token."""
    RECHECK = auto()
    """The session's token may have been revoked."""


class State(Enum):
    """The state of a session."""

    AWAITING = auto()
    CHECKING = auto()
    JOINING = auto()
    ACTIVE = auto()
    CLOSED = auto()


class Session:
    """One session. Times are seconds since the epoch.

    Args:
        timestamps: the unit of ``Timestamp`` in replies.
        keeps_token: whether to keep the token, so that it can be checked again.

    Attributes:
        keeps_token: see above; a change applies to tokens that are presented later.
        deliver_until: data may be written before this time, and not from then on.
    """

    __slots__ = (
        "_check",
        "_expires_at",
        "_is_recheck_due",
        "_join",
        "_presented_token",
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
        self._is_recheck_due = False
        self._join = _PLAIN_JOIN
        self._presented_token: str | None = None
        self._token: str | None = None
        self._waiting: deque[tuple[bytes, bool, float]] | None = None

    @property
    def state(self) -> State:
        """The state of the session."""
        return self._state

    @property
    def expires_at(self) -> float | None:
        """When the last grant expires; None: there was no grant."""
        return self._expires_at or None

    def received(self, payload: bytes, is_binary: bool, now: float) -> list[Effect]:
        """The client has sent a whole message."""
        if self._state is State.CLOSED:
            return []
        if not self._is_checking:
            return self._request(payload, is_binary, now, now)
        if self._waiting is None:
            self._waiting = deque()
        if len(self._waiting) == MAX_WAITING_REQUESTS:
            return self._refuse(messages.INVALID_MESSAGE, now)
        self._waiting.append((payload, is_binary, now))
        return []

    def granted(self, grant: Grant, now: float) -> list[Effect]:
        """The token is valid; `grant` is what it allows."""
        if self._state is State.CLOSED:
            return []
        if grant.is_expired(now):
            return self.refused(now, Refusal(RefusalReason.EXPIRED))
        if not grant.may_receive:
            return self.refused(now, grant.refusal_to_receive)
        if self._check is _Check.RECHECK and self._expires_at <= now:
            # Data since the expiry was not delivered. The client would not notice the gap.
            return self._next(now)
        self._expires_at = grant.expires_at
        if self._state is State.ACTIVE:
            self.deliver_until = grant.expires_at
        if self._check is _Check.RECHECK:
            return self._next(now)
        self._token, self._presented_token = self._presented_token, None
        self._is_recheck_due = False
        if self._state is State.CHECKING:
            self._state = State.JOINING
            return [self._join]
        return [Resume()] if self._join.has_positions else self._success(now)

    def joined(self, now: float, place: Place | None = None) -> list[Effect]:
        """The broker has confirmed the subscription; `place` is that of a client with positions."""
        if self._state is not State.JOINING:
            return []
        if self._expires_at <= now:
            while_joining = Refusal(RefusalReason.EXPIRED, "before the broker had confirmed")
            return self.refused(now, while_joining)
        self._state = State.ACTIVE
        self.deliver_until = self._expires_at
        return [Begin(), *self._success(now, place)]

    def resumed(self, now: float, place: Place) -> list[Effect]:
        """The place from which a session with positions goes on under its new grant."""
        return self._success(now, place) if self._state is State.ACTIVE else []

    def missed(self, now: float, place: Place) -> list[Effect]:
        """Messages may be missing, and a session with positions goes on from `place`.

        Returns:
            No effects: the client cannot be told now, because its grant has expired.
        """
        return [self._success_reply(now, place)] if self._may_deliver(now) else []

    def position_due(self, now: float, position: str | None) -> list[Effect]:
        """The client has got nothing for the time of a heartbeat: tell it its position."""
        frame = messages.position_frame(position)
        return [Reply(frame, is_data=True)] if self._may_deliver(now) else []

    def refused(self, now: float, refusal: Refusal) -> list[Effect]:
        """The token is refused, or the topic cannot exist. `refusal` is for the log."""
        prefix = "at a recheck: " if self._check is _Check.RECHECK else ""
        cause = Cause.of_refusal(refusal, prefix)
        return self._refuse(messages.TOKEN_INACTIVE, now, cause=cause)

    def undecided(self, now: float, error: Unavailable | None = None) -> list[Effect]:
        """The validator or the broker is unavailable. `error` is for the log."""
        cause = NO_CAUSE if error is None else Cause.of_error(error)
        return self._unavailable(TRY_AGAIN_LATER, messages.SERVICE_UNAVAILABLE, now, cause)

    def failed(self, now: float) -> list[Effect]:
        """An internal error ended the check."""
        return self._unavailable(INTERNAL_ERROR, "Internal error", now, NO_CAUSE)

    def recheck(self, now: float) -> list[Effect]:
        """Check the session's token again, to notice a revocation.

        While another check is in progress, no second one starts: its result will do. If it ends
        without a result, the recheck follows at once. A client that keeps presenting tokens that
        cannot be checked therefore cannot avoid the recheck.
        """
        if self._state is not State.ACTIVE or now >= self._expires_at or self._token is None:
            return []
        if self._is_checking:
            self._is_recheck_due = self._check is _Check.REQUESTED
            return []
        self._is_recheck_due = False
        self._check = _Check.RECHECK
        return [Recheck(self._token)]

    def check_expiry(self, now: float) -> list[Effect]:
        """Close a session that has expired, unless a new token is being checked."""
        if self._state is not State.ACTIVE or now < self._expires_at:
            return []
        if self._check is _Check.REQUESTED or self._waiting:
            return []
        return self._close(POLICY_VIOLATION, messages.SESSION_EXPIRED)

    def token_timeout(self) -> list[Effect]:
        """The client did not present a token in time."""
        if self._state is not State.AWAITING:
            return []
        return self._close(POLICY_VIOLATION, "Token timeout")

    def close(self, code: int, reason: str, cause: Cause = NO_CAUSE) -> list[Effect]:
        """Close the session for a reason outside this state machine."""
        return [] if self._state is State.CLOSED else self._close(code, reason, cause)

    def lost(self) -> None:
        """The session ends without effects: the connection is lost, or closing already."""
        self._state = State.CLOSED
        self._waiting = None
        self.deliver_until = 0.0
        self._token = self._presented_token = None

    @property
    def wants_read_pause(self) -> bool:
        """Whether more than `MAX_WAITING_BYTES` wait."""
        return bool(self._waiting) and self.waiting_bytes > MAX_WAITING_BYTES

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the messages that wait for the check in progress."""
        return sum(len(payload) for payload, _, _ in self._waiting or ())

    @property
    def _is_checking(self) -> bool:
        return self._check is not _Check.NONE or self._state in (State.CHECKING, State.JOINING)

    def _request(self, payload: bytes, is_binary: bool, arrived: float, now: float) -> list[Effect]:
        """Handle one message. `arrived` decides whether it came before the expiry."""
        if self._state is State.ACTIVE and arrived >= self._expires_at:
            return self._refuse(messages.SESSION_EXPIRED, now)
        if is_binary:
            return self._refuse(messages.INVALID_MESSAGE, now, UNSUPPORTED_DATA)
        try:
            token, has_since, since = messages.parse_request(payload)
        except InvalidMessage:
            return self._refuse(messages.INVALID_MESSAGE, now)
        if self.keeps_token:
            self._presented_token = token
        if self._state is State.ACTIVE:
            self._check = _Check.REQUESTED
        else:
            self._state = State.CHECKING
            if has_since:
                self._join = Join(True, since)
        return [Validate(token)]

    def _may_deliver(self, now: float) -> bool:
        return self._state is State.ACTIVE and now < self._expires_at

    def _success(self, now: float, place: Place | None = None) -> list[Effect]:
        effects: list[Effect] = [self._success_reply(now, place)]
        if place is not None and place.count:
            effects.append(Replay(place.frames, place.count))
        return [*effects, *self._next(now)]

    def _success_reply(self, now: float, place: Place | None) -> Reply:
        expires_in = max(1, floor(self._expires_at - now))
        frame = messages.success_reply(expires_in, now, self._timestamps, place)
        return Reply(frame, is_data=place is not None)

    def _unavailable(self, code: int, reason: str, now: float, cause: Cause) -> list[Effect]:
        if self._state is State.CLOSED:
            return []
        if self._check is _Check.RECHECK:
            return self._next(now)
        reply = Reply(messages.error_reply(messages.SERVICE_UNAVAILABLE, now, self._timestamps))
        if self._check is _Check.REQUESTED:
            self._presented_token = None
            self._check = _Check.NONE
            overdue = self.recheck(now) if self._is_recheck_due else []
            return [reply, *(overdue or self._next(now))]
        return [reply, *self._close(code, reason, cause)]

    def _next(self, now: float) -> list[Effect]:
        """End the check in progress and handle the next message that waits."""
        self._check = _Check.NONE
        if not self._waiting:
            return []
        return self._request(*self._waiting.popleft(), now)

    def _refuse(
        self, reason: str, now: float, code: int = POLICY_VIOLATION, cause: Cause = NO_CAUSE
    ) -> list[Effect]:
        if self._state is State.CLOSED:
            return []
        reply = Reply(messages.error_reply(reason, now, self._timestamps))
        return [reply, *self._close(code, reason, cause)]

    def _close(self, code: int, reason: str, cause: Cause = NO_CAUSE) -> list[Effect]:
        self.lost()
        return [Close(code, reason, cause, reason in _INVALID_TOKEN)]
