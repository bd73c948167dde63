"""Encrypts data into TLS records at once.

pyOpenSSL inspects its argument, allocates a buffer for each result and copies the result out of
it. That is two thirds of the cost of a short record. So this module calls OpenSSL as pyOpenSSL
itself does, with one buffer for all connections. If pyOpenSSL's internals are not as expected,
its methods are used: see `make_records`.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL

try:
    from OpenSSL._util import ffi as _ffi
    from OpenSSL._util import lib as _lib

    _write, _read, _forget_errors = _lib.SSL_write, _lib.BIO_read, _lib.ERR_clear_error
except (ImportError, AttributeError):  # a pyOpenSSL with other internals
    _ffi = None

__all__ = ["DirectRecords", "Records", "make_records"]

_RECORD: Final = 16384
"""The most bytes of content in one TLS record (RFC 8446, section 5.1)."""

_BUFFER_SIZE: Final = 2 * _RECORD
"""Bytes: enough for one record and for other output of TLS, such as a handshake message."""

if _ffi is not None:
    _buffer = _ffi.new("char[]", _BUFFER_SIZE)
    _view = memoryview(_ffi.buffer(_buffer))


def make_records(connection: SSL.Connection) -> Records:
    """Return an object that makes the records of `connection`."""
    if _has_known_internals(connection):
        return DirectRecords(connection)
    return Records(connection)


def _has_known_internals(connection: Any) -> bool:
    """Whether OpenSSL's objects, for writing data and for reading records, are accessible."""
    if _ffi is None:
        return False
    try:
        kinds = _ffi.typeof(connection._ssl).cname, _ffi.typeof(connection._from_ssl).cname
    except (AttributeError, TypeError):
        return False
    return bool(kinds == ("SSL *", "BIO *"))


class Records:
    """Makes records with pyOpenSSL's methods.

    Args:
        connection: a connection that leaves its records in memory.
    """

    __slots__ = ("_read", "_send")

    def __init__(self, connection: SSL.Connection) -> None:
        self._send = connection.send
        self._read = connection.bio_read

    def encrypt(self, data: bytes) -> tuple[bytes | memoryview, bytes]:
        """Return the records that hold `data`, and the rest that TLS cannot encrypt now.

        The caller uses the records before this method is called again, for any connection: they
        may be in a buffer that all connections share.
        """
        done, size = 0, len(data)
        records: list[bytes] = []
        try:
            while done < size:
                done += self._send(data[done : done + _RECORD])
                records.append(self._read(_BUFFER_SIZE))
                while len(records[-1]) == _BUFFER_SIZE:
                    records.append(self._read(_BUFFER_SIZE))
        except SSL.Error:  # during a handshake or after the end of TLS: the transport handles it
            pass
        return b"".join(records), data[done:]


class DirectRecords(Records):
    """Makes records with OpenSSL's functions."""

    __slots__ = ("_bio", "_ssl")

    def __init__(self, connection: Any) -> None:
        self._ssl = connection._ssl
        self._bio = connection._from_ssl

    def encrypt(self, data: bytes) -> tuple[bytes | memoryview, bytes]:
        """See `Records`."""
        written = _write(self._ssl, data, min(len(data), _RECORD))
        made = _read(self._bio, _buffer, _BUFFER_SIZE)
        if written == len(data) and 0 < made < _BUFFER_SIZE:
            return _view[:made], b""
        return self._encrypt_more(data, written, made)

    def _encrypt_more(self, data: bytes, written: int, made: int) -> tuple[bytes, bytes]:
        """Continue `encrypt` after its first record, or after the first write failed."""
        done = 0
        records: list[bytes] = []
        while True:
            while made > 0:
                records.append(bytes(_view[:made]))
                made = _read(self._bio, _buffer, _BUFFER_SIZE)
            if written <= 0:  # as `SSL.Error` above
                _forget_errors()
                break
            done += written
            if done == len(data):
                break
            piece = data[done : done + _RECORD]
            written = _write(self._ssl, piece, len(piece))
            made = _read(self._bio, _buffer, _BUFFER_SIZE)
        return b"".join(records), data[done:]
