"""The HTTP site: one port serves WebSocket and HTTP, with limits on what a channel reads."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from typing import Any

from twisted.internet.interfaces import IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.admission.limits import Limits
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.topics import ONE_HOST, Unit
from topicsvc.web import client_address, responses
from topicsvc.web.responses import ApiError

__all__ = ["TopicRequest", "TopicSite", "TopicTree"]

HEAD_TIMEOUT = 10.0
"""Seconds for a whole request head, from the connection or from the first byte of the head."""

BODY_TIMEOUT = 30.0
"""Seconds for a whole request body."""

SEND_METHODS = (b"POST", b"PUT")

STATUSES = (200, 400, 401, 403, 404, 405, 413, 500, 503)
"""Statuses of sends. Each counter starts at 0, else Prometheus would miss its first increase."""

IDLE_TIMEOUT = 60.0
"""Seconds that a connection may be idle between two requests."""

CLOSE_TIMEOUT = 5.0
"""Seconds for a client to read a response and close, before the socket is aborted."""


class TopicTree(Resource):
    """The root resource: chooses between WebSocket handshake and sending, by the path.

    Args:
        unit: knows which paths are WebSocket URLs.
        upgrade: handles WebSocket URLs.
        send: handles other URLs; None: sending is disabled.
    """

    isLeaf = True

    def __init__(self, unit: Unit, upgrade: IResource, send: IResource | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit = unit
        self._upgrade = upgrade
        self._is_draining = False
        self._send = send

    def set_send(self, send: IResource | None) -> None:
        """Enable sending; None: disable it."""
        self._send = send

    def drain(self) -> None:
        """From now on respond to every request with 503, and close its connection."""
        self._is_draining = True

    def render(self, request: TopicRequest) -> Any:
        """See `twisted.web.resource.IResource`."""
        if self._is_draining:
            request.close_after()
            request.setHeader(b"access-control-allow-origin", b"*")
            return responses.respond(request, responses.UNAVAILABLE)
        if request.path == b"*":  # the server as a whole (RFC 9110, section 9.3.7)
            if request.method == b"OPTIONS":
                return b""
            headers = {b"allow": b"OPTIONS"}
            return responses.respond(request, responses.METHOD_NOT_ALLOWED, headers=headers)
        if self._send is None or self._unit.is_websocket_path(request.path):
            return self._upgrade.render(request)
        return self._send.render(request)


class TopicRequest(Request):
    """A request whose body is bounded while it arrives."""

    channel: TopicChannel
    content: BytesIO
    _received = 0

    @property
    def quota(self) -> ClientQuota:
        """The limits of its client."""
        return self.channel.quota

    def gotLength(self, length: int | None) -> None:
        """Keep the body in memory: its length is limited."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self.channel.site.max_body:
            self.channel.refuse(responses.TOO_BIG, str(self.channel.site.max_body))
        else:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]

    def process(self) -> None:
        """Render the root resource, without a traversal and without a ``Server`` header."""
        self.site = self.channel.site
        self.prepath: list[bytes] = []
        self.postpath: list[bytes] = []
        self.setHeader(b"date", datetimeToString())
        try:
            self.render(self.site.resource)
        except Exception:
            self.processingFailed(Failure())

    def processingFailed(self, reason: Any) -> Any:
        """Log an internal error; respond with 500 and no details."""
        self._log.failure("a request for {path} failed", reason, path=self.path)
        if self.startedWriting:
            self.loseConnection()
        else:
            self.finish_with(responses.respond(self, responses.INTERNAL_ERROR))
        return reason

    def close_after(self) -> None:
        """Close the connection after the response."""
        self.channel.persistent = False

    def finish_with(self, body: bytes) -> None:
        """Write the whole body of an asynchronous response."""
        self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def finish(self) -> None:
        """Complete the response; count it, if the request is a send."""
        if self.method in SEND_METHODS:
            self.channel.site.sends[self.code] += 1
        super().finish()  # type: ignore[no-untyped-call]


class TopicChannel(HTTPChannel):
    """An HTTP/1.1 connection that can become a WebSocket.

    Every wait has an absolute deadline; bytes that trickle in do not extend it. The first one
    starts before the TLS handshake and before a PROXY header.

    Attributes:
        quota: the limits of its client.
        refused: the last response is written; further bytes are read and ignored.
    """

    site: TopicSite
    transport: Any
    quota: ClientQuota
    refused = False
    _deadline: Deadlines[TopicChannel] | None = None

    def connectionMade(self) -> None:
        self.site.connections += 1
        limits = self.site.limits
        host = client_address.initial_address(self.transport, limits.settings.trusted_proxies)
        self.quota = ClientQuota.admit(limits, host)
        if self.quota.is_closed_unanswered:
            self.refused = True
            # Before the TLS handshake, which is the expensive part.
            self.transport.abortConnection()
            return
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.quota.on_token_deadline = self.token_deadline_passed
        self._set_deadline(self.site.head_deadlines)

    def hand_over(self, protocol: Protocol) -> None:
        """Give the transport to `protocol`, with the bytes that follow the request."""
        self.site.connections -= 1
        self.quota.on_token_deadline = None  # a WebSocket has its own deadline
        transport, self.transport = self.transport, None
        if isinstance(transport, ProtocolWrapper):  # TLS, the PROXY protocol
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        self.requests.clear()
        self.rawDataReceived = protocol.dataReceived  # type: ignore[method-assign]
        protocol.makeConnection(transport)
        self._networkProducer.resumeProducing()

    def refuse(self, error: ApiError, about: str = "") -> None:
        """Respond before the whole request has arrived, and ignore the rest of it."""
        if self.refused:
            return
        self.refused = True
        if getattr(self, "_command", None) in SEND_METHODS:
            self.site.sends[error.status] += 1
        self.transport.unregisterProducer()
        self.transport.write(responses.raw_response(error, about))
        # Closing while received bytes are unread would reset the connection, and the client
        # might lose the response: read and ignore until the client closes or is aborted.
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
        self._set_deadline(self.site.close_deadlines)

    def deadline_passed(self) -> None:
        """Close; abort if the client has not closed by `CLOSE_TIMEOUT`."""
        if self._deadline is self.site.close_deadlines:
            self.transport.abortConnection()
        else:
            self.loseConnection()

    def token_deadline_passed(self) -> None:
        """Close an idle connection without a valid token; a request in progress is its last."""
        if self._deadline is self.site.idle_deadlines:
            self.loseConnection()

    def loseConnection(self) -> None:
        """Close; the client has `CLOSE_TIMEOUT` to do the same, for example after a TLS alert."""
        self._set_deadline(self.site.close_deadlines)
        super().loseConnection()  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        if self.refused:
            return
        if self._deadline is self.site.idle_deadlines:
            self._set_deadline(self.site.head_deadlines)
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def lineReceived(self, line: bytes) -> None:
        if self.refused:
            return
        if line[:1] in (b" ", b"\t"):
            # A folded header (RFC 9112, section 5.2), or whitespace before the first (2.2).
            self.refuse(responses.BAD_REQUEST)
        else:
            super().lineReceived(line)  # type: ignore[no-untyped-call]

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(responses.BAD_REQUEST)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(responses.BAD_REQUEST)

    def allHeadersReceived(self) -> None:
        headers = self.requests[-1].requestHeaders
        client_address.set_client_address(
            self.quota, self.transport, headers, self.site.limits.settings
        )
        if self.quota.exceeded_limit is not None:
            self.refuse(responses.TOO_MANY_REQUESTS)
        elif _is_coding_ambiguous(headers, self._version):
            self.refuse(responses.BAD_REQUEST)
        elif _is_host_invalid(headers, self._version):
            self.refuse(responses.BAD_HOST, ONE_HOST)
        elif self.length is not None and self.length > self.site.max_body:
            self.refuse(responses.TOO_BIG, str(self.site.max_body))
        else:
            super().allHeadersReceived()  # type: ignore[no-untyped-call]
            if self.length != 0:
                self._set_deadline(self.site.body_deadlines)

    def rawDataReceived(self, data: bytes) -> None:
        if not self.refused:
            super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        if not self.refused:
            self._set_deadline(None)
            super().allContentReceived()  # type: ignore[no-untyped-call]

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Add ``Connection: close`` to the last response of a connection."""
        if self.quota.is_past_token_deadline:
            self.persistent = False
        if not self.persistent:
            others = headers.getRawHeaders(b"connection", [])
            values = [each for each in others if each != b"close"]
            headers.setRawHeaders(b"connection", [b", ".join([*values, b"close"])])
        super().writeHeaders(version, code, reason, headers)  # type: ignore[no-untyped-call]

    def requestDone(self, request: Request) -> None:
        self._set_deadline(self.site.idle_deadlines)
        super().requestDone(request)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.connections -= 1
        self._set_deadline(None)
        self.quota.release()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        # Without reference cycles the memory is freed now: the garbage collector runs rarely.
        self.transport.unregisterProducer()
        self._transferDecoder = None
        self.requests.clear()

    def _set_deadline(self, deadline: Deadlines[TopicChannel] | None) -> None:
        """Start `deadline` in place of the current one; None: no deadline."""
        if self._deadline is not None:
            self._deadline.cancel(self)
        self._deadline = deadline
        if deadline is not None:
            deadline.start(self)


class TopicSite(Site):
    """The site of the service.

    Args:
        resource: the root resource.
        clock: the reactor, or a clock in its place.
        max_body: most bytes of a request's body.
        limits: the limits on clients.

    Attributes:
        connections: open HTTP connections, without those that became a WebSocket.
        sends: completed sends, by HTTP status.
    """

    protocol = TopicChannel  # type: ignore[assignment]
    requestFactory = TopicRequest

    def __init__(
        self, resource: IResource, clock: IReactorTime, max_body: int, limits: Limits
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            resource,
            TopicRequest,
            parsePOSTFormSubmission=False,
            timeout=None,  # the deadlines below are absolute
            reactor=clock,
        )
        self.max_body = max_body
        self.limits = limits
        self.connections = 0
        self.sends: Counter[int] = Counter(dict.fromkeys(STATUSES, 0))
        self.head_deadlines = Deadlines(clock, HEAD_TIMEOUT, TopicChannel.deadline_passed)
        self.body_deadlines = Deadlines(clock, BODY_TIMEOUT, TopicChannel.deadline_passed)
        self.idle_deadlines = Deadlines(clock, IDLE_TIMEOUT, TopicChannel.deadline_passed)
        self.close_deadlines = Deadlines(clock, CLOSE_TIMEOUT, TopicChannel.deadline_passed)

    def log(self, request: Any) -> None:
        """No access log: it would contain queries, and clients may put tokens there."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only: over HTTP/2 the transport cannot be handed over to a WebSocket."""
        return [b"http/1.1"]


def _is_host_invalid(headers: Headers, version: bytes) -> bool:
    """Whether ``Host`` is repeated, or missing although required (RFC 9112, section 3.2)."""
    hosts = headers.getRawHeaders(b"host", [])
    return len(hosts) > 1 or (not hosts and version == b"HTTP/1.1")


def _is_coding_ambiguous(headers: Headers, version: bytes) -> bool:
    """Whether two parsers could disagree on the body's length (RFC 9112, section 6.1)."""
    codings = headers.getRawHeaders(b"transfer-encoding")
    if codings is None:
        return False
    return version != b"HTTP/1.1" or [each.lower() for each in codings] != [b"chunked"]
