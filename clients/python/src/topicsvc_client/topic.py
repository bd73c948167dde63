"""Receives the messages of a topic, and connects again if the connection is lost."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import ssl as tls
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxy,
    InvalidStatus,
    WebSocketException,
)

from .rules import effects
from .rules.close_codes import LOST
from .rules.effects import Effect, Gap, Reason, State
from .rules.failures import TokenRefused, failure
from .rules.messages import Message
from .rules.responses import seconds_of, status_text
from .rules.session import Policy, Session
from .rules.urls import ascii_url

__all__ = ["GetTokenFunction", "OnGap", "Topic", "result_of"]

GetTokenFunction = Callable[[Reason], Awaitable[str] | str]
OnGap = Callable[[Gap], Awaitable[None] | None]

CLOSE_TIMEOUT = 2.0
"""Seconds that the service has to answer a close frame."""

_T = TypeVar("_T")
_DEFAULTS = Policy()
_logger = logging.getLogger("topicsvc_client")


class Topic:
    """The messages of one topic.

    Iterate over it within ``async with``, in one task::

        async with Topic(url, get_token) as topic:
            async for message in topic:
                print(message.sender, message.body)

    The iteration ends when the topic is closed. It raises `Failed` or `TokenRefused` when the
    state is failed.

    Args:
        url: the topic's URL, ``wss://`` or ``ws://``.
        get_token: called with the reason why a token is needed; returns the token, a string. If it
            raises `TokenRefused`, the state is failed. After any other exception, and after a
            result that is not a token, it is called again later. After `Policy.token_timeout` it
            is cancelled, and has failed.
        recover: whether messages are wanted that are sent while there is no connection.
        since: the position to go on from, as `position` was; None: from now on.
        on_gap: called when messages may have been missed, to load the state anew. Messages wait
            until it returns. If it raises an exception, it is called again later. If too many wait,
            they are dropped, it is cancelled, and called again later.
        ssl: for ``wss://``; None: the system's certificate authorities.
        on_state: called with each new state.
        policy: the times.

    Raises:
        ValueError: the URL is not that of a topic; the text says what is wrong.
    """

    _random = staticmethod(random.random)

    def __init__(
        self,
        url: str,
        get_token: GetTokenFunction,
        recover: bool = True,
        since: str | None = None,
        on_gap: OnGap | None = None,
        ssl: tls.SSLContext | None = None,
        *,
        on_state: Callable[[State], object] | None = None,
        policy: Policy = _DEFAULTS,
    ) -> None:
        self._url = ascii_url(url, "wss", "ws")
        self._get_token = get_token
        self._on_gap = on_gap
        self._on_state = on_state
        self._ssl = (ssl or tls.create_default_context()) if self._url.startswith("wss:") else None
        self._session = Session(recover=recover, since=since, random=self._random, policy=policy)
        self._changed = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fetching: asyncio.Task[None] | None = None
        self._call = 0  # the number of the call of `get_token` whose result counts
        self._handling: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._connection: _Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_warned = False  # about the present outage
        self._noted = ""

    @property
    def state(self) -> State:
        """The state of the topic."""
        return self._session.state

    @property
    def position(self) -> str | None:
        """The position of the last message that the iteration returned. Save it for `since`."""
        return self._session.position

    def refresh(self) -> None:
        """Get a fresh token and present it now; during a pause, connect with it now.

        While another call or a reply is under way, this is done after the reply.
        """
        self._do(self._session.refresh(self._now()))

    async def close(self) -> None:
        """Close the connection, and end the iteration."""
        self._do(self._session.close())
        while others := self._tasks - {asyncio.current_task()}:
            await asyncio.wait(others)

    async def __aenter__(self) -> Self:
        self._do(self._session.start(self._now()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while True:
            item = self._session.take(self._now())
            self._pace()
            if isinstance(item, Message):
                return item
            if isinstance(item, Gap):
                await self._handle(item)
            elif self.state == "failed":
                raise failure(self._session.end)
            elif self.state == "closed":
                raise StopAsyncIteration
            else:
                self._changed.clear()
                await self._changed.wait()

    async def _handle(self, gap: Gap) -> None:
        """Let the application load its state anew, unless another gap replaces this one."""
        if self._on_gap is not None:
            handling = self._handling = self._spawn(self._call_on_gap(self._on_gap, gap))
            try:
                await asyncio.wait([handling])
            except asyncio.CancelledError:  # the iteration is cancelled; the next one handles it
                self._handling = None
                handling.cancel()
                self._session.gap_interrupted()
                raise
            if self._handling is not handling:
                return  # the client has cancelled it: for another gap, or to close the topic
            self._handling = None
            error = asyncio.CancelledError() if handling.cancelled() else handling.exception()
            if error is not None:
                _logger.error("on_gap failed", exc_info=error)
                self._session.gap_failed(self._now())
                self._pace()
                return
        self._session.gap_handled()

    async def _call_on_gap(self, on_gap: OnGap, gap: Gap) -> None:
        await result_of(on_gap(gap))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _do(self, todo: list[Effect]) -> None:
        for effect in todo:
            self._carry_out(effect)
        self._pace()
        self._changed.set()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case effects.GetToken():
                self._call += 1
                self._fetching = self._spawn(self._fetch(effect.reason, self._call))
            case effects.CancelToken():
                self._call += 1
                self._cancel(self._fetching)
            case effects.Connect():
                self._running = self._spawn(self._run())
            case effects.Send():
                self._spawn(self._send(self._connection, effect.text))
            case effects.Ping():
                self._spawn(self._ping(self._connection))
            case effects.Disconnect():
                self._disconnect()
            case effects.CancelGap():
                handling, self._handling = self._handling, None
                self._cancel(handling)
            case effects.GapFound() | effects.StateChanged() | effects.Note():
                self._tell(effect)

    def _tell(self, effect: effects.GapFound | effects.StateChanged | effects.Note) -> None:
        match effect:
            case effects.Note():
                self._noted = effect.text
                _logger.warning("%s", effect.text)
            case effects.GapFound():
                level = logging.WARNING if self._on_gap is None else logging.INFO
                _logger.log(level, "%s", effect.gap)
            case effects.StateChanged():
                self._log_state(effect.state)
                try:
                    if self._on_state is not None:
                        self._on_state(effect.state)
                except Exception:
                    _logger.exception("on_state failed")

    def _log_state(self, state: State) -> None:
        """Log each state for debugging, and an outage once as a warning."""
        end = self._session.end
        _logger.debug("%s; last end: %s", state, end)
        if state == "live":
            self._has_warned = False
        elif state == "waiting" and not self._has_warned:
            self._has_warned = True
            if str(end) != self._noted:
                _logger.warning("not connected: %s; trying again", end)

    def _pace(self) -> None:
        """Set the timer, and read or stop reading, as the session wants it."""
        if self._session.is_full:
            self._may_read.clear()
        else:
            self._may_read.set()
        at = self._session.deadline
        if self._timer is not None:
            if at is not None and self._timer.when() <= at:
                return  # the deadline is looked at again then
            self._timer.cancel()
        self._timer = None if at is None else asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        self._do(self._session.look(self._now()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _cancel(self, task: asyncio.Task[None] | None) -> None:
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _fetch(self, reason: Reason, call: int) -> None:
        """Get a token from the application."""
        token, error = "", None
        try:
            token = await result_of(self._get_token(reason))
        except (Exception, asyncio.CancelledError) as caught:
            error = caught
        if call != self._call:
            return  # the client has cancelled the call
        if error is None:
            self._do(self._session.token(self._now(), token))
        elif isinstance(error, TokenRefused):
            self._do(self._session.no_token(str(error)))
        else:
            # The text of the error may have a secret.
            why = f"get_token failed: {type(error).__name__}"
            self._do(self._session.token_failed(self._now(), why))

    async def _run(self) -> None:
        """Connect and read, until the connection has ended."""
        try:
            connection = await self._connect()
        except InvalidStatus as error:
            status = error.response.status_code
            why = status_text(status, error.response.body)
            retry_after = seconds_of(error.response.headers.get("Retry-After", "")) or 0.0
            self._do(self._session.not_opened(self._now(), why, status, retry_after))
            return
        except Exception as error:
            why = str(error) or type(error).__name__
            if isinstance(error, InvalidProxy):
                why = "the URL of the proxy is not valid"  # it may have a password
            if not isinstance(error, OSError | WebSocketException):
                # Not the network: a package is missing, or the host has no valid name.
                why = f"{type(error).__name__}: {why}"
            self._do(self._session.not_opened(self._now(), why))
            return
        self._connection = connection
        connection.on_data = self._heard
        self._heard()
        self._do(self._session.opened(self._now()))
        try:
            while self._connection is connection:
                await self._may_read.wait()
                text = await connection.recv()
                if isinstance(text, bytes):
                    self._do(self._session.received_nonsense(self._now()))
                else:
                    self._do(self._session.received(self._now(), text))
        except ConnectionClosed as error:
            self._connection = None
            frame = error.rcvd or error.sent
            code, reason = (frame.code, frame.reason) if frame else (LOST, "")
            self._do(self._session.closed(self._now(), code, reason))

    async def _connect(self) -> _Connection:
        connection = await _Connect(
            self._url,
            ssl=self._ssl,
            create_connection=_Connection,
            compression=None,
            open_timeout=None,  # the session has its own
            ping_interval=None,
            close_timeout=CLOSE_TIMEOUT,
            max_size=None,  # the service limits the length of messages
        )
        return cast(_Connection, connection)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.on_data = None
            self._spawn(connection.close())
        self._cancel(self._running)

    async def _send(self, connection: _Connection | None, text: str) -> None:
        if connection is not None:
            with contextlib.suppress(ConnectionClosed):  # `_run` notices it
                await connection.send(text)

    async def _ping(self, connection: _Connection | None) -> None:
        if connection is not None:
            with contextlib.suppress(ConnectionClosed):
                await connection.ping()

    def _heard(self) -> None:
        self._session.heard(self._now())


class _Connection(ClientConnection):
    """A connection that tells of all bytes, also of pings, pongs and parts of messages."""

    on_data: Callable[[], None] | None = None

    def data_received(self, data: bytes) -> None:
        if self.on_data is not None:
            self.on_data()
        super().data_received(data)


class _Connect(connect):
    """Connects to the server of the URL, and to no other: the token is for that one."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def result_of(value: Awaitable[_T] | _T) -> _T:
    """Return the value, or its result if it is awaitable."""
    return await value if inspect.isawaitable(value) else value
