"""Adapter: the TLS records of what is to be sent, made at once.

pyOpenSSL looks at what it is given, makes a buffer for each answer and copies out of it:
two thirds of what a short record costs. So OpenSSL is called here as pyOpenSSL itself calls
it, with one buffer for all connections. Where pyOpenSSL's inside is not as expected its own
methods are used: see `make_records`.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL

try:
    from OpenSSL._util import ffi as _ffi
    from OpenSSL._util import lib as _lib

    _write, _read, _forget_errors = _lib.SSL_write, _lib.BIO_read, _lib.ERR_clear_error
except (ImportError, AttributeError):  # another pyOpenSSL than the one that is known here
    _ffi = None

__all__ = ["DirectRecords", "Records", "make_records"]

_RECORD: Final = 16384
"""Most bytes of content of one TLS record (RFC 8446, section 5.1)."""

_ROOM: Final = 2 * _RECORD
"""For one record, and what TLS may say beside it."""

if _ffi is not None:
    _buffer = _ffi.new("char[]", _ROOM)
    _view = memoryview(_ffi.buffer(_buffer))


def make_records(connection: SSL.Connection) -> Records:
    """What makes the records of `connection`."""
    if _is_transparent(connection):
        return DirectRecords(connection)
    return Records(connection)


def _is_transparent(connection: Any) -> bool:
    """Whether it can be seen where OpenSSL takes what is to be sent, and leaves its records."""
    if _ffi is None:
        return False
    try:
        kinds = _ffi.typeof(connection._ssl).cname, _ffi.typeof(connection._from_ssl).cname
    except (AttributeError, TypeError):
        return False
    return bool(kinds == ("SSL *", "BIO *"))


class Records:
    """Makes records by pyOpenSSL's methods.

    Args:
        connection: takes what it is given and leaves the records in memory.
    """

    __slots__ = ("_encrypt", "_take")

    def __init__(self, connection: SSL.Connection) -> None:
        self._encrypt = connection.send
        self._take = connection.bio_read

    def of(self, data: bytes) -> tuple[bytes | memoryview, bytes]:
        """The records that hold `data`, and what of it TLS cannot encrypt now.

        The records are to be used before the next are made, for whatever connection.
        """
        done, size = 0, len(data)
        records: list[bytes] = []
        try:
            while done < size:
                done += self._encrypt(data[done : done + _RECORD])
                records.append(self._take(_ROOM))
                while len(records[-1]) == _ROOM:
                    records.append(self._take(_ROOM))
        except SSL.Error:  # the peer's turn, or the end: the transport knows which
            pass
        return b"".join(records), data[done:]


class DirectRecords(Records):
    """Makes records by OpenSSL's functions."""

    __slots__ = ("_bio", "_ssl")

    def __init__(self, connection: Any) -> None:
        self._ssl = connection._ssl
        self._bio = connection._from_ssl

    def of(self, data: bytes) -> tuple[bytes | memoryview, bytes]:
        """See `Records`."""
        written = _write(self._ssl, data, min(len(data), _RECORD))
        made = _read(self._bio, _buffer, _ROOM)
        if written == len(data) and 0 < made < _ROOM:
            return _view[:made], b""
        return self._of_more(data, written, made)

    def _of_more(self, data: bytes, written: int, made: int) -> tuple[bytes, bytes]:
        """The records of what is more than one, or is not taken, beginning with the first."""
        done = 0
        records: list[bytes] = []
        while True:
            while made > 0:
                records.append(bytes(_view[:made]))
                made = _read(self._bio, _buffer, _ROOM)
            if written <= 0:  # as above
                _forget_errors()
                break
            done += written
            if done == len(data):
                break
            piece = data[done : done + _RECORD]
            written = _write(self._ssl, piece, len(piece))
            made = _read(self._bio, _buffer, _ROOM)
        return b"".join(records), data[done:]
