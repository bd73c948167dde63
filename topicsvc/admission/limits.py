"""Application: how much of everything there may be, in all and for each address.

Adapters ask before they give, and say what a stranger gets who is refused; docs/security.md
explains each bound. Each refusal is counted under the name of the setting that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.admission.client_quota import Visit
from topicsvc.admission.token_attempts import Tries
from topicsvc.interfaces import Grant
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.rate_limit import paced
from topicsvc.settings import LimitSettings

__all__ = ["COUNTED", "COURTESY", "LATE", "RESERVE", "Limits"]

RESERVE = 256
"""File descriptors that are not for clients: those of the broker, of validators, of logs."""

WAITING_SHARE = 3 / 4
"""Of all connections: more do not wait for a live token, whatever the setting allows."""

COURTESY = 64
"""Connections over a bound that are still told so, at once and a second: out of the reserve."""

LATE = 60.0
"""Seconds after which who has shown no live token is late: HTTP answers it once more."""

MINUTE = 60.0

COUNTED = (
    "connections",
    "per_address",
    "waiting",
    "waiting_per_address",
    "accepts_per_second",
    "failed_tokens_per_minute",
    "messages_per_minute",
    "frames_per_message",
    "queued_bytes",
    "allowed_origins",
)
"""The settings whose refusals are counted."""


class Limits:
    """Counts what there is, and says when there is enough.

    Args:
        clock: tells and keeps the time.
        now: the time of day, in seconds since the epoch: what expiry is measured by.
        settings: the bounds.
        files: how many files the process may have open; None: any number.

    Attributes:
        settings: the bounds; others may take their place at any time, and hold from then on.
        hits: how often each bound has refused something, by the name of its setting.
        connections: who is in.
        waiting: those of them that have not shown a live token.
        not_late: the same, for as long as they may take their time.
        tries: asks about the tokens that they show.
        turned_away: connections that are over a bound and are being told so.
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
        self.hits: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._clock = clock
        self._now = now
        self._files = files
        self.connections = _Room()
        self.waiting = _Room()
        self.not_late = Deadlines[Visit](clock, LATE, Visit.be_late)
        self.tries = Tries(
            clock,
            now,
            lambda: self.settings.failed_tokens_per_minute,
            lambda: self.hit("failed_tokens_per_minute"),
        )
        self.turned_away = 0
        self._accepts_whole_at = 0.0
        self._courtesy_whole_at = 0.0
        self._told_at: dict[str, float] = {}

    def arrive(self, host: str | None) -> Visit:
        """A connection was accepted; what is returned stands for it until it leaves.

        Whoever serves it looks at `Visit.refused_by` and `Visit.is_dropped`.

        Args:
            host: its address; None: not known yet, or none that it could be counted by.
        """
        now = self._clock.seconds()
        visit = Visit(self)
        if self.settings.accepts_per_second:
            whole_at = paced(self._accepts_whole_at, now, self.settings.accepts_per_second, 1)
            if whole_at is None:
                visit.refuse("accepts_per_second")
            else:
                self._accepts_whole_at = whole_at
        if visit.refused_by is None:
            visit.enter(host)
        if visit.refused_by is None:
            return visit
        whole_at = paced(self._courtesy_whole_at, now, COURTESY, 1)
        if self.turned_away >= COURTESY or whole_at is None:
            visit.is_dropped = True
        else:
            self._courtesy_whole_at = whole_at
            self.turned_away += 1
        return visit

    @property
    def most_connections(self) -> int:
        """How many there may be in all; 0: any number.

        Unless that is set, as many as there may be open files, less `RESERVE` or half of them.
        """
        if self.settings.connections or self._files is None:
            return self.settings.connections
        return max(self._files - RESERVE, self._files // 2)

    @property
    def most_waiting(self) -> int:
        """How many may wait for a live token: not all, sessions need room; 0: any number."""
        most, waiting = self.most_connections, self.settings.waiting
        return min(waiting, ceil(most * WAITING_SHARE)) if most else waiting

    @property
    def is_waiting_full(self) -> bool:
        """Whether nobody more may wait for a live token."""
        return 0 < self.most_waiting <= self.waiting.total

    def hit(self, name: str) -> None:
        """A bound has refused something: count it, and tell the log now and then."""
        self.hits[name] += 1
        now = self._clock.seconds()
        if now - self._told_at.get(name, -MINUTE) >= MINUTE:
            self._told_at[name] = now
            self._log.warn(
                "{setting} refuses, {count} times so far (docs/security.md)",
                setting=f"limits.{name}",
                count=self.hits[name],
            )

    def paced(self, whole_at: float) -> float | None:
        """One more message of a session whose allowance is whole at that time; see `pace`."""
        most = self.settings.messages_per_minute
        if not most:
            return 0.0
        whole_at_then = paced(whole_at, self._clock.seconds(), most, MINUTE)
        if whole_at_then is None:
            self.hit("messages_per_minute")
        return whole_at_then

    def is_over(self, grant: Grant) -> bool:
        """Whether `grant` is void by now."""
        return grant.is_over(self._now())


class _Room:
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
