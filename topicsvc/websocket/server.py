"""The WebSocket server: keeps all connections, their heartbeat, their deadlines and their close."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from random import Random
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.admission.limits import Limits
from topicsvc.delivery.hub import Hub
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.interfaces import Revocation, TokenValidator
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.due_times import DueTimes
from topicsvc.scheduling.timing_wheel import SLOTS, TimingWheel
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.websocket.connection import TopicConnection
from topicsvc.websocket.context import ConnectionContext
from topicsvc.websocket.revalidation import Revalidation
from topicsvc.websocket.session_info import EndedSession
from topicsvc.websocket.session_log import SessionLog

__all__ = ["CLOSE_TIMEOUT", "FAILURE_TIMEOUT", "MAX_ENDED", "WebSocketServer"]

CLOSE_TIMEOUT = 5.0
"""Seconds that a close handshake may take before the socket is aborted."""

FAILURE_TIMEOUT = 1.0
"""Seconds for the close frame of a client that broke a rule, before TLS ends."""

MAX_ENDED = 1000
"""Ended connections that are kept for operators."""


class WebSocketServer(Service):
    """Makes connections, observes them, and closes them when the service stops.

    Args:
        validator: validates the tokens that clients present.
        hub: delivers messages.
        clock: the reactor, or a clock in its place.
        now: the time of day, in seconds since the epoch. Expiry is measured by it.
        settings: what an operator may set about sessions.
        budget: see `topicsvc.websocket.context.ConnectionContext`.
        session_budget: see there.
        drain: seconds over which the close frames are spread when the service stops.
        random: spreads closes and revalidations.
        revocation: how revoked tokens are noticed; None: not before they expire.
        limits: the limits on clients; None: the defaults.
        deadline_clock: measures deadlines of clients; None: `clock`.

    Attributes:
        context: the state that connections read.
        ended_sessions: the last connections that ended, the last one at the end; None: they are
            not kept.
    """

    name = "websocket"
    _log = Logger()

    def __init__(
        self,
        validator: TokenValidator,
        hub: Hub,
        clock: IReactorTime,
        now: Callable[[], float],
        settings: SessionSettings,
        budget: WorkBudget,
        session_budget: WorkBudget,
        drain: float = 0,
        random: Random | None = None,
        revocation: Revocation | None = None,
        limits: Limits | None = None,
        deadline_clock: IReactorTime | None = None,
    ) -> None:
        self.clock = clock
        deadline_clock = deadline_clock or clock
        limits = limits or Limits(clock, now)
        self.context = ConnectionContext(
            validator=validator,
            hub=hub,
            settings=settings,
            now=now,
            session_log=SessionLog(clock, now),
            slow_consumers=SlowConsumers(
                lambda: limits.settings.queued_bytes,
                lambda address: limits.record_refusal("queued_bytes", address),
                deadline_clock,
                now,
            ),
            token_deadlines=Deadlines(
                deadline_clock,
                settings.token_timeout,
                lambda connection: connection.token_timeout(),
            ),
            close_deadlines=Deadlines(
                deadline_clock, CLOSE_TIMEOUT, lambda connection: connection.abort()
            ),
            failure_deadlines=Deadlines(
                deadline_clock, FAILURE_TIMEOUT, lambda connection: connection.end_failed()
            ),
            budget=budget,
            session_budget=session_budget,
        )
        self.ended_sessions: deque[EndedSession] | None = None
        self._random = random or Random()  # noqa: S311 - spreads load, no secret
        self._wheel: TimingWheel[TopicConnection] = TimingWheel()
        self._heartbeat = LoopingCall.withCount(self._advance_wheel)
        self._heartbeat.clock = clock
        self._heartbeats = DueTimes[TopicConnection](
            clock, _heartbeat_at, lambda connection: connection.position_due()
        )
        self._is_stopping = False
        self._scheduled_closes: deque[tuple[float, TopicConnection]] = deque()
        self._next_close: IDelayedCall | None = None
        self._all_closed: Deferred[None] | None = None
        self._revalidation: Revalidation[TopicConnection] | None = None
        self.configure(validator, settings, drain, revocation)

    def set_drain(self, drain: float) -> None:
        """Set the seconds over which the close frames are spread when the service stops."""
        self._drain = drain

    def configure(
        self,
        validator: TokenValidator,
        settings: SessionSettings,
        drain: float,
        revocation: Revocation | None,
        keeps_protocol: bool = False,
    ) -> None:
        """Apply new settings. Open connections stay open.

        With `keeps_protocol`, no class is made for new connections, because `settings` are the old
        ones: only the garbage collector frees a class.

        If `revocation` was off when a session started, the session's token was not kept: it
        can be checked again only after the client has presented another one.
        """
        if not keeps_protocol:
            self._factory = _websocket_factory(settings)
        self.context.validator = validator
        self.context.settings = settings
        self.set_drain(drain)
        self.context.token_deadlines.set_length(settings.token_timeout)
        if self._heartbeat.running:
            self._heartbeat.stop()
            self._heartbeat.start(settings.ping_interval / SLOTS, now=False)
        self._configure_revalidation(revocation)

    def _configure_revalidation(self, revocation: Revocation | None) -> None:
        if self._revalidation is not None:
            self._revalidation.stop()
        self.context.revocation = revocation
        self._revalidation = None
        for connection in self._wheel:
            connection.set_keeps_token(revocation is not None)
        if revocation is None:
            return
        self._revalidation = Revalidation(
            self.clock,
            revocation.interval,
            revocation.at_once,
            TopicConnection.recheck,
            self._random,
        )
        for connection in self._wheel:
            if connection.is_member:
                self._revalidation.add(connection)
        if self.running:
            self._revalidation.start()

    def __len__(self) -> int:
        return len(self._wheel)

    @property
    def delivered(self) -> tuple[int, int]:
        """Data messages delivered to all connections, open or closed, and their size in bytes."""
        hub, session_log = self.context.hub, self.context.session_log
        return (
            hub.offered - session_log.undelivered,
            hub.offered_size - session_log.undelivered_size,
        )

    def new_connection(self, topic: TopicAddress, quota: ClientQuota) -> TopicConnection | None:
        """Make a connection to `topic`; the HTTP side hands a transport over to it.

        Args:
            topic: the topic that the client asks for.
            quota: the limits of this client; from now on the connection calls `quota.release`.

        Returns:
            None: the service is stopping.
        """
        if self._is_stopping:
            return None
        connection = self._factory.protocol(topic, self.context, self, quota)
        connection.factory = self._factory
        return connection  # type: ignore[no-any-return]

    def active_sessions(self) -> Iterator[TopicConnection]:
        """The connections whose session has started and has not ended, the oldest first.

        Sessions may start and end while the iterator is used: those that have ended when it
        reaches them are left out, and so are new ones.
        """
        for connection in self._wheel:
            if connection.record.is_active:
                yield connection

    def keep_ended_sessions(self, keeps: bool) -> None:
        """Keep the last `MAX_ENDED` connections that end, or none and forget those kept."""
        if not keeps:
            self.ended_sessions = None
        elif self.ended_sessions is None:
            self.ended_sessions = deque(maxlen=MAX_ENDED)

    def opened(self, connection: TopicConnection) -> None:
        """See `topicsvc.websocket.connection.ConnectionObserver`."""
        self._wheel.add(connection)
        self.context.token_deadlines.start(connection)

    def session_ended(self, connection: TopicConnection, reason: str, detail: str) -> None:
        """See `topicsvc.websocket.connection.ConnectionObserver`."""
        if self.ended_sessions is not None:
            self.ended_sessions.append(
                EndedSession(connection.info(), reason, detail, self.clock.seconds())
            )

    def closed(self, connection: TopicConnection) -> None:
        """See `topicsvc.websocket.connection.ConnectionObserver`."""
        self._wheel.discard(connection)
        self.context.close_deadlines.cancel(connection)
        self.context.failure_deadlines.cancel(connection)
        if self._all_closed is not None and not self._wheel:
            self._scheduled_closes.clear()
            if self._next_close is not None:
                self._next_close.cancel()
            self.context.session_log.flush()
            self._all_closed.callback(None)
            self._all_closed = None

    def joined(self, connection: TopicConnection) -> None:
        """See `topicsvc.websocket.connection.ConnectionObserver`."""
        if self._revalidation is not None:
            self._revalidation.add(connection)
        if connection.positioned is not None:
            self._heartbeats.add(connection)

    def left(self, connection: TopicConnection) -> None:
        """See `topicsvc.websocket.connection.ConnectionObserver`."""
        if connection.positioned is not None:
            self._heartbeats.discard(connection)
        if self._revalidation is not None:
            self._revalidation.discard(connection)

    def check_done(self, connection: TopicConnection) -> None:
        """See `topicsvc.websocket.connection.ConnectionObserver`."""
        if self._revalidation is not None:
            self._revalidation.done(connection)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self._revalidation is not None:
            self._revalidation.start()
        self._heartbeat.start(self.context.settings.ping_interval / SLOTS, now=False)

    def stopService(self) -> Deferred[None] | None:
        """Close every connection, spread over the drain time; fires when all are closed.

        The time is bounded: no connection is accepted meanwhile, and a close handshake that
        takes longer than `CLOSE_TIMEOUT` is aborted.
        """
        self._is_stopping = True
        super().stopService()  # type: ignore[no-untyped-call]
        if self._heartbeat.running:
            self._heartbeat.stop()
        if self._revalidation is not None:
            self._revalidation.stop()
        if not self._wheel:
            self.context.session_log.flush()
            return None
        all_closed: Deferred[None] = Deferred()
        self._all_closed = all_closed
        connections = list(self._wheel)
        self._random.shuffle(connections)
        interval = self._drain / len(connections)
        now = self.clock.seconds()
        # Clients that reconnect at once then arrive evenly: one in each interval, at a random
        # time within it.
        self._scheduled_closes = deque(
            (now + interval * (place + self._random.random()), connection)
            for place, connection in enumerate(connections)
        )
        self._close_due()
        return all_closed

    def _close_due(self) -> None:
        """Close the connections whose scheduled time has come, and schedule the next."""
        now = self.clock.seconds()
        while self._scheduled_closes and self._scheduled_closes[0][0] <= now:
            _, connection = self._scheduled_closes.popleft()
            try:
                connection.going_away()
            except Exception:
                self._log.failure("could not close {peer} for the stop", peer=connection.peer)
        self._next_close = None
        if self._scheduled_closes:
            delay = self._scheduled_closes[0][0] - now
            self._next_close = self.clock.callLater(delay, self._close_due)

    def _advance_wheel(self, slots: int) -> None:
        """Check the connections of the next slots; after a pause, each connection once."""
        now = self.context.now()
        for _ in range(min(slots, SLOTS)):
            for connection in self._wheel.advance():
                try:
                    connection.heartbeat(now)
                except Exception:
                    self._log.failure("the heartbeat of {peer} failed", peer=connection.peer)


def _heartbeat_at(connection: TopicConnection) -> float:
    positioned = connection.positioned
    return inf if positioned is None else positioned.heartbeat_at


def _websocket_factory(settings: SessionSettings) -> WebSocketServerFactory:
    factory = WebSocketServerFactory(server="")
    factory.setProtocolOptions(
        versions=[13],
        webStatus=False,
        utf8validateIncoming=True,
        requireMaskedClientFrames=True,
        maxMessagePayloadSize=settings.max_message,
        failByDrop=False,
        openHandshakeTimeout=0,  # see `topicsvc.web.site`
        closeHandshakeTimeout=0,  # see `ConnectionContext.close_deadlines`
        perMessageCompressionAccept=lambda _: None,
        autoPingInterval=0,  # see `WebSocketServer._advance_wheel`
        allowNullOrigin=True,  # `topicsvc.web.handshake` checks origins
    )
    # Autobahn would set some 60 attributes on each connection, and format the options for a debug
    # line. As attributes of the class they cost nothing per connection.
    options = {name: getattr(factory, name) for name in WebSocketServerProtocol.CONFIG_ATTRS}
    attributes = options | (_initial_state(factory, options) or {})
    factory.protocol = type("TopicConnection", (TopicConnection,), attributes)
    return factory


class _Ignored:
    """In place of a Deferred that nothing waits for."""

    def callback(self, _: object) -> None:
        """Do nothing."""


_IGNORED = _Ignored()

_IMMUTABLE = (bool, int, bytes, type(None), _Ignored)

_UNUSED = ("_results", "_transport_details", "_valid_events", "send_queue", "trafficStats")
"""Autobahn's observers, its own way out, and counters: a connection uses none of them."""


def _initial_state(
    factory: WebSocketServerFactory, options: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the attributes that Autobahn sets on a new connection, for all connections.

    Autobahn replaces their values and does not change them in place.

    Returns:
        None: one of them is of an unknown kind. Then Autobahn sets them on each connection.
    """
    template = WebSocketServerProtocol()
    template.factory = factory
    WebSocketProtocol._connectionMade(template)
    state = {name: value for name, value in vars(template).items() if name not in options}
    del state["factory"]
    state.pop("utf8validator", None)  # see `TopicConnection.utf8validator`
    state |= dict.fromkeys(("is_open", "is_closed"), _IGNORED)
    for name, value in state.items():
        if name not in _UNUSED and not isinstance(value, _IMMUTABLE):
            return None
    return {**state, "has_initial_state": True}
