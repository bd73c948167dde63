"""Counts and logs sends whose token is refused."""

from __future__ import annotations

from collections import Counter

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.topics import TopicAddress
from topicsvc.validators.token_id import TokenIds
from topicsvc.websocket.session_log import MAX_SUBJECT

__all__ = ["LOG_INTERVAL", "RefusedSends"]

LOG_INTERVAL = 60.0
"""Least seconds between two lines about the same reason."""

_SEND = "a send of {peer} to {topic} "
_TOKEN = "(token {token}) "
_TOKEN_OF = "(token {token} of {subject!r}) "
_REFUSED = "is refused: {detail}; {advice}; refused sends for this reason since the start: {count}"
"""The subject is left out if it is not known."""


class RefusedSends:
    """Counts each refused token by its reason, and logs each reason at most once a minute.

    A refused send has no line of its own, so that a client that repeats it cannot fill a disk.

    Args:
        clock: measures the time between two lines.
        token_ids: identifies tokens in the log.

    Attributes:
        refusals: refused tokens, by the reason.
        has_subjects: whether the lines have the subjects of tokens; may be changed.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, token_ids: TokenIds) -> None:
        self._clock = clock
        self._token_ids = token_ids
        self._throttle = LogThrottle(LOG_INTERVAL)
        self.refusals: Counter[RefusalReason] = Counter()
        self.has_subjects = True

    def record(
        self,
        refusal: Refusal,
        peer: str,
        topic: TopicAddress,
        token: str,
        subject: str | None = None,
    ) -> None:
        """Count a refused token, and log it if no other was logged for its reason lately."""
        reason = refusal.reason
        self.refusals[reason] += 1
        if not self._throttle.allow(reason.label, self._clock.seconds()):
            return
        if not self.has_subjects:
            subject = None
        self._log.info(
            _SEND + (_TOKEN if subject is None else _TOKEN_OF) + _REFUSED,
            peer=peer,
            topic=topic.path,
            token=self._token_ids(token),
            subject=subject if subject is None else subject[:MAX_SUBJECT],
            refusal=reason.label,
            detail=str(refusal),
            advice=refusal.advice,
            count=self.refusals[reason],
        )
