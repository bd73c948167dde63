"""Adapter: whether Kafka is there, from whether it answers.

MeasuredValidator in questions, so that a pause of ours kills nobody.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.errors import BrokerUnavailable

__all__ = ["BEAT", "BEAT_WHEN_AWAY", "SILENT_BEATS", "LivenessProbe"]

BEAT = 2.5
"""Seconds from an answer to the next question."""

BEAT_WHEN_AWAY = 0.5
"""Seconds to the next question after one without an answer."""

SILENT_BEATS = 2
"""Questions in a row without an answer after which the broker is away. Each waits for 4 s."""


class LivenessProbe:
    """Asks for signs of life.

    Args:
        clock: keeps the time.
        ask: asks; fires when the broker answers, fails with BrokerUnavailable if it does not.
        on_up: called when the broker is there, for the first time or again.
        on_down: called when it is there no more, with what is known of the reason.
        on_silence: called whenever it does not answer while it is away, with the same.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        ask: Callable[[], Deferred[None]],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_silence: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._ask = ask
        self._on_up = on_up
        self._on_down = on_down
        self._on_silence = on_silence
        self._is_up = False
        self._is_running = False
        self._is_suspected = False
        self._unanswered = 0
        self._next: IDelayedCall | None = None

    @property
    def is_up(self) -> bool:
        """Whether the broker is there."""
        return self._is_up

    def start(self) -> None:
        """Begin to ask."""
        self._is_running = True
        self._beat()

    def stop(self) -> None:
        """Ask no more; for those who ask us the broker is away."""
        self._is_running = self._is_up = False
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def suspect(self) -> None:
        """There is a reason to think that it is away: ask now, and believe one silence."""
        self._is_suspected = True
        if self._is_up and self._next is not None:
            self._next.reset(0)

    def _beat(self) -> None:
        self._next = None
        self._ask().addCallbacks(self._answered, self._unheard)

    def _answered(self, _: None) -> None:
        if not self._is_running:
            return
        self._unanswered = 0
        self._is_suspected = False
        self._next = self._clock.callLater(BEAT, self._beat)
        if not self._is_up:
            self._is_up = True
            self._on_up()

    def _unheard(self, failure: Failure) -> None:
        if not self._is_running:
            return
        if not failure.check(BrokerUnavailable):
            self._log.failure("the broker could not be asked for a sign of life", failure)
        why = failure.getErrorMessage()
        self._unanswered += 1
        self._next = self._clock.callLater(BEAT_WHEN_AWAY, self._beat)
        if not self._is_up:
            self._on_silence(why)
        elif self._is_suspected or self._unanswered >= SILENT_BEATS:
            self._is_up = False
            self._on_down(why)
