"""``topicsvc subscribe``: prints the messages of a topic."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import txaio
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from hyperlink import URL
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from topicsvc.cli.client import (
    TIMEOUT,
    client_endpoint,
    connection_error,
    find_token,
    parse_url,
    run_reactor,
)
from topicsvc.cli.silence import OWN_PING_INTERVAL, Silence
from topicsvc.cli.terminal import CommandFailed, print_error, print_line
from topicsvc.client.rules.responses import status_text
from topicsvc.explain import explain_http_error
from topicsvc.websocket import messages

__all__ = ["Subscriber", "make_factory", "run"]

CLOSE_TIMEOUT = 2.0
"""Seconds that the service has to answer a close frame."""

WATCH_INTERVAL = 1.0
"""Seconds between two looks at the silence of a connection."""

_DATA = b'{"From":'
"""How a data message starts; the rest is not parsed, as a body may be any JSON value."""

_HTTP = b"HTTP/"


def run(options: Namespace) -> None:
    """Print each message on one line, until the service closes or enough messages have arrived.

    Raises:
        CommandFailed: the connection failed, ended before enough messages had arrived, or is
            dead; or the messages cannot be printed.
        KeyboardInterrupt: the user stopped the command. The connection is closed.
    """
    token = find_token(options)
    url = parse_url(options.url, "ws", "wss")
    subscription = _Subscription(url, token, options)
    run_reactor(subscription.begin, subscription.stop)


class _Subscription:
    """One connection of the command, from the beginning to its end."""

    def __init__(self, url: URL, token: str, options: Namespace) -> None:
        self._url = url
        self._done: Deferred[None] = Deferred()
        self._connecting: Deferred[Any] | None = None
        self._subscriber: Subscriber | None = None
        self._factory = make_factory(
            url, lambda: Subscriber(token, self._done, options.count, show)
        )

        def show(line: str) -> bool:
            print_line(line, is_raw=options.json)
            return True

    def begin(self, reactor: Any) -> Deferred[None]:
        """Connect; fires when the connection has ended as it should."""
        self._connecting = client_endpoint(reactor, self._url).connect(self._factory)
        self._connecting.addTimeout(TIMEOUT, reactor)
        self._connecting.addCallbacks(self._connected, self._failed)
        return self._done.addErrback(self._explain)

    def stop(self) -> None:
        """Close the connection, or connect no more."""
        if self._subscriber is not None:
            self._subscriber.finish()
        elif self._connecting is not None:
            self._connecting.cancel()

    def _connected(self, protocol: Any) -> None:
        # With TLS the endpoint's protocol is the one inside.
        self._subscriber = protocol

    def _failed(self, failure: Failure) -> None:
        if not self._done.called:
            self._done.errback(failure)

    def _explain(self, failure: Failure) -> None:
        error: Any = failure.value
        if isinstance(error, HandshakeFailed):
            raise connection_error(self._url, error.lines[0]) from error
        if isinstance(error, CommandFailed):
            raise error
        raise connection_error(self._url, explain_http_error(error)) from error


def make_factory(url: URL, make_subscriber: Callable[[], Subscriber]) -> Any:
    """Make a factory whose protocols are subscribers of the topic of `url`."""
    factory = WebSocketClientFactory(url.to_text())
    if ":" in url.host:
        factory.host = f"[{url.host}]"  # Autobahn puts it into the header Host as it is.
    factory.noisy = False
    factory.protocol = make_subscriber
    factory.setProtocolOptions(
        openHandshakeTimeout=TIMEOUT, closeHandshakeTimeout=CLOSE_TIMEOUT, failByDrop=False
    )
    return factory


def _print_subscribed(seconds: int) -> None:
    print_error(f"subscribed for {seconds} seconds")


def _print_message(line: str) -> bool:
    print_line(line)
    return True


class HandshakeFailed(CommandFailed):
    """The server refused the opening handshake, or its answer is none; the text says why."""


class Subscriber(WebSocketClientProtocol):  # type: ignore[misc]
    """Presents a token and receives messages, until the connection is closed.

    Args:
        token: the token.
        done: fires when the connection has ended and enough messages have arrived. Fails with
            `CommandFailed`, or with the error of the connection.
        count: the number of messages to receive; None: no limit.
        on_message: called with each message, on one line; returns whether to receive more.
        on_subscribed: called with the seconds until the token expires, once it is accepted.
        clock: measures the silence of the connection; None: the reactor.
    """

    log = txaio.make_logger(level="none")  # type: ignore[attr-defined]

    def __init__(
        self,
        token: str,
        done: Deferred[None],
        count: int | None = None,
        on_message: Callable[[str], bool] = _print_message,
        on_subscribed: Callable[[int], None] = _print_subscribed,
        clock: Any = None,
    ) -> None:
        super().__init__()
        if clock is None:
            from twisted.internet import reactor as clock
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._token = token
        self._left = count
        self._done = done
        self._clock = clock
        self._silence = Silence(clock.seconds())
        self._timers = [LoopingCall(self._look), LoopingCall(self._ping)]
        self._is_open = False
        self._is_finished = False
        self._refusal = ""
        self._error: BaseException | None = None

    def finish(self) -> None:
        """Close the connection: no more messages are wanted."""
        self._is_finished = True
        if self._is_open:
            self.sendClose(1000)
        else:
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._silence.heard(self._clock.seconds())
        if not self._is_open and not self._begins_as_http(self.data + data):
            self._refuse("the answer is not HTTP")
            self.transport.abortConnection()
            return
        super().dataReceived(data)

    def onOpen(self) -> None:
        self._is_open = True
        for timer, interval in zip(self._timers, (WATCH_INTERVAL, OWN_PING_INTERVAL), strict=True):
            timer.clock = self._clock
            timer.start(interval, now=False)
        self.sendMessage(messages.token_request(self._token))

    def onPing(self, payload: bytes) -> None:
        self._silence.pinged(self._clock.seconds())
        super().onPing(payload)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._is_finished:  # messages that arrived together with the last one
            return
        try:
            if payload.startswith(_DATA):
                # In JSON a line break is only whitespace; in strings it is escaped.
                self._receive(payload.replace(b"\r", b" ").replace(b"\n", b" ").decode("utf-8"))
            else:
                self._on_reply(json.loads(payload))
        except CommandFailed as error:
            self._error = error
            self.finish()
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            self._refuse("the server sent a message that is not of this protocol")
            self.sendClose(1000)

    def failHandshake(self, reason: str) -> None:
        # If the response has a body, it has been received already.
        head, _, body = self.data.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/[\d.]+ (\d{3})\b", head)
        if status is not None and status[1] != b"101":
            self._refuse(status_text(int(status[1]), body))
        else:
            self._refuse("the answer is not that of a WebSocket server")
        super().failHandshake(reason)

    def onOpenHandshakeTimeout(self) -> None:
        self._refuse(f"no response within {TIMEOUT:.0f} s")
        super().onOpenHandshakeTimeout()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        for timer in self._timers:
            if timer.running:
                timer.stop()
        if not self._is_open and not self._refusal:
            self._error = reason.value
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if self._done.called:
            return
        if self._is_finished and self._error is None:
            self._done.callback(None)
        elif self._error is not None:
            self._done.errback(self._error)
        elif not self._is_open:
            self._done.errback(HandshakeFailed(self._refusal))
        else:
            why = self._refusal or self._reason(wasClean, reason)
            self._done.errback(
                CommandFailed(f"closed: {why}" + (f" ({code})" if wasClean and code else ""))
            )

    def _reason(self, was_clean: bool, reason: str | None) -> str:
        """Why the connection ended, in words."""
        if was_clean:
            return reason or "the service closed the connection"
        if self.failedByMe:
            return "the server sent data that WebSocket does not allow"
        return "the connection was lost, without a close frame of the service"

    def _begins_as_http(self, data: bytes) -> bool:
        return _HTTP.startswith(data[: len(_HTTP)])

    def _look(self) -> None:
        """End the connection if it is dead."""
        if self._silence.is_dead(self._clock.seconds()):
            self._refuse(
                f"nothing has arrived for {self._silence.limit:.0f} s, not even a ping: "
                "the connection is dead"
            )
            self.transport.abortConnection()

    def _ping(self) -> None:
        self.sendPing(b"")

    def _receive(self, line: str) -> None:
        wants_more = self._on_message(line)
        if self._left is not None:
            self._left -= 1
        if self._left == 0 or not wants_more:
            self.finish()

    def _on_reply(self, reply: dict[str, Any]) -> None:
        if reply["Result"] == "Success":
            self._on_subscribed(int(reply["ExpiresIn"]))
        else:
            self._refuse(str(reply["Reason"]))

    def _refuse(self, why: str) -> None:
        self._refusal = self._refusal or why
