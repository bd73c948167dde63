"""TLS whose handshakes and decryption are spread over reactor iterations, in little memory.

A TLS handshake takes about 1 ms, and 8 KiB of one-byte records as long as several of them. If
many connections are read in one iteration, all other clients wait for their sum.

A connection keeps little memory for TLS. OpenSSL gets whole records only, because it keeps
16 KiB for a part of a record. The rest of a long record stays in the network until all of it is
there. What OpenSSL sends on its own, in response to key updates, is limited.
"""

from __future__ import annotations

import array
import fcntl
import select
import socket
import termios
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.interfaces import ISystemHandle
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport

from topicsvc.scheduling.work_budget import WorkBudget

try:
    from OpenSSL._util import ffi as _ffi
    from OpenSSL._util import lib as _lib

    _get_data, _set_bios = _lib.BIO_get_mem_data, _lib.SSL_set_bio
    _new_bio, _memory = _lib.BIO_new, _lib.BIO_s_mem()
    _DATA = _ffi.new("char **")
except (ImportError, AttributeError):  # a pyOpenSSL with other internals
    _ffi = None

__all__ = ["PacedTls", "budget_of_waiting_input", "set_tls_budget", "socket_transport"]

SMALL: Final = 1024
"""Bytes up to which input leaves OpenSSL's buffer as it is, and the rest of a record is read as it
arrives."""

MAX_HANDSHAKE: Final = 16384
"""Most bytes of a client's handshake. OpenSSL keeps up to 131,396 bytes of its first message."""

MAX_OUTPUT: Final = 1024
"""Most bytes that OpenSSL may send on its own in `OUTPUT_TIME` seconds.

The response to a key update has 27."""

OUTPUT_TIME: Final = 60.0

_END: Final = getattr(select, "POLLRDHUP", 0)
_HEADER: Final = 5
_HANDSHAKE: Final = 22
_CONTENT_TYPES: Final = range(20, 25)
_MAJOR_VERSION: Final = 3
_MAX_RECORD: Final = 16384 + 2048
"""Most bytes behind the header of a record (RFC 5246, section 6.2.3; RFC 8446 allows less)."""


class PacedTls(BufferingTLSTransport):
    """A TLS connection that processes received bytes within the budget of an iteration.

    Attributes:
        budget: the time for work on received bytes in one reactor iteration; None: no limit.
        keeps_output: whether another object refers to OpenSSL's buffer for output. It stays then.
    """

    budget: WorkBudget | None = None
    keeps_output = False
    transport: Any

    _unprocessed = b""
    _is_deferred = False
    _is_paused = False
    _partial = b""  # the first bytes of a record that is not complete
    _missing = 0  # bytes until it is complete; 0: unknown
    _has_records = True  # False: the bytes are not TLS, and OpenSSL reports that
    _waits_for_rest = False
    _read_size = 0  # of the transport, before it waits for the rest
    _has_small_input = False
    _handshake_left = MAX_HANDSHAKE
    _counts_output = False
    _output = 0  # bytes since `_output_since`
    _output_since = 0.0

    def dataReceived(self, data: bytes) -> None:
        """Process `data`, or defer that to a later iteration and read no more until then."""
        budget = self.budget
        if self._is_deferred:
            self._unprocessed += data
        elif budget is None:
            self._decrypt(data)
        elif budget.is_spent:
            self._unprocessed = data
            self._is_deferred = True
            self.transport.pauseProducing()
            budget.defer(self._process_deferred)
        else:
            self._process(data, budget)

    def pauseProducing(self) -> None:
        """Stop reading."""
        self._is_paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again, unless received bytes wait for a later iteration."""
        self._is_paused = False
        if not self._is_deferred:
            self.transport.resumeProducing()

    @property
    def has_waiting_input(self) -> bool:
        """Whether received bytes wait for a later iteration."""
        return self._is_deferred

    def _process(self, data: bytes, budget: WorkBudget) -> None:
        since = budget.now()
        self._decrypt(data)
        budget.spend(since)

    def _process_deferred(self) -> None:
        data, self._unprocessed = self._unprocessed, b""
        self._is_deferred = False
        if not self.connected:
            return
        if not self._is_paused:
            self.transport.resumeProducing()
        budget = self.budget
        if budget is None:
            self._decrypt(data)
        else:
            self._process(data, budget)

    def _decrypt(self, data: bytes) -> None:
        """Give OpenSSL the records that are complete, and keep the rest."""
        if self._read_size:
            transport = self._socket_transport()
            if transport is not None:
                transport.bufferSize = self._read_size
            self._read_size = 0
        if self._partial:
            data = self._partial + data
            self._partial = b""
        size = len(data)
        end = self._end_of_records(data) if self._has_records else size
        if end < size:
            self._partial = data[end:]
        if end:
            self._counts_output = self._handshakeDone
            super().dataReceived(data[:end])  # type: ignore[no-untyped-call]
            self._counts_output = False
            if self._handshakeDone and (end > SMALL or not self._has_small_input):
                # OpenSSL's buffers never shrink.
                self._has_small_input = _renew_input(self._tlsConnection)
        if self._waits_for_rest or self._missing > SMALL:
            self._await_rest()

    def _end_of_records(self, data: bytes) -> int:
        """Return the position behind the last complete record; note what the next one misses."""
        start, size = 0, len(data)
        self._missing = 0
        while size - start >= _HEADER:
            length = int.from_bytes(data[start + 3 : start + _HEADER], "big")
            if (
                data[start] not in _CONTENT_TYPES
                or data[start + 1] != _MAJOR_VERSION
                or length > _MAX_RECORD
            ):
                self._has_records = False
                return size
            is_handshake = data[start] == _HANDSHAKE and not self._handshakeDone
            if is_handshake and length > self._handshake_left:
                self.abortConnection()
                return 0
            end = start + _HEADER + length
            if end > size:
                self._missing = end - size
                break
            if is_handshake:
                self._handshake_left -= length
            start = end
        return start

    def _checkHandshakeStatus(self) -> None:
        super()._checkHandshakeStatus()  # type: ignore[no-untyped-call]
        if self._handshakeDone and not self.keeps_output:
            self._flushSendBIO()
            # The handshake has made it as large as the chain of certificates.
            _renew_output(self._tlsConnection)

    def _flushSendBIO(self) -> None:
        if not self._counts_output:
            super()._flushSendBIO()  # type: ignore[no-untyped-call]
            return
        try:
            output = self._tlsConnection.bio_read(2**15)
        except SSL.WantReadError:
            return
        self.transport.write(output)
        now = 0.0 if self.budget is None else self.budget.now()
        if now - self._output_since >= OUTPUT_TIME:
            self._output, self._output_since = 0, now
        self._output += len(output)
        if self._output > MAX_OUTPUT:
            # A client that asks for key updates and does not read would fill the memory.
            self._counts_output = False
            self.abortConnection()

    def _write(self, data: bytes) -> None:
        # This data is not OpenSSL's own.
        counts, self._counts_output = self._counts_output, False
        super()._write(data)  # type: ignore[no-untyped-call]
        self._counts_output = counts

    def _await_rest(self) -> None:
        """Leave the rest of a long record in the network until all of it has arrived.

        The kernel may report a part of it before: one-byte segments can fill the socket's memory.
        It must be read then, because the client could not send more otherwise.
        """
        transport = self._socket_transport()
        if transport is None:
            return
        was_waiting, self._waits_for_rest = self._waits_for_rest, False
        handle = transport.getHandle()
        if self._missing > SMALL and not _is_ready(handle, self._missing):
            self._waits_for_rest = True
            _set_low_water(handle, self._missing)
            return
        if was_waiting:
            _set_low_water(handle, 1)
        if self._missing > SMALL:
            # The next read returns all of it.
            self._read_size = transport.bufferSize
            transport.bufferSize = max(self._read_size, self._missing)

    def _socket_transport(self) -> Any:
        """The transport that has the socket; None: it is closed, or there is no socket."""
        transport = socket_transport(self.transport)
        if not ISystemHandle.providedBy(transport):
            return None
        handle = transport.getHandle()
        return transport if isinstance(handle, socket.socket) and handle.fileno() >= 0 else None


def socket_transport(transport: Any) -> Any:
    """Return the transport that has the socket, below TLS and the PROXY protocol."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def set_tls_budget(transport: Any, budget: WorkBudget) -> None:
    """Spread the work of `transport` on received bytes within `budget`, if it has TLS."""
    tls = _tls_of(transport)
    if tls is not None:
        tls.budget = budget


def budget_of_waiting_input(transport: Any) -> WorkBudget | None:
    """Return the budget that received bytes of `transport` wait for; None: none wait."""
    tls = _tls_of(transport)
    return tls.budget if tls is not None and tls.has_waiting_input else None


def _tls_of(transport: Any) -> PacedTls | None:
    """Return the TLS connection of `transport`; None: it has none."""
    while isinstance(transport, ProtocolWrapper):
        if isinstance(transport, PacedTls):
            return transport
        transport = transport.transport
    return None


def _set_low_water(handle: socket.socket, size: int) -> None:
    """Let the kernel report received bytes when there are `size` of them, or the end."""
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def _is_ready(handle: socket.socket, size: int) -> bool:
    """Whether `size` bytes have arrived, or the connection has ended."""
    arrived = array.array("i", [0])
    fcntl.ioctl(handle, termios.FIONREAD, arrived)
    if arrived[0] >= size:
        return True
    poll = select.poll()
    poll.register(handle, _END)
    return bool(poll.poll(0))


def _renew_input(connection: Any) -> bool:
    """Give `connection` a new buffer for its input, if the present one is empty.

    Returns:
        whether it has a new one, or cannot have it.
    """
    if not _has_known_internals(connection):
        return True
    new = _new_buffer(connection._into_ssl)
    if new is None:
        return False
    # OpenSSL frees the old one, and keeps the other: see SSL_set_bio(3).
    _set_bios(connection._ssl, new, connection._from_ssl)
    connection._into_ssl = new
    return True


def _renew_output(connection: Any) -> None:
    """Give `connection` a new buffer for its output, if the present one is empty."""
    if _has_known_internals(connection):
        new = _new_buffer(connection._from_ssl)
        if new is not None:
            _set_bios(connection._ssl, connection._into_ssl, new)
            connection._from_ssl = new


def _has_known_internals(connection: Any) -> bool:
    try:
        both = connection._ssl, connection._into_ssl, connection._from_ssl
        return [_ffi.typeof(each).cname for each in both] == ["SSL *", "BIO *", "BIO *"]
    except (AttributeError, TypeError):
        return False


def _new_buffer(old: Any) -> Any:
    """A buffer to replace an old one; None: the old one is not empty, or there is no memory."""
    if _get_data(old, _DATA):
        return None
    new = _new_bio(_memory)
    return None if new == _ffi.NULL else new
