"""A WebSocket server in memory, for Twisted clients in virtual time."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from topicsvc.websocket.messages import text_frame

__all__ = ["FakeEndpoint", "FakeServer"]

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # opcodes
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
NO_STATUS = 1005


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """A frame of a server, with a payload of less than 126 bytes."""
    return bytes([0x80 | opcode, len(payload)]) + payload


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    """The frames of a client: opcode and payload."""
    found = []
    while data:
        length, head = data[1] & 0x7F, 2
        if length == 126:
            length, head = int.from_bytes(data[2:4], "big"), 4
        mask, masked = data[head : head + 4], data[head + 4 : head + 4 + length]
        payload = bytes(each ^ mask[n % 4] for n, each in enumerate(masked))
        found.append((data[0] & 0x0F, payload))
        data = data[head + 4 + length :]
    return found


class FakeServer(StringTransport):
    """The transport of a client, and the server behind it.

    Args:
        on_text: called with each text message of the client.
        on_close: called with the code of the client's close frame, or with ``handshake`` if the
            client gives up before the opening handshake is done.

    Attributes:
        protocol: the client.
        request: the client's request for the opening handshake.
        pings: how many pings the client has sent.
        answers_pings: whether the server answers pings, as it must.
    """

    protocol: Any = None

    def __init__(self, on_text: Callable[[str], object], on_close: Callable[[Any], object]) -> None:
        super().__init__()
        self._on_text = on_text
        self._on_close = on_close
        self.request = b""
        self.pings = 0
        self.answers_pings = True
        self._is_open = False
        self._is_over = False

    # The transport of the client.

    def write(self, data: bytes) -> None:
        if not self._is_open:
            self.request += data
            return
        for opcode, payload in frames_of(data):
            if opcode == TEXT:
                self._on_text(payload.decode())
            elif opcode == PING:
                self.pings += 1
                if self.answers_pings:
                    self.receive(frame(PONG, payload))
            elif opcode == CLOSE and not self._is_over:
                self._is_over = True
                self._on_close(int.from_bytes(payload[:2], "big"))

    def loseConnection(self) -> None:
        self._end(ConnectionDone())

    def abortConnection(self) -> None:
        if not self._is_open and not self._is_over:
            self._on_close("handshake")
        self._end(ConnectionLost())

    def _end(self, reason: Exception) -> None:
        self._is_over = True
        if not self.disconnected:
            self.disconnected = True
            self.protocol.connectionLost(Failure(reason))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do nothing: there is no socket."""

    def unregisterProducer(self) -> None:
        """Do nothing: a real transport allows this without a producer."""

    # The server.

    def receive(self, data: bytes) -> None:
        """Bytes of the server arrive at the client."""
        self.protocol.dataReceived(data)

    def accept(self) -> None:
        if self._is_over:
            return
        [key] = [
            line.split(b": ")[1]
            for line in self.request.splitlines()
            if line.lower().startswith(b"sec-websocket-key")
        ]
        accept = b64encode(sha1(key + GUID).digest())
        self._is_open = True
        self.receive(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept
        )

    def refuse(self, status: int, retry_after: int | None) -> None:
        self._is_over = True
        more = b"" if retry_after is None else b"Retry-After: %d\r\n" % retry_after
        self.receive(b"HTTP/1.1 %d X\r\n%s\r\n" % (status, more))
        self.loseConnection()

    def send_text(self, text: str) -> None:
        self._arrive(text_frame(text.encode()))

    def send_binary(self, data: bytes) -> None:
        self._arrive(frame(BINARY, data))

    def cut(self, code: int, reason: str) -> None:
        payload = b"" if code == NO_STATUS else code.to_bytes(2, "big") + reason.encode()
        is_over, self._is_over = self._is_over, True  # what the client sends is only the answer
        if not is_over:
            self.receive(frame(CLOSE, payload))
            self._end(ConnectionDone())

    def drop(self) -> None:
        self._end(ConnectionLost())

    def _arrive(self, data: bytes) -> None:
        if not self._is_over:
            self.receive(data)


@implementer(IStreamClientEndpoint)
class FakeEndpoint:
    """Connects each time to a new fake server.

    Args:
        make_server: makes the server.
    """

    def __init__(self, make_server: Callable[[], FakeServer]) -> None:
        self._make_server = make_server

    def connect(self, factory: Any) -> Deferred[Any]:
        server = self._make_server()
        server.protocol = factory.buildProtocol(None)
        server.protocol.makeConnection(server)
        return succeed(server.protocol)
