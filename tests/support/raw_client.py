"""A WebSocket and HTTP client on a blocking socket that can send any bytes."""

from __future__ import annotations

import socket
import ssl
import struct
from dataclasses import dataclass, field

from topicsvc.client.rules.messages import token_message

TIMEOUT = 60.0
"""Seconds for one step: more than a loaded machine needs."""
MASK = b"\x0f\xf0\x55\xaa"

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    width: int | None = None,
    announced: int | None = None,
) -> bytes:
    """Encode one frame of a client; the defaults make a valid one (RFC 6455, section 5.2).

    Args:
        opcode: 0 to 15.
        payload: the bytes that are sent.
        fin: whether it is the last frame of its message.
        rsv: the three reserved bits.
        masked: whether it is masked, as each frame of a client must be.
        width: bytes of the extended length: 0, 2 or 8; None: the fewest possible.
        announced: the length in the header; None: that of the payload.
    """
    size = len(payload) if announced is None else announced
    if width is None:
        width = 0 if size < 126 else 2 if size < 65536 else 8
    short = {0: size, 2: 126, 8: 127}[width]
    head = bytes([fin << 7 | rsv << 4 | opcode, masked << 7 | short])
    head += size.to_bytes(width, "big") if width else b""
    if not masked:
        return head + payload
    times = len(payload) // 4 + 1
    mask = int.from_bytes((MASK * times)[: len(payload)], "big")
    content = (int.from_bytes(payload, "big") ^ mask).to_bytes(len(payload), "big")
    return head + MASK + content


def close(code: int, reason: bytes = b"") -> bytes:
    """Encode a close frame."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def handshake(path: str, host: str, *headers: str) -> bytes:
    """Encode a valid opening handshake."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Transcript:
    """All frames of a server until it closed the connection.

    Attributes:
        frames: opcode and payload of each frame.
        code: code of the close frame; None: no close frame, or one without a code.
        ended: the stream was closed in order; False: it was reset or is still open.
    """

    frames: list[tuple[int, bytes]] = field(default_factory=list)
    code: int | None = None
    ended: bool = False


class RawClient:
    """One connection to a loopback port.

    Args:
        port: the port of the server.
        context: settings of TLS; None: no TLS.
        host: the server name for TLS.
        receive_buffer: size of the socket's receive buffer in bytes; 0: the system's default.
    """

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext | None = None,
        host: str = "",
        receive_buffer: int = 0,
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname=host)
        self._buffer = b""

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drip(self, data: bytes) -> None:
        """Write byte by byte; stop when the server has closed the connection."""
        try:
            for byte in data:
                self.socket.sendall(bytes([byte]))
        except OSError:
            return

    def upgrade(self, path: str, host: str, *headers: str) -> int:
        """Send an opening handshake; return the status."""
        self.write(handshake(path, host, *headers))
        return self.read_head()[0]

    def read_head(self) -> tuple[int, bytes]:
        """Read the head of a response; return its status and the head."""
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                return 0, self._buffer
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), head

    def read_response(self) -> tuple[int, bytes]:
        """Read a response with a Content-Length; return its status and its body."""
        status, head = self.read_head()
        size = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(self._buffer) < size:
            data = self.socket.recv(65536)
            assert data, "the stream has ended within a response"
            self._buffer += data
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return status, body

    def read_frame(self) -> tuple[int, bytes] | None:
        """Return the next frame; None: the stream has ended."""
        while (frame := self._take()) is None:
            data = self.socket.recv(65536)
            if not data:
                return None
            self._buffer += data
        return frame

    def read_to_end(self) -> Transcript:
        """Read until the end of the stream; reply to a close frame (RFC 6455, section 5.5.1)."""
        transcript = Transcript()
        try:
            while (frame := self.read_frame()) is not None:
                transcript.frames.append(frame)
                opcode, payload = frame
                if opcode == CLOSE:
                    transcript.code = int.from_bytes(payload[:2], "big") if payload else None
                    self._send_close(payload[:2])
            transcript.ended = not self._buffer
        except OSError:
            pass
        return transcript

    def _send_close(self, code: bytes) -> None:
        try:
            self.socket.sendall(frame(CLOSE, code))
        except OSError:
            return

    def _take(self) -> tuple[int, bytes] | None:
        """Remove one frame from the buffer; None: it is incomplete."""
        data = self._buffer
        if len(data) < 2:
            return None
        assert data[0] & 0x70 == 0, "no extension was negotiated"
        assert data[1] < 128, "a server's frame has no mask"
        size, at = data[1], 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(data[2:at], "big")
        if len(data) < at + size:
            return None
        self._buffer = data[at + size :]
        return data[0] & 15, data[at : at + size]

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close the connection with a reset (RST)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def token_request(token: str) -> bytes:
    """The message with which a client of the plain protocol presents a token."""
    return token_message(token, None, recover=False).encode("ascii")
