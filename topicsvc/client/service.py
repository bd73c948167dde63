"""A Twisted service that receives the messages of a topic.

It is not built on `twisted.application.internet.ClientService`, which would be a second state
machine with other rules: it counts a TCP connection as success, so that a service that accepts
connections and closes them is tried again without growing pauses; its pauses cannot be ended; and
`prepareConnection` raises `NoTransition` if the connection is lost before the greeting
(Twisted 26.10).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from hyperlink import URL
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.client.connection import Connection, make_factory
from topicsvc.client.rules import effects
from topicsvc.client.rules.effects import Effect, End, Gap, Reason, State
from topicsvc.client.rules.failures import TokenRefused, failure
from topicsvc.client.rules.messages import Message
from topicsvc.client.rules.session import Policy, Session
from topicsvc.client.rules.urls import ascii_url
from topicsvc.explain import explain_http_error

__all__ = ["TopicClient", "client_endpoint"]

CONNECT_TIMEOUT = 30.0
"""Seconds after which an attempt to connect is given up, unless its user does so before."""

_DEFAULTS = Policy()
_PORTS = {"ws": 80, "wss": 443}


class TopicClient(Service):
    """Receives the messages of one topic while it runs, and connects again if a connection is lost.

    The functions that it calls may return a value, a coroutine or a Deferred.

    Args:
        reactor: the reactor.
        url: the topic's URL, ``wss://`` or ``ws://``, in ASCII.
        get_token: called with the reason why a token is needed; its result is the token, a string.
            If it fails with `TokenRefused`, the state is failed. After any other failure, and after
            a result that is not a token, it is called again later. After `Policy.token_timeout` it
            is cancelled, and has failed.
        on_message: called with each message; the next one waits for its result.
        recover: whether messages are wanted that are sent while there is no connection.
        since: the position to go on from, as `position` was; None: from now on.
        on_gap: called when messages may have been missed, to load the state anew. Messages wait
            for its result. If it fails, it is called again later. If too many wait, they are
            dropped, it is cancelled, and called again later.
        on_state: called with each new state.
        on_note: called with what the application may tell its users, and need not act on; None: it
            is logged.
        endpoint: where to connect; None: to the host of the URL, with TLS for ``wss://``.
        policy: the times.
        random: returns a number from 0 to 1, for the pauses.

    Raises:
        ValueError: the URL is not that of a topic, or not in ASCII; the text says what is wrong.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str,
        get_token: Callable[[Reason], Any],
        on_message: Callable[[Message], Any],
        *,
        recover: bool = True,
        since: str | None = None,
        on_gap: Callable[[Gap], Any] | None = None,
        on_state: Callable[[State], object] | None = None,
        on_note: Callable[[str], object] | None = None,
        endpoint: IStreamClientEndpoint | None = None,
        policy: Policy = _DEFAULTS,
        random: Callable[[], float] = random.random,
    ) -> None:
        if not url.isascii():
            raise ValueError("the URL is not in ASCII; percent-encode its path")
        self._url = URL.from_text(ascii_url(url, "wss", "ws"))
        self._reactor = reactor
        self._get_token = get_token
        self._on_message = on_message
        self._on_gap = on_gap
        self._on_state = on_state
        self._on_note = on_note or self._log_note
        self._endpoint = endpoint or client_endpoint(reactor, self._url)
        self._session = Session(recover=recover, since=since, random=random, policy=policy)
        self._timer: IDelayedCall | None = None
        self._fetching: Deferred[Any] | None = None
        self._handling: Deferred[Any] | None = None
        self._connecting: Deferred[Any] | None = None
        self._connection: Connection | None = None
        self._leaving: set[Connection] = set()
        self._is_busy = False  # the application has not finished with a message
        self._is_reading = True
        self._is_delivering = False
        self._is_acting = False
        self._effects: deque[Effect] = deque()
        self._waiting: list[Deferred[None]] = []
        self._has_warned = False  # about the present outage
        self._noted = ""

    @property
    def state(self) -> State:
        """The state of the client."""
        return self._session.state

    @property
    def position(self) -> str | None:
        """The position of the last message that `on_message` was called with."""
        return self._session.position

    @property
    def end(self) -> End | None:
        """Why the last connection ended; None if none has ended."""
        return self._session.end

    @property
    def lifetime(self) -> float:
        """The seconds for which the token was granted last."""
        return self._session.lifetime

    def startService(self) -> None:
        """Connect. A client is started once."""
        super().startService()  # type: ignore[no-untyped-call]
        self._do(self._session.start(self._now()))

    def stopService(self) -> Deferred[None]:
        """Close the connection; fires when it is closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._do(self._session.close())
        stopped = self.when_ended().addErrback(lambda _: None)
        stopped.addCallback(lambda _: DeferredList([each.ended for each in self._leaving]))
        return stopped.addCallback(lambda _: None)

    def refresh(self) -> None:
        """Get a fresh token and present it now; during a pause, connect with it now.

        While another call or a reply is under way, this is done after the reply.
        """
        self._do(self._session.refresh(self._now()))

    def when_ended(self) -> Deferred[None]:
        """Fires when the state is closed; fails with `Failed` when it is failed."""
        ended: Deferred[None] = Deferred()
        self._waiting.append(ended)
        self._tell_end()
        return ended

    # What a connection reports.

    def heard(self) -> None:  # see `Owner`
        self._session.heard(self._now())

    def opened(self) -> None:
        self._do(self._session.opened(self._now()))

    def not_opened(self, why: str, status: int | None = None, retry_after: float = 0.0) -> None:
        self._connection = None
        self._do(self._session.not_opened(self._now(), why, status, retry_after))

    def received(self, text: str) -> None:
        self._do(self._session.received(self._now(), text))

    def received_nonsense(self) -> None:
        self._do(self._session.received_nonsense(self._now()))

    def closed(self, code: int, reason: str, detail: str) -> None:
        self._connection = None
        self._do(self._session.closed(self._now(), code, reason, detail))

    # What the session wants.

    def _now(self) -> float:
        now: float = self._reactor.seconds()
        return now

    def _do(self, todo: list[Effect]) -> None:
        """Carry out effects, behind those that are being carried out."""
        self._effects.extend(todo)
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self._effects:
                self._carry_out(self._effects.popleft())
        finally:
            self._is_acting = False
        self._deliver()
        self._pace()
        self._tell_end()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case effects.GetToken():
                self._fetch(effect.reason)
            case effects.Connect():
                self._connect()
            case effects.Disconnect():
                self._disconnect()
            case effects.Send() | effects.Ping():
                self._send(effect)
            case effects.CancelToken():
                fetching, self._fetching = self._fetching, None
                _cancel(fetching)
            case effects.CancelGap():
                handling, self._handling = self._handling, None
                _cancel(handling)
            case effects.GapFound() | effects.StateChanged() | effects.Note():
                self._tell(effect)

    def _tell(self, effect: effects.GapFound | effects.StateChanged | effects.Note) -> None:
        if isinstance(effect, effects.StateChanged):
            self._log_state(effect.state)
        try:
            match effect:
                case effects.Note():
                    self._noted = effect.text
                    self._on_note(effect.text)
                case effects.GapFound() if self._on_gap is None:
                    self._on_note(str(effect.gap))
                case effects.StateChanged() if self._on_state is not None:
                    self._on_state(effect.state)
        except Exception:
            self._log.failure("a function of the application failed")

    def _log_state(self, state: State) -> None:
        """Log an outage once, and the end if nobody waits for it."""
        url, why = self._url.replace(query=()).to_text(), str(self.end)
        if state == "live":
            self._has_warned = False
        elif state == "waiting" and not self._has_warned:
            self._has_warned = True
            if why != self._noted:
                self._log.warn("{url}: not connected: {why}; trying again", url=url, why=why)
        elif state == "failed" and not self._waiting:
            self._log.error("{url}: the client has given up: {why}", url=url, why=why)

    def _log_note(self, text: str) -> None:
        self._log.warn("{url}: {text}", url=self._url.replace(query=()).to_text(), text=text)

    def _tell_end(self) -> None:
        if self.state in ("closed", "failed") and not self._is_acting:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if self.state == "closed":
                    each.callback(None)
                else:
                    each.errback(failure(self.end))

    def _pace(self) -> None:
        """Set the timer, and read or stop reading, as the session wants it."""
        if self._connection is not None and self._is_reading == self._session.is_full:
            self._is_reading = not self._session.is_full
            if self._is_reading:
                self._connection.resume()
            else:
                self._connection.pause()
        at = self._session.deadline
        if self._timer is not None:
            if at is not None and self._timer.getTime() <= at:
                return  # the deadline is looked at again then
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer = self._reactor.callLater(max(0.0, at - self._now()), self._look)

    def _look(self) -> None:
        self._timer = None
        self._do(self._session.look(self._now()))

    # Tokens.

    def _fetch(self, reason: Reason) -> None:
        fetching = self._fetching = maybeDeferred(self._get_token, reason)

        def got(token: Any) -> None:
            if self._fetching is fetching:
                self._fetching = None
                self._do(self._session.token(self._now(), token))

        def failed(failure: Any) -> None:
            if self._fetching is not fetching:
                return
            self._fetching = None
            if failure.check(TokenRefused):
                self._do(self._session.no_token(failure.getErrorMessage()))
            else:
                # The text of the error may have a secret.
                name = getattr(failure.type, "__name__", "")
                self._do(self._session.token_failed(self._now(), f"get_token failed: {name}"))

        fetching.addCallbacks(got, failed)

    # The connection.

    def _connect(self) -> None:
        connection = self._connection = Connection(self)
        self._is_reading = True

        def failed(failure: Any) -> None:
            if self._connection is connection:
                self.not_opened(explain_http_error(failure.value))

        self._connecting = self._endpoint.connect(make_factory(self._url, connection))
        self._connecting.addErrback(failed)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.leave():
            self._leaving.add(connection)
            connection.ended.addCallback(lambda _: self._leaving.discard(connection))
        _cancel(self._connecting)

    def _send(self, effect: effects.Send | effects.Ping) -> None:
        if self._connection is None:
            return
        if isinstance(effect, effects.Send):
            self._connection.send_text(effect.text)
        else:
            self._connection.sendPing()

    # Messages.

    def _deliver(self) -> None:
        """Give the application what has arrived, one after the other."""
        if self._is_delivering:
            return
        self._is_delivering = True
        try:
            while not self._is_busy:
                item = self._session.take(self._now())
                if item is None:
                    break
                if isinstance(item, Gap):
                    self._handle(item)
                else:
                    self._is_busy = True
                    done = maybeDeferred(self._on_message, item)
                    done.addErrback(self._log_failure, "on_message failed")
                    done.addCallback(self._delivered)
        finally:
            self._is_delivering = False

    def _delivered(self, _: object) -> None:
        self._is_busy = False
        if not self._is_delivering:
            self._do([])

    def _handle(self, gap: Gap) -> None:
        if self._on_gap is None:
            self._session.gap_handled()
            return
        handling = self._handling = maybeDeferred(self._on_gap, gap)

        def handled(_: object) -> None:
            if self._handling is handling:
                self._handling = None
                self._session.gap_handled()
                self._do([])

        def failed(failure: Any) -> None:
            if self._handling is handling:
                self._handling = None
                self._log_failure(failure, "on_gap failed")
                self._session.gap_failed(self._now())
                self._do([])

        handling.addCallbacks(handled, failed)

    def _log_failure(self, failure: Failure, text: str) -> None:
        self._log.failure("{text}", failure=failure, text=text)


def client_endpoint(reactor: Any, url: URL, timeout: float = CONNECT_TIMEOUT) -> Any:
    """An endpoint that connects to the host of `url`, with TLS for ``wss``."""
    endpoint = HostnameEndpoint(reactor, url.host, url.port or _PORTS[url.scheme], timeout=timeout)
    if url.scheme != "wss":
        return endpoint
    return wrapClientTLS(optionsForClientTLS(url.host), endpoint)


def _cancel(work: Deferred[Any] | None) -> None:
    if work is not None:
        work.cancel()
