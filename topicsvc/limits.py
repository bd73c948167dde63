"""Application: how much of everything there may be, in all and for each address.

Adapters ask before they give, and say what a stranger gets who is refused; docs/security.md
explains each bound. Each refusal is counted under the name of the setting that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.address import TopicAddress
from topicsvc.errors import TokenInactive, TooManyFailedTokens, TopicNotFound
from topicsvc.origin import parse_origin
from topicsvc.pace import paced
from topicsvc.peers import Network, counted_as
from topicsvc.ports import Grant, TokenValidator

__all__ = ["COUNTED", "COURTESY", "MAX_ADDRESSES", "RESERVE", "LimitSettings", "Limits", "Visit"]

RESERVE = 256
"""File descriptors that are not for clients: those of the broker, of validators, of logs."""

COURTESY = 64
"""Connections over a bound that are still told so, at once and a second: out of the reserve."""

MAX_ADDRESSES = 10_000
"""Addresses whose failed tokens are remembered: 2 MB or so. The oldest make room."""

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


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What an operator may set about bounds; see docs/configuration.md. 0: no bound.

    Attributes:
        connections: in all; 0: what the process may open as files, less `RESERVE`.
        per_address: connections.
        waiting: connections that have not shown a live token.
        waiting_per_address: the same, of one address.
        accepts_per_second: new connections.
        failed_tokens_per_minute: of one address, whatever the topic.
        messages_per_minute: of one session; its pings are counted apart, up to the same number.
        frames_per_message: that a client's message may be cut into.
        queued_bytes: for all slow readers together.
        trusted_proxies: whose forwarded headers are believed.
        allowed_origins: of pages that may connect, as `topicsvc.origin` writes them; empty: any.
    """

    connections: int = 0
    per_address: int = 0
    waiting: int = 1000
    waiting_per_address: int = 100
    accepts_per_second: int = 0
    failed_tokens_per_minute: int = 30
    messages_per_minute: int = 60
    frames_per_message: int = 128
    queued_bytes: int = 268435456
    trusted_proxies: tuple[Network, ...] = ()
    allowed_origins: frozenset[str] = frozenset()


class Limits:
    """Counts what there is, and says when there is enough.

    Args:
        clock: tells and keeps the time.
        settings: the bounds.
        files: how many files the process may have open; None: any number.

    Attributes:
        settings: the bounds; others may take their place at any time, and hold from then on.
        hits: how often each bound has refused something, by the name of its setting.
        connections: who is in.
        waiting: those of them that have not shown a live token.
        turned_away: connections that are over a bound and are being told so.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        settings: LimitSettings | None = None,
        files: int | None = None,
    ) -> None:
        self.settings = settings or LimitSettings()
        self.hits: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._clock = clock
        self._files = files
        self.connections = _Room()
        self.waiting = _Room()
        self.turned_away = 0
        self._accepts_whole_at = 0.0
        self._courtesy_whole_at = 0.0
        self._told_at: dict[str, float] = {}
        self._failed: dict[str, _Failures] = {}

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
        """How many there may be in all; 0: any number."""
        if self.settings.connections or self._files is None:
            return self.settings.connections
        return max(self._files - RESERVE, self._files // 2)

    def hit(self, name: str) -> None:
        """A bound has refused something: count it, and tell the log now and then."""
        self.hits[name] += 1
        now = self._clock.seconds()
        if abs(now - self._told_at.get(name, 0.0)) >= MINUTE:
            self._told_at[name] = now
            self._log.warn(
                "{setting} refuses, {count} times so far (docs/security.md)",
                setting=f"limits.{name}",
                count=self.hits[name],
            )

    def failed(self, address: str) -> None:
        """A token that somebody at `address` has shown is no good."""
        failures = self._failures(address)
        if failures is None:
            if len(self._failed) >= MAX_ADDRESSES:
                del self._failed[next(iter(self._failed))]
            failures = self._failed[address] = _Failures(self._clock.seconds())
        failures.count += 1

    def barred_for(self, address: str | None) -> float:
        """Seconds for which no token from `address` is looked at; 0: they are."""
        most = self.settings.failed_tokens_per_minute
        failures = None if address is None or not most else self._failures(address)
        if failures is None or failures.count < most:
            return 0
        return failures.since + MINUTE - self._clock.seconds()

    def _failures(self, address: str) -> _Failures | None:
        """Those of `address` in its minute; all whose minute is over are forgotten."""
        now = self._clock.seconds()
        while self._failed:
            # They stand in the order of their beginnings.
            oldest, failures = next(iter(self._failed.items()))
            if 0 <= now - failures.since < MINUTE:
                break
            del self._failed[oldest]
        return self._failed.get(address)

    def paced(self, whole_at: float) -> float | None:
        """One more message of a session whose allowance is whole at that time; see `pace`."""
        most = self.settings.messages_per_minute
        if not most:
            return 0.0
        whole_at_then = paced(whole_at, self._clock.seconds(), most, MINUTE)
        if whole_at_then is None:
            self.hit("messages_per_minute")
        return whole_at_then

    def is_over(self, expires_at: float) -> bool:
        """Whether that time has come."""
        return expires_at <= self._clock.seconds()


class Visit:
    """One connection, as far as it counts.

    Attributes:
        peer: who it is, for the log.
        address: what it is counted by; None: nothing.
        refused_by: the setting whose bound it is over; None: it may stay.
        is_dropped: too many are refused even to be told so: close it at once.
    """

    __slots__ = (
        "_controls",
        "_host",
        "_is_in",
        "_limits",
        "_messages",
        "_waits",
        "address",
        "is_dropped",
        "peer",
        "refused_by",
    )

    def __init__(self, limits: Limits) -> None:
        self.peer = ""
        self.address: str | None = None
        self.refused_by: str | None = None
        self.is_dropped = False
        self._limits = limits
        self._host: str | None = None
        self._is_in = False
        self._waits = False
        self._messages = 0.0
        self._controls = 0.0

    def enter(self, host: str | None) -> None:
        """Count it, if there is room; else see `refused_by`."""
        limits, settings = self._limits, self._limits.settings
        most = limits.most_connections
        if most and limits.connections.total >= most:
            self.refuse("connections")
        elif settings.waiting and limits.waiting.total >= settings.waiting:
            self.refuse("waiting")
        else:
            address = None if host is None else counted_as(host)
            self._look_for_room(address, is_waiting=True)
            if self.refused_by is None:
                self._host, self.address = host, address
                self._is_in = self._waits = True
                limits.connections.enter(address)
                limits.waiting.enter(address)

    def comes_from(self, host: str) -> None:
        """It is known now, or anew, whom this connection serves."""
        if host == self._host:
            return
        self._host = host
        address = counted_as(host)
        if self._is_in and address != self.address:
            self._look_for_room(address, self._waits)
            self._limits.connections.move(self.address, address)
            if self._waits:
                self._limits.waiting.move(self.address, address)
        self.address = address

    def refuse(self, name: str) -> None:
        """The bound that `name` sets does not let it stay."""
        self.refused_by = name
        self._limits.hit(name)

    def leave(self) -> None:
        """The connection is gone."""
        if self._is_in:
            self._showed_token()
            self._is_in = False
            self._limits.connections.leave(self.address)
        elif not self.is_dropped:
            self._limits.turned_away -= 1

    def bars(self) -> float:
        """Seconds for which no token of its address is looked at; 0: they are."""
        seconds = self._limits.barred_for(self.address)
        if seconds:
            self._limits.hit("failed_tokens_per_minute")
        return seconds

    def judge(self, validator: TokenValidator, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """Ask about a token, unless too many from this address were no good.

        Fails with:
            TooManyFailedTokens: nobody was asked; else as `TokenValidator.validate`.
        """
        seconds = self.bars()
        if seconds:
            return fail(TooManyFailedTokens(seconds))
        asked = maybeDeferred(validator.validate, token, topic)
        return asked.addCallbacks(self._granted, self._not_granted)

    def takes_message(self) -> bool:
        """Whether its client may send another message now; asking counts as one."""
        whole_at = self._limits.paced(self._messages)
        if whole_at is not None:
            self._messages = whole_at
        return whole_at is not None

    def takes_control(self) -> bool:
        """The same of a ping, or of a pong that nobody asked for."""
        whole_at = self._limits.paced(self._controls)
        if whole_at is not None:
            self._controls = whole_at
        return whole_at is not None

    def takes_frames(self, count: int) -> bool:
        """Whether a message may be cut into so many frames."""
        if count <= self._limits.settings.frames_per_message:
            return True
        self._limits.hit("frames_per_message")
        return False

    def takes_origins(self, values: Sequence[bytes] | None) -> bool:
        """Whether a page with these ``Origin`` headers may connect; who has none is no browser."""
        allowed = self._limits.settings.allowed_origins
        if not allowed or not values:
            return True
        try:
            [value] = values
            is_allowed = parse_origin(value.decode("ascii")) in allowed
        except ValueError:  # more than one, or none that could be
            is_allowed = False
        if not is_allowed:
            self._limits.hit("allowed_origins")
        return is_allowed

    def _look_for_room(self, address: str | None, is_waiting: bool) -> None:
        limits, settings = self._limits, self._limits.settings
        if limits.connections.is_full(address, settings.per_address):
            self.refuse("per_address")
        elif is_waiting and limits.waiting.is_full(address, settings.waiting_per_address):
            self.refuse("waiting_per_address")

    def _granted(self, grant: Grant) -> Grant:
        if self._limits.is_over(grant.expires_at):
            self._failed()
        else:
            self._showed_token()
        return grant

    def _not_granted(self, failure: Failure) -> Failure:
        # A live token for a topic that does not exist is no guess at tokens.
        if failure.check(TokenInactive) and not failure.check(TopicNotFound):
            self._failed()
        return failure

    def _failed(self) -> None:
        if self.address is not None:
            self._limits.failed(self.address)

    def _showed_token(self) -> None:
        if self._waits:
            self._waits = False
            self._limits.waiting.leave(self.address)


@dataclass(slots=True)
class _Failures:
    """Tokens of an address that were no good, in the minute that began with the first."""

    since: float
    count: int = 0


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
