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

from topicsvc.admission.client_quota import Visit
from topicsvc.admission.limits import Limits
from topicsvc.delivery.hub import Hub
from topicsvc.delivery.slow_consumers import Backlog
from topicsvc.interfaces import Grant, Revocation, TokenValidator
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.timing_wheel import SLOTS, Wheel
from topicsvc.settings import SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.websocket.connection import TopicProtocol
from topicsvc.websocket.revalidation import Rechecks
from topicsvc.websocket.session_log import Journal

__all__ = ["CLOSE_TIMEOUT", "Connections"]

CLOSE_TIMEOUT = 5.0
"""Seconds that a close handshake may take before the socket is aborted."""


class Connections(Service):
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

    name = "connections"
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
        self.hub = hub
        self.clock = clock
        self.now = now
        self._random = random or Random()  # noqa: S311 - no secret, only spread
        self.journal = Journal(clock)
        self._wheel: Wheel[TopicProtocol] = Wheel()
        self._heart = LoopingCall.withCount(self._beat)
        self._heart.clock = clock
        self._is_stopping = False
        self._leaving: deque[tuple[float, TopicProtocol]] = deque()
        self._next_leaves: IDelayedCall | None = None
        self._all_gone: Deferred[None] | None = None
        self._rechecks: Rechecks[TopicProtocol] | None = None
        self.tokens = Deadlines[TopicProtocol](
            clock, settings.token_timeout, TopicProtocol.token_timeout
        )
        self.closing = Deadlines[TopicProtocol](clock, CLOSE_TIMEOUT, TopicProtocol.abort)
        self.backlog = Backlog(limits or Limits(clock, now), clock)
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
        self.validator = validator
        self.settings = settings
        self._drain = drain
        self._factory = _websocket_factory(settings)
        self.tokens.last(settings.token_timeout)
        if self._heart.running:
            self._heart.stop()
            self._heart.start(settings.ping_interval / SLOTS, now=False)
        self._look_again(revocation)

    def _look_again(self, revocation: Revocation | None) -> None:
        if self._rechecks is not None:
            self._rechecks.stop()
        self.revocation = revocation
        self._rechecks = None
        for protocol in self._wheel:
            protocol.keep_token(revocation is not None)
        if revocation is None:
            return
        self._rechecks = Rechecks(
            self.clock,
            revocation.interval,
            revocation.at_once,
            TopicProtocol.recheck,
            self._random,
        )
        for protocol in self._wheel:
            if protocol.is_member:
                self._rechecks.add(protocol)
        if self.running:
            self._rechecks.start()

    def __len__(self) -> int:
        return len(self._wheel)

    @property
    def delivered(self) -> tuple[int, int]:
        """Data messages that were handed to all connections, those gone too; their bytes."""
        hub, journal = self.hub, self.journal
        return hub.offered - journal.withheld, hub.offered_size - journal.withheld_size

    def protocol(self, topic: TopicAddress, visit: Visit) -> TopicProtocol | None:
        """A new connection to `topic`, for the HTTP side to hand a transport to.

        Args:
            topic: what its client wants.
            visit: what it counts as; `Visit.leave` is from now on the connection's to call.

        Returns:
            None: the service is stopping.
        """
        if self._is_stopping:
            return None
        protocol = self._factory.protocol(topic, self, visit)
        protocol.factory = self._factory
        return protocol  # type: ignore[no-any-return]

    def opened(self, protocol: TopicProtocol) -> None:
        """The opening handshake is done."""
        self._wheel.add(protocol)
        self.tokens.start(protocol)

    def gone(self, protocol: TopicProtocol) -> None:
        """The connection is lost."""
        self._wheel.discard(protocol)
        self.closing.cancel(protocol)
        if self._all_gone is not None and not self._wheel:
            self._leaving.clear()
            if self._next_leaves is not None:
                self._next_leaves.cancel()
            self._all_gone.callback(None)
            self._all_gone = None

    def joined(self, protocol: TopicProtocol) -> None:
        """Its session is live: from now on its token is looked at again."""
        if self._rechecks is not None:
            self._rechecks.add(protocol)

    def left(self, protocol: TopicProtocol) -> None:
        """Its session is over."""
        if self._rechecks is not None:
            self._rechecks.discard(protocol)

    def validate_again(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """What holds now about a token that was granted before."""
        validator = self.validator if self.revocation is None else self.revocation.validator
        return validator.validate(token, topic)

    def rechecked(self, protocol: TopicProtocol) -> None:
        """A question about its token, asked or unasked, is answered."""
        if self._rechecks is not None:
            self._rechecks.done(protocol)

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self._rechecks is not None:
            self._rechecks.start()
        self._heart.start(self.settings.ping_interval / SLOTS, now=False)

    def stopService(self) -> Deferred[None] | None:
        """Close every connection, spread over the drain time; fires when all are gone.

        That is bounded: nobody new comes in, and a close that is not answered is aborted.
        """
        self._is_stopping = True
        super().stopService()  # type: ignore[no-untyped-call]
        if self._heart.running:
            self._heart.stop()
        if self._rechecks is not None:
            self._rechecks.stop()
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
        now = self.now()
        for _ in range(min(turns, SLOTS)):
            for member in self._wheel.turn():
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
        closeHandshakeTimeout=0,  # `Connections.closing`
        perMessageCompressionAccept=lambda _: None,
        autoPingInterval=0,  # `Connections._beat`
        allowNullOrigin=True,  # origins are the HTTP side's
    )
    # Autobahn copies its options to each connection and formats them for a debug line:
    # on the class they cost nothing.
    options = {name: getattr(factory, name) for name in WebSocketServerProtocol.CONFIG_ATTRS}
    factory.protocol = type("TopicProtocol", (TopicProtocol,), options)
    return factory
