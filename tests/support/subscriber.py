"""A small WebSocket client in Twisted, for tests with many clients in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from tests.support.raw_client import token_request


class Subscriber(Protocol):
    """Opens a WebSocket, presents its token and keeps the messages.

    Args:
        on_success: called in the reactor iteration in which the Success reply is read.

    Attributes:
        status: HTTP status of the opening handshake.
        messages: payloads of data messages.
        replies: the replies to tokens, parsed.
        close_code: code of the close frame; None: there was none.
        handshake_done: fires after the opening handshake, with the status; 0: connection lost.
        subscribed: fires with True after the Success reply, with False when there will be none.
        gone: fires when the connection is closed.
    """

    path = ""
    token = ""

    def __init__(self, on_success: Callable[[], object] = lambda: None) -> None:
        self.status = 0
        self.messages: list[bytes] = []
        self.replies: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self.handshake_done: Deferred[int] = Deferred()
        self.subscribed: Deferred[bool] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self._on_success = on_success
        self._buffer = b""

    def connectionMade(self) -> None:
        self.transport.write(
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )

    def present(self) -> None:
        """Send the token."""
        payload = token_request(self.token)
        length = bytes([0xFE]) + len(payload).to_bytes(2, "big")
        self.transport.write(b"\x81" + length + bytes(4) + payload)

    def leave(self) -> Deferred[None]:
        """Close the connection; fires when it is closed."""
        self.transport.loseConnection()
        return self.gone

    def dataReceived(self, data: bytes) -> None:
        data = self._buffer + data
        at = 0
        if not self.status:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self._buffer = data
                return
            self.status = int(data[9:12])
            self.handshake_done.callback(self.status)
            if self.status != 101:
                self.transport.loseConnection()
                return
            self.present()
        while len(data) - at >= 2:
            length, start = data[at + 1], at + 2
            if length >= 126:
                start = at + (4 if length == 126 else 10)
                length = int.from_bytes(data[at + 2 : start], "big")
            if len(data) < start + length:
                break
            self.frame_received(data[at] & 15, data[start : start + length])
            at = start + length
        self._buffer = data[at:]

    def frame_received(self, opcode: int, payload: bytes) -> None:
        if opcode == 9:
            self.transport.write(bytes([0x8A, 0x80 | len(payload)]) + bytes(4) + payload)
        elif opcode == 8:
            self.close_code = int.from_bytes(payload[:2], "big")
            self.transport.write(bytes([0x88, 0x82]) + bytes(4) + payload[:2])
        elif payload.startswith(b'{"Response"'):
            self.replies.append(json.loads(payload))
            if self.replies[-1]["Result"] == "Success" and not self.subscribed.called:
                self._on_success()
                self.subscribed.callback(True)
        else:
            self.messages.append(payload)

    def connectionLost(self, reason: Failure) -> None:
        if not self.handshake_done.called:
            self.handshake_done.callback(0)
        if not self.subscribed.called:
            self.subscribed.callback(False)
        self.gone.callback(None)
