"""Parses the header of the PROXY protocol, in which a proxy names its client.

HAProxy specifies the protocol: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt.
Version 1 is a line of text (section 2.1), version 2 is binary (section 2.2).
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

__all__ = ["MAX_LENGTH", "MAX_LINE", "InvalidProxyHeader", "ProxyHeader", "SocketAddress"]

MAX_LINE = 107
"""Maximum length of a header of version 1, line end included, in bytes (section 2.1)."""

MAX_LENGTH = 16384
"""Maximum length of a header of version 2, in bytes. Addresses need at most 232; a proxy may add
a host name, a connection identifier and a client certificate."""

_LINE = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16
"""Bytes of a header of version 2 before the addresses."""

_LOCAL, _PROXIED = 0x20, 0x21
_NO_FAMILY, _INET, _INET6, _UNIX = range(4)
_NO_TRANSPORT, _STREAM, _DATAGRAM = range(3)
_LAYOUTS = {
    _INET: struct.Struct("!4s4sHH"),
    _INET6: struct.Struct("!16s16sHH"),
    _UNIX: struct.Struct("!108s108s"),
}
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


class InvalidProxyHeader(ValueError):
    """The bytes are not a valid header of the PROXY protocol."""


class SocketAddress(NamedTuple):
    """An IP address and a TCP port."""

    host: IPv4Address | IPv6Address
    port: int


class ProxyHeader:
    """Parses one header, which may arrive in several pieces.

    Attributes:
        source: the address of the proxy's client. None: the header has no address, because the
            proxy connects for itself, does not know it, or its client uses a UNIX socket.
        destination: the address that the client connected to; None: as for `source`.
    """

    __slots__ = ("_buffer", "destination", "source")

    def __init__(self) -> None:
        self.source: SocketAddress | None = None
        self.destination: SocketAddress | None = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Parse more bytes.

        Returns:
            The bytes after the header; None: the header is not complete yet.

        Raises:
            InvalidProxyHeader: the bytes are no header, or too long.
        """
        self._buffer += data
        start = bytes(self._buffer[: len(_SIGNATURE)])
        if start[: len(_LINE)] == _LINE[: len(start)]:
            end, read = self._end_of_line(), self._read_line
        elif start == _SIGNATURE[: len(start)]:
            end, read = self._end_of_binary(), self._read_binary
        else:
            raise InvalidProxyHeader("unknown signature")
        if not end:
            return None
        header, rest = bytes(self._buffer[:end]), bytes(self._buffer[end:])
        self._buffer.clear()
        read(header)
        return rest

    def _end_of_line(self) -> int:
        at = self._buffer.find(b"\r\n", 0, MAX_LINE)
        if at < 0 and len(self._buffer) >= MAX_LINE:
            raise InvalidProxyHeader("too long")
        return at + 2 if at > 0 else 0

    def _end_of_binary(self) -> int:
        if len(self._buffer) < _FIXED:
            return 0
        end = _FIXED + int.from_bytes(self._buffer[_FIXED - 2 : _FIXED], "big")
        if end > MAX_LENGTH:
            raise InvalidProxyHeader("too long")
        return end if len(self._buffer) >= end else 0

    def _read_line(self, header: bytes) -> None:
        _, family, *rest = header[:-2].split(b" ")
        if family == b"UNKNOWN":
            return  # the rest of the line is ignored (section 2.1)
        if family not in (b"TCP4", b"TCP6") or len(rest) != 4:
            raise InvalidProxyHeader("not two addresses and two ports")
        read = IPv4Address if family == b"TCP4" else IPv6Address
        try:
            addresses = [read(each.decode("ascii")) for each in rest[:2]]
        except ValueError as error:
            raise InvalidProxyHeader("invalid address") from error
        if any(b"%" in each for each in rest):
            raise InvalidProxyHeader("an address has a scope, which is valid on the proxy only")
        if not all(_PORT.fullmatch(each) and int(each) < 65536 for each in rest[2:]):
            raise InvalidProxyHeader("invalid port")
        ports = [int(each) for each in rest[2:]]
        self.source, self.destination = map(SocketAddress, addresses, ports)

    def _read_binary(self, header: bytes) -> None:
        command, (family, transport) = header[12], divmod(header[13], 16)
        if command == _LOCAL:
            return  # the proxy's own connection; the addresses are ignored (section 2.2)
        if command != _PROXIED or family > _UNIX or transport > _DATAGRAM:
            raise InvalidProxyHeader("unknown version, command or family")
        if family == _NO_FAMILY or transport == _NO_TRANSPORT:
            return
        layout = _LAYOUTS[family]
        if len(header) < _FIXED + layout.size:
            raise InvalidProxyHeader("addresses are missing")
        if family != _UNIX:
            source, destination, *ports = layout.unpack_from(header, _FIXED)
            read = IPv4Address if family == _INET else IPv6Address
            self.source = SocketAddress(read(source), ports[0])
            self.destination = SocketAddress(read(destination), ports[1])
