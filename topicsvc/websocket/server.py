"""Adapter: the house that all connections live in: their heartbeat, deadlines and end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
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
from topicsvc.scheduling.timing_wheel import SLOTS, TimingWheel
from topicsvc.settings import SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.websocket.connection import TopicConnection
from topicsvc.websocket.context import ConnectionContext
from topicsvc.websocket.revalidation import Revalidation
from topicsvc.websocket.session_log import SessionLog

__all__ = ["CLOSE_TIMEOUT", "WebSocketServer"]

CLOSE_TIMEOUT = 5.0
"""Seconds that a close handshake may take before the socket is aborted."""


class WebSocketServer(Service):
    """All connections: their factory, their heartbeat, their deadlines, their end.

    Args:
        validator: judges tokens.
        hub: brings data.
        clock: tells and keeps the time.
        now: the time of day, in seconds since the epoch: what expiry is measured by.
        settings: what an operator may set.
        drain: seconds over which the close frames are spread when the service stops.
        random: spreads them.
        revocation: how revoked tokens are noticed; None: they are not, before they expire.
        limits: how much there may be of everything; None: as much as by default.
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
        drain: float = 0,
        random: Random | None = None,
        revocation: Revocation | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.clock = clock
        limits = limits or Limits(clock, now)
        self.context = ConnectionContext(
            validator=validator,
            hub=hub,
            settings=settings,
            now=now,
            session_log=SessionLog(clock),
            slow_consumers=SlowConsumers(
                lambda: limits.settings.queued_bytes,
                lambda: limits.record_refusal("queued_bytes"),
                clock,
            ),
            token_deadlines=Deadlines(
                clock, settings.token_timeout, lambda connection: connection.token_timeout()
            ),
            close_deadlines=Deadlines(clock, CLOSE_TIMEOUT, lambda connection: connection.abort()),
        )
        self._random = random or Random()  # noqa: S311 - no secret, only spread
        self._wheel: TimingWheel[TopicConnection] = TimingWheel()
        self._heart = LoopingCall.withCount(self._beat)
        self._heart.clock = clock
        self._is_stopping = False
        self._leaving: deque[tuple[float, TopicConnection]] = deque()
        self._next_leaves: IDelayedCall | None = None
        self._all_gone: Deferred[None] | None = None
        self._revalidation: Revalidation[TopicConnection] | None = None
        self.configure(validator, settings, drain, revocation)

    def configure(
        self,
        validator: TokenValidator,
        settings: SessionSettings,
        drain: float,
        revocation: Revocation | None,
    ) -> None:
        """Go over to these settings, for what begins from now on; live sessions stay.

        A session that began while revocation was not looked for keeps no token that could
        be looked at again, before its client shows one.
        """
        self.context.validator = validator
        self.context.settings = settings
        self._drain = drain
        self._factory = _websocket_factory(settings)
        self.context.token_deadlines.last(settings.token_timeout)
        if self._heart.running:
            self._heart.stop()
            self._heart.start(settings.ping_interval / SLOTS, now=False)
        self._look_again(revocation)

    def _look_again(self, revocation: Revocation | None) -> None:
        if self._revalidation is not None:
            self._revalidation.stop()
        self.context.revocation = revocation
        self._revalidation = None
        for protocol in self._wheel:
            protocol.keep_token(revocation is not None)
        if revocation is None:
            return
        self._revalidation = Revalidation(
            self.clock,
            revocation.interval,
            revocation.at_once,
            TopicConnection.recheck,
            self._random,
        )
        for protocol in self._wheel:
            if protocol.is_member:
                self._revalidation.add(protocol)
        if self.running:
            self._revalidation.start()

    def __len__(self) -> int:
        return len(self._wheel)

    @property
    def delivered(self) -> tuple[int, int]:
        """Data messages that were handed to all connections, those gone too; their bytes."""
        hub, session_log = self.context.hub, self.context.session_log
        return (
            hub.offered - session_log.undelivered,
            hub.offered_size - session_log.undelivered_size,
        )

    def new_connection(self, topic: TopicAddress, quota: ClientQuota) -> TopicConnection | None:
        """A new connection to `topic`, for the HTTP side to hand a transport to.

        Args:
            topic: what its client wants.
            quota: what it counts as; `ClientQuota.leave` is from now on the connection's to call.

        Returns:
            None: the service is stopping.
        """
        if self._is_stopping:
            return None
        protocol = self._factory.protocol(topic, self.context, self, quota)
        protocol.factory = self._factory
        return protocol  # type: ignore[no-any-return]

    def opened(self, protocol: TopicConnection) -> None:
        """The opening handshake is done."""
        self._wheel.add(protocol)
        self.context.token_deadlines.start(protocol)

    def gone(self, protocol: TopicConnection) -> None:
        """The connection is lost."""
        self._wheel.discard(protocol)
        self.context.close_deadlines.cancel(protocol)
        if self._all_gone is not None and not self._wheel:
            self._leaving.clear()
            if self._next_leaves is not None:
                self._next_leaves.cancel()
            self._all_gone.callback(None)
            self._all_gone = None

    def joined(self, protocol: TopicConnection) -> None:
        """Its session is live: from now on its token is looked at again."""
        if self._revalidation is not None:
            self._revalidation.add(protocol)

    def left(self, protocol: TopicConnection) -> None:
        """Its session is over."""
        if self._revalidation is not None:
            self._revalidation.discard(protocol)

    def rechecked(self, protocol: TopicConnection) -> None:
        """A question about its token, asked or unasked, is answered."""
        if self._revalidation is not None:
            self._revalidation.done(protocol)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self._revalidation is not None:
            self._revalidation.start()
        self._heart.start(self.context.settings.ping_interval / SLOTS, now=False)

    def stopService(self) -> Deferred[None] | None:
        """Close every connection, spread over the drain time; fires when all are gone.

        That is bounded: nobody new comes in, and a close that is not answered is aborted.
        """
        self._is_stopping = True
        super().stopService()  # type: ignore[no-untyped-call]
        if self._heart.running:
            self._heart.stop()
        if self._revalidation is not None:
            self._revalidation.stop()
        if not self._wheel:
            return None
        all_gone: Deferred[None] = Deferred()
        self._all_gone = all_gone
        members = list(self._wheel)
        self._random.shuffle(members)
        share = self._drain / len(members)
        now = self.clock.seconds()
        # Each within its own share of the time, so that clients that come back at once come
        # evenly, and at a moment of its own in it.
        self._leaving = deque(
            (now + share * (place + self._random.random()), member)
            for place, member in enumerate(members)
        )
        self._send_away()
        return all_gone

    def _send_away(self) -> None:
        """Close those whose moment has come."""
        now = self.clock.seconds()
        while self._leaving and self._leaving[0][0] <= now:
            _, member = self._leaving.popleft()
            try:
                member.going_away()
            except Exception:
                self._log.failure("{peer} could not be told that we stop", peer=member.peer)
        self._next_leaves = None
        if self._leaving:
            self._next_leaves = self.clock.callLater(self._leaving[0][0] - now, self._send_away)

    def _beat(self, turns: int) -> None:
        """Turn the wheel; after a pause at most once around."""
        now = self.context.now()
        for _ in range(min(turns, SLOTS)):
            for member in self._wheel.advance():
                try:
                    member.beat(now)
                except Exception:
                    self._log.failure("a beat of {peer} failed", peer=member.peer)


def _websocket_factory(settings: SessionSettings) -> WebSocketServerFactory:
    factory = WebSocketServerFactory(server="")
    factory.setProtocolOptions(
        versions=[13],
        webStatus=False,
        utf8validateIncoming=True,
        requireMaskedClientFrames=True,
        maxMessagePayloadSize=settings.max_message,
        failByDrop=False,
        openHandshakeTimeout=0,  # HTTP has its own
        closeHandshakeTimeout=0,  # `WebSocketServer.closing`
        perMessageCompressionAccept=lambda _: None,
        autoPingInterval=0,  # `WebSocketServer._beat`
        allowNullOrigin=True,  # origins are the HTTP side's
    )
    # Autobahn copies its options to each connection and formats them for a debug line:
    # on the class they cost nothing.
    options = {name: getattr(factory, name) for name in WebSocketServerProtocol.CONFIG_ATTRS}
    factory.protocol = type("TopicConnection", (TopicConnection,), options)
    return factory
