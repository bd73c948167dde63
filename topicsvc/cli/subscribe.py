"""Composition: ``topicsvc subscribe``."""

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
    Failed,
    ascii_url,
    find_token,
    reason_in,
    run_reactor,
    say,
    with_advice,
)
from topicsvc.explain import explain
from topicsvc.websocket import messages

__all__ = ["Subscriber", "run"]

OPEN_TIMEOUT = 20

_DATA = b'{"From":'
"""How a data message begins; its body may be anything and is not looked at."""


def run(options: Namespace) -> None:
    """Print each data message on one line, until the service closes or enough have come.

    Raises:
        Failed: the connection cannot be made, or ended before enough had come.
    """
    token = find_token(options)
    url = ascii_url(options.url, "ws", "wss").to_text()
    try:
        factory = WebSocketClientFactory(url)
    except Exception as error:  # Autobahn raises bare ones
        raise Failed(f"{options.url}: {error}") from error
    factory.setProtocolOptions(openHandshakeTimeout=OPEN_TIMEOUT, failByDrop=False)
    done: Deferred[None] = Deferred()
    factory.protocol = lambda: Subscriber(token, done, options.count)
    factory.clientConnectionFailed = lambda _, reason: done.errback(
        Failed(f"{options.url}: {reason.getErrorMessage()}")
    )

    def connect(_: Any) -> Deferred[None]:
        context = optionsForClientTLS(factory.host) if factory.isSecure else None
        connectWS(factory, context, timeout=OPEN_TIMEOUT)
        return done

    run_reactor(connect)


def _say_welcome(seconds: int) -> None:
    print(f"subscribed for {seconds} seconds", file=sys.stderr, flush=True)


class Subscriber(WebSocketClientProtocol):  # type: ignore[misc]
    """Shows a token and takes what comes.

    Args:
        token: the token.
        done: fires when enough has come, or fails with why no more will.
        count: how many messages are enough; None: no number is.
        take: takes each message, on one line; says whether it wants more.
        welcomed: hears that the session has begun, and for how many seconds.
    """

    log = txaio.make_logger(level="none")  # type: ignore[attr-defined]

    def __init__(
        self,
        token: str,
        done: Deferred[None],
        count: int | None = None,
        take: Callable[[str], bool] = say,
        welcomed: Callable[[int], None] = _say_welcome,
    ) -> None:
        super().__init__()
        self._take = take
        self._welcomed = welcomed
        self._token = token
        self._left = count
        self._done = done
        self._refusal = ""

    def onOpen(self) -> None:
        self.sendMessage(messages.token_request(self._token))

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._done.called:  # what came together with the last message that was wanted
            return
        if not payload.startswith(_DATA):
            self._answered(json.loads(payload))
            return
        # A line break can stand only between the parts of a JSON text, never inside one.
        if not self._take(payload.replace(b"\r", b" ").replace(b"\n", b" ").decode("utf-8")):
            self._left = 1
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._end(None)
                self.sendClose(1000)

    def failHandshake(self, reason: str) -> None:
        # Where the service says more than a status, its answer is here already.
        head, _, body = self.data.partition(b"\r\n\r\n")
        said = reason_in(body.decode("utf-8", "replace"))
        status = head.split(b" ", 2)[1:2]
        self._refusal = f"{status[0].decode('latin-1')} {said}" if status and said else reason
        super().failHandshake(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(SSL.Error, VerificationError):
            error: Any = reason.value
            self._refusal = with_advice(explain(error))
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        why = self._refusal or self.wasNotCleanReason or reason or "the connection was lost"
        self._end(Failed(f"closed: {why}" + (f" ({code})" if wasClean and code else "")))

    def _answered(self, reply: dict[str, Any]) -> None:
        if reply.get("Result") == "Success":
            self._welcomed(reply["ExpiresIn"])
        else:
            self._refusal = str(reply.get("Reason"))

    def _end(self, failed: Failed | None) -> None:
        if not self._done.called:
            if failed is None:
                self._done.callback(None)
            else:
                self._done.errback(failed)
