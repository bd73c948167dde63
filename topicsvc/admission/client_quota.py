"""Application: one connection of a stranger, and what it may do within the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, maybeDeferred

from topicsvc.admission.addresses import counted_as
from topicsvc.admission.limits import Limits
from topicsvc.admission.origins import parse_origin
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress

__all__ = ["ClientQuota"]


class ClientQuota:
    """One connection, as far as it counts.

    Attributes:
        peer: who it is, for the log.
        address: what it is counted by; None: nothing.
        refused_by: the setting whose bound it is over; None: it may stay.
        is_dropped: too many are refused even to be told so: close it at once.
        is_past_token_deadline: it has not shown a live token in all the time there is for that.
        on_token_deadline: called when that time is over; None: nobody is waiting for it.
    """

    __slots__ = (
        "_controls",
        "_host",
        "_is_in",
        "_is_unauthenticated",
        "_limits",
        "_messages",
        "address",
        "is_dropped",
        "is_past_token_deadline",
        "on_token_deadline",
        "peer",
        "refused_by",
    )

    def __init__(self, limits: Limits) -> None:
        self.peer = ""
        self.address: str | None = None
        self.refused_by: str | None = None
        self.is_dropped = False
        self.is_past_token_deadline = False
        self.on_token_deadline: Callable[[], None] | None = None
        self._limits = limits
        self._host: str | None = None
        self._is_in = False
        self._is_unauthenticated = False
        self._messages = 0.0
        self._controls = 0.0

    @classmethod
    def admit(cls, limits: Limits, host: str | None) -> ClientQuota:
        """Count a connection that was accepted. Look at `refused_by` and `is_dropped` next.

        Args:
            limits: the limits that it counts against.
            host: its address; None: not known yet, or no address that can be counted.
        """
        quota = cls(limits)
        if limits.allow_accept():
            quota.enter(host)
        else:
            quota.refuse("accepts_per_second")
        if quota.refused_by is not None and not limits.allow_polite_refusal():
            quota.is_dropped = True
        return quota

    def enter(self, host: str | None) -> None:
        """Count it, if there is room; else see `refused_by`."""
        limits = self._limits
        most = limits.max_connections
        if most and limits.connections.total >= most:
            self.refuse("connections")
        elif limits.is_unauthenticated_full:
            self.refuse("unauthenticated")
        else:
            address = None if host is None else counted_as(host)
            self._look_for_room(address)
            if self.refused_by is None:
                self._host, self.address = host, address
                self._is_in = True
                limits.connections.enter(address)
                self._count_unauthenticated()

    def set_client_address(self, host: str) -> None:
        """It is known now, or anew, whom this connection serves."""
        if host == self._host:
            return
        self._host = host
        before, self.address = self.address, counted_as(host)
        if not self._is_in or self.address == before:
            return
        limits = self._limits
        if not self._is_unauthenticated and limits.is_unauthenticated_full:
            self.refuse("unauthenticated")
        else:
            self._look_for_room(self.address)
        limits.connections.move(before, self.address)
        if self._is_unauthenticated:
            limits.unauthenticated.move(before, self.address)
        else:
            self._count_unauthenticated()  # the token was another client's

    def refuse(self, name: str) -> None:
        """The bound that `name` sets does not let it stay."""
        self.refused_by = name
        self._limits.record_refusal(name)

    def token_deadline_passed(self) -> None:
        """The time to show a live token is over."""
        self.is_past_token_deadline = True
        if self.on_token_deadline is not None:
            self.on_token_deadline()

    def leave(self) -> None:
        """The connection is gone."""
        self.on_token_deadline = None
        if self._is_in:
            self._showed_token()
            self._is_in = False
            self._limits.connections.leave(self.address)
        elif not self.is_dropped:
            self._limits.polite_refusals -= 1

    def retry_after(self) -> float:
        """Seconds for which no token of its address is looked at; 0: they are."""
        seconds = (
            0.0 if self.address is None else self._limits.token_attempts.blocked_for(self.address)
        )
        if seconds:
            self._limits.record_refusal("failed_tokens_per_minute")
        return seconds

    def validate(
        self, validator: TokenValidator, token: str, topic: TopicAddress
    ) -> Deferred[Grant]:
        """Ask about a token, as `topicsvc.admission.token_attempts` has it.

        Fails with:
            TooManyFailedTokens: nobody was asked; else as `TokenValidator.validate`.
        """

        def question() -> Deferred[Grant]:
            return validator.validate(token, topic)

        if self.address is None:
            asked = maybeDeferred(question)
        else:
            asked = self._limits.token_attempts.run(self.address, question)
        return asked.addCallback(self._granted)

    def allow_message(self) -> bool:
        """Whether its client may send another message now; asking counts as one."""
        full_at = self._limits.consume_message(self._messages)
        if full_at is not None:
            self._messages = full_at
        return full_at is not None

    def allow_control_frame(self) -> bool:
        """The same of a ping, or of a pong that nobody asked for."""
        full_at = self._limits.consume_message(self._controls)
        if full_at is not None:
            self._controls = full_at
        return full_at is not None

    def allow_fragments(self, count: int) -> bool:
        """Whether a message may be cut into so many frames."""
        if count <= self._limits.settings.frames_per_message:
            return True
        self._limits.record_refusal("frames_per_message")
        return False

    def allow_origin(self, values: Sequence[bytes] | None) -> bool:
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
            self._limits.record_refusal("allowed_origins")
        return is_allowed

    def _look_for_room(self, address: str | None) -> None:
        limits, settings = self._limits, self._limits.settings
        if limits.connections.is_full(address, settings.per_address):
            self.refuse("per_address")
        elif limits.unauthenticated.is_full(address, settings.unauthenticated_per_address):
            self.refuse("unauthenticated_per_address")

    def _granted(self, grant: Grant) -> Grant:
        if not self._limits.is_expired(grant):
            self._showed_token()
        return grant

    def _count_unauthenticated(self) -> None:
        """Take a place among those that have not shown a live token."""
        self._is_unauthenticated = True
        self._limits.unauthenticated.enter(self.address)
        self._limits.token_deadlines.start(self)

    def _showed_token(self) -> None:
        if self._is_unauthenticated:
            self._is_unauthenticated = self.is_past_token_deadline = False
            self._limits.unauthenticated.leave(self.address)
            self._limits.token_deadlines.cancel(self)
