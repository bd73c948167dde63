"""One connection: passes Autobahn's callbacks to the session and carries out its effects.

The protocol's rules are in `topicsvc.websocket.session`. Heartbeat, deadlines and stop, which
concern all connections, are in `topicsvc.websocket.server`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import cached_property
from hashlib import sha1
from typing import Any, ClassVar, Protocol

import txaio
from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.delivery.positions import PositionedMember
from topicsvc.delivery.send_queue import SendQueue
from topicsvc.delivery.transports import make_send_queue
from topicsvc.errors import BrokerUnavailable, TokenInactive, TooManySessions, Unavailable
from topicsvc.interfaces import Grant, Place
from topicsvc.listening.paced_tls import (
    budget_of_waiting_input,
    set_tls_budget,
    socket_transport,
)
from topicsvc.pieces import keep_piece
from topicsvc.topics import TopicAddress
from topicsvc.websocket.close_reasons import CONNECTION_LOST, ENDED_BY_OPERATOR, NO_CAUSE, Cause
from topicsvc.websocket.context import ConnectionContext
from topicsvc.websocket.keepalive import PingTracker
from topicsvc.websocket.messages import (
    SERVICE_UNAVAILABLE,
    ends_with_close,
    pong_frame,
    whole_text,
)
from topicsvc.websocket.session import (
    GOING_AWAY,
    INTERNAL_ERROR,
    MAX_WAITING_BYTES,
    MAX_WAITING_BYTES_WITHOUT_TOKEN,
    POLICY_VIOLATION,
    TRY_AGAIN_LATER,
    Begin,
    Close,
    Effect,
    Join,
    Recheck,
    Replay,
    Reply,
    Resume,
    Session,
    State,
    Validate,
)
from topicsvc.websocket.session_info import SessionInfo
from topicsvc.websocket.session_log import SessionRecord

__all__ = ["ConnectionObserver", "TopicConnection"]

PIECE = 2048
"""Most bytes that are processed before the budget is checked, and that are read without TLS.

They can be 341 frames, which take 1.5 ms."""

_FAILURES = {1002: "Protocol error", 1007: "Invalid UTF-8", 1009: "Message too big"}
"""The close codes with which Autobahn fails a connection (RFC 6455, section 7.4.1)."""

_MAX_CLOSE_REASON = 123
"""Bytes: a control frame holds at most 125, and 2 are the code (RFC 6455, section 5.5)."""

_RESPONSE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %s\r\n\r\n"
)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""Joined to the client's key (RFC 6455, section 4.2.2)."""

_BROKER_LOST = Cause.of_error(BrokerUnavailable("the broker was lost"))
_SLOW_CONSUMER = "Slow consumer"
_TOO_MANY_MESSAGES = "Too many messages"
_TOO_MANY_FRAMES = "Too many frames"

txaio.use_twisted()


class ConnectionObserver(Protocol):
    """Is notified of each step of each connection."""

    def opened(self, connection: TopicConnection) -> None:
        """The opening handshake is complete."""
        ...

    def joined(self, connection: TopicConnection) -> None:
        """The connection has joined its topic."""
        ...

    def check_done(self, connection: TopicConnection) -> None:
        """The request that was in progress (a token check or a subscription) has ended."""
        ...

    def left(self, connection: TopicConnection) -> None:
        """The connection leaves its topic."""
        ...

    def session_ended(self, connection: TopicConnection, reason: str, detail: str) -> None:
        """The session has ended, or will not start. The connection may stay open meanwhile."""
        ...

    def closed(self, connection: TopicConnection) -> None:
        """The transport is closed."""
        ...


class TopicConnection(WebSocketServerProtocol):  # type: ignore[misc]
    """One connection: a WebSocket, its session and its send queue.

    Args:
        topic: the topic that the client requested.
        context: the state that all connections share.
        observer: is notified of each step of this connection.
        quota: the limits of this client.

    Attributes:
        is_member: whether it is joined to its topic.
    """

    # Autobahn would log every error of every client. This service's own go to `_log`.
    log = txaio.make_logger(level="none")  # type: ignore[attr-defined]
    _log: ClassVar[Logger] = Logger()

    failedByMe: bool
    message_data: list[bytes | bytearray] | None = None
    CONFIG_ATTRS = ()  # the options are class attributes: see `topicsvc.websocket.server`

    positioned: PositionedMember | None = None
    """Its membership, if the client asks for positions."""

    has_initial_state: ClassVar[bool] = False
    """Whether the class has the attributes that Autobahn would set on each connection."""

    # As after an opening handshake of version 13 without extensions.
    websocket_version = 13
    inside_message = False
    current_frame = None

    def __init__(
        self,
        topic: TopicAddress,
        context: ConnectionContext,
        observer: ConnectionObserver,
        quota: ClientQuota,
    ) -> None:
        if not self.has_initial_state:
            super().__init__()
        self.topic = topic
        self._context = context
        self._observer = observer
        self._quota = quota
        self._fragments = 0
        self._session = Session(
            context.settings.timestamps, keeps_token=context.revocation is not None
        )
        self._pings = PingTracker(context.settings.ping_limit)
        self._send_queue: SendQueue
        self._pending: Deferred[Any] | None = None
        self.is_member = False
        self._is_read_paused = False
        self._budget = context.budget
        self._unprocessed = b""  # received when the budget of its iteration was spent
        self._close_reason = ""
        self._record: SessionRecord

    # Called by the server and the hub.

    def broker_lost(self) -> None:
        """See `topicsvc.interfaces.Member`."""
        self._perform(self._session.close(TRY_AGAIN_LATER, SERVICE_UNAVAILABLE, _BROKER_LOST))

    def heartbeat(self, now: float) -> None:
        """Send a ping, or close if the session has expired or too many pings are unanswered."""
        self._perform(self._session.check_expiry(now))
        self._after_input(self._send_ping)

    def _send_ping(self) -> None:
        if self.state == self.STATE_OPEN:
            ping = self._pings.next_ping()
            if ping is None:
                self._perform(self._session.close(POLICY_VIOLATION, "No pong"))
            else:
                self.sendPing(ping)

    def position_due(self) -> None:
        """Nothing was sent for the time of a heartbeat: tell the client its position."""
        if self.positioned is not None:
            now = self._now()
            self.positioned.tell_position(
                now, lambda position: self._perform(self._session.position_due(now, position))
            )

    def set_keeps_token(self, keeps: bool) -> None:
        """Set whether the next token that the client presents is kept for later checks."""
        self._session.keeps_token = keeps

    def recheck(self) -> bool:
        """Check the session's token again.

        Returns:
            Whether a check is in progress now.
        """
        effects = self._session.recheck(self._now())
        self._perform(effects)
        return bool(effects) and self._pending is not None

    def token_timeout(self) -> None:
        """Close a connection that presented no token in time."""
        self._after_input(lambda: self._perform(self._session.token_timeout()))

    def going_away(self) -> None:
        """Close because the service is stopping."""
        self._perform(self._session.close(GOING_AWAY, "Going away"))

    def drop_slow_consumer(self, waiting: int) -> None:
        """Close because `waiting` bytes are too many, or have been queued for too long."""
        cause = Cause(f"{waiting} bytes waited")
        self._perform(self._session.close(POLICY_VIOLATION, _SLOW_CONSUMER, cause))

    def end_by_operator(self, detail: str) -> None:
        """Close because an operator ends the session; `detail` is for the log."""
        self._perform(self._session.close(POLICY_VIOLATION, ENDED_BY_OPERATOR, Cause(detail)))

    @property
    def record(self) -> SessionRecord:
        """Its record in the session log."""
        return self._record

    @property
    def address(self) -> str:
        """The address of the client without a port; of a UNIX socket, Twisted's text for it."""
        return self._quota.host or self._quota.peer

    def info(self) -> SessionInfo:
        """What operators can see of the session."""
        record, expires_at = self._record, self._session.expires_at
        return SessionInfo(
            record.number,
            record.topic,
            self.address,
            record.subject,
            record.token,
            self._context.session_log.age(record),
            None if expires_at is None else max(0.0, expires_at - self._now()),
            self._send_queue.messages,
            self._send_queue.waiting,
        )

    def abort(self) -> None:
        """Abort a close handshake that took too long."""
        self._after_input(self.transport.abortConnection)

    def end_failed(self) -> None:
        """End TLS behind the close frame that a failed connection has sent."""
        self.transport.loseConnection()

    def accept(self, key: bytes) -> None:
        """Complete an opening handshake that the HTTP side has validated.

        Args:
            key: the client's ``Sec-WebSocket-Key``.
        """
        digest = sha1(key + _GUID, usedforsecurity=False).digest()
        self.state = self.STATE_OPEN
        self._send_queue.write(_RESPONSE % b64encode(digest))
        self._observer.opened(self)

    # Called by Twisted and Autobahn.

    def connectionMade(self) -> None:
        """The HTTP side has handed the transport over."""
        self.peer = self._quota.peer
        self._is_tls = ISSLTransport.providedBy(self.transport)
        if not self._is_tls:
            socket_transport(self.transport).bufferSize = PIECE
        self._record = self._context.session_log.open(self.peer, self.topic.path)
        if not self.has_initial_state:
            WebSocketProtocol._connectionMade(self)
        self._send_queue = make_send_queue(
            self.transport,
            self._context.settings.send_queue,
            self._context.slow_consumers,
            self.drop_slow_consumer,
        )
        self._send_queue.address = self._quota.address
        self._send_queue.broker_lost = self.broker_lost
        self._send_queue.on_undelivered = self._context.session_log.count_undelivered

    def dataReceived(self, data: bytes) -> None:
        """Process `data`, or defer that to a later iteration and read no more until then."""
        if self._unprocessed:
            self._unprocessed += data
        elif self._budget.is_spent and not self._is_tls:  # TLS was deferred before
            self._defer(data)
        else:
            self._process(data)

    def _defer(self, data: bytes) -> None:
        self._unprocessed = data
        self.transport.pauseProducing()
        self._budget.defer(self._process_deferred)

    def _process_deferred(self) -> None:
        data, self._unprocessed = self._unprocessed, b""
        try:
            self.dataReceived(data)
        except Exception:
            self._log.failure("an internal error closes {peer}", peer=self.peer)
            self.transport.abortConnection()
        if not self._is_read_paused and not self._unprocessed:
            self.transport.resumeProducing()

    def _after_input(self, act: Callable[[], None]) -> None:
        """Call `act`, behind bytes that arrived in time and wait for a later iteration."""
        waits = self._budget if self._unprocessed else budget_of_waiting_input(self.transport)
        if waits is None:
            act()
        else:
            waits.defer(act)

    def _process(self, data: bytes) -> None:
        budget = self._budget
        since = budget.now()
        if (
            self.state == self.STATE_OPEN
            and self.current_frame is None
            and not self.data
            and not self.inside_message
        ):
            text = whole_text(data, self.maxMessagePayloadSize)
            if text is not None:
                self.onMessage(text, False)
                budget.spend(since)
                return
        for start in range(0, len(data), PIECE):
            if start and budget.is_spent:
                self._defer(data[start:])
                break
            # Autobahn's method of this name formats a debug line for each call.
            self._dataReceived(data[start : start + PIECE])
            since = budget.spend(since)
        if self._pending is not None:
            self._update_reading()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # Autobahn's method of this name formats debug lines.
        self._connectionLost(reason)

    @cached_property
    def utf8validator(self) -> Utf8Validator:
        """Validates text in several frames; most connections never need it."""
        return Utf8Validator()

    def onMessageBegin(self, isBinary: bool) -> None:
        super().onMessageBegin(isBinary)
        self._fragments = 0

    def onMessageFrameBegin(self, length: int) -> None:
        super().onMessageFrameBegin(length)
        self._fragments += 1
        if not self.failedByMe and not self._quota.allow_fragments(self._fragments):
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_FRAMES)

    def onMessageFrameData(self, payload: bytes) -> None:
        # Autobahn's method keeps each piece, which may be one byte, as an object of its own.
        if not self.failedByMe and self.message_data is not None:
            keep_piece(self.message_data, payload)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._quota.allow_message():
            self._perform(self._session.received(payload, isBinary, self._now()))
        else:
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_MESSAGES)

    def onMessageEnd(self) -> None:
        # Autobahn's method also calls observers; there are none.
        if not self.failedByMe:
            self.onMessage(b"".join(self.message_data or ()), self.message_is_binary)
        self.message_data = None

    def onPing(self, payload: bytes) -> None:
        if not self._quota.allow_control_frame():
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_MESSAGES)
        elif self.state == self.STATE_OPEN:
            # While data is queued, only the newest ping is answered (RFC 6455, section 5.5.3).
            self._send_queue.write_replaceable(pong_frame(payload))

    def onPong(self, payload: bytes) -> None:
        if not self._pings.pong(payload) and not self._quota.allow_control_frame():
            self._fail_connection(POLICY_VIOLATION, _TOO_MANY_MESSAGES)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool:
        """Take the client's close frame, or its answer to the service's."""
        if code is not None and not _may_be_received(code):
            return self._protocol_violation(f"invalid close code {code}")
        try:
            self.remoteCloseReason = None if reasonRaw is None else reasonRaw.decode("utf-8")
        except UnicodeDecodeError:
            return self._invalid_payload("invalid close reason")
        self.remoteCloseCode = code
        self.wasClean = True
        if self.state == self.STATE_OPEN:
            self._end_session("Client closed", NO_CAUSE if code is None else Cause(f"code {code}"))
            # The client reads no more data: queued data would only delay the answer.
            self._send_queue.discard()
            self.sendCloseFrame(code=code, isReply=True)
        self.dropConnection(abort=False)
        return True

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self._end_session(CONNECTION_LOST)
        self._send_queue.discard()
        self._context.session_log.close(self._record)
        self._observer.closed(self)
        self._quota.release()

    def _connectionLost(self, reason: Any) -> None:
        WebSocketProtocol._connectionLost(self, reason)
        # Without reference cycles the memory is freed now: the garbage collector runs rarely.
        self._send_queue.detach()
        if self.positioned is not None:
            self.positioned.detach()
        self.is_open = self.is_closed = None

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Queue every frame, Autobahn's own included, behind those written before.

        Nothing follows a close frame (RFC 6455, section 5.5.1).
        """
        if self.state in (self.STATE_CONNECTING, self.STATE_OPEN):
            self._send_queue.write(data)

    def _fail_connection(self, code: int = POLICY_VIOLATION, reason: str = "") -> None:
        """Fail the connection: send a close frame and read no more (RFC 6455, section 7.1.7)."""
        if self.failedByMe:
            return
        self.failedByMe = True
        self.data = b""  # received after the error: ignored
        if self.state != self.STATE_OPEN:
            self.dropConnection(abort=False)
            return
        cause = Cause(reason) if code in _FAILURES else NO_CAUSE
        self._end_session(_FAILURES.get(code, reason), cause)
        self._send_queue.discard()
        self._send_close(code, reason)
        self._send_queue.finish()
        # Closing while received bytes are unread would reset the connection, and the client
        # might lose the close frame. A half-close lets the client read it.
        if ISSLTransport.providedBy(self.transport):
            # TLS has no half-close. If it ends before some clients have answered the close frame,
            # they report 1006 (seen with aiohttp 3).
            self._context.failure_deadlines.start(self)
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
        elif self in self._context.failure_deadlines and ends_with_close(data):
            self._context.failure_deadlines.cancel(self)
            self.end_failed()

    # Effects.

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if self._close_reason:  # an earlier effect filled the send queue
                return
            match effect:
                case Begin():
                    self._context.session_log.begin(self._record)
                case Reply(frame, False):
                    self._send_queue.write(frame)
                case Close():
                    self._close(effect)
                case Validate(token):
                    self._record.token = self._context.token_ids(token)
                    self._validate(token)
                case Recheck(token):
                    check = maybeDeferred(self._context.revalidate, token, self.topic)
                    self._wait_for(check, self._validated)
                case Join():
                    self._join(effect)
                case _:
                    self._perform_with_positions(effect)
        until = self._session.deliver_until
        self._send_queue.deliver_until = until
        if until:  # messages that wait when the session ends are sent until the expiry
            self._send_queue.send_until = until
        self._update_reading()

    def _perform_with_positions(self, effect: Effect) -> None:
        """Carry out an effect that only sessions with positions have."""
        match effect:
            case Resume():
                if self.positioned is not None:
                    place = self.positioned.resume()
                    self._perform(self._session.resumed(self._now(), place))
            case Reply(frame):
                self._deliver(frame, 0)
            case Replay(frames, count):
                self._deliver(frames, count)

    def _deliver(self, frames: bytes, count: int) -> None:
        """Send data of this session alone."""
        queue, now = self._send_queue, self._now()
        queue.deliver_until = self._session.deliver_until
        if now >= queue.deliver_until:
            # The grant has expired since the session decided. A later one tells the client.
            queue.has_dropped = True
        queue.deliver(frames, count, now)
        if self.positioned is not None:
            self.positioned.touch()

    def _update_reading(self) -> None:
        """Pause reading while a check is in progress and too many bytes wait for its result."""
        session = self._session
        pauses = session.wants_read_pause
        if not pauses and self._pending is not None and self.state == self.STATE_OPEN:
            # Some are of messages that are not complete.
            pieces = (*(self.message_data or ()), self.data)
            limit = MAX_WAITING_BYTES
            if session.state is not State.ACTIVE:
                limit = MAX_WAITING_BYTES_WITHOUT_TOKEN
            pauses = session.waiting_bytes + sum(map(len, pieces)) > limit
        self._set_read_paused(pauses)

    def _set_read_paused(self, is_paused: bool) -> None:
        """Stop or resume reading; unread bytes stay in the network's buffers."""
        if is_paused != self._is_read_paused:
            self._is_read_paused = is_paused
            if is_paused:
                self.transport.pauseProducing()
            elif not self._unprocessed:
                self.transport.resumeProducing()

    def _validate(self, token: str) -> None:
        validator = self._context.validator
        try:
            grant = self._quota.remembered(validator, token, self.topic)
        except Exception:
            self._failed(Failure())
            return
        if grant is None:
            check = self._quota.validate(validator, token, self.topic)
            self._wait_for(check, self._validated)
        else:
            self._call(self._validated, grant)

    def _join(self, effect: Join) -> None:
        hub = self._context.hub
        try:
            self._quota.enter_cell(self.topic.cell)
        except TooManySessions:
            self._failed(Failure())
            return
        if effect.has_positions:
            self._return_to(effect.since)
        elif hub.join_now(self.topic, self._send_queue):
            self._call(self._joined, None)
        else:
            joining = maybeDeferred(hub.join, self.topic, self._send_queue)
            self._wait_for(joining, self._joined)

    def _return_to(self, since: str | None) -> None:
        """Join with positions."""
        hub = self._context.hub
        heartbeat = self._context.settings.ping_interval
        member = hub.positioned(self._send_queue, heartbeat, self._missed)
        self.positioned = member
        place = hub.return_to_now(self.topic, member, since)
        if place is not None:
            self._call(self._joined, place)
        else:
            self._wait_for(maybeDeferred(hub.return_to, self.topic, member, since), self._joined)

    def _call(self, on_result: Callable[[Any], None], result: Any) -> None:
        """Continue with a result that is known at once, as `_wait_for` does."""
        try:
            on_result(result)
        except Exception:
            self._internal_error(Failure())

    def _wait_for(self, pending: Deferred[Any], on_result: Callable[[Any], None]) -> None:
        """Wait for one check or subscription at a time; the session's end cancels it."""
        self._pending = pending
        pending.addCallbacks(on_result, self._failed)
        pending.addErrback(self._internal_error)

    def _done(self) -> None:
        self._pending = None
        self._observer.check_done(self)

    def _validated(self, grant: Grant) -> None:
        self._done()
        self._context.token_deadlines.cancel(self)
        self._record.set_subject(grant.subject)
        self._perform(self._session.granted(grant, self._now()))

    def _joined(self, place: Place | None) -> None:
        self._done()
        self.is_member = True
        # It waits no more for the work of clients without a token.
        self._budget = self._context.session_budget
        set_tls_budget(self.transport, self._budget)
        self._observer.joined(self)
        self._perform(self._session.joined(self._now(), place))

    def _missed(self, place: Place) -> bool:
        """Messages may be missing: tell the client; return whether it could be told."""
        effects = self._session.missed(self._now(), place)
        self._perform(effects)
        return bool(effects)

    def _failed(self, failure: Failure) -> None:
        self._done()
        now = self._now()
        error = failure.value
        if isinstance(error, TokenInactive):
            self._perform(self._session.refused(now, error.refusal))
        elif isinstance(error, Unavailable):
            self._perform(self._session.undecided(now, error))
        elif isinstance(error, CancelledError):
            # Only the end of the session cancels; a closed session ignores this call.
            self._perform(self._session.undecided(now))
        else:
            self._log.failure("a request of {peer} failed", failure, peer=self.peer)
            self._perform(self._session.failed(now))

    def _internal_error(self, failure: Failure) -> None:
        self._log.failure("an internal error closes {peer}", failure, peer=self.peer)
        self._perform(self._session.close(INTERNAL_ERROR, "Internal error"))

    def _end_session(self, reason: str, cause: Cause = NO_CAUSE) -> None:
        """End the session and release what it holds. The connection may stay open meanwhile."""
        self._session.lost()
        self._send_queue.stop_delivery()
        # Without reading, neither a close frame nor the loss of the connection is noticed.
        self._set_read_paused(False)
        if not self._close_reason:
            self._close_reason = reason
            messages, size = self._send_queue.messages, self._send_queue.size
            self._context.session_log.end(self._record, reason, cause, messages, size)
            self._observer.session_ended(self, reason, cause.detail)
        self._context.token_deadlines.cancel(self)
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
        if self.is_member:
            self.is_member = False
            self._observer.left(self)
            self._context.hub.leave(self.topic, self.positioned or self._send_queue)

    def _close(self, effect: Close) -> None:
        if effect.drops_data:
            self._send_queue.drop_data()
        self._end_session(effect.reason, effect.cause)
        self._send_close(effect.code, effect.reason)

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
