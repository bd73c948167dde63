"""Adapter: the Site. One port serves WebSocket and HTTP; its channels bound what they read."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.internet.interfaces import IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from topicsvc.address import Unit
from topicsvc.web import answers

__all__ = ["TopicRequest", "TopicSite", "TopicTree"]

IDLE_TIMEOUT = 60
"""Seconds that a connection may be silent while it is HTTP."""

LINGER = 5
"""Seconds to read and forget what is still sent after a body was refused."""


class TopicTree(Resource):
    """The resource tree: two sides, told apart by the path."""

    isLeaf = True

    def __init__(self, unit: Unit, upgrade: IResource, send: IResource | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit = unit
        self._upgrade = upgrade
        self._send = send

    def render(self, request: Request) -> Any:
        """See `twisted.web.resource.IResource`."""
        if self._send is None or self._unit.is_websocket_path(request.path):
            return self._upgrade.render(request)
        return self._send.render(request)


class TopicRequest(Request):
    """A request whose body is bounded while it arrives, and whose answer has no banner."""

    channel: TopicChannel
    content: BytesIO
    _received = 0

    def gotLength(self, length: int | None) -> None:
        """Keep the body in memory, whatever its length: it is bounded."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self.channel.site.max_body:
            self.channel.refuse_body()
        else:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]

    def render(self, resrc: IResource) -> None:
        self.responseHeaders.removeHeader(b"server")
        super().render(resrc)  # type: ignore[no-untyped-call]

    def processingFailed(self, reason: Any) -> Any:
        """A fault of ours: log it, and tell the client no more than that."""
        self._log.failure("{path} could not be answered", reason, path=self.path)
        if self.startedWriting:
            self.loseConnection()
        else:
            self.finish_with(answers.answer(self, answers.INTERNAL_ERROR))
        return reason

    def finish_with(self, body: bytes) -> None:
        """Write the whole body of an answer that was not given at once."""
        self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)
        self.finish()


class TopicChannel(HTTPChannel):
    """An HTTP/1.1 connection that can become a WebSocket."""

    site: TopicSite
    transport: Any
    refused = False

    def hand_over(self, protocol: Protocol, head: bytes) -> None:
        """Give the transport to `protocol`, with `head` as the first it reads.

        What the client sent behind its request follows.
        """
        transport, self.transport = self.transport, None
        if isinstance(transport, ProtocolWrapper):  # TLS, the PROXY protocol
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        self.requests.clear()
        self.rawDataReceived = protocol.dataReceived  # type: ignore[method-assign]
        protocol.makeConnection(transport)
        self._networkProducer.resumeProducing()
        protocol.dataReceived(head)

    def refuse_body(self) -> None:
        """Answer 413 before the body has arrived, and read no more of it."""
        if self.refused:
            return
        self.refused = True
        body = answers.TOO_BIG.body(str(self.site.max_body))
        self.transport.write(
            b"HTTP/1.1 413 Request Entity Too Large\r\n"
            b"Content-Type: application/json\r\nAccess-Control-Allow-Origin: *\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        # Closing with bytes unread would reset the connection and the answer with it: what
        # still comes is read and forgotten for a while.
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
        self.setTimeout(None)
        self._abortingCall = self.callLater(LINGER, self.forceAbortClient)

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > self.site.max_body:
            self.refuse_body()
        else:
            super().allHeadersReceived()  # type: ignore[no-untyped-call]

    def allContentReceived(self) -> None:
        if not self.refused:
            super().allContentReceived()  # type: ignore[no-untyped-call]

    def rawDataReceived(self, data: bytes) -> None:
        if not self.refused:
            super().rawDataReceived(data)

    def dataReceived(self, data: bytes) -> None:
        if not self.refused:
            super().dataReceived(data)  # type: ignore[no-untyped-call]


class TopicSite(Site):
    """The Site of the service.

    Args:
        resource: the root.
        clock: keeps the timeouts.
        max_body: most bytes of a request's body.
    """

    protocol = TopicChannel  # type: ignore[assignment]
    requestFactory = TopicRequest

    def __init__(self, resource: IResource, clock: IReactorTime, max_body: int) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            resource,
            TopicRequest,
            parsePOSTFormSubmission=False,
            timeout=IDLE_TIMEOUT,
            reactor=clock,
        )
        self.max_body = max_body

    def log(self, request: Any) -> None:
        """No access log: it would hold the query, and clients put tokens there."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only: over HTTP/2 a WebSocket cannot be handed over."""
        return [b"http/1.1"]
