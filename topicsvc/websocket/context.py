"""The state that all connections share: the server owns it, connections read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import Deferred

from topicsvc.delivery.hub import Hub
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.interfaces import Grant, Revocation, TokenValidator
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.validators.token_id import TokenIds
from topicsvc.websocket.session_log import SessionLog

__all__ = ["ConnectionContext", "TimedConnection"]


class TimedConnection(Protocol):
    """A connection in one of the deadline sets."""

    def token_timeout(self) -> None:
        """The client did not present a valid token in time."""
        ...

    def abort(self) -> None:
        """The close handshake took too long."""
        ...

    def end_failed(self) -> None:
        """The client broke a rule, and did not answer the close frame in time."""
        ...


@dataclass(slots=True, eq=False)
class ConnectionContext:
    """State that `topicsvc.websocket.server` owns and connections read.

    Attributes:
        validator: validates tokens that clients present.
        hub: delivers messages.
        settings: for connections that open from now on.
        now: the time of day, in seconds since the epoch. Expiry is measured by it.
        session_log: logs and counts sessions.
        slow_consumers: send queues that hold data.
        token_deadlines: connections whose client has not presented a valid token.
        close_deadlines: connections in a close handshake.
        failure_deadlines: those over TLS whose client broke a rule.
        token_ids: identifies tokens in the log.
        budget: the time for work on data of clients without a valid token, and on requests, in
            one reactor iteration.
        session_budget: the same for the data of sessions that have started.
        revocation: how revoked tokens are noticed; None: not before they expire.
    """

    validator: TokenValidator
    hub: Hub
    settings: SessionSettings
    now: Callable[[], float]
    session_log: SessionLog
    slow_consumers: SlowConsumers
    token_deadlines: Deadlines[TimedConnection]
    close_deadlines: Deadlines[TimedConnection]
    failure_deadlines: Deadlines[TimedConnection]
    budget: WorkBudget
    session_budget: WorkBudget
    token_ids: TokenIds = field(default_factory=TokenIds)
    revocation: Revocation | None = None

    def revalidate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """Check again a token that was granted before."""
        validator = self.validator if self.revocation is None else self.revocation.validator
        return validator.validate(token, topic)
