"""Adapter: Autobahn's callbacks to the rule book, the rule book's effects to Autobahn.

A protocol class translates and holds no rule. What belongs to no single connection (the
heartbeat, the deadlines, stopping) is in `topicsvc.websocket.server`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import txaio
from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.admission.client_quota import Visit
from topicsvc.delivery.send_queue import Outbound
from topicsvc.delivery.transports import way_out
from topicsvc.errors import TokenInactive, Unavailable
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress
from topicsvc.websocket.keepalive import Pulse
from topicsvc.websocket.messages import SERVICE_UNAVAILABLE, pong_frame
from topicsvc.websocket.session import (
    GOING_AWAY,
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    TRY_AGAIN_LATER,
    Begin,
    Close,
    Effect,
    Join,
    Recheck,
    Reply,
    Session,
    Validate,
)
from topicsvc.websocket.session_log import Entry

if TYPE_CHECKING:
    from topicsvc.websocket.server import Connections

__all__ = ["TopicProtocol"]

_FAILURES = {1002: "Protocol error", 1007: "Invalid UTF-8", 1009: "Message too big"}
"""What Autobahn ends a connection for (RFC 6455, section 7.4.1)."""

_MAX_CLOSE_REASON = 123
_SLOW_CONSUMER = "Slow consumer"
_TOO_MANY_MESSAGES = "Too many messages"
_TOO_MANY_FRAMES = "Too many frames"

txaio.use_twisted()


class TopicProtocol(WebSocketServerProtocol):  # type: ignore[misc]
    """One connection: a WebSocket, its session, and its way out.

    Args:
        topic: what the client asked for.
        connections: the house it lives in.
        visit: what it counts as.
    """

    # Autobahn reports every fault of every stranger; ours are in `_log`.
    log = txaio.make_logger(level="none")  # type: ignore[attr-defined]
    _log: ClassVar[Logger] = Logger()

    _detail = ""

    failedByMe: bool
    message_data: list[bytes] | None
    CONFIG_ATTRS = ()  # the options stand on the class: see `Connections`

    def __init__(self, topic: TopicAddress, connections: Connections, visit: Visit) -> None:
        super().__init__()
        self.topic = topic
        self._house = connections
        self._visit = visit
        self._frames = 0
        self._session = Session(
            connections.settings.timestamps, keeps_token=connections.revocation is not None
        )
        self._pulse = Pulse(connections.settings.ping_limit)
        self._outbound: Outbound
        self._under_way: Deferred[Any] | None = None
        self.is_member = False
        self._is_held_back = False
        self._closed_because = ""
        self._entry: Entry

    # What the house asks.

    def broker_lost(self) -> None:
        """See `topicsvc.interfaces.Member`."""
        self._perform(self._session.close(TRY_AGAIN_LATER, SERVICE_UNAVAILABLE))

    def beat(self, now: float) -> None:
        """Ping the client, or close a session that has run out or a peer that is gone."""
        self._perform(self._session.beat(now))
        if self.state == self.STATE_OPEN:
            ping = self._pulse.beat()
            if ping is None:
                self._perform(self._session.close(POLICY_VIOLATION, "No pong"))
            else:
                self.sendPing(ping)

    def keep_token(self, keeps: bool) -> None:
        """Whether the next token that is shown will be looked at again."""
        self._session.keeps_token = keeps

    def recheck(self) -> bool:
        """See whether the token still holds; whether that takes a while."""
        effects = self._session.recheck(self._now())
        self._perform(effects)
        return bool(effects) and self._under_way is not None

    def token_timeout(self) -> None:
        """The time to present a live token is over."""
        self._perform(self._session.token_timeout())

    def going_away(self) -> None:
        """The service is stopping."""
        self._perform(self._session.close(GOING_AWAY, "Going away"))

    def slow(self, waiting: int) -> None:
        """So many bytes wait for this peer: too many, or for too long."""
        self._detail = f"{waiting} bytes waited"
        self._perform(self._session.close(POLICY_VIOLATION, _SLOW_CONSUMER))

    def abort(self) -> None:
        """The close handshake took too long."""
        self.transport.abortConnection()

    def accept(self, key: str) -> None:
        """Answer an opening handshake that the HTTP side has found to be good.

        Args:
            key: the client's ``Sec-WebSocket-Key``.
        """
        self.websocket_version = 13
        self.websocket_protocols: list[str] = []
        self.websocket_extensions: list[str] = []
        self._wskey = key
        self.succeedHandshake(None)

    # What Twisted and Autobahn call.

    def connectionMade(self) -> None:
        """The HTTP side has handed the transport over."""
        self.peer = self._visit.peer
        self._entry = self._house.journal.open(self.peer, self.topic.path)
        # Not by way of the server's, which describes each connection for a debug line.
        WebSocketProtocol._connectionMade(self)
        self.factory.countConnections += 1
        # The HTTP channel is still the transport's producer.
        self.transport.unregisterProducer()
        self._outbound = way_out(
            self.transport, self._house.settings.send_queue, self._house.backlog, self.slow
        )
        self._outbound.broker_lost = self.broker_lost
        self._outbound.withheld = self._house.journal.withhold

    def dataReceived(self, data: bytes) -> None:
        # Not by way of Autobahn's, which describes each piece for a debug line.
        self._dataReceived(data)

    def _onOpen(self) -> None:
        # Not by way of Autobahn's, which looks at the certificate of each client.
        self.onOpen()

    def onOpen(self) -> None:
        self._house.opened(self)

    def onMessageBegin(self, isBinary: bool) -> None:
        super().onMessageBegin(isBinary)
        self._frames = 0

    def onMessageFrameBegin(self, length: int) -> None:
        super().onMessageFrameBegin(length)
        self._frames += 1
        if not self.failedByMe and not self._visit.takes_frames(self._frames):
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_FRAMES)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._visit.takes_message():
            self._perform(self._session.received(payload, isBinary, self._now()))
        else:
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_MESSAGES)

    def onMessageEnd(self) -> None:
        # Not by way of Autobahn's, which notifies observers that there are none of.
        if not self.failedByMe:
            self.onMessage(b"".join(self.message_data or ()), self.message_is_binary)
        self.message_data = None

    def onPing(self, payload: bytes) -> None:
        if not self._visit.takes_control():
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_MESSAGES)
        elif self.state == self.STATE_OPEN:
            # Where something waits, the newest alone is answered (RFC 6455, section 5.5.3).
            self._outbound.write_newest(pong_frame(payload))

    def onPong(self, payload: bytes) -> None:
        if not self._pulse.pong(payload) and not self._visit.takes_control():
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_MESSAGES)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool:
        """The peer closes, or answers our close."""
        if code is not None and not _may_be_received(code):
            return self._protocol_violation(f"invalid close code {code}")
        try:
            self.remoteCloseReason = None if reasonRaw is None else reasonRaw.decode("utf-8")
        except UnicodeDecodeError:
            return self._invalid_payload("invalid close reason")
        self.remoteCloseCode = code
        self.wasClean = True
        if self.state == self.STATE_OPEN:
            self._end("Client closed")
            # It reads no more: what waits for it would only hold up the answer.
            self._outbound.discard()
            self.sendCloseFrame(code=code, isReply=True)
        self.dropConnection(abort=False)
        return True

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self._end("Connection lost")
        self._outbound.discard()
        self._house.journal.close(self._entry)
        self._house.gone(self)
        self._visit.leave()

    def _connectionLost(self, reason: Any) -> None:
        super()._connectionLost(reason)
        # Nothing holds on to itself, so all is freed now: the garbage collector is kept rare.
        self._outbound.let_go()
        self.is_open = self.is_closed = None

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Every frame, Autobahn's own too, goes out behind those written before."""
        self._outbound.write(data)

    def _fail_connection(self, code: int = POLICY_VIOLATION, reason: str = "") -> None:
        """Fail the connection as RFC 6455, section 7.1.7, has it: say why, read no more."""
        if self.failedByMe:
            return
        self.failedByMe = True
        self.data = b""  # what has come behind it is not looked at either
        if self.state != self.STATE_OPEN:
            self.dropConnection(abort=False)
            return
        self._detail = reason if code in _FAILURES else ""
        self._end(_FAILURES.get(code, reason))
        self._outbound.discard()
        self._send_close(code, reason)
        self._outbound.finish()
        # Half a close lets the peer read the code: closing with bytes of its own unread
        # would reset the connection and with it the close frame.
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _protocol_violation(self, reason: str) -> bool:
        super()._protocol_violation(reason)
        return True

    def _invalid_payload(self, reason: str) -> bool:
        super()._invalid_payload(reason)
        return True

    def _dataReceived(self, data: bytes) -> None:
        if not self.failedByMe:
            super()._dataReceived(data)

    # Effects.

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if self._closed_because:  # what was written before has shown that the peer is slow
                return
            match effect:
                case Begin():
                    self._house.journal.begin(self._entry)
                case Reply(frame):
                    self._outbound.write(frame)
                case Close(code, reason):
                    self._end(reason)
                    self._send_close(code, reason)
                case Validate(token):
                    judge = self._visit.judge
                    self._own(judge(self._house.validator, token, self.topic), self._judged)
                case Recheck(token):
                    again = self._house.validate_again
                    self._own(maybeDeferred(again, token, self.topic), self._judged)
                case Join():
                    join = self._house.hub.join
                    self._own(maybeDeferred(join, self.topic, self._outbound), self._joined)
        self._outbound.deliver_until = self._session.deliver_until
        self._hold_back(self._session.is_laden)

    def _hold_back(self, holds: bool) -> None:
        """Whether what else the client sends is left to the network."""
        if holds != self._is_held_back:
            self._is_held_back = holds
            if holds:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    def _own(self, asked: Deferred[Any], answered: Callable[[Any], None]) -> None:
        """Wait for an answer, one at a time; it is cancelled when the session ends."""
        self._under_way = asked
        asked.addCallbacks(answered, self._unanswered)
        asked.addErrback(self._fault)

    def _answered(self) -> None:
        self._under_way = None
        self._house.rechecked(self)

    def _judged(self, grant: Grant) -> None:
        self._answered()
        self._house.tokens.cancel(self)
        self._perform(self._session.granted(grant, self._now()))

    def _joined(self, _: None) -> None:
        self._answered()
        self.is_member = True
        self._house.joined(self)
        self._perform(self._session.joined(self._now()))

    def _unanswered(self, failure: Failure) -> None:
        self._answered()
        now = self._now()
        if failure.check(TokenInactive):
            self._perform(self._session.refused(now))
        elif failure.check(Unavailable, CancelledError):
            # Cancelled by us, the session is closed and listens no more.
            self._perform(self._session.undecided(now))
        else:
            self._log.failure("a token of {peer} could not be judged", failure, peer=self.peer)
            self._perform(self._session.failed(now))

    def _fault(self, failure: Failure) -> None:
        self._log.failure("a fault of ours ends {peer}", failure, peer=self.peer)
        self._perform(self._session.close(INTERNAL_ERROR, "Internal error"))

    def _end(self, why: str) -> None:
        """The session is over, whatever becomes of the connection: leave nothing behind."""
        self._session.lost()
        self._hold_back(False)  # its close frame, or that it is gone, must be seen
        if not self._closed_because:
            self._closed_because = why
            messages, size = self._outbound.messages, self._outbound.size
            self._house.journal.end(self._entry, why, self._detail, messages, size)
        self._house.tokens.cancel(self)
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.cancel()
        if self.is_member:
            self.is_member = False
            self._house.left(self)
            self._house.hub.leave(self.topic, self._outbound)

    def _send_close(self, code: int, reason: str) -> None:
        reason_utf8 = reason.encode("utf-8")[:_MAX_CLOSE_REASON]
        self._house.closing.start(self)
        self.sendCloseFrame(code=code, reasonUtf8=reason_utf8, isReply=False)

    def dropConnection(self, abort: bool = False) -> None:
        if self.state != self.STATE_CLOSED:
            self._house.closing.start(self)
            self._outbound.finish()
        super().dropConnection(abort)

    def _now(self) -> float:
        return self._house.now()


def _may_be_received(code: int) -> bool:
    """Whether a peer may send this close code (RFC 6455, section 7.4, and the IANA registry)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))
