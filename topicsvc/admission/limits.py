"""Application: how much of everything there may be, in all and for each address.

Adapters ask before they give, and say what a stranger gets who is refused; docs/security.md
explains each bound. Each refusal is counted under the name of the setting that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.admission.token_attempts import TokenAttempts
from topicsvc.interfaces import Grant
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.scheduling.rate_limit import consume
from topicsvc.settings import LimitSettings

__all__ = ["COUNTED_SETTINGS", "MAX_POLITE_REFUSALS", "RESERVE", "TOKEN_DEADLINE", "Limits"]

RESERVE = 256
"""File descriptors that are not for clients: those of the broker, of validators, of logs."""

UNAUTHENTICATED_SHARE = 3 / 4
"""Of all connections: more do not wait for a live token, whatever the setting allows."""

MAX_POLITE_REFUSALS = 64
"""WebSocketServer over a bound that are still told so, at once and a second: out of the reserve."""

TOKEN_DEADLINE = 60.0
"""Seconds after which who has shown no live token is late: HTTP answers it once more."""

MINUTE = 60.0

COUNTED_SETTINGS = (
    "connections",
    "per_address",
    "unauthenticated",
    "unauthenticated_per_address",
    "accepts_per_second",
    "failed_tokens_per_minute",
    "messages_per_minute",
    "frames_per_message",
    "queued_bytes",
    "allowed_origins",
)
"""The settings whose refusals are counted."""


class UnauthenticatedClient(Protocol):
    """A connection whose client has not shown a valid token."""

    def token_deadline_passed(self) -> None:
        """The time to show a valid token is over."""
        ...


class Limits:
    """Counts what there is, and says when there is enough.

    Args:
        clock: tells and keeps the time.
        now: the time of day, in seconds since the epoch: what expiry is measured by.
        settings: the bounds.
        files: how many files the process may have open; None: any number.

    Attributes:
        settings: the bounds; others may take their place at any time, and hold from then on.
        refusals: how often each bound has refused something, by the name of its setting.
        connections: who is in.
        waiting: those of them that have not shown a live token.
        token_deadlines: the same, for as long as they may take their time.
        tries: asks about the tokens that they show.
        polite_refusals: connections that are over a bound and are being told so.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        settings: LimitSettings | None = None,
        files: int | None = None,
    ) -> None:
        self.settings = settings or LimitSettings()
        self.refusals: Counter[str] = Counter(dict.fromkeys(COUNTED_SETTINGS, 0))
        self._clock = clock
        self._now = now
        self._files = files
        self.connections = _Occupancy()
        self.unauthenticated = _Occupancy()
        self.token_deadlines = Deadlines[UnauthenticatedClient](
            clock, TOKEN_DEADLINE, lambda client: client.token_deadline_passed()
        )
        self.token_attempts = TokenAttempts(
            clock,
            now,
            lambda: self.settings.failed_tokens_per_minute,
            lambda: self.record_refusal("failed_tokens_per_minute"),
        )
        self.polite_refusals = 0
        self._accepts_full_at = 0.0
        self._refusals_full_at = 0.0
        self._throttle = LogThrottle(MINUTE)

    def allow_accept(self) -> bool:
        """Whether one more connection may be accepted this second."""
        per_second = self.settings.accepts_per_second
        if not per_second:
            return True
        full_at = consume(self._accepts_full_at, self._clock.seconds(), per_second, 1)
        if full_at is not None:
            self._accepts_full_at = full_at
        return full_at is not None

    def allow_polite_refusal(self) -> bool:
        """Whether one more refused connection may be answered; it then counts until it closes."""
        if self.polite_refusals >= MAX_POLITE_REFUSALS:
            return False
        full_at = consume(self._refusals_full_at, self._clock.seconds(), MAX_POLITE_REFUSALS, 1)
        if full_at is None:
            return False
        self._refusals_full_at = full_at
        self.polite_refusals += 1
        return True

    @property
    def max_connections(self) -> int:
        """How many there may be in all; 0: any number.

        Unless that is set, as many as there may be open files, less `RESERVE` or half of them.
        """
        if self.settings.connections or self._files is None:
            return self.settings.connections
        return max(self._files - RESERVE, self._files // 2)

    @property
    def max_unauthenticated(self) -> int:
        """How many may wait for a live token: not all, sessions need room; 0: any number."""
        most, waiting = self.max_connections, self.settings.unauthenticated
        return min(waiting, ceil(most * UNAUTHENTICATED_SHARE)) if most else waiting

    @property
    def is_unauthenticated_full(self) -> bool:
        """Whether nobody more may wait for a live token."""
        return 0 < self.max_unauthenticated <= self.unauthenticated.total

    def record_refusal(self, name: str) -> None:
        """A bound has refused something: count it, and tell the log now and then."""
        self.refusals[name] += 1
        if self._throttle.allow(name, self._clock.seconds()):
            self._log.warn(
                "{setting} refuses, {count} times so far (docs/security.md)",
                setting=f"limits.{name}",
                count=self.refusals[name],
            )

    def consume_message(self, full_at: float) -> float | None:
        """One more message of a session whose allowance is whole at that time; see `pace`."""
        most = self.settings.messages_per_minute
        if not most:
            return 0.0
        full_at_then = consume(full_at, self._clock.seconds(), most, MINUTE)
        if full_at_then is None:
            self.record_refusal("messages_per_minute")
        return full_at_then

    def is_expired(self, grant: Grant) -> bool:
        """Whether `grant` is void by now."""
        return grant.is_expired(self._now())


class _Occupancy:
    """How many are in, in all and of each address."""

    def __init__(self) -> None:
        self.total = 0
        self._of: dict[str, int] = {}

    def is_full(self, address: str | None, most: int) -> bool:
        return bool(most) and address is not None and self._of.get(address, 0) >= most

    def enter(self, address: str | None) -> None:
        self.total += 1
        if address is not None:
            self._of[address] = self._of.get(address, 0) + 1

    def leave(self, address: str | None) -> None:
        self.total -= 1
        if address is not None:
            self._of[address] -= 1
            if not self._of[address]:
                del self._of[address]

    def move(self, old: str | None, new: str | None) -> None:
        self.leave(old)
        self.enter(new)
