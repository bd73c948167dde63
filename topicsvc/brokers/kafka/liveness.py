"""Finds out by regular requests, called probes, whether Kafka is up.

Failed probes are counted, not timed: if this process was stopped for a while, the broker is still
considered up.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.errors import BrokerUnavailable

__all__ = ["MAX_FAILED_PROBES", "PROBE_INTERVAL", "PROBE_RETRY_DELAY", "LivenessProbe"]

PROBE_INTERVAL = 2.5
"""Seconds from a successful probe to the next one."""

PROBE_RETRY_DELAY = 0.5
"""Seconds from a failed probe to the next one."""

MAX_FAILED_PROBES = 2
"""Failed probes in a row after which the broker is down. Each probe takes up to 4 s."""


class LivenessProbe:
    """Probes the broker as long as it runs.

    Args:
        clock: the time and timers.
        probe: sends a request; fires when the broker responds, fails with BrokerUnavailable if
            it does not.
        on_up: called when the broker is up, for the first time or again.
        on_down: called with the reason when the broker is down.
        on_silence: called with the reason for each failed probe while the broker is down.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        probe: Callable[[], Deferred[None]],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_silence: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._probe = probe
        self._on_up = on_up
        self._on_down = on_down
        self._on_silence = on_silence
        self._is_up = False
        self._is_running = False
        self._is_suspected = False
        self._failed_probes = 0
        self._next: IDelayedCall | None = None

    @property
    def is_up(self) -> bool:
        """Whether the broker is up."""
        return self._is_up

    def start(self) -> None:
        """Start probing."""
        self._is_running = True
        self._send_probe()

    def stop(self) -> None:
        """Stop probing; `is_up` is false from now on."""
        self._is_running = self._is_up = False
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def suspect(self) -> None:
        """The broker may be down: probe now; the first failed probe is then enough."""
        self._is_suspected = True
        if self._is_up and self._next is not None:
            self._next.reset(0)

    def _send_probe(self) -> None:
        self._next = None
        self._probe().addCallbacks(self._succeeded, self._failed)

    def _succeeded(self, _: None) -> None:
        if not self._is_running:
            return
        self._failed_probes = 0
        self._is_suspected = False
        self._next = self._clock.callLater(PROBE_INTERVAL, self._send_probe)
        if not self._is_up:
            self._is_up = True
            self._on_up()

    def _failed(self, failure: Failure) -> None:
        if not self._is_running:
            return
        if not failure.check(BrokerUnavailable):
            self._log.failure("internal error: the broker could not be probed", failure)
        why = failure.getErrorMessage()
        self._failed_probes += 1
        self._next = self._clock.callLater(PROBE_RETRY_DELAY, self._send_probe)
        if not self._is_up:
            self._on_silence(why)
        elif self._is_suspected or self._failed_probes >= MAX_FAILED_PROBES:
            self._is_up = False
            self._on_down(why)
