"""Adapter: Autobahn's callbacks to the rule book, the rule book's effects to Autobahn.

A protocol class translates and holds no rule. What belongs to no single connection (the
heartbeat, the deadlines, stopping) is in `topicsvc.websocket.server`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import txaio
from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.delivery.send_queue import SendQueue
from topicsvc.delivery.transports import make_send_queue
from topicsvc.errors import TokenInactive, Unavailable
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress
from topicsvc.websocket.context import ConnectionContext
from topicsvc.websocket.keepalive import PingTracker
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
from topicsvc.websocket.session_log import SessionRecord

__all__ = ["ConnectionObserver", "TopicConnection"]

_FAILURES = {1002: "Protocol error", 1007: "Invalid UTF-8", 1009: "Message too big"}
"""What Autobahn ends a connection for (RFC 6455, section 7.4.1)."""

_MAX_CLOSE_REASON = 123
_SLOW_CONSUMER = "Slow consumer"
_TOO_MANY_MESSAGES = "Too many messages"
_TOO_MANY_FRAMES = "Too many frames"

txaio.use_twisted()


class ConnectionObserver(Protocol):
    """Is told what becomes of each connection."""

    def opened(self, protocol: TopicConnection) -> None:
        """The opening handshake is complete."""
        ...

    def joined(self, protocol: TopicConnection) -> None:
        """The session is active."""
        ...

    def rechecked(self, protocol: TopicConnection) -> None:
        """A check of its token has ended, whoever asked for it."""
        ...

    def left(self, protocol: TopicConnection) -> None:
        """The session has ended."""
        ...

    def gone(self, protocol: TopicConnection) -> None:
        """The connection is lost."""
        ...


class TopicConnection(WebSocketServerProtocol):  # type: ignore[misc]
    """One connection: a WebSocket, its session, and its way out.

    Args:
        topic: what the client asked for.
        context: what all connections share.
        observer: is told what becomes of this one.
        quota: its limits.
    """

    # Autobahn reports every fault of every stranger; ours are in `_log`.
    log = txaio.make_logger(level="none")  # type: ignore[attr-defined]
    _log: ClassVar[Logger] = Logger()

    _detail = ""

    failedByMe: bool
    message_data: list[bytes] | None
    CONFIG_ATTRS = ()  # the options stand on the class: see `WebSocketServer`

    def __init__(
        self,
        topic: TopicAddress,
        context: ConnectionContext,
        observer: ConnectionObserver,
        quota: ClientQuota,
    ) -> None:
        super().__init__()
        self.topic = topic
        self._context = context
        self._observer = observer
        self._quota = quota
        self._frames = 0
        self._session = Session(
            context.settings.timestamps, keeps_token=context.revocation is not None
        )
        self._pings = PingTracker(context.settings.ping_limit)
        self._send_queue: SendQueue
        self._in_flight: Deferred[Any] | None = None
        self.is_member = False
        self._is_read_paused = False
        self._closed_because = ""
        self._record: SessionRecord

    # What the house asks.

    def broker_lost(self) -> None:
        """See `topicsvc.interfaces.Member`."""
        self._perform(self._session.close(TRY_AGAIN_LATER, SERVICE_UNAVAILABLE))

    def beat(self, now: float) -> None:
        """Ping the client, or close a session that has run out or a peer that is gone."""
        self._perform(self._session.check_expiry(now))
        if self.state == self.STATE_OPEN:
            ping = self._pings.next_ping()
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
        return bool(effects) and self._in_flight is not None

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
        self.peer = self._quota.peer
        self._record = self._context.session_log.open(self.peer, self.topic.path)
        # Not by way of the server's, which describes each connection for a debug line.
        WebSocketProtocol._connectionMade(self)
        self.factory.countConnections += 1
        # The HTTP channel is still the transport's producer.
        self.transport.unregisterProducer()
        self._send_queue = make_send_queue(
            self.transport,
            self._context.settings.send_queue,
            self._context.slow_consumers,
            self.slow,
        )
        self._send_queue.broker_lost = self.broker_lost
        self._send_queue.undelivered = self._context.session_log.count_undelivered

    def dataReceived(self, data: bytes) -> None:
        # Not by way of Autobahn's, which describes each piece for a debug line.
        self._dataReceived(data)

    def _onOpen(self) -> None:
        # Not by way of Autobahn's, which looks at the certificate of each client.
        self.onOpen()

    def onOpen(self) -> None:
        self._observer.opened(self)

    def onMessageBegin(self, isBinary: bool) -> None:
        super().onMessageBegin(isBinary)
        self._frames = 0

    def onMessageFrameBegin(self, length: int) -> None:
        super().onMessageFrameBegin(length)
        self._frames += 1
        if not self.failedByMe and not self._quota.allow_fragments(self._frames):
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_FRAMES)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._quota.allow_message():
            self._perform(self._session.received(payload, isBinary, self._now()))
        else:
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_MESSAGES)

    def onMessageEnd(self) -> None:
        # Not by way of Autobahn's, which notifies observers that there are none of.
        if not self.failedByMe:
            self.onMessage(b"".join(self.message_data or ()), self.message_is_binary)
        self.message_data = None

    def onPing(self, payload: bytes) -> None:
        if not self._quota.allow_control_frame():
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_MESSAGES)
        elif self.state == self.STATE_OPEN:
            # Where something waits, the newest alone is answered (RFC 6455, section 5.5.3).
            self._send_queue.write_newest(pong_frame(payload))

    def onPong(self, payload: bytes) -> None:
        if not self._pings.pong(payload) and not self._quota.allow_control_frame():
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
            self._send_queue.discard()
            self.sendCloseFrame(code=code, isReply=True)
        self.dropConnection(abort=False)
        return True

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self._end("Connection lost")
        self._send_queue.discard()
        self._context.session_log.close(self._record)
        self._observer.gone(self)
        self._quota.leave()

    def _connectionLost(self, reason: Any) -> None:
        super()._connectionLost(reason)
        # Nothing holds on to itself, so all is freed now: the garbage collector is kept rare.
        self._send_queue.detach()
        self.is_open = self.is_closed = None

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Every frame, Autobahn's own too, goes out behind those written before."""
        self._send_queue.write(data)

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
        self._send_queue.discard()
        self._send_close(code, reason)
        self._send_queue.finish()
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
                    self._context.session_log.begin(self._record)
                case Reply(frame):
                    self._send_queue.write(frame)
                case Close(code, reason):
                    self._end(reason)
                    self._send_close(code, reason)
                case Validate(token):
                    validate = self._quota.validate
                    self._own(validate(self._context.validator, token, self.topic), self._validated)
                case Recheck(token):
                    revalidate = self._context.revalidate
                    self._own(maybeDeferred(revalidate, token, self.topic), self._validated)
                case Join():
                    join = self._context.hub.join
                    self._own(maybeDeferred(join, self.topic, self._send_queue), self._joined)
        self._send_queue.deliver_until = self._session.deliver_until
        self._set_read_paused(self._session.wants_read_pause)

    def _set_read_paused(self, holds: bool) -> None:
        """Whether what else the client sends is left to the network."""
        if holds != self._is_read_paused:
            self._is_read_paused = holds
            if holds:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    def _own(self, asked: Deferred[Any], answered: Callable[[Any], None]) -> None:
        """Wait for an answer, one at a time; it is cancelled when the session ends."""
        self._in_flight = asked
        asked.addCallbacks(answered, self._unanswered)
        asked.addErrback(self._fault)

    def _answered(self) -> None:
        self._in_flight = None
        self._observer.rechecked(self)

    def _validated(self, grant: Grant) -> None:
        self._answered()
        self._context.token_deadlines.cancel(self)
        self._perform(self._session.granted(grant, self._now()))

    def _joined(self, _: None) -> None:
        self._answered()
        self.is_member = True
        self._observer.joined(self)
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
        self._set_read_paused(False)  # its close frame, or that it is gone, must be seen
        if not self._closed_because:
            self._closed_because = why
            messages, size = self._send_queue.messages, self._send_queue.size
            self._context.session_log.end(self._record, why, self._detail, messages, size)
        self._context.token_deadlines.cancel(self)
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.cancel()
        if self.is_member:
            self.is_member = False
            self._observer.left(self)
            self._context.hub.leave(self.topic, self._send_queue)

    def _send_close(self, code: int, reason: str) -> None:
        reason_utf8 = reason.encode("utf-8")[:_MAX_CLOSE_REASON]
        self._context.close_deadlines.start(self)
        self.sendCloseFrame(code=code, reasonUtf8=reason_utf8, isReply=False)

    def dropConnection(self, abort: bool = False) -> None:
        if self.state != self.STATE_CLOSED:
            self._context.close_deadlines.start(self)
            self._send_queue.finish()
        super().dropConnection(abort)

    def _now(self) -> float:
        return self._context.now()


def _may_be_received(code: int) -> bool:
    """Whether a peer may send this close code (RFC 6455, section 7.4, and the IANA registry)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))
