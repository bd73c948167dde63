"""Applies the limits to one connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, maybeDeferred

from topicsvc.admission.addresses import address_key
from topicsvc.admission.limits import Limits
from topicsvc.admission.origins import parse_origin
from topicsvc.errors import TooManySessions
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.refusals import quoted_list
from topicsvc.topics import TopicAddress

__all__ = ["ClientQuota"]


class ClientQuota:
    """One connection: how it counts against the limits, and what its client may still do.

    Attributes:
        peer: the client's address for the log, with its port if that is known.
        host: the client's address; None: not known yet, or it has none.
        address: the key by which the connection is counted; None: it has no known address.
        exceeded_limit: the setting whose limit the connection exceeds; None: it is admitted.
        is_closed_unanswered: whether a refused connection is closed without an answer, because
            too many others are refused.
        is_past_token_deadline: whether the time to present a valid token has ended without one.
        on_token_deadline: called when that time ends; None: nothing is called.
    """

    __slots__ = (
        "_cell",
        "_control_frames_full_at",
        "_is_counted",
        "_is_unauthenticated",
        "_limits",
        "_messages_full_at",
        "address",
        "exceeded_limit",
        "host",
        "is_closed_unanswered",
        "is_past_token_deadline",
        "on_token_deadline",
        "peer",
    )

    def __init__(self, limits: Limits) -> None:
        self.peer = ""
        self.address: str | None = None
        self.exceeded_limit: str | None = None
        self.is_closed_unanswered = False
        self.is_past_token_deadline = False
        self.on_token_deadline: Callable[[], None] | None = None
        self._limits = limits
        self.host: str | None = None
        self._cell: str | None = None
        self._is_counted = False
        self._is_unauthenticated = False
        self._messages_full_at = 0.0
        self._control_frames_full_at = 0.0

    @classmethod
    def admit(cls, limits: Limits, host: str | None) -> ClientQuota:
        """Count a connection that was accepted, or refuse it.

        The caller then checks `exceeded_limit` and `is_closed_unanswered`.

        Args:
            limits: the limits that apply.
            host: the client's address; None: not known yet, or not a countable address.
        """
        quota = cls(limits)
        if limits.allow_accept():
            quota._admit(host)
        else:
            quota._refuse("accepts_per_second", None if host is None else address_key(host))
        quota._limit_answers()
        return quota

    def identify(self, host: str) -> None:
        """Count the connection for the client at `host`, or refuse it as `admit` does.

        For a connection that has sent no request yet. The caller then checks
        `is_closed_unanswered`.
        """
        if not self._is_counted:
            return
        self.set_client_address(host)
        if self.exceeded_limit is not None:
            self._uncount()
            self._limit_answers()

    def _admit(self, host: str | None) -> None:
        limits = self._limits
        max_connections = limits.max_connections
        address = None if host is None else address_key(host)
        if max_connections and limits.connections.total >= max_connections:
            self._refuse("connections", address)
        elif limits.is_unauthenticated_full:
            self._refuse("unauthenticated", address)
        else:
            self._check_address_limits(address)
            if self.exceeded_limit is None:
                self.host, self.address = host, address
                self._is_counted = True
                limits.connections.add(address)
                self._count_unauthenticated()

    def set_client_address(self, host: str) -> None:
        """Count the connection for the client at `host`, which may be another than before.

        If that exceeds a limit, `exceeded_limit` is set.
        """
        if host == self.host:
            return
        self.host = host
        before, self.address = self.address, address_key(host)
        if not self._is_counted or self.address == before:
            return
        limits = self._limits
        if not self._is_unauthenticated and limits.is_unauthenticated_full:
            self._refuse("unauthenticated", self.address)
        else:
            self._check_address_limits(self.address)
        limits.connections.move(before, self.address)
        if self._is_unauthenticated:
            limits.unauthenticated.move(before, self.address)
        else:
            self._count_unauthenticated()  # the token was another client's

    def token_deadline_passed(self) -> None:
        """See `topicsvc.admission.limits.UnauthenticatedClient`."""
        self.is_past_token_deadline = True
        if self.on_token_deadline is not None:
            self.on_token_deadline()

    def release(self) -> None:
        """The connection is closed: no longer count it."""
        self.on_token_deadline = None
        if self._cell is not None:
            self._limits.cells.remove(self._cell)
            self._cell = None
        if self._is_counted:
            self._uncount()
        elif not self.is_closed_unanswered:
            self._limits.polite_refusals -= 1

    def retry_after(self) -> float:
        """Seconds for which tokens from this address are refused; 0: they are checked."""
        seconds = (
            0.0 if self.address is None else self._limits.token_attempts.blocked_for(self.address)
        )
        if seconds:
            self._limits.record_refusal("failed_tokens_per_minute", self.address)
        return seconds

    def validate(
        self, validator: TokenValidator, token: str, topic: TopicAddress
    ) -> Deferred[Grant]:
        """Check a token, within the limits of `topicsvc.admission.token_attempts`.

        Fails with:
            TooManyFailedTokens: the token was not checked. Otherwise as
                `topicsvc.interfaces.TokenValidator.validate`.
        """

        def check() -> Deferred[Grant]:
            return validator.validate(token, topic)

        if self.address is None:
            pending = maybeDeferred(check)
        else:
            pending = self._limits.token_attempts.run(self.address, check)
        return pending.addCallback(self._granted)

    def remembered(
        self, validator: TokenValidator, token: str, topic: TopicAddress
    ) -> Grant | None:
        """The grant of a token that is known at once; None: call `validate`.

        Such a token does not wait behind others of its address, because it is known to be valid.
        """
        if self.address is not None and self._limits.token_attempts.blocked_for(self.address):
            return None
        grant = validator.remembered(token, topic)
        if grant is not None:
            self._set_authenticated()
        return grant

    def enter_cell(self, cell: str) -> None:
        """Count the connection as a session on a topic of `cell`, until it is closed.

        Its token is known to be valid. Otherwise clients without a token could use up the
        sessions of a cell.

        Raises:
            TooManySessions: the cell has as many sessions as it may have.
        """
        limits = self._limits
        if limits.cells.is_full(cell, limits.settings.connections_per_cell):
            limits.record_refusal("connections_per_cell", self.address, f"cell {cell}")
            raise TooManySessions
        self._cell = cell
        limits.cells.add(cell)

    def use_sends(self, token: str, cell: str, messages: int = 1) -> float:
        """Count messages that are sent with a valid token.

        Args:
            token: the token.
            cell: the cell of the topic to which they are sent.
            messages: their number.

        Returns:
            0 if they may be sent now. Otherwise the seconds after which they may be; then they
            are not counted.
        """
        limits, settings = self._limits, self._limits.settings
        if not settings.sends_per_minute and not settings.sends_per_minute_per_cell:
            return 0.0
        by_token, by_cell = limits.sends_by_token, limits.sends_by_cell
        key = limits.token_key(token)
        seconds = by_token.wait(key, messages)
        if seconds:
            limits.record_refusal("sends_per_minute", self.address)
            return seconds
        seconds = by_cell.wait(cell, messages)
        if seconds:
            limits.record_refusal("sends_per_minute_per_cell", self.address, f"cell {cell}")
            return seconds
        by_token.use(key, messages)
        by_cell.use(cell, messages)
        return 0.0

    def max_sends(self, most: int) -> int:
        """The most messages that one request may send, if another limit allows `most`."""
        settings = self._limits.settings
        limits = settings.sends_per_minute, settings.sends_per_minute_per_cell
        return min([most, *(limit for limit in limits if limit)])

    def allow_message(self) -> bool:
        """Whether the client may send one more message now; if so, it is counted."""
        full_at = self._limits.consume_message(self._messages_full_at)
        if full_at is None:
            self._limits.record_refusal("messages_per_minute", self.address)
            return False
        self._messages_full_at = full_at
        return True

    def allow_control_frame(self) -> bool:
        """Whether the client may send one more ping or unsolicited pong; if so, it is counted."""
        full_at = self._limits.consume_message(self._control_frames_full_at)
        if full_at is None:
            self._limits.record_refusal("messages_per_minute", self.address, "pings")
            return False
        self._control_frames_full_at = full_at
        return True

    def allow_fragments(self, count: int) -> bool:
        """Whether a message may have `count` frames."""
        if count <= self._limits.settings.frames_per_message:
            return True
        self._limits.record_refusal("frames_per_message", self.address)
        return False

    def allow_origin(self, values: Sequence[bytes] | None) -> bool:
        """Whether a page with these ``Origin`` headers may connect.

        A request without the header is allowed: it does not come from a browser.
        """
        allowed = self._limits.settings.allowed_origins
        if not allowed or not values:
            return True
        try:
            [value] = values
            is_allowed = parse_origin(value.decode("ascii")) in allowed
        except ValueError:  # more than one header, or not an origin
            is_allowed = False
        if not is_allowed:
            origins = quoted_list(value.decode("latin-1") for value in values)
            self._limits.record_refusal("allowed_origins", self.address, f"origin {origins}")
        return is_allowed

    def _uncount(self) -> None:
        self._set_authenticated()
        self._is_counted = False
        self._limits.connections.remove(self.address)

    def _limit_answers(self) -> None:
        """Let only some refused connections have an answer."""
        if self.exceeded_limit is not None and not self._limits.allow_polite_refusal():
            self.is_closed_unanswered = True

    def _check_address_limits(self, address: str | None) -> None:
        limits, settings = self._limits, self._limits.settings
        if limits.connections.is_full(address, settings.per_address):
            self._refuse("per_address", address)
        elif limits.unauthenticated.is_full(address, settings.unauthenticated_per_address):
            self._refuse("unauthenticated_per_address", address)

    def _refuse(self, name: str, address: str | None) -> None:
        """Refuse the connection, from a client at `address`, because of the limit `name`."""
        self.exceeded_limit = name
        self._limits.record_refusal(name, address)

    def _granted(self, grant: Grant) -> Grant:
        if not self._limits.is_grant_expired(grant):
            self._set_authenticated()
        return grant

    def _count_unauthenticated(self) -> None:
        """Count the connection as unauthenticated, until its client presents a valid token."""
        self._is_unauthenticated = True
        self._limits.unauthenticated.add(self.address)
        self._limits.token_deadlines.start(self)

    def _set_authenticated(self) -> None:
        """No longer count the connection as unauthenticated."""
        if self._is_unauthenticated:
            self._is_unauthenticated = self.is_past_token_deadline = False
            self._limits.unauthenticated.remove(self.address)
            self._limits.token_deadlines.cancel(self)
