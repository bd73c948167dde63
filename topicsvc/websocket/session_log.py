"""Application: the book of all sessions: a line when one begins, one when it ends, and the sums.

A session begins with Success. Who never gets so far has only the line of the end.
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
"""Left out where there is none."""


class _Stage(Enum):
    WAITING = auto()
    ACTIVE = auto()
    CLOSING = auto()
    GONE = auto()


class SessionRecord:
    """What the book says of one connection.

    Attributes:
        number: names it in the log; never used again in this process.
        peer: who is at the other end.
        topic: path of the topic.
        opened_at: when, by the journal's clock.
    """

    __slots__ = ("number", "opened_at", "peer", "stage", "topic")

    def __init__(self, number: int, peer: str, topic: str, opened_at: float) -> None:
        self.number = number
        self.peer = peer
        self.topic = topic
        self.opened_at = opened_at
        self.stage = _Stage.WAITING


class SessionLog:
    """Keeps the book.

    Args:
        clock: tells the time.

    Attributes:
        opened: connections that were opened.
        began: sessions that have begun.
        ended: connections that have ended, by the label of the reason.
        undelivered: data messages that were offered to sessions and not handed over, as they
            had ended or expired.
        undelivered_size: their bytes on the WebSocket.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._numbers = count(1)
        self._now: Counter[_Stage] = Counter()
        self.opened = 0
        self.began = 0
        self.ended: Counter[str] = Counter()
        self.undelivered = 0
        self.undelivered_size = 0

    @property
    def states(self) -> dict[str, int]:
        """How many connections are where, by the name of the state."""
        return {
            "waiting": self._now[_Stage.WAITING],
            "active": self._now[_Stage.ACTIVE],
            "closing": self._now[_Stage.CLOSING],
        }

    def open(self, peer: str, topic: str) -> SessionRecord:
        """A connection has opened; it has not shown a live token."""
        self.opened += 1
        self._now[_Stage.WAITING] += 1
        return SessionRecord(next(self._numbers), peer, topic, self._clock.seconds())

    def begin(self, entry: SessionRecord) -> None:
        """Its session begins."""
        self.began += 1
        self._move(entry, _Stage.ACTIVE)
        self._log.info(_BEGINS, session=entry.number, peer=entry.peer, topic=entry.topic)

    def end(self, entry: SessionRecord, reason: str, detail: str, messages: int, size: int) -> None:
        """Its session is over, or will never begin; the close handshake may follow.

        Args:
            entry: which.
            reason: one of `close_reasons.CLOSE_REASONS`.
            detail: more of it; nothing that a client may keep secret.
            messages: data messages that were handed to it.
            size: their bytes on the WebSocket.
        """
        has_begun = entry.stage is _Stage.ACTIVE
        self._move(entry, _Stage.CLOSING)
        self.ended[close_reasons.metric_label(reason)] += 1
        advice = close_reasons.advice(reason)
        self._log.info(
            _ENDS + (_DETAIL if detail else "") + (_ADVICE if advice else ""),
            session=entry.number,
            peer=entry.peer,
            topic=entry.topic,
            has_begun=has_begun,
            seconds=round(self._clock.seconds() - entry.opened_at, 3),
            messages=messages,
            size=size,
            reason=reason,
            detail=detail,
            advice=advice,
        )

    def close(self, entry: SessionRecord) -> None:
        """It is gone."""
        self._move(entry, _Stage.GONE)

    def count_undelivered(self, messages: int, size: int) -> None:
        """A session that has ended or expired was offered data and did not get it."""
        self.undelivered += messages
        self.undelivered_size += size

    def _move(self, entry: SessionRecord, stage: _Stage) -> None:
        self._now[entry.stage] -= 1
        self._now[stage] += 1
        entry.stage = stage
