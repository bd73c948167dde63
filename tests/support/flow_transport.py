"""A transport in memory whose peer reads as many bytes as the test says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from zope.interface import alsoProvides

from tests.support.harness import TRANSPORT_BUFFER, Client, MemoryTransport
from topicsvc.delivery.send_queue import SendQueue
from topicsvc.delivery.transports import SocketSendQueue, TlsSendQueue, TransportSendQueue

__all__ = ["KINDS", "FlowTransport", "flow_client"]

KINDS = ("tcp", "tls", "fallback")
"""The kinds of send queue. The one for TLS does not encrypt here."""


class FlowTransport(MemoryTransport):
    """Behaves as Twisted's TCP transports do for both kinds of producers.

    Attributes:
        room: bytes that the socket takes before the peer reads more.
        taken: all bytes that were given to the socket or to this transport.
    """

    offset = 0
    _tempDataLen = 0

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.room = 10**9
        self.taken = bytearray()
        self._is_streaming = True

    @property
    def dataBuffer(self) -> bytes:
        return bytes(self.buffered)

    def getHandle(self) -> FlowTransport:
        return self

    def send(self, data: bytes) -> int:
        """What the socket's method does."""
        sent = min(len(data), self.room)
        if not sent or self.lost is not None:
            raise BlockingIOError
        self.room -= sent
        self.taken += data[:sent]
        self.written += data[:sent]
        return sent

    def write(self, data: bytes) -> None:
        if self.lost is not None:
            return
        # Also after the end: a test may then see the error.
        self.taken += data
        self.buffered += data
        if self._is_streaming and len(self.buffered) > TRANSPORT_BUFFER:
            self._pause()

    def read_more(self, size: int) -> None:
        """The peer reads, so that the socket takes `size` bytes more."""
        self.room += size
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes, as the reactor does when the socket is writable."""
        while self.lost is None:
            sent = min(len(self.buffered), self.room)
            self.room -= sent
            self.written += self.buffered[:sent]
            del self.buffered[:sent]
            if self.buffered:
                return
            if self.producer is not None and (not self._is_streaming or self._is_paused):
                self._is_paused = False
                self.producer.resumeProducing()
            elif self.disconnecting:
                self.lose(ConnectionDone())
            if not self.buffered:
                return

    def loseConnection(self) -> None:
        self.disconnecting = True
        self.clock.callLater(0, self.flush)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        self._is_streaming = streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        super().unregisterProducer()
        self._is_streaming = True

    def _pause(self) -> None:
        if self.producer is not None and not self._is_paused:
            self._is_paused = True
            self.producer.pauseProducing()


class _NoEncryption:
    def encrypt(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


def make_queue(kind: str, transport: FlowTransport, *rest: Any) -> SendQueue:
    """Make the send queue of a kind for `transport`."""
    if kind == "tcp":
        return SocketSendQueue(transport, *rest)
    if kind == "fallback":
        return TransportSendQueue(transport, *rest)
    tls = SimpleNamespace(
        _appSendBuffer=[],
        _aggregator=SimpleNamespace(_buffer=[]),
        write=transport.write,
        getHandle=lambda: SimpleNamespace(send=None, bio_read=None),
    )
    queue = TlsSendQueue(tls, transport, *rest)
    queue._records = _NoEncryption()  # type: ignore[assignment]
    return queue


def flow_client(test: Any, kind: str) -> Client:
    """A client of a `ServiceTestCase` whose transport is a `FlowTransport`."""
    client = Client.__new__(Client)
    client.test = test
    client.status = 0
    client.headers = {}
    client.transport = FlowTransport(test.clock, test.next_port())
    if kind == "tls":
        alsoProvides(client.transport, ISSLTransport)
    client.transport.protocol = test.site.buildProtocol(client.transport.getPeer())
    client.transport.protocol.makeConnection(client.transport)
    return client
