"""Pure: what a proxy tells of its client, in the header of the PROXY protocol.

The protocol is HAProxy's, https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt: version 1
is a line of text (its section 2.1), version 2 is binary (2.2).
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

__all__ = ["MAX_LENGTH", "MAX_LINE", "NotProxied", "Place", "ProxyHeader"]

MAX_LINE = 107
"""Bytes of a header of version 1, its line end included: the longest that there can be."""

MAX_LENGTH = 16384
"""Bytes of a header of version 2. Addresses take 232 at most; proxies add a name, a connection's
identifier, a client's certificate."""

_LINE = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16
"""Bytes of a header of version 2 that stand before the addresses."""

_LOCAL, _PROXIED = 0x20, 0x21
_NO_FAMILY, _INET, _INET6, _UNIX = range(4)
_NO_TRANSPORT, _STREAM, _DATAGRAM = range(3)
_LAYOUTS = {
    _INET: struct.Struct("!4s4sHH"),
    _INET6: struct.Struct("!16s16sHH"),
    _UNIX: struct.Struct("!108s108s"),
}
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


class NotProxied(ValueError):
    """These bytes are no header of the PROXY protocol."""


class Place(NamedTuple):
    """An address and a port."""

    address: IPv4Address | IPv6Address
    port: int


class ProxyHeader:
    """Reads one header, in whatever pieces it comes.

    Attributes:
        source: who the proxy's client is. None: the header names nobody, because the proxy
            asks for itself or does not know, or its client has a path and no address.
        destination: where the client has connected to; None: the same.
    """

    __slots__ = ("_buffer", "destination", "source")

    def __init__(self) -> None:
        self.source: Place | None = None
        self.destination: Place | None = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Read on; returns what came behind the header. None: it is not there in full.

        Raises:
            NotProxied: it is none, or too long.
        """
        self._buffer += data
        begins = bytes(self._buffer[: len(_SIGNATURE)])
        if begins[: len(_LINE)] == _LINE[: len(begins)]:
            end, read = self._end_of_line(), self._read_line
        elif begins == _SIGNATURE[: len(begins)]:
            end, read = self._end_of_binary(), self._read_binary
        else:
            raise NotProxied("it begins otherwise")
        if not end:
            return None
        header, rest = bytes(self._buffer[:end]), bytes(self._buffer[end:])
        self._buffer.clear()
        read(header)
        return rest

    def _end_of_line(self) -> int:
        at = self._buffer.find(b"\r\n", 0, MAX_LINE)
        if at < 0 and len(self._buffer) >= MAX_LINE:
            raise NotProxied("it is too long")
        return at + 2 if at > 0 else 0

    def _end_of_binary(self) -> int:
        if len(self._buffer) < _FIXED:
            return 0
        end = _FIXED + int.from_bytes(self._buffer[_FIXED - 2 : _FIXED], "big")
        if end > MAX_LENGTH:
            raise NotProxied("it is too long")
        return end if len(self._buffer) >= end else 0

    def _read_line(self, header: bytes) -> None:
        _, family, *rest = header[:-2].split(b" ")
        if family == b"UNKNOWN":
            return  # what follows means nothing
        if family not in (b"TCP4", b"TCP6") or len(rest) != 4:
            raise NotProxied("two addresses and two ports are not there")
        read = IPv4Address if family == b"TCP4" else IPv6Address
        try:
            addresses = [read(each.decode("ascii")) for each in rest[:2]]
        except ValueError as error:
            raise NotProxied("an address is none") from error
        if any(b"%" in each for each in rest):
            raise NotProxied("an address has a scope, which means nothing elsewhere")
        if not all(_PORT.fullmatch(each) and int(each) < 65536 for each in rest[2:]):
            raise NotProxied("a port is none")
        ports = [int(each) for each in rest[2:]]
        self.source, self.destination = map(Place, addresses, ports)

    def _read_binary(self, header: bytes) -> None:
        command, (family, transport) = header[12], divmod(header[13], 16)
        if command == _LOCAL:
            return  # the proxy itself; what follows means nothing
        if command != _PROXIED or family > _UNIX or transport > _DATAGRAM:
            raise NotProxied("a version, command or family is unknown")
        if family == _NO_FAMILY or transport == _NO_TRANSPORT:
            return
        layout = _LAYOUTS[family]
        if len(header) < _FIXED + layout.size:
            raise NotProxied("addresses are missing")
        if family != _UNIX:
            source, destination, *ports = layout.unpack_from(header, _FIXED)
            read = IPv4Address if family == _INET else IPv6Address
            self.source = Place(read(source), ports[0])
            self.destination = Place(read(destination), ports[1])
