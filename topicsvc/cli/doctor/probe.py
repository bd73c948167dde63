"""Checks whether the process that listens on an endpoint answers as the endpoint should."""

from __future__ import annotations

import os
import socket
import ssl
import time

from cryptography import x509
from twisted.internet.error import CannotListenError

from topicsvc.listening.endpoint_string import EndpointString

__all__ = ["probe"]

_LOOPBACK = "127.0.0.1"
_TIMEOUT = 5.0
"""Seconds for connecting, and for a response."""
_MAX_RESPONSE = 4096
"""Bytes of a response that are read at most."""

_REQUEST = b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""A request that every HTTP server answers, with or without resources."""

_BAD_REQUEST = b"400"
"""The status of a server that takes a PROXY header for an HTTP request."""


def probe(error: CannotListenError, text: str) -> int | None:
    """Connect to an endpoint in use, and send an HTTP request as its clients would.

    Args:
        error: the error of listening there.
        text: the endpoint string.

    Returns:
        The serial number of the server's certificate; None: the endpoint has no TLS.

    Raises:
        OSError: nothing answers, or the response is not as expected.
    """
    string = EndpointString.parse(text)
    with _connect(_target(error)) as raw:
        raw.sendall(_proxy_header(raw) * string.proxies)  # before TLS
        if not string.is_tls:
            _request(raw, string)
            return None
        with _context().wrap_socket(raw) as stream:
            serial_number = _serial_number(stream)
            _request(stream, string)
            return serial_number


def _request(stream: socket.socket, string: EndpointString) -> None:
    stream.sendall(_REQUEST)
    version, _, status = _first_line(stream).partition(b" ")
    if not version.startswith(b"HTTP/1."):
        raise OSError("it does not answer HTTP")
    if string.proxies and status.startswith(_BAD_REQUEST):
        raise OSError("it does not accept the PROXY protocol")


def _first_line(stream: socket.socket) -> bytes:
    """Read until the first line is complete, or the connection ends."""
    response = b""
    deadline = time.monotonic() + _TIMEOUT
    while b"\r\n" not in response and len(response) < _MAX_RESPONSE:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        stream.settimeout(left)
        more = stream.recv(_MAX_RESPONSE)
        if not more:
            break
        response += more
    return response


def _target(error: CannotListenError) -> tuple[str, int] | str:
    """Where to connect: an address and port, or the path of a UNIX socket."""
    port: int | str | bytes = error.port
    if not isinstance(port, int):
        return os.fsdecode(port)
    if error.interface in ("", "0.0.0.0", "::"):  # noqa: S104 - compared with, not listened on
        return _LOOPBACK, port
    return error.interface, port


def _connect(target: tuple[str, int] | str) -> socket.socket:
    if not isinstance(target, str):
        return socket.create_connection(target, timeout=_TIMEOUT)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_TIMEOUT)
    try:
        connection.connect(target)
    except OSError:
        connection.close()
        raise
    return connection


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate is compared, not trusted
    return context


def _serial_number(stream: ssl.SSLSocket) -> int:
    try:
        certificate = x509.load_der_x509_certificate(stream.getpeercert(binary_form=True) or b"")
    except ValueError as error:
        raise OSError("it sends no readable certificate") from error
    return certificate.serial_number


def _proxy_header(connection: socket.socket) -> bytes:
    """A PROXY protocol header of version 1, with this connection's own addresses."""
    if connection.family == socket.AF_UNIX:
        local = remote = (_LOOPBACK, 0)
    else:
        local, remote = connection.getsockname(), connection.getpeername()
    family = "TCP6" if connection.family == socket.AF_INET6 else "TCP4"
    return f"PROXY {family} {local[0]} {remote[0]} {local[1]} {remote[1]}\r\n".encode("ascii")
