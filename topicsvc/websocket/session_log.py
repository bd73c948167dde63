"""The session log: one line when a session starts, one when it ends, and counters.

A session starts with the reply `Success`. A connection that ends before that has only the
second line.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum, auto
from itertools import count
from typing import ClassVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.websocket import close_reasons

__all__ = ["SessionLog", "SessionRecord"]

_BEGINS = "session {session} of {peer} on {topic} begins"
_ENDS = (
    "session {session} of {peer} on {topic} ends after {seconds:.1f} s, "
    "{messages} messages, {size} bytes: {reason}"
)
_DETAIL = " ({detail})"
_ADVICE = "; {advice}"
"""Detail and advice are left out if they are empty."""


class _State(Enum):
    WAITING = auto()
    ACTIVE = auto()
    CLOSING = auto()
    CLOSED = auto()


class SessionRecord:
    """One connection in the session log.

    Attributes:
        number: identifies the connection in the log; unique in this process.
        peer: address of the client.
        topic: path of the topic.
        opened_at: time of the opening, by the session log's clock.
        state: counted in `SessionLog.states`.
    """

    __slots__ = ("number", "opened_at", "peer", "state", "topic")

    def __init__(self, number: int, peer: str, topic: str, opened_at: float) -> None:
        self.number = number
        self.peer = peer
        self.topic = topic
        self.opened_at = opened_at
        self.state = _State.WAITING


class SessionLog:
    """Logs and counts sessions.

    Args:
        clock: measures durations.

    Attributes:
        opened: connections opened.
        began: sessions started.
        ended: connections ended, by the label of the reason.
        undelivered: data messages that the hub offered to sessions that had ended or expired.
        undelivered_size: their size in bytes, as WebSocket frames.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._numbers = count(1)
        self._counts: Counter[_State] = Counter()
        self.opened = 0
        self.began = 0
        self.ended: Counter[str] = Counter()
        self.undelivered = 0
        self.undelivered_size = 0

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

    def begin(self, record: SessionRecord) -> None:
        """Record and log that its session starts."""
        self.began += 1
        self._move(record, _State.ACTIVE)
        self._log.info(_BEGINS, session=record.number, peer=record.peer, topic=record.topic)

    def end(
        self, record: SessionRecord, reason: str, detail: str, messages: int, size: int
    ) -> None:
        """Record and log that its session has ended, or will not start.

        Args:
            record: the connection.
            reason: one of `close_reasons.CLOSE_REASONS`.
            detail: details of the reason, without anything that a client may keep secret.
            messages: data messages delivered to it.
            size: their size in bytes, as WebSocket frames.
        """
        has_begun = record.state is _State.ACTIVE
        self._move(record, _State.CLOSING)
        self.ended[close_reasons.metric_label(reason)] += 1
        advice = close_reasons.advice(reason)
        self._log.info(
            _ENDS + (_DETAIL if detail else "") + (_ADVICE if advice else ""),
            session=record.number,
            peer=record.peer,
            topic=record.topic,
            has_begun=has_begun,
            seconds=round(self._clock.seconds() - record.opened_at, 3),
            messages=messages,
            size=size,
            reason=reason,
            detail=detail,
            advice=advice,
        )

    def close(self, record: SessionRecord) -> None:
        """Record that its transport is closed."""
        self._move(record, _State.CLOSED)

    def count_undelivered(self, messages: int, size: int) -> None:
        """Count data messages that were offered to a session that had ended or expired."""
        self.undelivered += messages
        self.undelivered_size += size

    def _move(self, record: SessionRecord, state: _State) -> None:
        self._counts[record.state] -= 1
        self._counts[state] += 1
        record.state = state
