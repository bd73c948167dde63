"""The WebSocket of a client: translates between Autobahn and its owner, and has no rules."""

from __future__ import annotations

import re
from typing import Any, Protocol

import txaio
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from hyperlink import URL
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from topicsvc.client.rules.close_codes import LOST
from topicsvc.client.rules.responses import seconds_of, status_text
from topicsvc.explain import explain_http_error

__all__ = ["CLOSE_TIMEOUT", "Connection", "Owner", "make_factory"]

CLOSE_TIMEOUT = 2.0
"""Seconds that the service has to answer a close frame."""

_HTTP = b"HTTP/"
_NO_STATUS = 1005
_PROTOCOL_ERROR = 1002


class Owner(Protocol):
    """What a connection reports to. The methods are named as those of `Session`."""

    def heard(self) -> None:
        """Bytes have arrived."""

    def opened(self) -> None:
        """The opening handshake has succeeded."""

    def not_opened(self, why: str, status: int | None = None, retry_after: float = 0.0) -> None:
        """The opening handshake has failed."""

    def received(self, text: str) -> None:
        """A text message has arrived."""

    def received_nonsense(self) -> None:
        """A binary message has arrived."""

    def closed(self, code: int, reason: str, detail: str) -> None:
        """The connection has ended."""


def make_factory(url: URL, connection: Connection) -> Any:
    """Make a factory for one connection to the topic of `url`."""
    factory = WebSocketClientFactory(url.to_text())
    if ":" in url.host:
        factory.host = f"[{url.host}]"  # Autobahn puts it into the header Host as it is.
    factory.noisy = False
    factory.protocol = lambda: connection
    factory.setProtocolOptions(
        openHandshakeTimeout=0,  # the session has its own
        closeHandshakeTimeout=CLOSE_TIMEOUT,
        failByDrop=False,
    )
    return factory


class Connection(WebSocketClientProtocol):  # type: ignore[misc]
    """One connection.

    Args:
        owner: see `Owner`. After `leave` nothing is reported.

    Attributes:
        ended: fires when the connection is lost.
    """

    log = txaio.make_logger(level="none")  # type: ignore[attr-defined]

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.ended: Deferred[None] = Deferred()
        self._owner: Owner | None = owner
        self._is_open = False
        self._why = ""  # the opening handshake failed
        self._status: int | None = None
        self._retry_after = 0.0

    def leave(self) -> bool:
        """Close the connection, and report nothing more; returns whether there is one to close."""
        self._owner = None
        if self.transport is None:
            return False
        if self._is_open:
            self.transport.resumeProducing()
            self.sendClose(1000)
        else:
            self.transport.abortConnection()
        return True

    def send_text(self, text: str) -> None:
        """Send a text message."""
        self.sendMessage(text.encode("utf-8"))

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        if self._owner is not None:
            self._owner.heard()
        if not self._is_open and not _HTTP.startswith((self.data + data)[: len(_HTTP)]):
            self._why = "the answer is not HTTP"
            self.transport.abortConnection()
            return
        super().dataReceived(data)

    def onOpen(self) -> None:
        self._is_open = True
        if self._owner is not None:
            self._owner.opened()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._owner is None:
            return
        if isBinary:
            self._owner.received_nonsense()
        else:
            self._owner.received(payload.decode("utf-8"))

    def failHandshake(self, reason: str) -> None:
        # If the response has a body, it has been received already.
        head, _, body = self.data.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/[\d.]+ (\d{3})\b", head)
        if status is not None and status[1] != b"101":
            self._status = int(status[1])
            self._why = status_text(self._status, body)
            retry_after = re.search(rb"(?i)\r\nRetry-After:[ \t]*(\d+)[ \t]*(?:\r\n|\Z)", head)
            self._retry_after = seconds_of(retry_after[1].decode()) or 0.0 if retry_after else 0.0
        else:
            self._why = "the answer is not that of a WebSocket server"
        super().failHandshake(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        owner = self._owner
        if not self._is_open:
            self._owner = None
        super().connectionLost(reason)
        if owner is not None and not self._is_open:
            error: Any = reason.value
            why = self._why or explain_http_error(error)
            owner.not_opened(why, self._status, self._retry_after)
        self.ended.callback(None)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        owner, self._owner = self._owner, None
        if owner is None:
            return
        if wasClean:
            owner.closed(code or _NO_STATUS, reason or "", "")
        elif self.failedByMe:
            detail = "the server sent data that WebSocket does not allow"
            owner.closed(_PROTOCOL_ERROR, "", detail)
        else:
            detail = "the connection was lost, without a close frame of the service"
            owner.closed(LOST, "", detail)
