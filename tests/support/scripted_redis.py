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
        run_id: of the process.
        role: "master" or "slave".
        entries: the ids and fields of the stream.
        newest: id and generation of the newest place; None: the key is missing.
        can_store: whether it can store a missing key.
        offset: milliseconds by which its clock differs.
        peers: the connections of the client, in their order.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_listening = True
        self.responds = True
        self.login_error = b""
        self.errors: dict[bytes, bytes] = {}
        self.run_id = "a" * 40
        self.role = "master"
        self.entries: list[tuple[bytes, list[bytes]]] = []
        self.newest: tuple[bytes, bytes] | None = None
        self.can_store = True
        self.offset = 0
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

    @property
    def time(self) -> int:
        """Its time in milliseconds since the epoch."""
        return 1_500_000_000_000 + self.offset + int(self.clock.seconds() * 1000)

    def add(self, body: bytes, generation: bytes = b"77", id_: bytes = b"") -> bytes:
        """Add an entry, as another process does; return what its channel carries."""
        if self.newest is None:
            self.entries.clear()
        previous, generation = self.newest or (b"0-" + generation, generation)
        last = scripts.parse_id(previous)
        if self.time > last.milliseconds:
            next_id = b"%d-0" % self.time
        else:
            next_id = b"%d-%d" % (last.milliseconds, last.sequence + 1)
        id_ = id_ or next_id
        self.entries.append((id_, [b"f", b"", b"b", body, b"p", previous, b"t", b"0"]))
        self.newest = id_, generation
        return b"%s %s\n\n%s" % (previous, id_, body)

    def lose_everything(self) -> None:
        """As FLUSHALL does."""
        self.entries.clear()
        self.newest = None

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
            case b"INFO":
                text = f"# Server\r\nrun_id:{self.run_id}\r\nrole:{self.role}\r\nloading:0\r\n"
                return _encode(text.encode("ascii"))
            case b"EVAL" if command[1] == scripts.SEND:
                self.add(command[7], command[11])
                assert self.newest is not None
                return _encode(self.newest[0])
            case b"EVAL":
                return self._history(*command[5:8], int(command[10]))
            case _:
                return b"+PONG\r\n"

    def _history(self, since: bytes, known: bytes, generation: bytes, limit: int) -> bytes:
        newest = self.newest or (b"0-" + generation, generation)
        if self.can_store and self.newest is None:
            self.newest = newest
            self.entries.clear()
        entries, rest = [], 0
        if since and self.newest is not None:
            place = scripts.parse_id(since if known == newest[1] else b"0-0")
            for id_, fields in self.entries:
                length = 256 + sum(map(len, fields[1::2])) + 4
                if scripts.parse_id(id_) <= place:
                    continue
                if length > limit:
                    rest = length
                    break
                limit -= length
                entries.append([id_, fields])
        is_kept = int(self.newest is not None)
        return _encode([*newest, is_kept, b"%d" % self.time, entries, rest])


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
