"""Adapter: how bytes leave, by the shortest way that a transport allows.

Twisted puts what is written into a buffer and sends it when the reactor next says that the
socket is ready, which costs three system calls and a turn. Where nothing waits in that
buffer, bytes can go to the socket at once; over TLS they are encrypted at once, where Twisted
would start a timer for each connection.

What waits in a transport is known only by looking into it. Where a transport is of
another kind, or its inside is not as expected, the plain way is taken: see `make_send_queue`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from topicsvc.delivery.send_queue import SendQueue
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.delivery.tls_records import make_records

__all__ = ["SocketSendQueue", "TlsSendQueue", "TransportSendQueue", "make_send_queue"]

_PIECE = 16384
"""Most bytes of one write the plain way: the fewer, the sooner it is seen that a peer reads."""

_MOST_UNSEEN = 2 * 65536 + _PIECE
"""Most bytes that a transport holds when it says that it has enough.

Twisted's say so from 64 KiB on. One with TLS may have as many in each of its two layers.
"""


def make_send_queue(
    transport: Any, limit: int, slow_consumers: SlowConsumers, overflow: Callable[[int], None]
) -> SendQueue:
    """The shortest way out through `transport`; for the rest see `SendQueue`."""
    layer = _unwrap(transport)
    if isinstance(layer, TLSMemoryBIOProtocol):
        lower = _unwrap(layer.transport)
        if _is_transparent(lower) and _is_transparent_tls(layer):
            return TlsSendQueue(layer, lower, limit, slow_consumers, overflow)
    elif _is_transparent(layer):
        return SocketSendQueue(layer, limit, slow_consumers, overflow)
    return TransportSendQueue(transport, limit, slow_consumers, overflow)


def _unwrap(transport: Any) -> Any:
    """What is below wrappers that change nothing on the way out, as the PROXY protocol's."""
    while isinstance(transport, ProtocolWrapper) and not isinstance(
        transport, TLSMemoryBIOProtocol
    ):
        transport = transport.transport
    return transport


def _is_transparent(lower: Any) -> bool:
    """Whether it can be seen what waits in a TCP transport."""
    return (
        isinstance(lower, tcp.Connection)
        and isinstance(getattr(lower, "dataBuffer", None), bytes)
        and isinstance(getattr(lower, "offset", None), int)
        and isinstance(getattr(lower, "_tempDataLen", None), int)
        and isinstance(getattr(lower, "disconnecting", None), int)
        and isinstance(_handle(lower), socket.socket)
    )


def _is_transparent_tls(tls: Any) -> bool:
    """Whether it can be seen what waits in a TLS transport."""
    return (
        isinstance(getattr(tls, "_appSendBuffer", None), list)
        and isinstance(getattr(getattr(tls, "_aggregator", None), "_buffer", None), list)
        and isinstance(_handle(tls), SSL.Connection)
    )


def _handle(transport: Any) -> Any:
    """What a transport sends with; None: it does not say."""
    return getattr(transport, "getHandle", lambda: None)()


def _buffered(lower: Any) -> int:
    """Bytes that wait in a transparent TCP transport."""
    return len(lower.dataBuffer) - lower.offset + lower._tempDataLen  # type: ignore[no-any-return]


@implementer(IPushProducer)
class TransportSendQueue(SendQueue):
    """The plain way: everything through the transport, which says when it has enough.

    What it holds before it says so, 64 KiB, is not seen. From then on it tells no more than
    that all has left. So a long write is handed over in pieces: what a slow peer has taken
    is seen every 80 KiB or so.
    """

    __slots__ = ("_is_full", "_rest", "_transport", "_written")

    def __init__(self, transport: Any, *rest: Any) -> None:
        super().__init__(*rest)
        self._transport = transport
        self._is_full = False
        self._written = 0  # since the transport is known to have held nothing
        self._rest = memoryview(b"")
        self._transport.registerProducer(self, True)

    def buffered(self) -> int:
        """Nothing, or what is in a transport that has enough: rather too much than too little."""
        if not self._is_full:
            return 0
        return min(self._written, _MOST_UNSEEN) + len(self._rest)

    def send(self, data: bytes) -> bool:
        if self._is_full:
            return False
        if len(data) > _PIECE:
            self._rest = memoryview(data)
            self._pour()
        else:
            self._hand_over(data)
        return True

    def end(self, last: bytes) -> None:
        rest, self._rest = self._rest, memoryview(b"")
        self._transport.write(bytes(rest) + last)
        self._transport.unregisterProducer()

    def release(self) -> None:
        self.detach()
        self._transport.unregisterProducer()

    def pauseProducing(self) -> None:
        self._is_full = True
        self.blocked()

    def resumeProducing(self) -> None:
        """The transport holds nothing any more."""
        # One that has ended meanwhile closes when its producer goes, and tells a new one.
        self._transport.unregisterProducer()
        self._transport.registerProducer(self, True)
        self._is_full = False
        self._written = 0
        self._pour()
        if not self._is_full:
            self.drained()

    def stopProducing(self) -> None:
        """The peer is gone."""
        self._rest = memoryview(b"")
        self.discard()

    def _pour(self) -> None:
        """Hand over what is left of a long write, until the transport has enough."""
        while self._rest and not self._is_full:
            piece, self._rest = bytes(self._rest[:_PIECE]), self._rest[_PIECE:]
            self._hand_over(piece)

    def _hand_over(self, piece: bytes) -> None:
        self._written += len(piece)
        self._transport.write(piece)


@implementer(IPullProducer)
class SocketSendQueue(SendQueue):
    """Plain TCP: to the socket at once, the rest through the transport."""

    __slots__ = ("_lower", "_to_socket")

    def __init__(self, lower: Any, *rest: Any) -> None:
        super().__init__(*rest)
        self._lower = lower
        self._to_socket = lower.getHandle().send
        lower.registerProducer(self, False)

    def buffered(self) -> int:
        return _buffered(self._lower)

    def send(self, data: bytes) -> bool:
        lower = self._lower
        if lower._tempDataLen or len(lower.dataBuffer) != lower.offset:
            return False
        if not self._put(data):
            self.blocked()
        return True

    def end(self, last: bytes) -> None:
        self._lower.write(last)
        self._lower.unregisterProducer()

    def release(self) -> None:
        self.detach()
        self._lower.unregisterProducer()

    def _put(self, data: bytes | memoryview) -> bool:
        """To the socket, where nothing waits for it. False: what it did not take is held."""
        try:
            sent = self._to_socket(data)
        except OSError:  # full, or broken: then the transport finds out and says so
            sent = 0
        if sent == len(data):
            return True
        self._lower.write(bytes(data[sent:]))
        return False

    def resumeProducing(self) -> None:
        """The transport holds nothing any more."""
        if self._lower.disconnecting:
            # TLS has ended, and the connection would wait for its producer to go.
            self._lower.unregisterProducer()
        else:
            self.drained()

    def stopProducing(self) -> None:
        """The peer is gone."""
        self.discard()


@implementer(IPullProducer)
class TlsSendQueue(SocketSendQueue):
    """TLS over TCP: encrypted and to the socket at once, the rest through the transport."""

    __slots__ = ("_records", "_tls")

    def __init__(self, tls: Any, lower: Any, *rest: Any) -> None:
        self._tls = tls
        self._records = make_records(tls.getHandle())
        super().__init__(lower, *rest)

    def buffered(self) -> int:
        """What the transports hold, encrypted or not."""
        tls = self._tls
        unencrypted = sum(map(len, tls._appSendBuffer))
        unencrypted += sum(map(len, getattr(tls._aggregator, "_buffer", ())))
        return super().buffered() + unencrypted

    def send(self, data: bytes) -> bool:
        tls = self._tls
        # Once the connection is lost there is another aggregator, which keeps nothing.
        if (
            getattr(tls._aggregator, "_buffer", True)
            or tls._appSendBuffer
            or _buffered(self._lower)
        ):
            return False
        records, unencrypted = self._records.of(data)
        is_held = bool(records) and not self._put(records)
        if unencrypted:
            tls.write(unencrypted)
            is_held = True
        if is_held:  # told last: who is too slow is closed, and nothing follows a close frame
            self.blocked()
        return True

    def end(self, last: bytes) -> None:
        self._tls.write(last)

    def drained(self) -> None:
        # What TLS cannot encrypt before the peer's turn comes by here once it can.
        if not self._tls._appSendBuffer:
            super().drained()
