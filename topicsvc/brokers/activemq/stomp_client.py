"""Adapter: one STOMP connection that is kept up.

A `Link` connects, again and again with jittered back-off, and hands on what its broker
sends. A `Connection` is one of its attempts: the greeting, heart-beats both ways, receipts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any, ClassVar, Protocol

from twisted.application.internet import ClientService
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from topicsvc.brokers.activemq.stomp_frames import (
    HEART_BEAT,
    Decoder,
    Frame,
    encode,
    parse_heart_beat,
)
from topicsvc.brokers.in_flight import Answered
from topicsvc.errors import BrokerUnavailable, StompError
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.settings import Login

__all__ = ["Connection", "Link", "LinkOwner"]

BEAT = 2.5
"""Seconds between two signs of life, and between two looks for the broker's."""

SILENT_BEATS = 5
"""Beats without a byte from the broker after which it is dead: 10 to 12.5 s."""

GREETING_BEATS = 2
"""Beats that a broker may take for its answer to CONNECT."""

RECEIPT_TIMEOUT = 15.0
"""Seconds that a receipt may take; longer than it takes to notice a dead broker."""

CONNECT_TIMEOUT = 5.0
"""Seconds that an attempt to connect may take."""

STOP_TIMEOUT = 2.0
"""Seconds that the goodbye may take."""

FIRST_DELAY = 0.1
LONGEST_DELAY = 3.0
"""Seconds before a new attempt: doubled each time, then times 0.5 to 1.5."""

_PROMISED = 5000
"""Milliseconds between heart-beats that we promise and ask for."""

_SELDOM = 10000
"""Milliseconds: a broker that beats less often could not be watched."""


class LinkOwner(Protocol):
    """Who a link belongs to."""

    def connected(self) -> None:
        """The broker has greeted us: requests can be made."""
        ...

    def message(self, frame: Frame) -> None:
        """The broker has sent a MESSAGE. Must not raise."""
        ...

    def lost(self, heard_at: float) -> None:
        """The connection is gone; `heard_at` is when the broker was last heard.

        Requests that are under way are answered after this.
        """
        ...


class Link(Service):
    """A connection for as long as the service runs.

    Args:
        name: what it is for, in the log.
        endpoint: where the broker is.
        clock: tells and keeps the time.
        login: who we are; None: nobody in particular.
        owner: hears what happens.
        random: spreads attempts.

    Attributes:
        last_error: why there is no connection, as far as it can be told; none: nothing is wrong.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        name: str,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        login: Login | None,
        owner: LinkOwner,
        random: Random,
    ) -> None:
        self.name = name
        self.clock = clock
        self.login = login
        self.owner = owner
        self._random = random
        self._attempts = 0
        self._connects = 0
        self._is_paused = False
        self.last_error = ""
        self._connection: Connection | None = None
        self._client = ClientService(
            _Bounded(endpoint, clock, self._unreachable),
            _Connections(self),
            retryPolicy=self._delay,
            clock=clock,
        )

    @property
    def is_up(self) -> bool:
        """Whether requests can be made."""
        return self._connection is not None and self._connection.is_up

    @property
    def reconnects(self) -> int:
        """Times that the broker has let us in after the first."""
        return max(0, self._connects - 1)

    def request(self, frame: Frame, answered: Answered) -> None:
        """Send `frame` and wait for its receipt; `answered` hears the outcome."""
        if self._connection is None or not self._connection.is_up:
            answered(BrokerUnavailable("not connected"))
        else:
            self._connection.request(frame, answered)

    def send(self, frame: Frame) -> None:
        """Send `frame` if there is a connection, and wait for nothing."""
        if self._connection is not None and self._connection.is_up:
            self._connection.send(frame)

    def pause(self) -> None:
        """Read no more until `resume`, on this connection and any that takes its place."""
        self._is_paused = True
        if self._connection is not None and self._connection.is_up:
            self._connection.pause()

    def resume(self) -> None:
        """Read again."""
        self._is_paused = False
        if self._connection is not None and self._connection.is_up:
            self._connection.resume()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._client.startService()

    def stopService(self) -> Deferred[None]:
        """Say goodbye; fires when the connection is closed, at once or by force."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.send(Frame("DISCONNECT"))
        stopping = self._client.stopService()
        connection = self._connection
        if connection is not None:
            force = self.clock.callLater(STOP_TIMEOUT, connection.abort, "stopping")

            def stopped(_: None) -> None:
                if force.active():
                    force.cancel()

            stopping.addCallback(stopped)
        return stopping

    # What a connection tells.

    def opened(self, connection: Connection) -> None:
        """There is a connection, though no greeting yet."""
        self._connection = connection

    def greeted(self) -> None:
        """The broker has let us in."""
        self._connects += 1
        self._attempts = 0
        self.last_error = ""
        self._log.info("the {name} is connected to the broker", name=self.name)
        self.owner.connected()
        if self._is_paused:
            self.pause()

    def lost(self, connection: Connection, why: str) -> None:
        """The connection is gone."""
        self._connection = None
        if self.running:
            self.complain("the {name} has lost the broker: {why}", why)
        if connection.is_up:
            self.owner.lost(connection.heard_at)

    def complain(self, format_: str, why: str) -> None:
        """Say what is wrong, once for each reason in a row."""
        if why != self.last_error:
            self.last_error = why
            self._log.warn(format_, name=self.name, why=why)

    def _unreachable(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            why = failure.getErrorMessage()
            self.complain("the {name} cannot reach the broker: {why}", why)

    def _delay(self, _: int) -> float:
        """Seconds before the next attempt.

        ClientService counts an attempt as good when it has a socket; a broker that then
        refuses our password is not to be asked again at once.
        """
        delay = min(FIRST_DELAY * 2**self._attempts, LONGEST_DELAY)
        self._attempts = min(self._attempts + 1, 10)
        return float(delay * self._random.uniform(0.5, 1.5))


@implementer(IStreamClientEndpoint)
class _Bounded:
    """An endpoint whose attempts end in time, and which tells why one failed."""

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        failed: Callable[[Failure], None],
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._failed = failed

    def __repr__(self) -> str:
        return "the broker"

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        def failed(failure: Failure) -> Failure:
            self._failed(failure)
            return failure

        attempt: Deferred[IProtocol] = self._endpoint.connect(factory)
        return attempt.addTimeout(CONNECT_TIMEOUT, self._clock).addErrback(failed)


class _Connections(Factory):
    noisy = False

    def __init__(self, link: Link) -> None:
        self._link = link

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(self._link)


class Connection(TwistedProtocol):
    """One connection: it is up from the broker's greeting to its end.

    Attributes:
        heard_at: when the broker was last heard, by the link's clock.
    """

    transport: Any

    def __init__(self, link: Link) -> None:
        self._link = link
        self._decoder = Decoder()
        self._greeted = False
        self._is_aborted = ""
        self._silent = 0
        self._is_paused = False
        self.heard_at = link.clock.seconds()
        self._numbers = count(1)
        self._receipts: dict[str, Answered] = {}
        self._late = Deadlines[str](link.clock, RECEIPT_TIMEOUT, self._not_confirmed)
        self._heart = LoopingCall(self._beat)
        self._heart.clock = link.clock

    @property
    def is_up(self) -> bool:
        """Whether the broker has greeted us; true to the end, for those who ask in it."""
        return self._greeted

    def request(self, frame: Frame, answered: Answered) -> None:
        """Send `frame` and wait for its receipt."""
        receipt = str(next(self._numbers))
        self.send(Frame(frame.command, {**frame.headers, "receipt": receipt}, frame.body))
        self._receipts[receipt] = answered
        if not self._is_paused:
            self._late.start(receipt)

    def send(self, frame: Frame) -> None:
        """Send `frame`."""
        self.transport.write(encode(frame))

    def pause(self) -> None:
        """Read no more; what the broker says meanwhile is not late, since nobody listens."""
        if not self._is_paused:
            self._is_paused = True
            for receipt in self._receipts:
                self._late.cancel(receipt)
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again; from now on the broker has its whole time to show that it lives."""
        if self._is_paused:
            self._is_paused = False
            self._silent = 0
            for receipt in self._receipts:
                self._late.start(receipt)
            self.transport.resumeProducing()

    def abort(self, why: str) -> None:
        """End the connection at once."""
        if not self._is_aborted:
            self._is_aborted = why
            self.transport.abortConnection()

    # What Twisted calls.

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._link.opened(self)
        self._heart.start(BEAT, now=False)
        headers = {
            "accept-version": "1.2",
            "host": "/",  # ActiveMQ has no virtual hosts
            "heart-beat": f"{_PROMISED},{_PROMISED}",
        }
        login = self._link.login
        if login is not None:
            headers |= {"login": login.username, "passcode": login.password}
        self.send(Frame("CONNECT", headers))

    def dataReceived(self, data: bytes) -> None:
        if self._greeted:
            self._silent = 0
        self.heard_at = self._link.clock.seconds()
        self._decoder.feed(data)
        try:
            while not self._is_aborted and (frame := self._decoder.next_frame()) is not None:
                self._received(frame)
        except StompError as error:
            self.abort(f"its answer is not STOMP 1.2: {error}")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._heart.stop()
        closed = "it closed the connection"
        why = closed if reason.check(ConnectionDone) else reason.getErrorMessage()
        self._link.lost(self, self._is_aborted or why)
        receipts, self._receipts = self._receipts, {}
        for receipt, answered in receipts.items():
            self._late.cancel(receipt)
            answered(BrokerUnavailable("the connection was lost"))

    def _received(self, frame: Frame) -> None:
        match frame.command:
            case "CONNECTED" if not self._greeted:
                self._welcome(frame)
            case "MESSAGE" if self._greeted:
                self._link.owner.message(frame)
            case "RECEIPT":
                self._answer(frame.headers.get("receipt-id"), None)
            case "ERROR":
                self._refused(frame)
            case _:
                raise StompError(f"{frame.command} is out of place")

    def _welcome(self, frame: Frame) -> None:
        if frame.headers.get("version") != "1.2":
            raise StompError("the broker speaks another version")
        sends, _ = parse_heart_beat(frame.headers.get("heart-beat", "0,0"))
        if not 0 < sends <= _SELDOM:
            raise StompError("the broker's heart-beats are too seldom")
        self._greeted = True
        self._silent = 0
        self._link.greeted()

    def _refused(self, frame: Frame) -> None:
        """The broker refuses one request, or the connection.

        By the specification it closes after any ERROR; ActiveMQ goes on where only one
        request was at fault.
        """
        why = frame.headers.get("message", "it does not say why")
        if self._answer(frame.headers.get("receipt-id"), BrokerUnavailable(why)):
            self._link.complain("the broker refuses what the {name} asks: {why}", why)
        else:
            self.abort(f"it says: {why}")

    def _answer(self, receipt: str | None, outcome: BrokerUnavailable | None) -> bool:
        """Whether somebody waited for this answer; some have given up."""
        answered = None if receipt is None else self._receipts.pop(receipt, None)
        if receipt is None or answered is None:
            return False
        self._late.cancel(receipt)
        answered(outcome)
        return True

    def _not_confirmed(self, receipt: str) -> None:
        self._receipts.pop(receipt)(BrokerUnavailable("no receipt in time"))

    def _beat(self) -> None:
        """Counted in beats, so that a pause of ours kills nobody."""
        if not self._is_paused:
            self._silent += 1
        if self._silent >= (SILENT_BEATS if self._greeted else GREETING_BEATS):
            self.abort("it is silent")
        elif self._greeted:
            self.transport.write(HEART_BEAT)
