"""Keeps one connection to Redis, and reconnects when it is lost.

A `RedisClient` connects, again and again with jittered back-off. A `RedisConnection` is one of
these connections: greeting (RESP3), requests in their order, pushed messages, probes. hiredis, the
parser of the Redis project, parses the replies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Protocol

import hiredis
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.brokers.reconnection import BrokerClient, BrokerHandler
from topicsvc.brokers.redis.identity import IDENTIFY, Identity, parse_info
from topicsvc.brokers.redis.scripts import InvalidReply
from topicsvc.errors import BrokerUnavailable
from topicsvc.settings import Login

__all__ = ["Command", "OnReply", "RedisClient", "RedisConnection", "RedisHandler"]

PROBE_INTERVAL = 2.5
"""Seconds between two probes: a command to which Redis replies at once."""

MAX_UNANSWERED = 4
"""Probes in a row without a byte from Redis after which the connection is aborted: 10 s."""

MAX_REPLY = 128 * 1024 * 1024
"""Bytes that may arrive for one reply or message; Redis allows values of 512 MiB."""

_NO_INFO = (
    "Redis does not tell its identity ({why}): positions end with each connection to Redis; "
    "allow the user the command INFO"
)

_FATAL = ("READONLY", "NOAUTH", "LOADING", "MASTERDOWN", "UNBLOCKED")
"""Errors of a connection that is of no use: another one may reach another server."""

Command = tuple[bytes | str | int, ...]
OnReply = Callable[[Any], None]
"""Is called once with the reply of Redis, or with a `BrokerUnavailable`."""


class RedisHandler(BrokerHandler, Protocol):
    """Handles the events of a `RedisClient`."""

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """A subscribed channel has a message. Must not raise."""
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """What each new connection starts with.

    Attributes:
        login: user name and password; None: no login.
        database: number of the database.
    """

    login: Login | None = None
    database: int = 0

    def commands(self, name: str) -> list[Command]:
        """Return the commands that begin a connection."""
        hello: Command = ("HELLO", 3)
        if self.login is not None:
            hello += ("AUTH", self.login.username, self.login.password)
        commands: list[Command] = [(*hello, "SETNAME", f"topicsvc-{name}")]
        if self.database:
            commands.append(("SELECT", self.database))
        return commands


class RedisClient(BrokerClient["RedisConnection", RedisHandler]):
    """Keeps a connection for as long as the service runs.

    Args:
        session: what each connection starts with. For the others see `BrokerClient`.

    Attributes:
        identity: of the Redis that is or was connected; None: it does not tell it.
    """

    broker = "Redis"

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        name: str,
        endpoint: IStreamClientEndpoint,
        clock: IReactorTime,
        session: Session,
        handler: RedisHandler,
        random: Random,
        where: str = "",
    ) -> None:
        super().__init__(name, endpoint, clock, handler, random, where)
        self.session = session
        self.identity: Identity | None = None

    def make_connection(self) -> RedisConnection:
        """See `BrokerClient`."""
        return RedisConnection(self)

    def request(self, command: Command, on_reply: OnReply) -> None:
        """Send `command`; `on_reply` is called with the reply."""
        if self._connection is None or not self._connection.is_up:
            on_reply(BrokerUnavailable("not connected"))
        else:
            self._connection.request(command, on_reply)

    def identify(self, reply: Any) -> str:
        """Read the reply to `IDENTIFY`.

        Returns:
            Why the connection cannot be used; empty: it can be used.
        """
        try:
            if isinstance(reply, BrokerUnavailable):
                raise reply
            identity = parse_info(reply)
        except (BrokerUnavailable, InvalidReply) as error:
            self.limitation = _NO_INFO.format(why=error)
            self.identity = None
            return ""
        self.limitation = ""
        if not identity.unusable:
            self.identity = identity
        return identity.unusable

    def abort(self, why: str) -> None:
        """Abort the connection, if there is one; another one is made."""
        if self._connection is not None:
            self._connection.abort(why)


class RedisConnection(TwistedProtocol):
    """One connection to Redis.

    Attributes:
        last_heard: when the last bytes of Redis arrived, by the client's clock.
    """

    transport: Any
    _log: ClassVar[Logger] = Logger()

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._reader = hiredis.Reader()
        self._unparsed = 0
        self._is_greeted = False
        self._is_lost = False
        self._abort_reason = ""
        self._unanswered = 0
        self._is_paused = False
        self.last_heard = client.clock.seconds()
        self._pending: deque[OnReply] = deque()
        self._probes = LoopingCall(self._on_probe_due)
        self._probes.clock = client.clock

    @property
    def is_up(self) -> bool:
        """Whether Redis has accepted the connection. Stays true when it is lost."""
        return self._is_greeted

    def request(self, command: Command, on_reply: OnReply) -> None:
        """Send `command`; `on_reply` is called with the reply.

        Redis answers in the order of the requests. SUBSCRIBE and UNSUBSCRIBE of one channel are
        answered by a push, in the same order.
        """
        self._pending.append(on_reply)
        self.transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]

    def pause(self) -> None:
        """Stop reading. No probe is sent meanwhile, because its reply could not be read."""
        if not self._is_paused:
            self._is_paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            self._unanswered = 0
            self.transport.resumeProducing()

    def close(self) -> None:
        """Nothing: Redis needs no word before the end."""

    def abort(self, why: str) -> None:
        """Abort the connection."""
        if not self._abort_reason:
            self._abort_reason = why
            self.transport.abortConnection()

    # Called by Twisted.

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._client.on_connection_made(self)
        self._probes.start(PROBE_INTERVAL, now=False)
        for command in self._client.session.commands(self._client.name):
            self.request(command, self._on_login_reply)
        self.request(IDENTIFY, self._on_greeting)

    def dataReceived(self, data: bytes) -> None:
        self._unanswered = 0
        self.last_heard = self._client.clock.seconds()
        self._unparsed += len(data)
        reader = self._reader
        reader.feed(data)
        try:
            while not self._abort_reason and (reply := reader.gets()) is not False:
                self._unparsed = 0
                self._on_reply(reply)
        except hiredis.ProtocolError:
            self.abort("its reply is not RESP3")
        if self._unparsed > MAX_REPLY:
            self.abort(f"a reply of more than {MAX_REPLY} bytes")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._probes.stop()
        self._is_lost = True
        closed = "it closed the connection"
        why = closed if reason.check(ConnectionDone) else reason.getErrorMessage().rstrip(".")
        self._client.on_connection_lost(self, self._abort_reason or why)
        pending, self._pending = self._pending, deque()
        for on_reply in pending:
            try:
                on_reply(BrokerUnavailable("the connection was lost"))
            except Exception:
                self._log.failure("internal error: a request to Redis could not be ended")

    def _on_reply(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification):
            if reply[0] == b"message" and len(reply) == 3:
                self._client.handler.on_message(reply[1], reply[2])
                return
            if reply[0] not in (b"subscribe", b"unsubscribe"):
                return  # not requested, and without effect
        if not self._pending:
            self.abort("it sent a reply without a request")
            return
        if isinstance(reply, hiredis.ReplyError):
            why = str(reply)
            self._pending.popleft()(BrokerUnavailable(why))
            if self._is_greeted and why.split(" ", 1)[0] in _FATAL:
                self.abort(_explain(why))
        else:
            self._pending.popleft()(reply)

    def _on_login_reply(self, reply: Any) -> None:
        if isinstance(reply, BrokerUnavailable):
            self.abort(_explain(str(reply)))

    def _on_greeting(self, reply: Any) -> None:
        if self._abort_reason or self._is_lost:
            return
        unusable = self._client.identify(reply)
        if unusable:
            self.abort(unusable)
            return
        self._is_greeted = True
        self._client.on_greeting()

    def _probe(self) -> None:
        """Request what Redis replies to at once; if it tells its identity, compare this."""
        known = self._client.identity
        if known is None:
            self.request(("PING",), _ignore)
            return

        def on_reply(reply: Any) -> None:
            if isinstance(reply, BrokerUnavailable):
                return  # the connection is lost, or INFO is no longer allowed
            unusable = self._client.identify(reply)
            if unusable or self._client.identity != known:
                self.abort(unusable or "its identity has changed")

        self.request(IDENTIFY, on_reply)

    def _on_probe_due(self) -> None:
        """Count, and do not time: if this process was stopped for a while, nothing is aborted."""
        if self._is_paused:
            return
        self._unanswered += 1
        if self._unanswered > MAX_UNANSWERED:
            self.abort("it does not respond")
        elif self._is_greeted:
            self._probe()


def _ignore(_: Any) -> None:
    """The reply to a probe: its bytes have been counted."""


def _explain(error: str) -> str:
    """Add to an error of the login which setting is meant."""
    error = error.rstrip(".")
    kind = error.split(" ", 1)[0]
    if kind == "NOAUTH":
        return "Redis wants a password: set broker.password_file"
    if "without any password configured" in error:
        return "Redis wants no password: remove broker.password_file"
    if kind == "WRONGPASS":
        return f"{error}; see broker.username and broker.password_file"
    if kind == "NOPERM":
        return f"{error}; see broker.password_file"
    if "unknown command" in error or kind == "NOPROTO":
        return f"{error}; Redis 7 or Valkey is needed"
    return error
