"""One HTTP/1.1 connection: bytes to requests, responses to bytes; it holds no rule of topics.

One request is answered at a time, in order. While one waits for an answer, or the client does
not read its responses, nothing more is read.
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
"""Most bytes of an unwanted body that are read so that the connection can go on."""

READ_SIZE = 16384
"""Bytes that one read takes. Of what no token was shown for, less than two reads are kept."""

MAX_JOINED = 16384
"""Bytes of responses after which they are written, though more requests are there."""

MAX_UNREAD = 65536
"""Most bytes of responses that wait for a client that does not read them."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class PendingSend(Protocol):
    """A request whose body is wanted.

    Attributes:
        is_valid: its token is known to be valid.
    """

    is_valid: bool

    def start(self, exchange: Exchange) -> Response | None:
        """Validate the token; None: it is valid, or `Exchange.decided` will tell."""
        ...

    def finish(self, exchange: Exchange, body: bytes) -> Response | None:
        """Send `body`; None: `Exchange.respond` will be called with the response."""
        ...

    def cancel(self) -> None:
        """The client is gone."""
        ...


class Exchange:
    """One request and the way to answer it.

    Attributes:
        head: the request's head.
        connection: where it came from.
        quota: the limits of the client.
    """

    __slots__ = ("connection", "head", "quota")

    def __init__(self, head: RequestHead, connection: HttpConnection) -> None:
        self.head = head
        self.connection = connection
        self.quota = connection.quota

    @property
    def hosts(self) -> list[bytes]:
        """The host that the request names: of its target in absolute form, else its ``Host``."""
        head = self.head
        return head.get_all(b"host") if head.authority is None else [head.authority]

    @property
    def url(self) -> str:
        """The URL without its query, in which a token may stand."""
        path = self.head.path.decode("latin-1")
        if not path.startswith("/"):
            return path
        scheme = "https" if ISSLTransport.providedBy(self.connection.transport) else "http"
        return f"{scheme}://{(self.hosts or [b''])[0].decode('latin-1')}{path}"

    def decided(self) -> None:
        """The token is valid: the body is read on."""
        self.connection.decided(self)

    def respond(self, response: Response) -> None:
        """Answer, if the client is still there and nothing was answered."""
        self.connection.respond_later(self, response)

    def hand_over(self, protocol: IProtocol) -> None:
        """Give the connection to another protocol."""
        self.connection.hand_over(protocol)


@implementer(IHalfCloseableProtocol)
class HttpConnection(TwistedProtocol):
    """An HTTP/1.1 connection that can become a WebSocket.

    Each thing that it waits for has an absolute deadline. The first begins before the TLS
    handshake and before a PROXY header.

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
        self._is_skipping = False
        self._is_waiting = False  # for a verdict or a response
        self._is_deferred = False  # until a later iteration
        self._is_congested = False  # the client does not read
        self._is_paused = False
        self._has_ended = False  # the client has closed its half
        self._is_closing = False  # what still arrives is discarded
        self._output: list[bytes] = []
        self._output_size = 0
        self._send_queue: SendQueue | None = None
        self._deadline: Deadlines[HttpConnection] | None = None

    # What Twisted calls.

    def connectionMade(self) -> None:
        site = self.factory
        site.connections += 1
        limits = site.limits
        host = client_address.initial_address(self.transport, limits.settings.trusted_proxies)
        self.quota = ClientQuota.admit(limits, host)
        if self.quota.is_closed_unanswered:
            self._is_closing = True
            # Before a TLS handshake, which is what costs.
            self.transport.abortConnection()
            return
        _lowest(self.transport).bufferSize = READ_SIZE
        self.quota.on_token_deadline = self._token_deadline_passed
        self._set_deadline(site.heads)

    def dataReceived(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._parser.receive(data)
        if self._is_waiting or self._is_congested or self._is_deferred:
            self._update_reading()
        elif self.factory.budget.is_spent:
            self._defer()
        else:
            self._work()

    def readConnectionLost(self) -> None:
        """The client has closed its half: what it has asked for is answered."""
        self._has_ended = True
        if self._is_closing:
            self.transport.loseConnection()
        elif not self._is_busy:
            self._close()

    def writeConnectionLost(self) -> None:
        """This half is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.connections -= 1
        self._is_closing = True
        self._set_deadline(None)
        self.quota.release()
        self._cancel()
        self._output.clear()
        if self._send_queue is not None:
            self._send_queue.detach()

    # What exchanges call.

    @property
    def budget(self) -> WorkBudget:
        """The time of an iteration for work on requests."""
        budget: WorkBudget = self.factory.budget
        return budget

    def decided(self, exchange: Exchange) -> None:
        """The token of a request is valid: its body is read."""
        if exchange is self._exchange and self._is_waiting:
            self._is_waiting = False
            self._go_on()

    def respond_later(self, exchange: Exchange, response: Response) -> None:
        """Answer a request that had to wait."""
        if exchange is self._exchange and not self._is_closing:
            self._is_waiting = False
            self._respond(response)
            self._go_on()

    def hand_over(self, protocol: IProtocol) -> None:
        """Give the transport to `protocol`."""
        site = self.factory
        site.connections -= 1
        self._set_deadline(None)
        self.quota.on_token_deadline = None  # a WebSocket has a deadline of its own
        self._is_closing = True
        self._exchange = None
        self._flush()
        if self._send_queue is not None:
            self._send_queue.release()
        transport, self.transport = self.transport, None
        del _lowest(transport).bufferSize
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
        """Give what the client has sent behind its request to the protocol that follows."""
        rest = self._parser.take_rest()
        if rest:
            protocol.dataReceived(rest)

    # Work on what has arrived.

    @property
    def _is_busy(self) -> bool:
        return self._is_waiting or self._is_deferred or self._is_congested or self._is_closing

    def _defer(self) -> None:
        self._is_deferred = True
        self._update_reading()
        self.factory.budget.defer(self._deferred_work)

    def _deferred_work(self) -> None:
        self._is_deferred = False
        if not self._is_busy:
            self._work()

    def _go_on(self) -> None:
        """After a wait: work on what has arrived meanwhile."""
        if self._is_busy:
            self._flush()
        elif self.factory.budget.is_spent:
            self._flush()
            self._defer()
        else:
            self._work()

    def _work(self) -> None:
        """Answer what has arrived, as far as the budget of this iteration reaches."""
        budget = self.factory.budget
        since = self.factory.clock.seconds()
        try:
            while self._step():
                since = budget.spend(since)
                if budget.is_spent:
                    if not self._is_busy:
                        self._defer()
                    break
        except BadRequest as error:
            self._refuse(_refusal(error), error.method)
        except Exception:
            self._log.failure("internal error: the connection is closed")
            self._refuse(_refused(responses.INTERNAL_ERROR))
        budget.spend(since)
        if self.transport is None:  # handed over
            return
        self._flush()
        if self._has_ended and not self._is_busy:
            self._close()
        self._update_reading()

    def _step(self) -> bool:
        """Do one piece of work; whether there may be another."""
        if self._is_waiting or self._is_congested or self._is_closing:
            return False
        if self._is_skipping:
            return self._skip()
        if self._send is not None:
            return self._read_body(self._send)
        parser = self._parser
        head = parser.read_head()
        if head is not None:
            if self._deadline is self.factory.heads:
                self._set_deadline(None)
            self._begin(head)
            return True
        if parser.buffered and self._deadline is not self.factory.heads:
            self._set_deadline(self.factory.heads)
        return False

    def _begin(self, head: RequestHead) -> None:
        """Look at a request: all but its body."""
        site = self.factory
        client_address.set_client_address(self.quota, self.transport, head, site.limits.settings)
        self._closes_after = not head.keeps_alive
        self._has_unread_body = head.has_body
        refusal = self._first_look(head)
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

    def _first_look(self, head: RequestHead) -> Response | None:
        """What refuses a request whatever it asks for; its connection ends with it."""
        site = self.factory
        if self.quota.exceeded_limit is not None:
            return _refused(responses.TOO_MANY_REQUESTS)
        hosts = head.headers.get(b"host")
        if len(hosts) != 1 if hosts is not None else head.minor == 1:
            # RFC 9112, section 3.2.
            return _refused(responses.BAD_HOST, ONE_HOST)
        if head.length is not None and head.length > site.max_body:
            return _refused(responses.TOO_BIG, str(site.max_body))
        if b"expect" in head.headers and head.minor == 1 and not head.expects_continue:
            return _refused(responses.EXPECTATION_FAILED)
        return None

    def _read_body(self, send: PendingSend) -> bool:
        exchange, parser = self._exchange, self._parser
        assert exchange is not None  # noqa: S101 - a send has one
        if self._has_unread_body and not parser.buffered and exchange.head.expects_continue:
            exchange.head.expects_continue = False
            self._output.append(_CONTINUE)
        try:
            body = parser.read_body(self.factory.max_body)
        except BodyTooBig:
            refusal = _refused(responses.TOO_BIG, str(self.factory.max_body))
            self._refuse(refusal, exchange.head.method)
            return False
        if body is None:
            if self._deadline is not self.factory.bodies:
                self._set_deadline(self.factory.bodies)
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
        """Read what is left of a body that nobody wants."""
        is_complete, size = self._parser.skip_body()
        if is_complete:
            self._is_skipping = False
            self._set_deadline(self.factory.idles)
            return True
        if size > MAX_SKIPPED:
            self._linger()
            return False
        if self._deadline is not self.factory.bodies:
            self._set_deadline(self.factory.bodies)
        return self._parser.may_have_more

    # Responses and the end.

    def _respond(self, response: Response) -> None:
        """Write the response to the request that is being answered."""
        exchange = self._exchange
        assert exchange is not None  # noqa: S101 - the caller has looked
        head = exchange.head
        if self._has_unread_body and self._parser.skip_body()[0]:
            self._has_unread_body = False
        self._exchange = self._send = None
        closes = self._closes_after or response.closes or self.quota.is_past_token_deadline
        if self._has_unread_body and not closes:
            # A client that expects 100 may send its body or not (RFC 9110, section 10.1.1).
            is_long = head.length is not None and head.length > MAX_SKIPPED
            closes = is_long or head.expects_continue
            self._is_skipping = not closes
        self._write(response, head.method, closes)
        if closes:
            if self._has_unread_body:
                self._linger()
            else:
                self._close()
        elif not self._is_skipping:
            self._idle()

    def _refuse(self, response: Response, method: bytes = b"") -> None:
        """Answer what is no request that can be answered, and read no more."""
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
                    self.transport, MAX_UNREAD, self.factory.slow_consumers, self._too_slow
                )
                queue.on_empty = self._on_empty
            queue.write(data)
            # While responses wait for a client that does not read, nothing is read from it.
            self._is_congested = queue.waiting > 0

    def _on_empty(self) -> None:
        if self._is_congested:
            self._is_congested = False
            if not self._is_busy:
                self._defer()

    def _too_slow(self, _: int) -> None:
        """The client takes no response."""
        self._is_closing = True
        self.transport.abortConnection()

    def _linger(self) -> None:
        """Close, and discard for a while what still arrives.

        Closing at once with bytes unread would reset the connection, and the response with it.
        """
        self._is_closing = True
        self._finish()
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
        self._set_deadline(self.factory.closes)
        self._update_reading()

    def _close(self) -> None:
        """Close once all is written; a client that does not take it is not waited for long."""
        self._is_closing = True
        self._finish()
        self._set_deadline(self.factory.closes)
        self.transport.loseConnection()
        self._update_reading()

    def _finish(self) -> None:
        """Write what is left; the transport may close after it."""
        self._flush()
        if self._send_queue is not None:
            self._send_queue.finish()

    def _cancel(self) -> None:
        """Nobody waits for what is being decided."""
        send, self._send, self._exchange = self._send, None, None
        if send is not None:
            send.cancel()

    def deadline_passed(self) -> None:
        """What it waited for has not come: close, and do not wait for the client for long."""
        if self._deadline is self.factory.closes:
            self.transport.abortConnection()
        else:
            self._close()

    def _token_deadline_passed(self) -> None:
        """No valid token was shown in time: the request that has begun is the last."""
        if self._deadline is self.factory.idles:
            self._close()

    def _set_deadline(self, deadline: Deadlines[HttpConnection] | None) -> None:
        """Wait for what `deadline` bounds, and for nothing else."""
        if self._deadline is not None:
            self._deadline.cancel(self)
        self._deadline = deadline
        if deadline is not None:
            deadline.start(self)

    def _idle(self) -> None:
        """Wait for the next request, from now on."""
        idles: Deadlines[HttpConnection] = self.factory.idles
        if self._deadline is idles:
            idles.restart(self)
        else:
            self._set_deadline(idles)

    def _update_reading(self) -> None:
        """Read, unless enough has been read; a bit more than enough shows whether it is gone."""
        pauses = not self._is_closing and (
            self._is_deferred
            or self._is_congested
            or (self._is_waiting and self._parser.buffered >= READ_SIZE)
        )
        if pauses != self._is_paused and self.transport is not None and not self._has_ended:
            self._is_paused = pauses
            if pauses:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()


def _lowest(transport: Any) -> Any:
    """The transport that has the socket."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def _refusal(error: BadRequest) -> Response:
    if error.problem is Problem.METHOD:
        return _refused(responses.METHOD_NOT_ALLOWED, headers=((b"Allow", ALLOWED),))
    if error.problem is Problem.TARGET:
        return _refused(responses.NOT_FOUND, "not a URL")
    return _refused(responses.BAD_REQUEST)


def _refused(error: ApiError, detail: str = "", headers: tuple[Header, ...] = ()) -> Response:
    """An error that pages of any origin may read."""
    return error_response(error, detail, (ANY_ORIGIN, *headers))
