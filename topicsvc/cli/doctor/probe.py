"""Composition: what ``topicsvc doctor`` says at a door that somebody has opened already."""

from __future__ import annotations

import os
import socket
import ssl
import time

from cryptography import x509
from twisted.internet.error import CannotListenError

from topicsvc.listening.endpoints import is_proxied, is_tls

__all__ = ["probe"]

_LOOPBACK = "127.0.0.1"
_TIMEOUT = 5.0
_LONGEST = 4096

_QUESTION = b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""What any HTTP server answers, whatever it serves."""

_BAD_REQUEST = b"400"
"""The answer of one to whom a PROXY header is no request."""


def probe(error: CannotListenError, text: str) -> int | None:
    """See whether somebody answers as the endpoint `text` would.

    Args:
        error: why nobody else can listen there.
        text: the endpoint string.

    Returns:
        The serial number of the certificate that is shown; None: it is one without.

    Raises:
        OSError: nobody answers, or not so.
    """
    with _connect(_door(error)) as raw:
        if not is_tls(text):
            _ask(raw, text)
            return None
        with _context().wrap_socket(raw) as stream:  # outside of the PROXY protocol
            serial_number = _serial_number(stream)
            _ask(stream, text)
            return serial_number


def _ask(stream: socket.socket, text: str) -> None:
    if is_proxied(text):
        stream.sendall(_proxy_header(stream))
    stream.sendall(_QUESTION)
    protocol, _, status = _first_line(stream).partition(b" ")
    if not protocol.startswith(b"HTTP/1."):
        raise OSError("it does not speak HTTP")
    if is_proxied(text) and status.startswith(_BAD_REQUEST):
        raise OSError("it does not take the PROXY protocol")


def _first_line(stream: socket.socket) -> bytes:
    """What is said up to the first end of a line, or to the end."""
    said = b""
    end = time.monotonic() + _TIMEOUT
    while b"\r\n" not in said and len(said) < _LONGEST:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        stream.settimeout(left)
        more = stream.recv(_LONGEST)
        if not more:
            break
        said += more
    return said


def _door(error: CannotListenError) -> tuple[str, int] | str:
    """Where to knock: an address, or the path of a UNIX socket."""
    port: int | str | bytes = error.port
    if not isinstance(port, int):
        return os.fsdecode(port)
    if error.interface in ("", "0.0.0.0", "::"):  # noqa: S104 - compared with, not listened on
        return _LOOPBACK, port
    return error.interface, port


def _connect(door: tuple[str, int] | str) -> socket.socket:
    if not isinstance(door, str):
        return socket.create_connection(door, timeout=_TIMEOUT)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_TIMEOUT)
    try:
        connection.connect(door)
    except OSError:
        connection.close()
        raise
    return connection


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is compared, not trusted
    return context


def _serial_number(stream: ssl.SSLSocket) -> int:
    try:
        shown = x509.load_der_x509_certificate(stream.getpeercert(binary_form=True) or b"")
    except ValueError as error:
        raise OSError("it shows no certificate that can be read") from error
    return shown.serial_number


def _proxy_header(connection: socket.socket) -> bytes:
    """A header of the PROXY protocol, version 1: the client is we."""
    if connection.family == socket.AF_UNIX:
        here = there = (_LOOPBACK, 0)
    else:
        here, there = connection.getsockname(), connection.getpeername()
    family = "TCP6" if connection.family == socket.AF_INET6 else "TCP4"
    return f"PROXY {family} {here[0]} {there[0]} {here[1]} {there[1]}\r\n".encode("ascii")
