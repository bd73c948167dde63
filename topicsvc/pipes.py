"""Adapter: how bytes leave, by the shortest way that a transport allows.

Twisted puts what is written into a buffer and sends it when the reactor next says that the
socket is ready, which costs three system calls and a turn. Where nothing waits in that
buffer, bytes can go to the socket at once; over TLS they are encrypted at once, where Twisted
would start a timer for each connection.

What waits in a transport is known only by looking into it. Where a transport is of
another kind, or its inside is not as expected, the plain way is taken: see `open_pipe`.
"""

from __future__ import annotations

import socket
from typing import Any

from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.interfaces import IPullProducer, IPushProducer, ITransport
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from topicsvc.outbound import Outbound, Pipe

__all__ = ["SocketPipe", "TlsPipe", "TransportPipe", "open_pipe"]

_RECORD = 16384
"""Most bytes of one TLS record (RFC 8446, section 5.1)."""

_READ = 2 * _RECORD
"""More bytes than one record and what TLS may say beside it."""

_TRANSPORT_BUFFER = 65536
"""What Twisted's transports hold before they say that they are full."""


def open_pipe(transport: ITransport, outbound: Outbound) -> Pipe:
    """The shortest way out through `transport`."""
    layer: Any = _unwrap(transport)
    if isinstance(layer, TLSMemoryBIOProtocol):
        lower = _unwrap(layer.transport)
        if _is_transparent(lower) and _is_transparent_tls(layer):
            return TlsPipe(layer, lower, outbound)
    elif _is_transparent(layer):
        return SocketPipe(layer, outbound)
    return TransportPipe(transport, outbound)


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
        and isinstance(lower.getHandle(), socket.socket)
    )


def _is_transparent_tls(tls: Any) -> bool:
    """Whether it can be seen what waits in a TLS transport."""
    return (
        isinstance(getattr(tls, "_appSendBuffer", None), list)
        and isinstance(getattr(getattr(tls, "_aggregator", None), "_buffer", None), list)
        and isinstance(tls.getHandle(), SSL.Connection)
    )


@implementer(IPushProducer)
class TransportPipe:
    """The plain way: everything through the transport, which says when it has enough."""

    __slots__ = ("_is_full", "_outbound", "_transport")

    def __init__(self, transport: Any, outbound: Outbound) -> None:
        self._transport = transport
        self._outbound = outbound
        self._is_full = False
        self._transport.registerProducer(self, True)

    @property
    def waiting(self) -> int:
        """Nothing or, when the transport has enough, what it then holds."""
        return _TRANSPORT_BUFFER if self._is_full else 0

    def take(self, data: bytes) -> bool:
        """See `topicsvc.outbound.Pipe`."""
        if self._is_full:
            return False
        self._transport.write(data)
        return True

    def finish(self, last: bytes) -> None:
        """See `topicsvc.outbound.Pipe`."""
        self._transport.write(last)
        self._transport.unregisterProducer()

    def pauseProducing(self) -> None:
        self._is_full = True
        self._outbound.blocked()

    def resumeProducing(self) -> None:
        self._is_full = False
        self._outbound.ran_empty()

    def stopProducing(self) -> None:
        self._outbound.lost()


@implementer(IPullProducer)
class SocketPipe:
    """Plain TCP: to the socket at once, the rest through the transport."""

    __slots__ = ("_lower", "_outbound", "_send")

    def __init__(self, lower: Any, outbound: Outbound) -> None:
        self._lower = lower
        self._outbound = outbound
        self._send = lower.getHandle().send
        lower.registerProducer(self, False)

    @property
    def waiting(self) -> int:
        """What the transport holds."""
        lower = self._lower
        return len(lower.dataBuffer) - lower.offset + lower._tempDataLen  # type: ignore[no-any-return]

    def take(self, data: bytes) -> bool:
        """See `topicsvc.outbound.Pipe`."""
        lower = self._lower
        if lower._tempDataLen or len(lower.dataBuffer) != lower.offset:
            return False
        try:
            sent = self._send(data)
        except OSError:  # full, or broken: then the transport finds out and says so
            sent = 0
        if sent != len(data):
            lower.write(data[sent:])
            self._outbound.blocked()
        return True

    def finish(self, last: bytes) -> None:
        """See `topicsvc.outbound.Pipe`."""
        self._lower.write(last)
        self._lower.unregisterProducer()

    def resumeProducing(self) -> None:
        self._outbound.ran_empty()

    def stopProducing(self) -> None:
        self._outbound.lost()


@implementer(IPullProducer)
class TlsPipe:
    """TLS over TCP: encrypted and to the socket at once, the rest through the transport."""

    __slots__ = ("_encrypt", "_lower", "_outbound", "_read", "_send", "_tls")

    def __init__(self, tls: Any, lower: Any, outbound: Outbound) -> None:
        self._tls = tls
        self._lower = lower
        self._outbound = outbound
        connection = tls.getHandle()
        self._encrypt = connection.send
        self._read = connection.bio_read
        self._send = lower.getHandle().send
        lower.registerProducer(self, False)

    @property
    def waiting(self) -> int:
        """What the transports hold, encrypted or not."""
        lower, tls = self._lower, self._tls
        unencrypted = sum(map(len, tls._appSendBuffer)) + sum(map(len, tls._aggregator._buffer))
        return (  # type: ignore[no-any-return]
            len(lower.dataBuffer) - lower.offset + lower._tempDataLen + unencrypted
        )

    def take(self, data: bytes) -> bool:
        """See `topicsvc.outbound.Pipe`."""
        lower, tls = self._lower, self._tls
        if (
            lower._tempDataLen
            or len(lower.dataBuffer) != lower.offset
            or tls._appSendBuffer
            or tls._aggregator._buffer
        ):
            return False
        records, unsent = self._encrypted(data)
        if records:
            try:
                sent = self._send(records)
            except OSError:  # full, or broken: then the transport finds out and says so
                sent = 0
            if sent != len(records):
                lower.write(records[sent:])
                self._outbound.blocked()
        if unsent:
            tls.write(unsent)
            self._outbound.blocked()
        return True

    def _encrypted(self, data: bytes) -> tuple[bytes, bytes]:
        """The records that hold `data`, and what of it TLS cannot encrypt now."""
        at, size = 0, len(data)
        records: list[bytes] = []
        try:
            while at < size:
                at += self._encrypt(data[at : at + _RECORD] if size > _RECORD else data)
                records.append(self._read(_READ))
                while len(records[-1]) == _READ:
                    records.append(self._read(_READ))
        except SSL.Error:  # the peer's turn, or the end: the transport knows which
            return b"".join(records), data[at:]
        return records[0] if len(records) == 1 else b"".join(records), b""

    def finish(self, last: bytes) -> None:
        """See `topicsvc.outbound.Pipe`."""
        self._tls.write(last)
        self._lower.unregisterProducer()

    def resumeProducing(self) -> None:
        self._outbound.ran_empty()

    def stopProducing(self) -> None:
        self._outbound.lost()
