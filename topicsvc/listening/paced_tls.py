"""TLS whose handshakes and decryption are spread over reactor iterations.

A TLS handshake takes about 1 ms, and 8 KiB of one-byte records as long as several of them. If
many connections are read in one iteration, all other clients wait for their sum.
"""

from __future__ import annotations

from typing import Any

from twisted.protocols.tls import BufferingTLSTransport

from topicsvc.scheduling.work_budget import WorkBudget

__all__ = ["PacedTls"]


class PacedTls(BufferingTLSTransport):
    """A TLS connection that processes received bytes within the budget of an iteration.

    Attributes:
        budget: the time for work on received bytes in one reactor iteration; None: no limit.
    """

    budget: WorkBudget | None = None
    transport: Any

    _unprocessed = b""
    _is_deferred = False
    _is_paused = False

    def dataReceived(self, data: bytes) -> None:
        """Process `data`, or defer that to a later iteration and read no more until then."""
        budget = self.budget
        if self._is_deferred:
            self._unprocessed += data
        elif budget is None:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
        elif budget.is_spent:
            self._unprocessed = data
            self._is_deferred = True
            self.transport.pauseProducing()
            budget.defer(self._process_deferred)
        else:
            self._process(data, budget)

    def pauseProducing(self) -> None:
        """Stop reading."""
        self._is_paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again, unless received bytes wait for a later iteration."""
        self._is_paused = False
        if not self._is_deferred:
            self.transport.resumeProducing()

    def _process(self, data: bytes, budget: WorkBudget) -> None:
        since = budget.now()
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        budget.spend(since)

    def _process_deferred(self) -> None:
        data, self._unprocessed = self._unprocessed, b""
        self._is_deferred = False
        if not self.connected:
            return
        if not self._is_paused:
            self.transport.resumeProducing()
        budget = self.budget
        if budget is None:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
        else:
            self._process(data, budget)
