"""The session log: one line when a session starts, one when it ends, and counters.

A session starts with the reply `Success`. A connection that ends before that has only the
second line.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import IntEnum
from itertools import count
from math import ceil
from typing import ClassVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel

from topicsvc.refusals import RefusalReason
from topicsvc.scheduling.line_budget import LineBudget
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.websocket import close_reasons
from topicsvc.websocket.close_reasons import Cause

__all__ = [
    "ADVICE_INTERVAL",
    "LOSSES_FOR_ADVICE",
    "MAX_SUBJECT",
    "UNKNOWN_INTERVAL",
    "UNKNOWN_PER_SECOND",
    "WORKER_NUMBERS",
    "SessionLog",
    "SessionRecord",
]

ADVICE_INTERVAL = 60.0
"""Least seconds between two lines with the same advice."""

LOSSES_FOR_ADVICE = 10
"""Sessions whose connections are lost in a minute before a line has advice about that."""

UNKNOWN_PER_SECOND = 10
"""Most lines in a second about clients that never presented a valid token."""

UNKNOWN_INTERVAL = 60.0
"""Seconds after which one line counts the others."""

WORKER_NUMBERS = 1000
"""Session numbers of several workers differ in their last three digits."""

MAX_SUBJECT = 200
"""Most characters of a subject that are kept and logged."""

_SESSION = "session {session} of {peer} on {topic}"
_TOKEN = " (token {token})"
_TOKEN_OF = " (token {token} of {subject!r})"
_BEGINS = " begins"
_ENDS = " ends after {seconds:.1f} s, {messages} messages, {size} bytes: {reason}"
_DETAIL = " ({detail})"
_ADVICE = "; {advice}"
"""Token, subject, detail and advice are left out if they are unknown or empty."""
_UNKNOWN = (
    "{count} more connections ended within {seconds:.0f} s without a valid token: {reasons} "
    "(docs/security.md)"
)


class _State(IntEnum):
    WAITING = 0
    ACTIVE = 1
    CLOSING = 2
    CLOSED = 3


class SessionRecord:
    """One connection in the session log.

    Attributes:
        number: identifies the connection in the log; unique in this process, and among workers.
        peer: address of the client.
        topic: path of the topic.
        opened_at: time of the opening, by the session log's clock.
        state: counted in `SessionLog.states`.
        token: identifies the token that the client has presented last, without revealing it;
            empty: it has presented none.
        subject: the subject of its last valid token, at most `MAX_SUBJECT` characters; None:
            not known.
        had_valid_token: whether the client has presented a valid token.
    """

    __slots__ = (
        "had_valid_token",
        "number",
        "opened_at",
        "peer",
        "state",
        "subject",
        "token",
        "topic",
    )

    def __init__(self, number: int, peer: str, topic: str, opened_at: float) -> None:
        self.number = number
        self.peer = peer
        self.topic = topic
        self.opened_at = opened_at
        self.state = _State.WAITING
        self.token = ""
        self.subject: str | None = None
        self.had_valid_token = False

    @property
    def is_active(self) -> bool:
        """Whether its session has started and has not ended."""
        return self.state is _State.ACTIVE

    def set_subject(self, subject: str | None) -> None:
        """Keep the subject of a valid token; a long one is cut."""
        self.had_valid_token = True
        self.subject = subject if subject is None else subject[:MAX_SUBJECT]


class SessionLog:
    """Logs and counts sessions.

    Args:
        clock: measures durations.
        now: the time of day, in seconds since the epoch, for the log's lines.

    Attributes:
        has_subjects: whether the lines have the subjects of tokens; may be changed.
        opened: connections opened.
        began: sessions started.
        ended: connections ended, by the label of the reason.
        refusals: connections ended because their token was refused, by the reason of that.
        undelivered: data messages that the hub offered to sessions that had ended or expired.
        undelivered_size: their size in bytes, as WebSocket frames.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, clock: IReactorTime, now: Callable[[], float]) -> None:
        self._clock = clock
        self._now = now
        self._numbers = count(1)
        self._counts = [0] * len(_State)
        logger = self._log
        self._observer = logger.observer
        self._event = {
            "log_logger": logger,
            "log_level": LogLevel.info,
            "log_namespace": logger.namespace,
            "log_source": self,
            "log_system": f"{logger.namespace}#{LogLevel.info.name}",  # as Twisted composes it
        }
        self._advised = LogThrottle(ADVICE_INTERVAL)
        self._losses: deque[float] = deque(maxlen=LOSSES_FOR_ADVICE)
        self._unknown = LineBudget(
            clock, UNKNOWN_PER_SECOND, UNKNOWN_INTERVAL, self._report_unknown
        )
        self.has_subjects = True
        self.opened = 0
        self.began = 0
        self.ended: Counter[str] = Counter()
        self.refusals: Counter[RefusalReason] = Counter()
        self.undelivered = 0
        self.undelivered_size = 0

    def set_worker(self, number: int, workers: int) -> None:
        """Make this the log of one of several workers. Called before any session is opened.

        Its sessions get numbers that those of other workers do not have, and it writes its share
        of the lines about clients without a valid token.

        Args:
            number: of this worker among all that its parent has started, from 1 on.
            workers: how many there are at the same time.
        """
        self._numbers = count(WORKER_NUMBERS + number % WORKER_NUMBERS, WORKER_NUMBERS)
        self._unknown.per_second = ceil(UNKNOWN_PER_SECOND / workers)

    @property
    def states(self) -> dict[str, int]:
        """Number of connections in each state."""
        return {
            "waiting": self._counts[_State.WAITING],
            "active": self._counts[_State.ACTIVE],
            "closing": self._counts[_State.CLOSING],
        }

    def open(self, peer: str, topic: str) -> SessionRecord:
        """Record a connection that has opened and has not presented a valid token."""
        self.opened += 1
        self._counts[_State.WAITING] += 1
        return SessionRecord(next(self._numbers), peer, topic, self._clock.seconds())

    def age(self, record: SessionRecord) -> float:
        """Seconds since its connection was opened."""
        return self._clock.seconds() - record.opened_at

    def begin(self, record: SessionRecord) -> None:
        """Record and log that its session starts."""
        self.began += 1
        self._move(record, _State.ACTIVE)
        subject = record.subject if self.has_subjects else None
        self._write(
            _SESSION + _token_format(record.token, subject) + _BEGINS,
            session=record.number,
            peer=record.peer,
            topic=record.topic,
            token=record.token,
            subject=subject,
        )

    def end(
        self, record: SessionRecord, reason: str, cause: Cause, messages: int, size: int
    ) -> None:
        """Record and log that its session has ended, or will not start.

        Of clients that never presented a valid token, `UNKNOWN_PER_SECOND` are logged in a second.
        One line counts the others.

        Args:
            record: the connection.
            reason: one of `close_reasons.CLOSE_REASONS`.
            cause: details of the reason, and the advice that fits it.
            messages: data messages delivered to it.
            size: their size in bytes, as WebSocket frames.
        """
        has_begun = record.state is _State.ACTIVE
        self._move(record, _State.CLOSING)
        self.ended[close_reasons.metric_label(reason)] += 1
        if cause.refusal is not None:
            self.refusals[cause.refusal] += 1
        if not record.had_valid_token and not self._unknown.allow(reason):
            return
        subject = record.subject if self.has_subjects else None
        advice = self._advice(reason, cause, has_begun)
        self._write(
            _SESSION
            + _token_format(record.token, subject)
            + _ENDS
            + (_DETAIL if cause.detail else "")
            + (_ADVICE if advice else ""),
            session=record.number,
            peer=record.peer,
            topic=record.topic,
            token=record.token,
            subject=subject,
            has_begun=has_begun,
            seconds=round(self._clock.seconds() - record.opened_at, 3),
            messages=messages,
            size=size,
            reason=reason,
            refusal="" if cause.refusal is None else cause.refusal.label,
            detail=cause.detail,
            advice=advice,
        )

    def _write(self, template: str, **fields: object) -> None:
        # `Logger.info` and Twisted's formatter would cost several times as much. An observer
        # cannot see the difference: the format of the event is its text, in which braces are
        # doubled.
        text = template.format_map(fields).replace("{", "{{").replace("}", "}}")
        self._observer({**self._event, "log_format": text, "log_time": self._now(), **fields})

    def flush(self) -> None:
        """Log now what is only counted, because the service stops."""
        self._unknown.flush()

    def close(self, record: SessionRecord) -> None:
        """Record that its transport is closed."""
        self._move(record, _State.CLOSED)

    def count_undelivered(self, messages: int, size: int) -> None:
        """Count data messages that were offered to a session that had ended or expired."""
        self.undelivered += messages
        self.undelivered_size += size

    def _advice(self, reason: str, cause: Cause, has_begun: bool) -> str:
        """What an operator can do; empty: nothing, or earlier lines of this minute say it."""
        advice = close_reasons.advice(reason) if cause.advice is None else cause.advice
        now = self._clock.seconds()
        if reason == close_reasons.CONNECTION_LOST and not self._are_many_lost(has_begun, now):
            return ""
        return advice if advice and self._advised.allow(advice, now) else ""

    def _are_many_lost(self, has_begun: bool, now: float) -> bool:
        """Whether many sessions have lost their connections within the last minute."""
        if has_begun:
            self._losses.append(now)
        return len(self._losses) == LOSSES_FOR_ADVICE and now - self._losses[0] < ADVICE_INTERVAL

    def _report_unknown(self, reasons: Counter[str], seconds: float) -> None:
        self._write(
            _UNKNOWN,
            count=reasons.total(),
            seconds=round(seconds, 3),
            reasons=", ".join(f"{reason} {number}" for reason, number in reasons.most_common()),
        )

    def _move(self, record: SessionRecord, state: _State) -> None:
        self._counts[record.state] -= 1
        self._counts[state] += 1
        record.state = state


def _token_format(token: str, subject: str | None) -> str:
    """Return the part of a line about the token of a session."""
    if not token:
        return ""
    return _TOKEN if subject is None else _TOKEN_OF
