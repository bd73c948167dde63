"""What the short ways look into, on real connections: whatever is not there leads the plain way."""

from __future__ import annotations

import random
import socket
import sys
from collections import deque
from types import SimpleNamespace
from typing import Any

from twisted.internet import reactor, tcp
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import Clock, deferLater
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.support.send_queue_cases import Tls, WayOut
from topicsvc.delivery import transports
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.delivery.transports import (
    SocketSendQueue,
    TlsSendQueue,
    TransportSendQueue,
    make_send_queue,
)
from topicsvc.listening.listener import _FreedTransport
from topicsvc.settings import LimitSettings

MISSING = object()

OF_TCP = {
    "dataBuffer": (MISSING, None, bytearray(), deque()),
    "offset": (MISSING, None, 0.0),
    "_tempDataLen": (MISSING, None, 0.0),
    "disconnecting": (MISSING, None, "no"),
    "getHandle": (MISSING, lambda: None, lambda: 7),
}
OF_TLS = {
    "_appSendBuffer": (MISSING, None, deque(), bytearray()),
    "_aggregator": (
        *(MISSING, None, object()),
        *(SimpleNamespace(_buffer=None), SimpleNamespace(_buffer=b"")),
    ),
    "getHandle": (MISSING, lambda: None, object),
}


def updated(kind: Any, name: str, value: Any) -> Any:
    """A transport as after an update of its library: `name` is not there, or is something else.

    It works as before. Only `topicsvc.delivery.transports` is shown the difference.
    """

    class Updated(kind):  # type: ignore[misc]
        def __getattribute__(self, wanted: str) -> Any:
            if wanted == name and sys._getframe(1).f_globals is vars(transports):
                if value is MISSING:
                    raise AttributeError(wanted)
                return value
            return super().__getattribute__(wanted)

    return Updated


class Stranger(SimpleNamespace):
    """All that is looked for in a TCP connection, and yet it is none."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        self.streaming = streaming

    def getHandle(self) -> socket.socket:
        return self.socket


class StrangerTests(SynchronousTestCase):
    def test_a_transport_of_another_kind(self) -> None:
        clock = Clock()
        slow_consumers = SlowConsumers(lambda: LimitSettings().queued_bytes, lambda: None, clock)
        with socket.socket() as handle:
            inside = {"dataBuffer": b"", "offset": 0, "_tempDataLen": 0, "disconnecting": False}
            stranger = Stranger(socket=handle, **inside)
            send_queue = make_send_queue(stranger, 1, slow_consumers, print)
        self.assertIs(type(send_queue), TransportSendQueue)
        self.assertTrue(stranger.streaming)


class Inside(WayOut):
    """Mix into a TestCase whose connections are as expected."""

    open = staticmethod(make_send_queue)

    @inlineCallbacks
    def assert_plain(self, what: str) -> Any:
        """The next connection takes the plain way, and all that is written arrives in order."""
        self.receiver.transport.loseConnection()
        yield self.receiver.lost
        yield self.sender.lost
        yield self.connect()
        self.assertIs(type(self.send_queue), TransportSendQueue, what)
        generator = random.Random(what)
        self.socket.take = lambda size: min(size, generator.choice([1, 5000, 60000]))
        written = bytearray()
        for size in (5, 100_000, 7, 300_000, 1):
            data = generator.randbytes(size)
            self.send_queue.write(data)
            written += data
            yield deferLater(reactor, 0)
        yield self.assert_received(bytes(written))

    @inlineCallbacks
    def test_tcp(self) -> Any:
        for name, values in OF_TCP.items():
            for value in values:
                self.transport = updated(tcp.Server, name, value)
                yield self.assert_plain(f"{name}: {value}")


class InsideTcpTests(Inside, TestCase):
    kind = SocketSendQueue


class InsideTlsTests(Inside, Tls, TestCase):
    kind = TlsSendQueue

    @inlineCallbacks
    def test_tls(self) -> Any:
        for name, values in OF_TLS.items():
            for value in values:
                self.port.factory.protocol = updated(_FreedTransport, name, value)
                yield self.assert_plain(f"{name}: {value}")

    @inlineCallbacks
    def test_a_kind_that_does_not_gather_small_writes(self) -> Any:
        self.port.factory.protocol = TLSMemoryBIOProtocol
        yield self.assert_plain("no aggregator")
