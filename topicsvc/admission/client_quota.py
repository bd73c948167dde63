"""Application: one connection of a stranger, and what it may do within the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, maybeDeferred

from topicsvc.admission.addresses import counted_as
from topicsvc.admission.origins import parse_origin
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress

if TYPE_CHECKING:
    from topicsvc.admission.limits import Limits

__all__ = ["Visit"]


class Visit:
    """One connection, as far as it counts.

    Attributes:
        peer: who it is, for the log.
        address: what it is counted by; None: nothing.
        refused_by: the setting whose bound it is over; None: it may stay.
        is_dropped: too many are refused even to be told so: close it at once.
        is_late: it has not shown a live token in all the time there is for that.
        when_late: called when that time is over; None: nobody is waiting for it.
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
        "is_late",
        "peer",
        "refused_by",
        "when_late",
    )

    def __init__(self, limits: Limits) -> None:
        self.peer = ""
        self.address: str | None = None
        self.refused_by: str | None = None
        self.is_dropped = False
        self.is_late = False
        self.when_late: Callable[[], None] | None = None
        self._limits = limits
        self._host: str | None = None
        self._is_in = False
        self._waits = False
        self._messages = 0.0
        self._controls = 0.0

    def enter(self, host: str | None) -> None:
        """Count it, if there is room; else see `refused_by`."""
        limits = self._limits
        most = limits.most_connections
        if most and limits.connections.total >= most:
            self.refuse("connections")
        elif limits.is_waiting_full:
            self.refuse("waiting")
        else:
            address = None if host is None else counted_as(host)
            self._look_for_room(address)
            if self.refused_by is None:
                self._host, self.address = host, address
                self._is_in = True
                limits.connections.enter(address)
                self._wait()

    def comes_from(self, host: str) -> None:
        """It is known now, or anew, whom this connection serves."""
        if host == self._host:
            return
        self._host = host
        before, self.address = self.address, counted_as(host)
        if not self._is_in or self.address == before:
            return
        limits = self._limits
        if not self._waits and limits.is_waiting_full:
            self.refuse("waiting")
        else:
            self._look_for_room(self.address)
        limits.connections.move(before, self.address)
        if self._waits:
            limits.waiting.move(before, self.address)
        else:
            self._wait()  # the token was another client's

    def refuse(self, name: str) -> None:
        """The bound that `name` sets does not let it stay."""
        self.refused_by = name
        self._limits.hit(name)

    def be_late(self) -> None:
        """The time to show a live token is over."""
        self.is_late = True
        if self.when_late is not None:
            self.when_late()

    def leave(self) -> None:
        """The connection is gone."""
        self.when_late = None
        if self._is_in:
            self._showed_token()
            self._is_in = False
            self._limits.connections.leave(self.address)
        elif not self.is_dropped:
            self._limits.turned_away -= 1

    def bars(self) -> float:
        """Seconds for which no token of its address is looked at; 0: they are."""
        seconds = 0.0 if self.address is None else self._limits.tries.barred_for(self.address)
        if seconds:
            self._limits.hit("failed_tokens_per_minute")
        return seconds

    def judge(self, validator: TokenValidator, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """Ask about a token, as `topicsvc.admission.token_attempts` has it.

        Fails with:
            TooManyFailedTokens: nobody was asked; else as `TokenValidator.validate`.
        """

        def question() -> Deferred[Grant]:
            return validator.validate(token, topic)

        if self.address is None:
            asked = maybeDeferred(question)
        else:
            asked = self._limits.tries.ask(self.address, question)
        return asked.addCallback(self._granted)

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

    def _look_for_room(self, address: str | None) -> None:
        limits, settings = self._limits, self._limits.settings
        if limits.connections.is_full(address, settings.per_address):
            self.refuse("per_address")
        elif limits.waiting.is_full(address, settings.waiting_per_address):
            self.refuse("waiting_per_address")

    def _granted(self, grant: Grant) -> Grant:
        if not self._limits.is_over(grant):
            self._showed_token()
        return grant

    def _wait(self) -> None:
        """Take a place among those that have not shown a live token."""
        self._waits = True
        self._limits.waiting.enter(self.address)
        self._limits.not_late.start(self)

    def _showed_token(self) -> None:
        if self._waits:
            self._waits = self.is_late = False
            self._limits.waiting.leave(self.address)
            self._limits.not_late.cancel(self)
