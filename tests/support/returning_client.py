"""A client with positions, which comes back whenever it loses its connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from tests.support.subscriber import Subscriber

__all__ = ["ReturningClient"]

RETRY_DELAY = 0.2
"""Seconds before another attempt, after one that did not lead to a session."""


class _Connection(Subscriber):
    """One connection of a `ReturningClient`."""

    def __init__(self, client: ReturningClient) -> None:
        super().__init__()
        self._client = client
        self.path, self.token = client.path, client.token
        self.since = client.position

    def present(self) -> None:
        """Send the token and the position."""
        message = {"AccessToken": self.token, "Since": self.since}
        payload = json.dumps(message).encode("ascii")
        length = bytes([0xFE]) + len(payload).to_bytes(2, "big")
        self.transport.write(b"\x81" + length + bytes(4) + payload)

    def frame_received(self, opcode: int, payload: bytes) -> None:
        if opcode != 1:
            super().frame_received(opcode, payload)
            return
        message = json.loads(payload)
        self._client.on_message(self, message)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self._client.on_lost(self)


class ReturningClient:
    """Stays on a topic; each return goes on after the last message that was read.

    Args:
        path: of the topic's WebSocket.
        token: a token for it.
        port: returns the port of a process, as a load balancer would choose it.

    Attributes:
        position: behind the last message that was read; None: it has none yet.
        bodies: of all messages, in their order.
        returns: for each return with a position, whether ``Missed`` was true.
        unasked: how often a session was told while it was connected.
        is_active: whether there is a session now.
    """

    def __init__(self, path: str, token: str, port: Callable[[], int]) -> None:
        self.path = path
        self.token = token
        self._port = port
        self.position: str | None = None
        self.bodies: list[Any] = []
        self.returns: list[bool] = []
        self.unasked = 0
        self.is_active = False
        self._connecting: Deferred[Any] | None = None
        self._connection: _Connection | None = None
        self._is_stopped = False
        self._retry: IDelayedCall | None = None

    def start(self) -> None:
        """Connect, and stay connected."""
        self._retry = None
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self._port())
        connection = _Connection(self)
        self._connecting = connectProtocol(endpoint, connection)
        self._connecting.addCallbacks(self._on_connected, lambda _: self._come_back(RETRY_DELAY))

    def cut(self) -> None:
        """Lose the connection; the client comes back."""
        if self._connection is not None:
            self._connection.transport.abortConnection()

    def stop(self) -> Deferred[None] | None:
        """Leave for good; fires when the connection is closed."""
        self._is_stopped = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._connecting is not None:
            self._connecting.cancel()  # without effect if it is connected
        return None if self._connection is None else self._connection.leave()

    def _on_connected(self, connection: _Connection) -> None:
        self._connection = connection
        if self._is_stopped:
            connection.leave()

    def _come_back(self, delay: float) -> None:
        if not self._is_stopped:
            self._retry = reactor.callLater(delay, self.start)

    # Called by the connection.

    def on_message(self, connection: _Connection, message: dict[str, Any]) -> None:
        """A text message has arrived."""
        if message.get("Result") == "Error" or message.get("Response") == "Unknown":
            return  # it closes the connection, and the client comes back
        self.position = message["Position"]
        if "Body" in message:
            self.bodies.append(message["Body"])
        elif message.get("Result") == "Success":
            if self.is_active:
                self.unasked += message["Missed"]
            elif connection.since is not None:
                self.returns.append(message["Missed"])
            self.is_active = True

    def on_lost(self, connection: _Connection) -> None:
        """The connection is lost."""
        was_active, self.is_active = self.is_active, False
        self._connection = None
        self._come_back(0 if was_active else RETRY_DELAY)
