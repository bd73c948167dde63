"""Keeps one STOMP connection to the broker, and reconnects when it is lost.

A `StompClient` connects, again and again with jittered back-off, and passes on the messages of
the broker. A `StompConnection` is one of these connections: greeting, heartbeats, receipts.
"""

from __future__ import annotations

from itertools import count
from random import Random
from typing import Any, ClassVar, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.brokers.activemq.stomp_frames import (
    HEARTBEAT,
    Decoder,
    Frame,
    encode,
    parse_heartbeat,
)
from topicsvc.brokers.in_flight import OnResult
from topicsvc.brokers.reconnection import BrokerClient, BrokerHandler
from topicsvc.errors import BrokerUnavailable, StompError
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.settings import Login

__all__ = ["StompClient", "StompConnection", "StompHandler"]

HEARTBEAT_INTERVAL = 2.5
"""Seconds between two heartbeats to the broker, and between two checks of the broker's."""

SILENT_CHECKS_BEFORE_PROBE = 4
"""Checks without a byte from the broker after which an answer is requested: 7.5 to 10 s.

Missing heartbeats alone do not mean that the broker is down: ActiveMQ 5.15 to 5.17 sends none
in an interval in which it answered anything, so 10 s without a byte are normal.
"""

MAX_UNANSWERED_CHECKS = 8
"""Checks without a byte, while an answer is missing, after which the connection is aborted.

These are 17.5 to 20 s. If the answer was requested by `SILENT_CHECKS_BEFORE_PROBE`, a broker
that does not respond is noticed 27.5 to 30 s after its last byte.
"""

MAX_CHECKS_BEFORE_GREETING = 2
"""Checks after which a connection without the broker's answer to CONNECT is aborted."""

RECEIPT_TIMEOUT = 25.0
"""Seconds to wait for a receipt; longer than a broker that owes one may be silent."""

_OFFERED_INTERVAL = 5000
"""Milliseconds between heartbeats that the CONNECT frame offers and requests."""

_MAX_BROKER_INTERVAL = 10000
"""Milliseconds: a broker with longer intervals could not be monitored."""


class StompHandler(BrokerHandler, Protocol):
    """Handles the events of a `StompClient`."""

    def on_message(self, frame: Frame) -> None:
        """The broker has sent a MESSAGE. Must not raise."""
        ...


class StompClient(BrokerClient["StompConnection", StompHandler]):
    """Keeps a connection for as long as the service runs.

    Args:
        login: username and password; None: no login. For the others see `BrokerClient`.
    """

    broker = "the broker"

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        name: str,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        login: Login | None,
        handler: StompHandler,
        random: Random,
        where: str = "",
    ) -> None:
        super().__init__(name, endpoint, clock, handler, random, where)
        self.login = login

    def make_connection(self) -> StompConnection:
        """See `BrokerClient`."""
        return StompConnection(self)

    def request(self, frame: Frame, on_result: OnResult) -> None:
        """Send `frame` with a request for a receipt; `on_result` is called with the result."""
        if self._connection is None or not self._connection.is_up:
            on_result(BrokerUnavailable("not connected"))
        else:
            self._connection.request(frame, on_result)

    def notify(self, frame: Frame) -> None:
        """Send `frame` if there is a connection; its result does not matter.

        A receipt is requested all the same: around a request without one, ActiveMQ sends no
        heartbeat for up to 45 s.
        """
        if self._connection is not None and self._connection.is_up:
            self._connection.request(frame)


class StompConnection(TwistedProtocol):
    """One connection to the broker.

    Attributes:
        last_heard: when the last bytes of the broker arrived, by the client's clock.
    """

    transport: Any
    _log: ClassVar[Logger] = Logger()

    def __init__(self, client: StompClient) -> None:
        self._client = client
        self._decoder = Decoder()
        self._is_greeted = False
        self._abort_reason = ""
        self._silent_checks = 0
        self._unanswered_checks = 0
        self._is_paused = False
        self.last_heard = client.clock.seconds()
        self._receipt_ids = count(1)
        self._pending: dict[str, OnResult | None] = {}
        self._deadlines = Deadlines[str](client.clock, RECEIPT_TIMEOUT, self._on_receipt_timeout)
        self._heartbeats = LoopingCall(self._on_heartbeat_due)
        self._heartbeats.clock = client.clock

    @property
    def is_up(self) -> bool:
        """Whether the broker has accepted the connection. Stays true when it is lost."""
        return self._is_greeted

    def request(self, frame: Frame, on_result: OnResult | None = None) -> None:
        """Send `frame` with a request for a receipt; `on_result` is called with the result."""
        receipt = str(next(self._receipt_ids))
        self.send(Frame(frame.command, {**frame.headers, "receipt": receipt}, frame.body))
        self._pending[receipt] = on_result
        if not self._is_paused:
            self._deadlines.start(receipt)

    def send(self, frame: Frame) -> None:
        """Send `frame`."""
        self.transport.write(encode(frame))

    def pause(self) -> None:
        """Stop reading. No receipt times out meanwhile, because it could not be read."""
        if not self._is_paused:
            self._is_paused = True
            for receipt in self._pending:
                self._deadlines.cancel(receipt)
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again. All timeouts start anew."""
        if self._is_paused:
            self._is_paused = False
            self._silent_checks = self._unanswered_checks = 0
            for receipt in self._pending:
                self._deadlines.start(receipt)
            self.transport.resumeProducing()

    def close(self) -> None:
        """Send DISCONNECT."""
        self.send(Frame("DISCONNECT"))

    def abort(self, why: str) -> None:
        """Abort the connection."""
        if not self._abort_reason:
            self._abort_reason = why
            self.transport.abortConnection()

    # Called by Twisted.

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._client.on_connection_made(self)
        self._heartbeats.start(HEARTBEAT_INTERVAL, now=False)
        headers = {
            "accept-version": "1.2",
            "host": "/",  # ActiveMQ has no virtual hosts
            "heart-beat": f"{_OFFERED_INTERVAL},{_OFFERED_INTERVAL}",
        }
        login = self._client.login
        if login is not None:
            headers |= {"login": login.username, "passcode": login.password}
        self.send(Frame("CONNECT", headers))

    def dataReceived(self, data: bytes) -> None:
        if self._is_greeted:
            self._silent_checks = self._unanswered_checks = 0
        self.last_heard = self._client.clock.seconds()
        self._decoder.feed(data)
        try:
            while not self._abort_reason and (frame := self._decoder.next_frame()) is not None:
                self._on_frame(frame)
        except StompError as error:
            self.abort(f"its answer is not STOMP 1.2: {error}")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._heartbeats.stop()
        closed = "it closed the connection"
        why = closed if reason.check(ConnectionDone) else reason.getErrorMessage().rstrip(".")
        self._client.on_connection_lost(self, self._abort_reason or why)
        pending, self._pending = self._pending, {}
        for receipt, on_result in pending.items():
            self._deadlines.cancel(receipt)
            if on_result is None:
                continue
            try:
                on_result(BrokerUnavailable("the connection was lost"))
            except Exception:
                self._log.failure("internal error: a request to ActiveMQ could not be ended")

    def _on_frame(self, frame: Frame) -> None:
        match frame.command:
            case "CONNECTED" if not self._is_greeted:
                self._on_connected(frame)
            case "MESSAGE" if self._is_greeted:
                self._client.handler.on_message(frame)
            case "RECEIPT":
                self._finish(frame.headers.get("receipt-id", ""), None)
            case "ERROR":
                self._on_error(frame)
            case _:
                raise StompError(f"an unexpected {frame.command} frame")

    def _on_connected(self, frame: Frame) -> None:
        if frame.headers.get("version") != "1.2":
            raise StompError("the broker uses another version")
        interval, _ = parse_heartbeat(frame.headers.get("heart-beat", "0,0"))
        if not 0 < interval <= _MAX_BROKER_INTERVAL:
            raise StompError("the broker sends no heartbeats, or too few")
        self._is_greeted = True
        self._silent_checks = 0
        self._client.on_greeting()

    def _on_error(self, frame: Frame) -> None:
        """The broker refuses one request, or the connection.

        The specification says that the broker closes the connection after each ERROR. ActiveMQ
        keeps it open if only one request was wrong.
        """
        why = frame.headers.get("message", "no reason given")
        receipt = frame.headers.get("receipt-id", "")
        if receipt not in self._pending:
            self.abort(f"it sent an error: {why}")
            return
        if self._pending[receipt] is not None:
            self._client.log_error("the broker refuses a request of the {name}: {why}", why)
        self._finish(receipt, BrokerUnavailable(why))

    def _finish(self, receipt: str, result: BrokerUnavailable | None) -> None:
        """Finish a request, unless it is unknown or has timed out."""
        if receipt in self._pending:
            on_result = self._pending.pop(receipt)
            self._deadlines.cancel(receipt)
            if on_result is not None:
                on_result(result)

    def _on_receipt_timeout(self, receipt: str) -> None:
        self._finish(receipt, BrokerUnavailable(f"no receipt within {RECEIPT_TIMEOUT:.0f} s"))

    def _on_heartbeat_due(self) -> None:
        """Send a heartbeat, and check whether the broker responds.

        Checks are counted, not timed: if this process was stopped for a while, the connection is
        not aborted.
        """
        if not self._is_paused:
            self._silent_checks += 1
            self._unanswered_checks = self._unanswered_checks + 1 if self._pending else 0
        if not self._is_greeted:
            if self._silent_checks >= MAX_CHECKS_BEFORE_GREETING:
                self.abort("it does not respond")
        elif self._unanswered_checks >= MAX_UNANSWERED_CHECKS:
            self.abort("it does not respond")
        else:
            if self._silent_checks >= SILENT_CHECKS_BEFORE_PROBE and not self._pending:
                self._probe()
            self.transport.write(HEARTBEAT)

    def _probe(self) -> None:
        """Send something that the broker must answer: an empty transaction, which needs no right.

        Each frame requests a receipt, because ActiveMQ delays its heartbeats around one without.
        """
        for command in ("BEGIN", "ABORT"):
            self.request(Frame(command, {"transaction": "probe"}))
