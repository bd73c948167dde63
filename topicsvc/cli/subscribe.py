"""``topicsvc subscribe``: prints the messages of a topic."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import txaio
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol, connectWS
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from topicsvc.cli.terminal import (
    CommandFailed,
    ascii_url,
    find_token,
    print_line,
    reason_in,
    run_reactor,
    with_advice,
)
from topicsvc.explain import explain
from topicsvc.websocket import messages

__all__ = ["Subscriber", "run"]

OPEN_TIMEOUT = 20
"""Seconds for connecting, and for the opening handshake."""

_DATA = b'{"From":'
"""How a data message starts; the rest is not parsed, as a body may be any JSON value."""


def run(options: Namespace) -> None:
    """Print each message on one line, until the service closes or enough messages have arrived.

    Raises:
        CommandFailed: the connection failed, or ended before enough messages had arrived.
    """
    token = find_token(options)
    url = ascii_url(options.url, "ws", "wss").to_text()
    try:
        factory = WebSocketClientFactory(url)
    except Exception as error:  # Autobahn raises plain exceptions
        raise CommandFailed(f"{options.url}: {error}") from error
    factory.setProtocolOptions(openHandshakeTimeout=OPEN_TIMEOUT, failByDrop=False)
    done: Deferred[None] = Deferred()
    factory.protocol = lambda: Subscriber(token, done, options.count)
    factory.clientConnectionFailed = lambda _, reason: done.errback(
        CommandFailed(f"{options.url}: {reason.getErrorMessage()}")
    )

    def connect(_: Any) -> Deferred[None]:
        context = optionsForClientTLS(factory.host) if factory.isSecure else None
        connectWS(factory, context, timeout=OPEN_TIMEOUT)
        return done

    run_reactor(connect)


def _print_subscribed(seconds: int) -> None:
    print(f"subscribed for {seconds} seconds", file=sys.stderr, flush=True)


class Subscriber(WebSocketClientProtocol):  # type: ignore[misc]
    """Presents a token and receives messages.

    Args:
        token: the token.
        done: fires when enough messages have arrived, or fails if the connection ends before.
        count: the number of messages to receive; None: no limit.
        on_message: called with each message, on one line; returns whether to receive more.
        on_subscribed: called with the seconds until the token expires, once it is accepted.
    """

    log = txaio.make_logger(level="none")  # type: ignore[attr-defined]

    def __init__(
        self,
        token: str,
        done: Deferred[None],
        count: int | None = None,
        on_message: Callable[[str], bool] = print_line,
        on_subscribed: Callable[[int], None] = _print_subscribed,
    ) -> None:
        super().__init__()
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._token = token
        self._left = count
        self._done = done
        self._refusal = ""

    def onOpen(self) -> None:
        self.sendMessage(messages.token_request(self._token))

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._done.called:  # messages that arrived together with the last one
            return
        if not payload.startswith(_DATA):
            self._on_reply(json.loads(payload))
            return
        # In JSON a line break is only whitespace; in strings it is escaped.
        if not self._on_message(payload.replace(b"\r", b" ").replace(b"\n", b" ").decode("utf-8")):
            self._left = 1
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._end(None)
                self.sendClose(1000)

    def failHandshake(self, reason: str) -> None:
        # If the response has a body, it has been received already.
        head, _, body = self.data.partition(b"\r\n\r\n")
        detail = reason_in(body.decode("utf-8", "replace"))
        status = head.split(b" ", 2)[1:2]
        self._refusal = f"{status[0].decode('latin-1')} {detail}" if status and detail else reason
        super().failHandshake(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(SSL.Error, VerificationError):
            error: Any = reason.value
            self._refusal = with_advice(explain(error))
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        why = self._refusal or self.wasNotCleanReason or reason or "the connection was lost"
        self._end(CommandFailed(f"closed: {why}" + (f" ({code})" if wasClean and code else "")))

    def _on_reply(self, reply: dict[str, Any]) -> None:
        if reply.get("Result") == "Success":
            self._on_subscribed(reply["ExpiresIn"])
        else:
            self._refusal = str(reply.get("Reason"))

    def _end(self, failed: CommandFailed | None) -> None:
        if not self._done.called:
            if failed is None:
                self._done.callback(None)
            else:
                self._done.errback(failed)
