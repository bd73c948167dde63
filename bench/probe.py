"""Measures a ping, a handshake and a health request during a fan-out.

The probe is a separate process, so that the load does not delay it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.sessions import WAIT, Target, fail, masked, open_session, pin

__all__ = ["Probe"]

PAUSE = 0.002
"""Seconds between two samples, so that the probe itself is no load."""

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class _Address:
    """A server, as values that another process can receive."""

    port: int
    path: str
    token: str
    host: str
    admin_port: int
    ca_file: str | None


class Probe:
    """Takes samples during a ``with`` block.

    Attributes:
        durations: duration of each sample in seconds, by the name of the request. Empty until
            the block has ended.
    """

    def __init__(self, target: Target, admin_port: int, ca_file: str | None) -> None:
        self.durations: dict[str, list[float]] = {}
        path = target.path % 1  # no messages are sent to this topic
        address = _Address(target.port, path, target.tokens[0], target.host, admin_port, ca_file)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, their_end = spawn.Pipe()
        self._process = spawn.Process(target=_probe, args=(address, their_end), daemon=True)

    def __enter__(self) -> Probe:
        self._process.start()
        self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._pipe.send("stop")
            self.durations = self._pipe.recv()
        except (BrokenPipeError, EOFError):
            fail("the probe failed")
        self._process.join(WAIT)


def _probe(address: _Address, pipe: multiprocessing.connection.Connection) -> None:
    pin(1)
    # Without the permission, durations may be too long.
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    context = (
        None if address.ca_file is None else ssl.create_default_context(cafile=address.ca_file)
    )
    target = Target(
        address.port,
        address.path,
        lambda _: b"",
        0,
        (address.token,),
        context=context,
        host=address.host,
    )
    session = open_session(target)
    requests: dict[str, Callable[[], None]] = {
        "a ping": lambda: _ping(session),
        "a handshake": lambda: _handshake(target),
        "a health request": lambda: _health(address.admin_port),
    }
    durations: dict[str, list[float]] = {name: [] for name in requests}
    pipe.send("ready")
    while not (durations["a ping"] and pipe.poll(PAUSE)):
        for name, request in requests.items():
            started = time.perf_counter()
            request()
            durations[name].append(time.perf_counter() - started)
    pipe.send(durations)


def _ping(session: socket.socket) -> None:
    session.sendall(masked(9, b"?"))
    if session.recv(64) != b"\x8a\x01?":
        fail("no pong")


def _handshake(target: Target) -> None:
    sock = target.connect()
    sock.sendall(target.handshake(0))
    if not sock.recv(4096).startswith(b"HTTP/1.1 101 "):
        fail("no handshake")
    sock.close()


def _health(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as sock:
        sock.sendall(HEALTH)
        if not sock.recv(4096).startswith(b"HTTP/1.1 200 "):
            fail("not healthy")
