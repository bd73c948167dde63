"""Send queues for each kind of transport: two fast paths and a fallback.

Twisted puts written bytes into a buffer, and sends them when the reactor next reports that the
socket is ready. That costs three system calls and a reactor iteration. The fast paths write to
the socket at once if nothing waits in that buffer. Over TLS they encrypt at once, where Twisted
would start a timer for each connection.

The fast paths read private attributes of a transport to know what waits in it. The fallback is
used for a transport of another kind, or with other internals: see `make_send_queue`.
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

from topicsvc.delivery.frames import frame_end
from topicsvc.delivery.send_queue import SendQueue
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.delivery.tls_records import make_records

__all__ = ["SocketSendQueue", "TlsSendQueue", "TransportSendQueue", "make_send_queue"]

_PIECE = 16384
"""The most bytes of one write of the fallback: with fewer, progress is noticed sooner."""

_MAX_UNREPORTED = 2 * 65536 + _PIECE
"""The most bytes that a transport holds when it pauses its producer.

Twisted's transports do so from 64 KiB on. With TLS, each of the two layers may hold as many.
"""


def make_send_queue(
    transport: Any,
    limit: int,
    slow_consumers: SlowConsumers,
    on_slow_consumer: Callable[[int], None],
) -> SendQueue:
    """Return the fastest send queue that `transport` allows. For the arguments see `SendQueue`."""
    layer = _unwrap(transport)
    if isinstance(layer, TLSMemoryBIOProtocol):
        lower = _unwrap(layer.transport)
        if _has_known_internals(lower) and _has_known_tls_internals(layer):
            return TlsSendQueue(layer, lower, limit, slow_consumers, on_slow_consumer)
    elif _has_known_internals(layer):
        return SocketSendQueue(layer, limit, slow_consumers, on_slow_consumer)
    return TransportSendQueue(transport, limit, slow_consumers, on_slow_consumer)


def _unwrap(transport: Any) -> Any:
    """Return the transport below wrappers that pass on writes unchanged, as the PROXY wrapper."""
    while isinstance(transport, ProtocolWrapper) and not isinstance(
        transport, TLSMemoryBIOProtocol
    ):
        transport = transport.transport
    return transport


def _has_known_internals(lower: Any) -> bool:
    """Whether a TCP transport has the attributes that show how many bytes wait in it."""
    return (
        isinstance(lower, tcp.Connection)
        and isinstance(getattr(lower, "dataBuffer", None), bytes)
        and isinstance(getattr(lower, "offset", None), int)
        and isinstance(getattr(lower, "_tempDataLen", None), int)
        and isinstance(getattr(lower, "disconnecting", None), int)
        and isinstance(_handle(lower), socket.socket)
    )


def _has_known_tls_internals(tls: Any) -> bool:
    """Whether a TLS transport has the attributes that show how many bytes wait in it."""
    return (
        isinstance(getattr(tls, "_appSendBuffer", None), list)
        and isinstance(getattr(getattr(tls, "_aggregator", None), "_buffer", None), list)
        and isinstance(_handle(tls), SSL.Connection)
    )


def _handle(transport: Any) -> Any:
    """The socket or TLS connection of a transport; None: it has none."""
    return getattr(transport, "getHandle", lambda: None)()


def _buffered(lower: Any) -> int:
    """Bytes that wait in a TCP transport with known internals."""
    return len(lower.dataBuffer) - lower.offset + lower._tempDataLen  # type: ignore[no-any-return]


@implementer(IPushProducer)
class TransportSendQueue(SendQueue):
    """The fallback: all bytes go through the transport, which pauses this producer when it is full.

    The first 64 KiB that the transport holds are not noticed. After that, the transport reports
    only that it is empty. So a long write is passed on in pieces: progress of a slow client is
    noticed about every 80 KiB.
    """

    __slots__ = ("_is_full", "_transport", "_unwritten", "_written")

    def __init__(self, transport: Any, *rest: Any) -> None:
        super().__init__(*rest)
        self._transport = transport
        self._is_full = False
        self._written = 0  # bytes since the transport was last known to be empty
        self._unwritten = memoryview(b"")  # the rest of a long write
        self._transport.registerProducer(self, True)

    def buffered(self) -> int:
        """0 unless the transport is full; then an estimate that is rather too high than too low."""
        if not self._is_full:
            return 0
        return min(self._written, _MAX_UNREPORTED) + len(self._unwritten)

    def send(self, data: bytes) -> bool:
        if self._is_full:
            return False
        if len(data) > _PIECE:
            self._unwritten = memoryview(data)
            self._write_rest()
        else:
            self._write_piece(data)
        return True

    def send_data(self, data: bytes) -> bool:
        """Pass on whole messages until the transport is full."""
        if self._is_full:
            return False
        done, size = 0, len(data)
        while done < size and not self._is_full:
            end = size if size - done <= _PIECE else frame_end(data, done + _PIECE - 1)
            self.send(data[done:end])
            done = end
        if done < size:
            self.keep_rest(data[done:])
            self.blocked()
        return True

    def end(self, last: bytes) -> None:
        rest, self._unwritten = self._unwritten, memoryview(b"")
        self._transport.write(bytes(rest) + last)
        self._transport.unregisterProducer()

    def release(self) -> None:
        self.detach()
        self._transport.unregisterProducer()

    def pauseProducing(self) -> None:
        self._is_full = True
        self.blocked()

    def resumeProducing(self) -> None:
        """The transport is empty."""
        # If the transport has ended meanwhile, it closes when its producer is unregistered, and
        # stops the new one.
        self._transport.unregisterProducer()
        self._transport.registerProducer(self, True)
        self._is_full = False
        self._written = 0
        self._write_rest()
        if not self._is_full:
            self.drained()

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._unwritten = memoryview(b"")
        self.discard()

    def _write_rest(self) -> None:
        """Pass on the rest of a long write, until the transport is full."""
        while self._unwritten and not self._is_full:
            piece = bytes(self._unwritten[:_PIECE])
            self._unwritten = self._unwritten[_PIECE:]
            self._write_piece(piece)

    def _write_piece(self, piece: bytes) -> None:
        self._written += len(piece)
        self._transport.write(piece)


@implementer(IPullProducer)
class SocketSendQueue(SendQueue):
    """The fast path for TCP: to the socket at once, the rest through the transport."""

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
        if not self._send_now(data):
            self.blocked()
        return True

    def send_data(self, data: bytes) -> bool:
        lower = self._lower
        if lower._tempDataLen or len(lower.dataBuffer) != lower.offset:
            return False
        try:
            sent = self._to_socket(data)
        except OSError:  # full or broken: the transport notices and handles both
            sent = 0
        if sent != len(data):
            end = frame_end(data, sent)
            lower.write(data[sent:end])
            if end < len(data):
                self.keep_rest(data[end:])
            self.blocked()
        return True

    def end(self, last: bytes) -> None:
        self._lower.write(last)
        self._lower.unregisterProducer()

    def release(self) -> None:
        self.detach()
        self._lower.unregisterProducer()

    def _send_now(self, data: bytes | memoryview) -> bool:
        """Send `data` to the socket. False: the transport holds the part that was not sent."""
        try:
            sent = self._to_socket(data)
        except OSError:  # full or broken: the transport notices and handles both
            sent = 0
        if sent == len(data):
            return True
        self._lower.write(bytes(data[sent:]))
        return False

    def resumeProducing(self) -> None:
        """The transport is empty."""
        if self._lower.disconnecting:
            # TLS has ended, and the connection closes once its producer is unregistered.
            self._lower.unregisterProducer()
        elif self.is_blocked:  # a transport also calls this when the queue is registered
            self.drained()

    def stopProducing(self) -> None:
        """The connection is lost."""
        self.discard()


@implementer(IPullProducer)
class TlsSendQueue(SocketSendQueue):
    """The fast path for TLS: encrypts, and sends to the socket at once as for TCP."""

    __slots__ = ("_records", "_tls")

    def __init__(self, tls: Any, lower: Any, *rest: Any) -> None:
        self._tls = tls
        self._records = make_records(tls.getHandle())
        tls.keeps_output = True  # the records refer to the buffer: see `PacedTls`
        super().__init__(lower, *rest)

    def buffered(self) -> int:
        """Bytes that both transports hold, encrypted or not."""
        tls = self._tls
        unencrypted = sum(map(len, tls._appSendBuffer))
        unencrypted += sum(map(len, getattr(tls._aggregator, "_buffer", ())))
        return super().buffered() + unencrypted

    def send(self, data: bytes) -> bool:
        tls = self._tls
        # After the connection is lost, Twisted sets another aggregator, which has no buffer.
        if (
            getattr(tls._aggregator, "_buffer", True)
            or tls._appSendBuffer
            or _buffered(self._lower)
        ):
            return False
        records, unencrypted = self._records.encrypt(data)
        is_held = bool(records) and not self._send_now(records)
        if unencrypted:
            tls.write(unencrypted)
            is_held = True
        if is_held:  # last: it may close a slow client, and nothing follows a close frame
            self.blocked()
        return True

    send_data = send  # records cannot be taken back

    def end(self, last: bytes) -> None:
        self._tls.write(last)

    def drained(self) -> None:
        # Data that TLS could not encrypt during a handshake is in this buffer until it can.
        if not self._tls._appSendBuffer:
            super().drained()
