"""The state machine of a topic's client. Time is an argument, randomness a function.

A session is told what happens (`Session.opened`, `Session.received`, `Session.closed`, ...) and
returns effects, which its user carries out in their order. Its user calls `Session.look` when
`Session.deadline` has come.

Messages and gaps wait in the session until `Session.take` returns them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from .close_codes import (
    SESSION_EXPIRED,
    TOKEN_INACTIVE,
    Next,
    after_close,
    after_error_reply,
    after_refusal,
    code_of,
)
from .effects import (
    CancelGap,
    CancelToken,
    Connect,
    Disconnect,
    Effect,
    End,
    Gap,
    GapFound,
    GetToken,
    Note,
    Ping,
    Reason,
    Send,
    State,
    StateChanged,
)
from .messages import Beat, Granted, Message, Refused, parse, token_message
from .tokens import checked_token

__all__ = ["NOT_THIS_PROTOCOL", "NO_POSITIONS", "Policy", "Session"]

STEADY_AFTER = 5.0
"""Seconds live after which the next pause is short again."""

RENEW_BEFORE = 90.0
RENEW_AT = 0.7
"""A token is renewed `RENEW_BEFORE` seconds before it expires, or at this part of its life if that
is later."""

GRACE = 15.0
"""Seconds that a heartbeat, or the answer to a ping, may be late."""

PING_AFTER = 60.0
"""Seconds of silence after which a service without heartbeats is sent a ping."""

NO_POSITIONS = (
    "the service has no positions for this topic: messages that are sent while the client is not "
    "connected are missed"
)
NOT_THIS_PROTOCOL = "the server sent a message that is not of this protocol"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a client waits.

    Attributes:
        min_delay: bound of the first pause before it connects again, in seconds. Each pause is
            random, up to a bound that doubles each time.
        max_delay: the greatest bound, in seconds.
        connect_timeout: seconds for the connection and the opening handshake.
        reply_timeout: seconds for the reply to a token.
        buffer: most messages that wait for the application.
        token_timeout: seconds after which a call for a token is cancelled, and has failed.
    """

    min_delay: float = 0.5
    max_delay: float = 30.0
    connect_timeout: float = 10.0
    reply_timeout: float = 15.0
    buffer: int = 1000
    token_timeout: float = 30.0


class Session:
    """One topic's client, from its start to its end.

    Args:
        recover: whether to ask for what was missed while there was no connection.
        since: the position to go on from; None: from now on.
        random: returns a number from 0 to 1, for the pauses.
        policy: the times.

    Attributes:
        state: see `State`.
        position: the position of the last message that was taken, or of the last gap that was
            handled.
        end: why the last connection ended; None if none has ended.
        is_full: whether no more should be read until messages have been taken.
        lifetime: seconds for which the token was granted last.
    """

    def __init__(
        self, *, recover: bool, since: str | None, random: Callable[[], float], policy: Policy
    ) -> None:
        self.state: State = "idle"
        self.position = since
        self.end: End | None = None
        self.is_full = False
        self.lifetime = 0.0
        self._recover = recover
        self._random = random
        self._policy = policy
        self._effects: list[Effect] = []
        self._failures = 0  # in a row, of connections
        # What the application is to have.
        self._items: deque[Message | Gap] = deque()
        self._gap: Gap | None = None  # the one that is being handled
        self._gap_failures = 0
        self._gap_at: float | None = None  # when it is handled again
        self._received = since  # the newest position
        self._has_noted = False
        # The token.
        self._token: str | None = None
        self._token_expires_at: float | None = None  # None: not known
        self._reason: Reason = "first"  # why the next one is needed
        self._ask_until: float | None = None  # None: no call for a token is under way
        self._is_refresh_wanted = False  # after the call or the reply that is under way
        self._was_refused = False
        # The connection.
        self._is_connecting = False  # or connected
        self._is_connected = False
        self._is_awaiting_reply = False
        self._give_up_at: float | None = None  # on the connection, or on the reply
        self._retry_at: float | None = None
        self._renew_at: float | None = None
        self._renewals = 0  # in a row that failed
        self._expires_at: float | None = None
        self._live_at = 0.0
        self._heard_at = 0.0
        self._heartbeat: float | None = None
        self._has_pinged = False

    # What the application does.

    def start(self, now: float) -> list[Effect]:
        """Begin."""
        if self.state == "idle":
            self._attempt(now)
        return self._done()

    def refresh(self, now: float) -> list[Effect]:
        """Get a fresh token and present it now; during a pause, connect with it now.

        While another call or a reply is under way, this is done after the reply.
        """
        if self.state == "waiting":
            self._discard_token()
            self._attempt(now)
        else:
            self._is_refresh_wanted = True
            self._refresh_if_wanted(now)
        return self._done()

    def close(self) -> list[Effect]:
        """End for good, without the messages that were not taken."""
        if self.state not in ("closed", "failed"):
            self._disconnect()
            self._items.clear()
            self._abandon_gap()
            self._retry_at = None
            self._set_state("closed")
        return self._done()

    def take(self, now: float) -> Message | Gap | None:
        """Return what comes next for the application, if there is anything.

        After a gap, nothing more is returned until `gap_handled` or `gap_failed` is called.
        """
        if self._gap is not None or not self._items:
            return None
        item = self._items.popleft()
        if self.is_full and len(self._items) <= self._policy.buffer // 2:
            self.is_full = False
            self._heard_at = now
            if self._give_up_at is not None:
                self._give_up_at = now + self._policy.reply_timeout
        if isinstance(item, Gap):
            self._gap = item
        else:
            self.position = item.position if self._items else self._received
        return item

    def gap_handled(self) -> None:
        """The application has loaded its state anew."""
        if self._gap is not None and self._gap_at is None:
            self.position = self._gap.position if self._items else self._received
            self._gap = None
            self._gap_failures = 0

    def gap_interrupted(self) -> None:
        """The application has stopped to load its state. `take` returns the gap again."""
        self._offer_gap_again()

    def gap_failed(self, now: float) -> None:
        """The application could not load its state. `take` returns the gap again later."""
        if self._gap is not None and self._gap_at is None:
            self._offer_gap_later(now)

    # What happens outside.

    def token(self, now: float, value: object) -> list[Effect]:
        """The result of the call for a token. What is not a token counts as a failed call."""
        if not self._is_asking:  # it was cancelled
            return self._done()
        try:
            token = checked_token(value)
        except ValueError as error:
            return self.token_failed(now, str(error))
        self._ask_until = None
        self._token = token
        self._token_expires_at = None
        if self.state == "live":
            self._renewals = 0
            self._present(now)
        else:
            self._connect(now)
        return self._done()

    def token_failed(self, now: float, why: str) -> list[Effect]:
        """There is no token at present."""
        if self._is_asking:
            self._token_failed(now, why)
        return self._done()

    def no_token(self, why: str) -> list[Effect]:
        """The application will not have a token again."""
        if not self._is_asking:
            return self._done()
        self._ask_until = None
        self._disconnect()
        self._fail(End(reason=TOKEN_INACTIVE, detail=why, was_open=False))
        return self._done()

    def opened(self, now: float) -> list[Effect]:
        """The opening handshake has succeeded."""
        self._is_connected = True
        self._present(now)
        return self._done()

    def not_opened(
        self, now: float, why: str, status: int | None = None, retry_after: float = 0.0
    ) -> list[Effect]:
        """The connection could not be made.

        Args:
            now: the time.
            why: in words.
            status: the HTTP status that refused the opening handshake; None: there was none.
            retry_after: the seconds in its header ``Retry-After``.
        """
        end = End(detail=why, status=status, was_open=False)
        self._forget_connection()
        if after_refusal(status) is Next.GIVE_UP:
            self._fail(end)
        else:
            self._wait(now, end, min(retry_after, self._policy.max_delay))
        return self._done()

    def heard(self, now: float) -> None:
        """Bytes have arrived. Call this before what they bring."""
        self._heard_at = now
        self._has_pinged = False

    def received(self, now: float, text: str) -> list[Effect]:
        """A text message has arrived."""
        try:
            message = parse(text)
        except ValueError:
            return self.received_nonsense(now)
        match message:
            case Message():
                self._received = message.position or self._received
                self._append(now, message)
            case Beat():
                self._arrive_at(message.position)
            case Granted():
                self._granted(now, message)
            case Refused():
                self._refused(now, message.reason)
        return self._done()

    def received_nonsense(self, now: float) -> list[Effect]:
        """The server sent something that no topic sends."""
        self._effects.append(Note(NOT_THIS_PROTOCOL))
        self._give_up(now, NOT_THIS_PROTOCOL)
        return self._done()

    def closed(self, now: float, code: int, reason: str, detail: str = "") -> list[Effect]:
        """The connection has ended.

        Args:
            now: the time.
            code: the close code; 1005 without one, 1006 without a close frame.
            reason: of the close frame.
            detail: what happened, in words, if code and reason do not say it.
        """
        self._forget_connection()
        self._lose(now, End(code, reason, detail), after_close(code, reason))
        return self._done()

    @property
    def deadline(self) -> float | None:
        """When to call `look`; None: not before something else happens."""
        times = [self._gap_at, self._retry_at, self._renew_at, self._ask_until]
        if not self._is_awaiting_reply:
            times.append(self._expires_at)
        if not self._is_reading_paused:
            times += [self._give_up_at, self._silent_at]
        at = min((each for each in times if each is not None), default=inf)
        return None if at == inf else at

    @property
    def _is_asking(self) -> bool:
        return self._ask_until is not None

    @property
    def _is_reading_paused(self) -> bool:
        return self.is_full and self._is_connected

    @property
    def _silent_at(self) -> float | None:
        """When the silence of the connection has a consequence."""
        if self.state != "live":
            return None
        if self._heartbeat is not None:
            return self._heard_at + self._heartbeat + GRACE
        return self._heard_at + PING_AFTER + (GRACE if self._has_pinged else 0.0)

    def look(self, now: float) -> list[Effect]:
        """Do what is due."""
        if _is_due(self._gap_at, now):
            self._offer_gap_again()
        if _is_due(self._retry_at, now):
            self._attempt(now)
        elif _is_due(self._expires_at, now) and not self._is_awaiting_reply:
            self._give_up(now, "the token has expired")
        elif _is_due(self._ask_until, now):
            self._effects.append(CancelToken())
            seconds = self._policy.token_timeout
            self._token_failed(now, f"get_token failed: no token within {seconds:g} s")
        elif _is_due(self._renew_at, now):
            self._renew(now)
        elif not self._is_reading_paused and _is_due(self._give_up_at, now):
            what, seconds = "response", self._policy.connect_timeout
            if self._is_connected:
                what, seconds = "reply to the token", self._policy.reply_timeout
            self._give_up(now, f"no {what} within {seconds:g} s")
        elif not self._is_reading_paused and _is_due(self._silent_at, now):
            if self._heartbeat is None and not self._has_pinged:
                self._has_pinged = True
                self._effects.append(Ping())
            else:
                silence = now - self._heard_at
                self._give_up(
                    now, f"nothing has arrived for {silence:.0f} s: the connection is dead"
                )
        return self._done()

    # Tokens.

    def _attempt(self, now: float) -> None:
        """Connect, with the token that there is or with another."""
        self._retry_at = None
        self._set_state("connecting")
        if self._token is not None and _is_due(self._token_expires_at, now):
            self._discard_token()
        if self._token is None:
            self._ask(now)
        else:
            self._connect(now)

    def _ask(self, now: float) -> None:
        if not self._is_asking:
            self._ask_until = now + self._policy.token_timeout
            self._is_refresh_wanted = False
            self._effects.append(GetToken(self._reason))

    def _token_failed(self, now: float, why: str) -> None:
        self._ask_until = None
        self._effects.append(Note(why))
        if self.state == "live":
            self._renew_later(now)
        else:
            self._wait(now, End(detail=why, was_open=False))

    def _refresh_if_wanted(self, now: float) -> None:
        """Get a fresh token, unless a call or a reply is still under way."""
        if (
            self._is_refresh_wanted
            and self.state == "live"
            and not (self._is_asking or self._is_awaiting_reply)
        ):
            self._discard_token()
            self._renew(now)

    def _discard_token(self) -> None:
        """The token is not to be shown on another connection."""
        if self._token is not None:
            self._token = None
            self._reason = "expiring"

    def _present(self, now: float) -> None:
        recover = self._recover and self.state == "connecting"
        self._is_awaiting_reply = True
        self._renew_at = None
        self._give_up_at = now + self._policy.reply_timeout
        message = token_message(self._token or "", self._received, recover=recover)
        self._effects.append(Send(message))

    def _renew(self, now: float) -> None:
        """Present the new token that was not granted yet, or get one."""
        self._renew_at = None
        if self._token is not None and self._token_expires_at is None:
            self._present(now)
        else:
            self._ask(now)

    def _renew_later(self, now: float) -> None:
        """Pause, then renew again: more than once before the token expires."""
        left = inf if self._expires_at is None else self._expires_at - now
        self._renew_at = now + self._pause(self._renewals, left / 2)
        self._renewals += 1

    def _granted(self, now: float, reply: Granted) -> None:
        is_first = self.state != "live"
        if is_first or self._is_awaiting_reply or not reply.missed:
            self._is_awaiting_reply = False
            self._give_up_at = None
            self._was_refused = False
            self._reason = "expiring"
            self._renewals = 0
            self._expires_at = self._token_expires_at = now + reply.expires_in
            self.lifetime = reply.expires_in
            self._renew_at = now + max(self.lifetime - RENEW_BEFORE, self.lifetime * RENEW_AT)
        if is_first:
            self._live_at = now
            self._set_state("live")
        if self._recover:
            self._place(reply)
        self._refresh_if_wanted(now)

    def _place(self, reply: Granted) -> None:
        """Learn from a reply where the messages go on."""
        if reply.position is None:
            self._heartbeat = None
            if self._received is not None:
                self._miss(None)
            if not self._has_noted:
                self._has_noted = True
                self._effects.append(Note(NO_POSITIONS))
            return
        self._heartbeat = reply.heartbeat
        if reply.missed:
            self._miss(reply.position)
        elif self._received is None:
            self._arrive_at(reply.position)

    def _refused(self, now: float, reason: str) -> None:
        following = after_error_reply(reason)
        if (
            self.state == "live"
            and self._is_awaiting_reply
            and following is Next.AGAIN
            and reason != SESSION_EXPIRED
            and not _is_due(self._expires_at, now)
        ):
            self._is_awaiting_reply = False
            self._give_up_at = None
            if self._is_refresh_wanted:
                self._discard_token()
            self._renew_later(now)
        else:
            self._disconnect()
            self._lose(now, End(code_of(reason), reason), following)

    # Messages and gaps.

    def _append(self, now: float, message: Message) -> None:
        if self._gap is not None and len(self._items) >= self._policy.buffer:
            self._overflow(now, self._gap)
            return
        self._items.append(message)
        # During a gap the newest state is loaded anyway: then messages are dropped, see above.
        self.is_full = self._gap is None and len(self._items) >= self._policy.buffer

    def _miss(self, position: str | None) -> None:
        """Messages may be missing before this position. One gap replaces another."""
        since = self._received
        waiting = next((each for each in self._items if isinstance(each, Gap)), None)
        if self._gap is not None:
            since = self._gap.since
            self._items.clear()
            self._abandon_gap()
        elif waiting is not None:
            since = waiting.since
            while self._items.pop() is not waiting:
                pass
        gap = Gap(since, position)
        self._received = position
        self._items.append(gap)
        self._effects.append(GapFound(gap))

    def _overflow(self, now: float, old: Gap) -> None:
        """Drop what waits. The gap is handled again after a pause: otherwise it would never end."""
        self._items.clear()
        gap = self._gap = Gap(old.since, self._received)
        if self._gap_at is None:
            self._effects.append(CancelGap())
            self._offer_gap_later(now)
        self._effects.append(GapFound(gap))

    def _offer_gap_later(self, now: float) -> None:
        self._gap_at = now + self._pause(self._gap_failures)
        self._gap_failures += 1

    def _abandon_gap(self) -> None:
        if self._gap is not None and self._gap_at is None:
            self._effects.append(CancelGap())
        self._gap = self._gap_at = None
        self._gap_failures = 0

    def _offer_gap_again(self) -> None:
        if self._gap is not None:
            self._items.appendleft(self._gap)
        self._gap = self._gap_at = None

    def _arrive_at(self, position: str) -> None:
        """Note a place behind which no message stands yet."""
        self._received = position
        if not self._items and self._gap is None:
            self.position = position

    # The connection.

    def _connect(self, now: float) -> None:
        self._is_connecting = True
        self._give_up_at = now + self._policy.connect_timeout
        self._effects.append(Connect())

    def _disconnect(self) -> None:
        """Leave the connection, and the token that was asked for."""
        if self._is_connecting:
            self._effects.append(Disconnect())
        self._forget_connection()

    def _forget_connection(self) -> None:
        if self._is_asking:
            self._ask_until = None
            self._effects.append(CancelToken())
        self._is_connecting = self._is_connected = self._is_awaiting_reply = False
        self._give_up_at = self._renew_at = self._expires_at = None

    def _give_up(self, now: float, why: str) -> None:
        """Leave a connection that is of no use any more."""
        end = End(detail=why, was_open=self._is_connected)
        self._disconnect()
        self._wait(now, end)

    def _lose(self, now: float, end: End, following: Next) -> None:
        """Act on the end of a connection."""
        if following is Next.NEW_TOKEN:
            self._token = None
            self._reason = "refused"
            if self._was_refused:
                following = Next.GIVE_UP
            self._was_refused = True
        if end.reason == SESSION_EXPIRED and self._token_expires_at is not None:
            self._token_expires_at = now  # the token, unless a new one came too late
        if following is Next.GIVE_UP:
            self._fail(end)
        else:
            self._wait(now, end)

    def _wait(self, now: float, end: End, at_least: float = 0.0) -> None:
        """Pause, then connect again."""
        if self.state == "live" and now - self._live_at >= STEADY_AFTER:
            self._failures = 0
        if self._is_refresh_wanted:
            self._discard_token()
        self.end = end
        self._renewals = 0
        self._retry_at = now + at_least + self._pause(self._failures)
        self._failures += 1
        self._set_state("waiting")

    def _fail(self, end: End) -> None:
        self.end = end
        self._retry_at = None
        self._set_state("failed")

    def _pause(self, failures: int, most: float = inf) -> float:
        """A random time, so that clients do not come back together.

        Args:
            failures: earlier failures in a row.
            most: another bound of the time, but not below `Policy.min_delay`.
        """
        policy = self._policy
        bound = min(policy.max_delay, policy.min_delay * 2.0 ** min(failures, 60))
        return self._random() * min(bound, max(most, policy.min_delay))

    def _set_state(self, state: State) -> None:
        self.state = state
        self._effects.append(StateChanged(state))

    def _done(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects


def _is_due(at: float | None, now: float) -> bool:
    return at is not None and now >= at
