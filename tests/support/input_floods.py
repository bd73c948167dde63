"""Floods of HTTP requests and WebSocket frames, and clients that send them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.raw_client import PING, TEXT, frame, handshake

__all__ = ["InputFlood", "attack", "input_floods"]

PIECE = 65536
"""Bytes that a client sends or reads at a time."""

RECORDS = 200
"""TLS records that a client sends one after another."""


@dataclass(frozen=True)
class InputFlood:
    """What each connection sends: `first` once, then `unit` again and again.

    Attributes:
        opening: a request that has got its response before.
        tls: whether each `unit` is a TLS record of its own.
        reads: whether the responses are read.
    """

    name: str
    unit: bytes
    first: bytes = b""
    opening: bytes = b""
    tls: bool = False
    reads: bool = True


def input_floods(host: str, send_path: str, websocket_path: str, token: str) -> list[InputFlood]:
    """Return all floods; `token` is valid for sending to `send_path`."""
    host_line = f"Host: {host}\r\n".encode()
    send = f"POST {send_path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n".encode()
    send += host_line
    get = b"GET / HTTP/1.1\r\n" + host_line
    upgrade = handshake(websocket_path, host)
    return [
        InputFlood("pipelined GETs", get + b"\r\n"),
        InputFlood("HEADs", b"HEAD /x?access_token=a HTTP/1.1\r\n" + host_line + b"\r\n"),
        InputFlood("95 headers", get + b"X: 1\r\n" * 95 + b"\r\n"),
        InputFlood("one-byte chunks", b"1\r\nx\r\n", send + b"Transfer-Encoding: chunked\r\n\r\n"),
        InputFlood("empty lines", b"\r\n"),
        InputFlood("one-byte TLS records", b"x", send + b"Content-Length: 1000000\r\n\r\n",
                  tls=True),
        InputFlood("unwanted bodies", b"x" * 1000,
                  b"POST /nowhere HTTP/1.1\r\n" + host_line + b"Content-Length: 1000000\r\n\r\n"),
        InputFlood("unread responses", b"GET /nowhere HTTP/1.1\r\n" + host_line + b"\r\n",
                  reads=False),
        InputFlood("WebSocket fragments", frame(0, fin=False), frame(TEXT, fin=False), upgrade),
        InputFlood("WebSocket pings", frame(PING), opening=upgrade),
    ]  # fmt: skip


def attack(
    flood: InputFlood, connect: Callable[[], socket.socket], connections: int, end: float
) -> int:
    """Send a flood from many connections, as much as they can, until a time.

    A connection that the service closes is replaced by a new one.

    Args:
        flood: the flood.
        connections: how many connections are open at the same time.
        connect: opens a connection, with TLS if the flood needs it.
        end: by `time.monotonic`.

    Returns:
        The number of bytes that were sent, without TLS's own.
    """
    clients: dict[socket.socket, _Client] = {}
    sent = 0
    try:
        while time.monotonic() < end:
            while len(clients) < connections and time.monotonic() < end:
                try:
                    sock = connect()
                except OSError:
                    break
                clients[sock] = _Client(flood, sock)
            for sock, client in list(clients.items()):
                before = client.sent
                try:
                    client.send_and_read()
                except OSError:
                    sock.close()
                    del clients[sock]
                sent += client.sent - before
            time.sleep(0.001)
    finally:
        for sock in clients:
            sock.close()
    return sent


class _Client:
    """One connection of a flood.

    Attributes:
        sent: number of bytes that were sent.
    """

    def __init__(self, flood: InputFlood, sock: socket.socket) -> None:
        self._reads = flood.reads
        self._sock = sock
        if flood.opening:
            sock.sendall(flood.opening)
            sock.recv(PIECE)
        sock.setblocking(False)
        self._data = flood.unit if flood.tls else flood.unit * (PIECE // len(flood.unit))
        self._times = RECORDS if flood.tls else 1
        self._unsent = flood.first
        self.sent = 0

    def send_and_read(self) -> None:
        """Send and read as much as is possible without waiting.

        Raises:
            OSError: the connection has ended.
        """
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            for _ in range(self._times):
                data = self._unsent or self._data
                size = self._sock.send(data)
                self._unsent = data[size:]
                self.sent += size
        if self._reads:
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                if not self._sock.recv(PIECE):
                    raise ConnectionError
