"""Adapter: the Site. One port serves WebSocket and HTTP; its channels bound what they read."""

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
"""Seconds for a whole request head, from the connection or the end of the silence before it."""

BODY_TIMEOUT = 30.0
"""Seconds for a whole body."""

SEND_METHODS = (b"POST", b"PUT")

STATUSES = (200, 400, 401, 403, 404, 405, 413, 500, 503)
"""What a send may be answered with. Each is counted from 0, or its first would not be seen."""

IDLE_TIMEOUT = 60.0
"""Seconds that a connection may be silent between two requests."""

CLOSE_TIMEOUT = 5.0
"""Seconds for a peer to take an answer and close, before the socket is aborted."""


class TopicTree(Resource):
    """The resource tree: two sides, told apart by the path."""

    isLeaf = True

    def __init__(self, unit: Unit, upgrade: IResource, send: IResource | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit = unit
        self._upgrade = upgrade
        self._is_draining = False
        self.offer(send)

    def offer(self, send: IResource | None) -> None:
        """Take what is sent; None: take nothing."""
        self._send = send

    def drain(self) -> None:
        """From now on answer every request with 503, and close its connection."""
        self._is_draining = True

    def render(self, request: TopicRequest) -> Any:
        """See `twisted.web.resource.IResource`."""
        if self._is_draining:
            request.close_after()
            request.setHeader(b"access-control-allow-origin", b"*")
            return responses.answer(request, responses.UNAVAILABLE)
        if request.path == b"*":  # the server as a whole (RFC 9110, section 9.3.7)
            if request.method == b"OPTIONS":
                return b""
            headers = {b"allow": b"OPTIONS"}
            return responses.answer(request, responses.METHOD_NOT_ALLOWED, headers=headers)
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
        """What its connection counts as."""
        return self.channel.quota

    def gotLength(self, length: int | None) -> None:
        """Keep the body in memory, whatever its length: it is bounded."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self.channel.site.max_body:
            self.channel.refuse(responses.TOO_BIG, str(self.channel.site.max_body))
        else:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]

    def process(self) -> None:
        """Let the one resource answer: there is no tree to walk, and no banner to show."""
        self.site = self.channel.site
        self.prepath: list[bytes] = []
        self.postpath: list[bytes] = []
        self.setHeader(b"date", datetimeToString())
        try:
            self.render(self.site.resource)
        except Exception:
            self.processingFailed(Failure())

    def processingFailed(self, reason: Any) -> Any:
        """A fault of ours: log it, and tell the client no more than that."""
        self._log.failure("{path} could not be answered", reason, path=self.path)
        if self.startedWriting:
            self.loseConnection()
        else:
            self.finish_with(responses.answer(self, responses.INTERNAL_ERROR))
        return reason

    def close_after(self) -> None:
        """No other request is taken from this connection."""
        self.channel.persistent = False

    def finish_with(self, body: bytes) -> None:
        """Write the whole body of an answer that was not given at once."""
        self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def finish(self) -> None:
        """The answer is complete: count it, if it answers a send."""
        if self.method in SEND_METHODS:
            self.channel.site.sends[self.code] += 1
        super().finish()  # type: ignore[no-untyped-call]


class TopicChannel(HTTPChannel):
    """An HTTP/1.1 connection that can become a WebSocket.

    What it waits for has an absolute deadline, which no dripping of bytes prolongs. The first
    begins before the TLS handshake and before a PROXY header.

    Attributes:
        quota: what it counts as.
        refused: all has been said, what still comes is read and forgotten.
    """

    site: TopicSite
    transport: Any
    quota: ClientQuota
    refused = False
    _deadline: Deadlines[TopicChannel] | None = None

    def connectionMade(self) -> None:
        self.site.connections += 1
        limits = self.site.limits
        host = client_address.arriving_host(self.transport, limits.settings.trusted_proxies)
        self.quota = ClientQuota.admit(limits, host)
        if self.quota.is_dropped:
            self.refused = True
            # Before a TLS handshake, which is what costs.
            self.transport.abortConnection()
            return
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.quota.on_token_deadline = self.no_token
        self._wait(self.site.heads)

    def hand_over(self, protocol: Protocol) -> None:
        """Give the transport to `protocol`, and what the client sends behind its request."""
        self.site.connections -= 1
        self.quota.on_token_deadline = None  # a WebSocket has a time of its own
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
        """Answer before the request has arrived in full, and read no more of it."""
        if self.refused:
            return
        self.refused = True
        if getattr(self, "_command", None) in SEND_METHODS:
            self.site.sends[error.status] += 1
        self.transport.unregisterProducer()
        self.transport.write(responses.early_answer(error, about))
        # Closing at once with bytes unread would reset the connection and the answer with it:
        # what still comes is read and forgotten for a while.
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
        self._wait(self.site.closes)

    def too_late(self) -> None:
        """A deadline is over: close, and do not wait for the peer for long."""
        if self._deadline is self.site.closes:
            self.transport.abortConnection()
        else:
            self.loseConnection()

    def no_token(self) -> None:
        """It has shown no live token for too long: what it has begun is its last request."""
        if self._deadline is self.site.idles:
            self.loseConnection()

    def loseConnection(self) -> None:
        """Close; a peer that does not, after our TLS close alert say, is not waited for long."""
        self._wait(self.site.closes)
        super().loseConnection()  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        if self.refused:
            return
        if self._deadline is self.site.idles:
            self._wait(self.site.heads)
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def lineReceived(self, line: bytes) -> None:
        if self.refused:
            return
        if line[:1] in (b" ", b"\t"):
            # A folded header (RFC 9112, section 5.2), or a blank before the first (2.2).
            self.refuse(responses.BAD_REQUEST)
        else:
            super().lineReceived(line)  # type: ignore[no-untyped-call]

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(responses.BAD_REQUEST)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(responses.BAD_REQUEST)

    def allHeadersReceived(self) -> None:
        headers = self.requests[-1].requestHeaders
        client_address.recognize(self.quota, self.transport, headers, self.site.limits.settings)
        if self.quota.refused_by is not None:
            self.refuse(responses.TOO_MANY_REQUESTS)
        elif _has_strange_coding(headers, self._version):
            self.refuse(responses.BAD_REQUEST)
        elif _has_strange_host(headers, self._version):
            self.refuse(responses.BAD_HOST, ONE_HOST)
        elif self.length is not None and self.length > self.site.max_body:
            self.refuse(responses.TOO_BIG, str(self.site.max_body))
        else:
            super().allHeadersReceived()  # type: ignore[no-untyped-call]
            if self.length != 0:
                self._wait(self.site.bodies)

    def rawDataReceived(self, data: bytes) -> None:
        if not self.refused:
            super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        if not self.refused:
            self._wait(None)
            super().allContentReceived()  # type: ignore[no-untyped-call]

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """The last answer says that it is the last."""
        if self.quota.is_past_token_deadline:
            self.persistent = False
        if not self.persistent:
            others = headers.getRawHeaders(b"connection", [])
            values = [each for each in others if each != b"close"]
            headers.setRawHeaders(b"connection", [b", ".join([*values, b"close"])])
        super().writeHeaders(version, code, reason, headers)  # type: ignore[no-untyped-call]

    def requestDone(self, request: Request) -> None:
        self._wait(self.site.idles)
        super().requestDone(request)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.connections -= 1
        self._wait(None)
        self.quota.leave()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        # Nothing holds on to itself, so all is freed now: the garbage collector is kept rare.
        self.transport.unregisterProducer()
        self._transferDecoder = None
        self.requests.clear()

    def _wait(self, deadline: Deadlines[TopicChannel] | None) -> None:
        """Wait for what `deadline` bounds, and for nothing else."""
        if self._deadline is not None:
            self._deadline.cancel(self)
        self._deadline = deadline
        if deadline is not None:
            deadline.start(self)


class TopicSite(Site):
    """The Site of the service.

    Args:
        resource: the root.
        clock: keeps the timeouts.
        max_body: most bytes of a request's body.
        limits: how many connections there may be, and whose.

    Attributes:
        connections: HTTP connections that are open; one that became a WebSocket is not.
        sends: sends that were answered, by HTTP status.
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
        self.heads = Deadlines(clock, HEAD_TIMEOUT, TopicChannel.too_late)
        self.bodies = Deadlines(clock, BODY_TIMEOUT, TopicChannel.too_late)
        self.idles = Deadlines(clock, IDLE_TIMEOUT, TopicChannel.too_late)
        self.closes = Deadlines(clock, CLOSE_TIMEOUT, TopicChannel.too_late)

    def log(self, request: Any) -> None:
        """No access log: it would hold the query, and clients put tokens there."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only: over HTTP/2 a WebSocket cannot be handed over."""
        return [b"http/1.1"]


def _has_strange_host(headers: Headers, version: bytes) -> bool:
    """Whether ``Host`` stands there twice, or not where it has to (RFC 9112, section 3.2)."""
    hosts = headers.getRawHeaders(b"host", [])
    return len(hosts) > 1 or (not hosts and version == b"HTTP/1.1")


def _has_strange_coding(headers: Headers, version: bytes) -> bool:
    """Whether the length of a body could be read in two ways (RFC 9112, section 6.1)."""
    codings = headers.getRawHeaders(b"transfer-encoding")
    if codings is None:
        return False
    return version != b"HTTP/1.1" or [each.lower() for each in codings] != [b"chunked"]
