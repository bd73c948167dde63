"""One HTTP/1.1 connection: parses requests and writes responses. It knows nothing of topics.

Requests are handled one at a time, in order. While one is in progress, or the client does not
read its responses, the connection reads no more.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.delivery.send_queue import SendQueue
from topicsvc.delivery.transports import make_send_queue
from topicsvc.listening.paced_tls import set_tls_budget, socket_transport
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.topics import ONE_HOST
from topicsvc.web import client_address, responses
from topicsvc.web.http_parser import BadRequest, BodyTooBig, Problem, RequestHead, RequestParser
from topicsvc.web.responses import ANY_ORIGIN, ApiError, Header, Response, error_response

__all__ = ["MAX_SKIPPED", "Exchange", "HttpConnection", "PendingSend"]

SEND_METHODS = (b"POST", b"PUT")
ALLOWED = b"OPTIONS, POST, PUT"

MAX_SKIPPED = 65536
"""Most bytes of an unused body that are read to keep the connection open."""

READ_SIZE = 16384
"""Most bytes of one read. Without a valid token, less than two reads are kept in memory."""

TLS_READ_SIZE = 1024
"""The same over TLS, where a byte may come in a record of its own. The rest of a record that has
arrived is read at once: see `PacedTls`."""

DISCARD_INTERVAL = 0.02
"""Seconds between two reads from a connection whose input is discarded.

Without a pause, 100 clients that send on after an error use a processor core for reading alone.
"""

DISCARD_SIZE = 262144
"""Most bytes of such a read: 13 MB a second, so that a client can send a long body to its end."""

TLS_DISCARD_SIZE = 16384
"""The same over TLS: 0.8 MB a second. The connection may keep these bytes for a later iteration."""

SHORT_REQUEST = 4096
"""Bytes that may wait for a later iteration while the connection is still read."""

TURN = 0.0005
"""Seconds of work for one connection before the others that wait, if any do."""

MAX_JOINED = 16384
"""Bytes of responses after which they are written, although more requests have arrived."""

MAX_UNREAD = 65536
"""Most bytes of responses that are queued for a client that does not read them."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class PendingSend(Protocol):
    """A request whose body is read after its token was validated.

    Attributes:
        is_valid: whether the token was found valid.
    """

    is_valid: bool

    def start(self, exchange: Exchange) -> Response | None:
        """Validate the token.

        Returns:
            A response; or None, if the token is valid (see `is_valid`) or the check is in
            progress. In that case `Exchange.decided` or `Exchange.respond` is called later.
        """
        ...

    def finish(self, exchange: Exchange, body: bytes) -> Response | None:
        """Send `body`; None: `Exchange.respond` is called later with the response."""
        ...

    def cancel(self) -> None:
        """Cancel the request, because its client has disconnected."""
        ...


class Exchange:
    """One request and its response.

    Attributes:
        head: the request's head.
        connection: the connection of the request.
        quota: the limits of the client.
    """

    __slots__ = ("connection", "head", "quota")

    def __init__(self, head: RequestHead, connection: HttpConnection) -> None:
        self.head = head
        self.connection = connection
        self.quota = connection.quota

    @property
    def hosts(self) -> list[bytes]:
        """The host of a target in absolute form, else the values of ``Host``."""
        head = self.head
        return head.get_all(b"host") if head.authority is None else [head.authority]

    def url(self, scheme: str) -> str:
        """The URL as the client sees it, without its query, which may contain a token.

        Args:
            scheme: of the public URLs. Behind a proxy that ends TLS, the connection has none.
        """
        path = self.head.path.decode("latin-1")
        if not path.startswith("/"):
            return path
        if ISSLTransport.providedBy(self.connection.transport):
            scheme = "https"
        return f"{scheme}://{(self.hosts or [b''])[0].decode('latin-1')}{path}"

    def decided(self) -> None:
        """Continue with the body: the token is valid."""
        self.connection.decided(self)

    def respond(self, response: Response) -> None:
        """Respond, unless the client has disconnected or the exchange has ended."""
        self.connection.respond_later(self, response)

    def hand_over(self, protocol: IProtocol) -> None:
        """Give the connection to another protocol."""
        self.connection.hand_over(protocol)


@implementer(IHalfCloseableProtocol)
class HttpConnection(TwistedProtocol):
    """An HTTP/1.1 connection that can become a WebSocket.

    Every wait has an absolute deadline; bytes that trickle in do not extend it. The first one
    starts before the TLS handshake and before a PROXY header.

    Attributes:
        quota: the limits of the client.
    """

    _log: ClassVar[Logger] = Logger()

    transport: Any
    factory: Any
    quota: ClientQuota

    def __init__(self) -> None:
        self._parser = RequestParser()
        self._exchange: Exchange | None = None
        self._send: PendingSend | None = None
        self._closes_after = False
        self._has_unread_body = False
        self._missing = 0  # bytes until the body is complete, if that is known
        self._is_skipping = False
        self._is_waiting = False  # for a token check or a response
        self._is_deferred = False  # until a later iteration
        self._has_read_ahead = False  # while deferred: enough bytes wait
        self._is_congested = False  # the client does not read
        self._is_paused = False
        self._has_ended = False  # the client has closed its half
        self._is_closing = False  # bytes that still arrive are discarded
        self._output: list[bytes] = []
        self._output_size = 0
        self._is_tls = False
        self._read_size = READ_SIZE
        self._send_queue: SendQueue | None = None
        self._deadline: Deadlines[HttpConnection] | None = None

    # Called by Twisted.

    def connectionMade(self) -> None:
        site = self.factory
        site.connections += 1
        limits = site.limits
        host = client_address.initial_address(self.transport, limits.settings.trusted_proxies)
        self.quota = ClientQuota.admit(limits, host)
        if self.quota.is_closed_unanswered:
            self._is_closing = True
            # Before the TLS handshake, which is the expensive part.
            self.transport.abortConnection()
            return
        self._is_tls = ISSLTransport.providedBy(self.transport)
        self._read_size = TLS_READ_SIZE if self._is_tls else READ_SIZE
        socket_transport(self.transport).bufferSize = self._read_size
        set_tls_budget(self.transport, site.budget)
        self.quota.on_token_deadline = self._token_deadline_passed
        self._set_deadline(site.head_deadlines)

    def peer_known(self) -> None:
        """Count the connection for the client that the PROXY header names.

        Without that, one client could hold all places of those whose address is not known yet.
        """
        if self._is_closing:
            return
        host = client_address.address_of_peer(
            self.transport, self.factory.limits.settings.trusted_proxies
        )
        if host is not None:
            self.quota.identify(host)
        if self.quota.is_closed_unanswered:
            self._is_closing = True
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._is_closing:
            self._discard()
            return
        self._parser.receive(data)
        self._missing -= len(data)
        if self._missing > 0:  # the body is not complete, so there is nothing to do
            return
        if self._is_deferred:
            self._has_read_ahead = True
            self._update_reading()
        elif self._is_waiting or self._is_congested:
            self._update_reading()
        elif self.factory.budget.is_spent:
            self._defer()
        else:
            self._work()

    def readConnectionLost(self) -> None:
        """The client has closed its half; requests that have arrived still get responses."""
        self._has_ended = True
        if self._is_closing:
            self.transport.loseConnection()
        elif not self._is_busy:
            self._close()

    def writeConnectionLost(self) -> None:
        """The service has closed its half."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.connections -= 1
        self.factory.discard_pauses.cancel(self)
        self._is_closing = True
        self._set_deadline(None)
        self.quota.release()
        self._cancel()
        self._output.clear()
        if self._send_queue is not None:
            self._send_queue.detach()

    # Called by exchanges.

    @property
    def budget(self) -> WorkBudget:
        """The time for work on requests in one reactor iteration."""
        budget: WorkBudget = self.factory.budget
        return budget

    def decided(self, exchange: Exchange) -> None:
        """Read the body of a request, because its token is valid."""
        if exchange is self._exchange and self._is_waiting:
            self._is_waiting = False
            self._continue()

    def respond_later(self, exchange: Exchange, response: Response) -> None:
        """Respond to a request that was in progress."""
        if exchange is self._exchange and not self._is_closing:
            self._is_waiting = False
            self._respond(response)
            self._continue()

    def hand_over(self, protocol: IProtocol) -> None:
        """Give the transport to `protocol`."""
        site = self.factory
        site.connections -= 1
        self._set_deadline(None)
        self.quota.on_token_deadline = None  # a WebSocket has its own deadline
        self._is_closing = True
        self._exchange = None
        self._flush()
        if self._send_queue is not None:
            self._send_queue.release()
        transport, self.transport = self.transport, None
        if isinstance(transport, ProtocolWrapper):  # TLS, the PROXY protocol
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        protocol.makeConnection(transport)
        if self._has_ended:
            transport.loseConnection()
        elif self._is_paused:
            transport.resumeProducing()

    def deliver_rest(self, protocol: IProtocol) -> None:
        """Give the bytes that follow the request to the new protocol."""
        rest = self._parser.take_rest()
        if rest:
            protocol.dataReceived(rest)

    # Handling of received bytes.

    @property
    def _is_busy(self) -> bool:
        return self._is_waiting or self._is_deferred or self._is_congested or self._is_closing

    def _defer(self) -> None:
        self._is_deferred = True
        # A single request is usually short. Pausing and resuming would cost two system calls.
        self._has_read_ahead = self._is_tls or self._parser.buffered > SHORT_REQUEST
        self._update_reading()
        self.factory.budget.defer(self._deferred_work)

    def _deferred_work(self) -> None:
        self._is_deferred = False
        if not self._is_busy:
            self._work()

    def _continue(self) -> None:
        """Continue with the bytes that arrived during a wait."""
        if self._is_busy:
            self._flush()
        elif self.factory.budget.is_spent:
            self._flush()
            self._defer()
        else:
            self._work()

    def _work(self) -> None:
        """Handle received requests until the budget of this iteration is spent."""
        budget = self.factory.budget
        started = since = budget.now()
        try:
            while self._step():
                since = budget.spend(since)
                if budget.is_spent or (len(budget) and since - started >= TURN):
                    if not self._is_busy:
                        self._defer()
                    break
        except BadRequest as error:
            self._refuse(_bad_request_response(error), error.method)
        except Exception:
            self._log.failure("internal error: the connection is closed")
            self._refuse(_error(responses.INTERNAL_ERROR))
        budget.spend(since)
        if self.transport is None:  # handed over
            return
        self._flush()
        if self._has_ended and not self._is_busy:
            self._close()
        self._update_reading()

    def _step(self) -> bool:
        """Do one step of work; return whether there may be another."""
        if self._is_waiting or self._is_congested or self._is_closing:
            return False
        if self._is_skipping:
            return self._skip()
        if self._send is not None:
            return self._read_body(self._send)
        parser = self._parser
        head = parser.read_head()
        if head is not None:
            if self._deadline is self.factory.head_deadlines:
                self._set_deadline(None)
            self._start_request(head)
            return True
        if parser.buffered and self._deadline is not self.factory.head_deadlines:
            self._set_deadline(self.factory.head_deadlines)
        return False

    def _start_request(self, head: RequestHead) -> None:
        """Handle the head of a request."""
        site = self.factory
        client_address.set_client_address(self.quota, self.transport, head, site.limits.settings)
        self._closes_after = not head.keeps_alive
        self._has_unread_body = head.has_body
        refusal = self._check_head(head)
        if refusal is not None:
            self._refuse(refusal, head.method)
            return
        exchange = self._exchange = Exchange(head, self)
        result = site.resource.respond(exchange)
        if isinstance(result, Response):
            self._respond(result)
        elif result is not None:
            self._send = result
            response = result.start(exchange)
            if response is not None:
                self._respond(response)
            elif not result.is_valid:
                self._is_waiting = True
                self._set_deadline(None)

    def _check_head(self, head: RequestHead) -> Response | None:
        """Return the error of a request that is invalid for any URL; it closes the connection."""
        site = self.factory
        if self.quota.exceeded_limit is not None:
            return _error(responses.TOO_MANY_REQUESTS)
        hosts = head.headers.get(b"host")
        if len(hosts) != 1 if hosts is not None else head.minor == 1:
            # RFC 9112, section 3.2.
            return _error(responses.BAD_HOST, ONE_HOST)
        if head.length is not None and head.length > site.max_body:
            return _error(responses.TOO_BIG, str(site.max_body))
        if b"expect" in head.headers and head.minor == 1 and not head.expects_continue:
            return _error(responses.EXPECTATION_FAILED)
        return None

    def _read_body(self, send: PendingSend) -> bool:
        exchange, parser = self._exchange, self._parser
        assert exchange is not None  # noqa: S101 - set together with `_send`
        if self._has_unread_body and not parser.buffered and exchange.head.expects_continue:
            exchange.head.expects_continue = False
            self._output.append(_CONTINUE)
        try:
            body = parser.read_body(self.factory.max_body)
        except BodyTooBig:
            refusal = _error(responses.TOO_BIG, str(self.factory.max_body))
            self._refuse(refusal, exchange.head.method)
            return False
        if body is None:
            if self._deadline is not self.factory.body_deadlines:
                self._set_deadline(self.factory.body_deadlines)
            self._missing = parser.missing
            return parser.may_have_more
        self._has_unread_body = False
        response = send.finish(exchange, body)
        if response is None:
            self._is_waiting = True
            self._set_deadline(None)
            return False
        self._respond(response)
        return True

    def _skip(self) -> bool:
        """Read and discard the rest of an unused body."""
        try:
            is_complete, size = self._parser.skip_body()
        except BadRequest:  # a second response would answer the request behind it
            self._linger()
            return False
        if is_complete:
            self._is_skipping = False
            self._set_deadline(self.factory.idle_deadlines)
            return True
        if size > MAX_SKIPPED:
            self._linger()
            return False
        if self._deadline is not self.factory.body_deadlines:
            self._set_deadline(self.factory.body_deadlines)
        return self._parser.may_have_more

    # Responses and close.

    def _respond(self, response: Response) -> None:
        """Write the response to the current request."""
        exchange = self._exchange
        assert exchange is not None  # noqa: S101 - the callers check
        head = exchange.head
        self._exchange = self._send = None
        closes = self._closes_after or response.closes or self.quota.is_past_token_deadline
        if self._has_unread_body and not self._begin_skipping(head):
            closes = True
        if closes:
            self._is_skipping = False
        self._write(response, head.method, closes)
        if closes:
            if self._has_unread_body:
                self._linger()
            else:
                self._close()
        elif not self._is_skipping:
            self._idle()

    def _begin_skipping(self, head: RequestHead) -> bool:
        """Discard what has arrived of a body; whether a request can be read behind it."""
        # A client that expects 100 may send its body or not (RFC 9110, section 10.1.1).
        if head.expects_continue or (head.length is not None and head.length > MAX_SKIPPED):
            return False
        try:
            is_complete, size = self._parser.skip_body()
        except BadRequest:
            return False
        self._has_unread_body = self._is_skipping = not is_complete
        return size <= MAX_SKIPPED

    def _refuse(self, response: Response, method: bytes = b"") -> None:
        """Respond to an invalid request, and read no more."""
        if self.transport is None or self._is_closing:
            return
        self._cancel()
        self._write(response, method, closes=True)
        self._linger()

    def _write(self, response: Response, method: bytes, closes: bool) -> None:
        site = self.factory
        if method in SEND_METHODS:
            site.sends[response.status] += 1
        data = response.encode(site.date(), closes, method == b"HEAD")
        self._output.append(data)
        self._output_size += len(data)
        if self._output_size > MAX_JOINED:
            self._flush()

    def _flush(self) -> None:
        output = self._output
        if output:
            data = output[0] if len(output) == 1 else b"".join(output)
            output.clear()
            self._output_size = 0
            queue = self._send_queue
            if queue is None:
                queue = self._send_queue = make_send_queue(
                    self.transport,
                    MAX_UNREAD,
                    self.factory.slow_consumers,
                    self._drop_slow_consumer,
                )
                queue.on_empty = self._on_empty
                queue.address = self.quota.address
            queue.write(data)
            # While responses are queued for a client, nothing is read from it.
            self._is_congested = queue.waiting > 0

    def _on_empty(self) -> None:
        if self._is_congested:
            self._is_congested = False
            if not self._is_busy:
                self._defer()

    def _drop_slow_consumer(self, _: int) -> None:
        """Abort, because the client does not read its responses."""
        self._is_closing = True
        self.transport.abortConnection()

    def _linger(self) -> None:
        """Close, and discard for some time the bytes that still arrive.

        Closing while received bytes are unread would reset the connection, and the client might
        lose the response.
        """
        self._is_closing = True
        self._finish()
        if self._is_tls:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
        self._set_deadline(self.factory.close_deadlines)
        self._update_reading()

    def _close(self) -> None:
        """Close when all responses are written; `CLOSE_TIMEOUT` limits the time for that."""
        self._is_closing = True
        self._finish()
        self._set_deadline(self.factory.close_deadlines)
        self.transport.loseConnection()
        self._update_reading()

    def _discard(self) -> None:
        """Discard what was read, and read on after `DISCARD_INTERVAL`."""
        if not self._is_paused and not self._has_ended:
            self._is_paused = True
            size = TLS_DISCARD_SIZE if self._is_tls else DISCARD_SIZE
            socket_transport(self.transport).bufferSize = size
            self.transport.pauseProducing()
            self.factory.discard_pauses.start(self)

    def read_on(self) -> None:
        """Read again: the pause in discarding is over."""
        self._update_reading()

    def _finish(self) -> None:
        """Write the remaining responses; the transport may close after them."""
        self._flush()
        if self._send_queue is not None:
            self._send_queue.finish()

    def _cancel(self) -> None:
        """Cancel the request in progress."""
        send, self._send, self._exchange = self._send, None, None
        if send is not None:
            send.cancel()

    def deadline_passed(self) -> None:
        """Close; abort if the client has not closed by `CLOSE_TIMEOUT`."""
        deadline = self._deadline
        if deadline is self.factory.close_deadlines:
            self.transport.abortConnection()
        elif self._is_deferred and deadline is not None:
            # The service is late: it has not handled what arrived in time.
            deadline.start(self)
        else:
            self._close()

    def _token_deadline_passed(self) -> None:
        """Close an idle connection without a valid token; a request in progress is its last."""
        if self._deadline is self.factory.idle_deadlines:
            self._close()

    def _set_deadline(self, deadline: Deadlines[HttpConnection] | None) -> None:
        """Start `deadline` in place of the current one; None: no deadline."""
        if self._deadline is not None:
            self._deadline.cancel(self)
        self._deadline = deadline
        if deadline is not None:
            deadline.start(self)

    def _idle(self) -> None:
        """Restart the deadline for the next request."""
        deadlines: Deadlines[HttpConnection] = self.factory.idle_deadlines
        if self._deadline is deadlines:
            deadlines.restart(self)
        else:
            self._set_deadline(deadlines)

    def _update_reading(self) -> None:
        """Pause or resume reading.

        While a request is in progress, reading goes on until as many bytes as one read returns
        are buffered: only a transport that reads notices the loss of the connection.
        """
        pauses = not self._is_closing and (
            (self._is_deferred and self._has_read_ahead)
            or self._is_congested
            or (self._is_waiting and self._parser.buffered >= self._read_size)
        )
        if pauses != self._is_paused and self.transport is not None and not self._has_ended:
            self._is_paused = pauses
            if pauses:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()


def _bad_request_response(error: BadRequest) -> Response:
    if error.problem is Problem.METHOD:
        return _error(responses.METHOD_NOT_ALLOWED, headers=((b"Allow", ALLOWED),))
    if error.problem is Problem.TARGET:
        return _error(responses.NOT_FOUND, "not a URL")
    return _error(responses.BAD_REQUEST)


def _error(error: ApiError, detail: str = "", headers: tuple[Header, ...] = ()) -> Response:
    """An error response that pages of any origin may read."""
    return error_response(error, detail, (ANY_ORIGIN, *headers))
