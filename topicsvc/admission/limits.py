"""Counts connections, tokens and messages against the limits, in total and for each address.

docs/security.md explains each limit, and says what a client over the limit gets. Each refusal is
counted under the name of the setting that caused it.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from math import ceil
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.admission.rates import RateTable
from topicsvc.admission.token_attempts import TokenAttempts
from topicsvc.interfaces import Grant
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.scheduling.rate_limit import consume
from topicsvc.settings import LimitSettings

__all__ = [
    "COUNTED_SETTINGS",
    "MAX_LOGGED_ADDRESSES",
    "MAX_POLITE_REFUSALS",
    "RESERVED_FILES",
    "TOKEN_DEADLINE",
    "Limits",
]

RESERVED_FILES = 256
"""File descriptors that clients do not get: those of the broker, of validators and of logs."""

UNAUTHENTICATED_SHARE = 3 / 4
"""The share of all connections that may be unauthenticated, even if the setting allows more."""

MAX_POLITE_REFUSALS = 64
"""Refused connections that get an answer, at once and in a second. They use reserved files."""

TOKEN_DEADLINE = 60.0
"""Seconds for a client to present a valid token. HTTP then answers one more request at most."""

MAX_LOGGED_ADDRESSES = 10
"""Addresses that the log names in a minute for each limit."""

_MINUTE = 60.0

COUNTED_SETTINGS = (
    "connections",
    "per_address",
    "unauthenticated",
    "unauthenticated_per_address",
    "accepts_per_second",
    "failed_tokens_per_minute",
    "connections_per_cell",
    "sends_per_minute",
    "sends_per_minute_per_cell",
    "messages_per_minute",
    "frames_per_message",
    "queued_bytes",
    "allowed_origins",
)
"""The settings whose refusals are counted; `topicsvc_limit_hits_total` has them as labels."""


class UnauthenticatedClient(Protocol):
    """A connection whose client has not presented a valid token."""

    def token_deadline_passed(self) -> None:
        """The time to present a valid token has ended."""
        ...


class Limits:
    """Keeps the counts of all clients, and compares them with the limits.

    Args:
        clock: the reactor, or a clock in its place.
        now: the time of day, in seconds since the epoch. Expiry is measured by it.
        settings: the limits; None: the defaults.
        max_open_files: the number of files that the process may have open; None: any number.
        deadline_clock: measures deadlines of clients; None: `clock`.

    Attributes:
        settings: the limits. They may be replaced at any time, and apply from then on.
        refusals: the number of refusals of each limit, by the name of its setting.
        connections: all admitted connections.
        unauthenticated: those of them whose client has not presented a valid token.
        token_deadlines: the deadlines by which these clients have to present one.
        token_attempts: runs the token checks of all clients with an address.
        cells: sessions, by the cell of their topic.
        sends_by_token: messages that were sent with each token, by a hash of it.
        sends_by_cell: messages that were sent to topics of each cell.
        polite_refusals: refused connections that get an answer and are not yet closed.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        settings: LimitSettings | None = None,
        max_open_files: int | None = None,
        deadline_clock: IReactorTime | None = None,
    ) -> None:
        self.settings = settings or LimitSettings()
        self.refusals: Counter[str] = Counter(dict.fromkeys(COUNTED_SETTINGS, 0))
        self._clock = clock
        self._now = now
        self._max_open_files = max_open_files
        self.connections = _Occupancy()
        self.unauthenticated = _Occupancy()
        self.token_deadlines = Deadlines[UnauthenticatedClient](
            deadline_clock or clock, TOKEN_DEADLINE, lambda client: client.token_deadline_passed()
        )
        self.token_attempts = TokenAttempts(
            clock,
            now,
            lambda: self.settings.failed_tokens_per_minute,
            lambda address: self.record_refusal("failed_tokens_per_minute", address),
        )
        self.cells = _Occupancy()
        self.sends_by_token = RateTable[bytes](clock, lambda: self.settings.sends_per_minute)
        self.sends_by_cell = RateTable[str](clock, lambda: self.settings.sends_per_minute_per_cell)
        self._hash_key = secrets.token_bytes(32)
        self.polite_refusals = 0
        self._accepts_full_at = 0.0
        self._refusals_full_at = 0.0
        self._throttles = {
            name: LogThrottle(_MINUTE, MAX_LOGGED_ADDRESSES) for name in COUNTED_SETTINGS
        }

    def allow_accept(self) -> bool:
        """Whether one more connection may be accepted in this second; if so, it is counted."""
        per_second = self.settings.accepts_per_second
        if not per_second:
            return True
        full_at = consume(self._accepts_full_at, self._clock.seconds(), per_second, 1)
        if full_at is not None:
            self._accepts_full_at = full_at
        return full_at is not None

    def allow_polite_refusal(self) -> bool:
        """Whether one more refused connection may be answered; if so, it counts until it closes."""
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
        """The most connections in total; 0: any number.

        The default is the number of files that may be open less `RESERVED_FILES`, but at least
        half of them.
        """
        if self.settings.connections or self._max_open_files is None:
            return self.settings.connections
        return max(self._max_open_files - RESERVED_FILES, self._max_open_files // 2)

    @property
    def max_unauthenticated(self) -> int:
        """The most unauthenticated connections; 0: any number. The rest is for sessions."""
        total, limit = self.max_connections, self.settings.unauthenticated
        return min(limit, ceil(total * UNAUTHENTICATED_SHARE)) if total else limit

    @property
    def is_unauthenticated_full(self) -> bool:
        """Whether no further connection may be unauthenticated."""
        return 0 < self.max_unauthenticated <= self.unauthenticated.total

    def record_refusal(self, name: str, address: str | None = None, detail: str = "") -> None:
        """Count a refusal by the limit `name`, and log it, but once a minute for each address.

        Args:
            name: the setting.
            address: the address of the client that is refused; None: it is not known.
            detail: details for the log; empty: none.
        """
        self.refusals[name] += 1
        if not self._throttles[name].allow(address or "", self._clock.seconds()):
            return
        shared = {"connections": self.connections, "unauthenticated": self.unauthenticated}
        if name in shared:  # the client that is refused need not be the one with too many
            detail = shared[name].describe_largest()
        self._log.warn(
            "{setting} is reached"
            + (" by {address}" if address else "")
            + (" ({detail})" if detail else "")
            + "; refusals since the start: {count} (docs/security.md)",
            setting=f"limits.{name}",
            count=self.refusals[name],
            address=address,
            detail=detail,
        )

    def consume_message(self, full_at: float) -> float | None:
        """Use one message of a session's allowance.

        Args:
            full_at: when the allowance is full again; see `topicsvc.scheduling.rate_limit`.

        Returns:
            The same after this message; None: the message is over the limit.
        """
        limit = self.settings.messages_per_minute
        return consume(full_at, self._clock.seconds(), limit, _MINUTE) if limit else 0.0

    def token_key(self, token: str) -> bytes:
        """A hash of `token` that only this process can compute."""
        return blake2b(token.encode("ascii"), digest_size=16, key=self._hash_key).digest()

    def is_grant_expired(self, grant: Grant) -> bool:
        """Whether `grant` has expired by now."""
        return grant.is_expired(self._now())


class _Occupancy:
    """A number of connections, in total and for each address or cell."""

    def __init__(self) -> None:
        self.total = 0
        self._by_address: dict[str, int] = {}

    def is_full(self, address: str | None, limit: int) -> bool:
        """Whether `address` has `limit` connections or more; limit 0: any number is allowed."""
        return bool(limit) and address is not None and self._by_address.get(address, 0) >= limit

    def describe_largest(self) -> str:
        """Return which address has the most connections; empty: no address is known."""
        if not self._by_address:
            return ""
        largest = max(self._by_address, key=self._by_address.__getitem__)
        return f"{self._by_address[largest]} of {self.total} are from {largest}"

    def add(self, address: str | None) -> None:
        self.total += 1
        if address is not None:
            self._by_address[address] = self._by_address.get(address, 0) + 1

    def remove(self, address: str | None) -> None:
        self.total -= 1
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def move(self, old: str | None, new: str | None) -> None:
        self.remove(old)
        self.add(new)
