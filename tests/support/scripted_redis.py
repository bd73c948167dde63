"""A Redis server in memory, controlled by the test, in virtual time."""

from __future__ import annotations

from typing import Any

import hiredis
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from zope.interface import implementer

from tests.support.scripted_broker import ScriptedTransport
from topicsvc.brokers.redis import scripts


@implementer(IStreamClientEndpoint)
class ScriptedRedis:
    """The endpoint that the client connects to. It has one topic's stream at most.

    Attributes:
        is_listening: connections are accepted.
        responds: new peers reply at once.
        login_error: the reply to HELLO, if it is an error.
        errors: replies to the commands with these names, instead of the usual ones.
        entries: the ids and fields of the stream.
        newest: id of its newest entry; it may have been removed.
        peers: the connections of the client, in their order.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_listening = True
        self.responds = True
        self.login_error = b""
        self.errors: dict[bytes, bytes] = {}
        self.entries: list[tuple[bytes, list[bytes]]] = []
        self.newest = b"0-0"
        self.peers: list[ScriptedRedisPeer] = []

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        if not self.is_listening:
            return fail(ConnectError(string="simulated"))
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        self.peers.append(ScriptedRedisPeer(self, protocol))
        protocol.makeConnection(self.peers[-1])
        return succeed(protocol)

    @property
    def connected(self) -> list[ScriptedRedisPeer]:
        return [peer for peer in self.peers if not peer.is_closed]

    def add(self, body: bytes, previous: bytes | None = None) -> bytes:
        """Add an entry, as another process does; return what its channel carries."""
        milliseconds = int(self.newest.partition(b"-")[0]) or 1_500_000_000_000
        id_ = b"%d-0" % (milliseconds + 1)
        self.entries.append(
            (id_, [b"f", b"", b"b", body, b"p", previous or self.newest, b"t", b"0"])
        )
        self.newest = id_
        return b"%s\n\n%s" % (id_, body)

    def reply_to(self, command: list[bytes]) -> bytes:
        """Return the reply to a command, in RESP3."""
        name = command[0]
        if name in self.errors:
            return b"-%s\r\n" % self.errors[name]
        match name:
            case b"HELLO":
                return b"-%s\r\n" % self.login_error if self.login_error else _encode({b"proto": 3})
            case b"SUBSCRIBE" | b"UNSUBSCRIBE":
                return b">3\r\n" + b"".join(map(_encode, (name.lower(), command[1], 1)))
            case b"EVAL" if command[1] == scripts.SEND:
                self.add(command[6])
                return _encode(self.newest)
            case b"EVAL":
                return self._history(command[4])
            case _:
                return b"+PONG\r\n"

    def _history(self, since: bytes) -> bytes:
        time = b"%d" % (1_500_000_000_000 + int(self.clock.seconds() * 1000))
        if not since:
            return _encode([self.newest, time, []])
        position = scripts.parse_id(since)
        entries = [list(each) for each in self.entries if scripts.parse_id(each[0]) > position]
        return _encode([self.newest, time, entries])


class ScriptedRedisPeer(ScriptedTransport):
    """The server's side of one connection.

    Attributes:
        commands: those that the client has sent.
        responds: replies are sent at once.
    """

    def __init__(self, server: ScriptedRedis, protocol: Any) -> None:
        super().__init__(server.clock, protocol, server.responds)
        self.commands: list[list[bytes]] = []
        self._server = server
        self._reader = hiredis.Reader()

    # Called by the client.

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "written after the connection was closed"
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            self.commands.append(command)
            if self.responds:
                self._server.clock.callLater(0, self.respond, command)

    # Called by the test.

    def received(self, name: bytes) -> list[list[bytes]]:
        """The commands of the client with this name."""
        return [command for command in self.commands if command[0] == name]

    def respond(self, command: list[bytes]) -> None:
        self.send_bytes(self._server.reply_to(command))

    def push(self, channel: bytes, payload: bytes) -> None:
        """Send a message of a channel."""
        self.send_bytes(b">3\r\n" + b"".join(map(_encode, (b"message", channel, payload))))


def _encode(value: Any) -> bytes:
    match value:
        case bytes():
            return b"$%d\r\n%s\r\n" % (len(value), value)
        case int():
            return b":%d\r\n" % value
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(_encode, value))
        case dict():
            pairs = b"".join(_encode(key) + _encode(each) for key, each in value.items())
            return b"%%%d\r\n" % len(value) + pairs
    raise TypeError(value)
