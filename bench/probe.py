"""How long others wait while a fan-out is under way: a ping, a handshake, a health answer.

It runs in a process of its own, so that the load does not hold up what it measures.
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
"""Seconds between two looks: what is measured must not be the measuring."""

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class _Place:
    """What another process needs to know of a server."""

    port: int
    path: str
    token: str
    host: str
    admin_port: int
    ca_file: str | None


class Probe:
    """Looks for as long as the block lasts.

    Attributes:
        found: seconds that each look took, by what was looked at; after the block.
    """

    def __init__(self, target: Target, admin_port: int, ca_file: str | None) -> None:
        self.found: dict[str, list[float]] = {}
        path = target.path % 1  # nobody sends there
        place = _Place(target.port, path, target.tokens[0], target.host, admin_port, ca_file)
        spawn = multiprocessing.get_context("spawn")
        self._here, there = spawn.Pipe()
        self._process = spawn.Process(target=_look, args=(place, there), daemon=True)

    def __enter__(self) -> Probe:
        self._process.start()
        self._here.recv()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._here.send("enough")
            self.found = self._here.recv()
        except (BrokenPipeError, EOFError):
            fail("the probe has failed")
        self._process.join(WAIT)


def _look(place: _Place, pipe: multiprocessing.connection.Connection) -> None:
    pin(1)
    with contextlib.suppress(PermissionError):  # what is found is then rather too long
        os.nice(-10)
    context = None if place.ca_file is None else ssl.create_default_context(cafile=place.ca_file)
    target = Target(
        place.port, place.path, lambda _: b"", 0, (place.token,), context=context, host=place.host
    )
    session = open_session(target)
    looks: dict[str, Callable[[], None]] = {
        "a ping": lambda: _ping(session),
        "a handshake": lambda: _shake_hands(target),
        "a health answer": lambda: _ask_for_health(place.admin_port),
    }
    found: dict[str, list[float]] = {name: [] for name in looks}
    pipe.send("ready")
    while not pipe.poll(PAUSE):
        for name, look in looks.items():
            began = time.perf_counter()
            look()
            found[name].append(time.perf_counter() - began)
    pipe.send(found)


def _ping(session: socket.socket) -> None:
    session.sendall(masked(9, b"?"))
    if session.recv(64) != b"\x8a\x01?":
        fail("no pong")


def _shake_hands(target: Target) -> None:
    sock = target.connect()
    sock.sendall(target.handshake(0))
    if not sock.recv(4096).startswith(b"HTTP/1.1 101 "):
        fail("no handshake")
    sock.close()


def _ask_for_health(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as sock:
        sock.sendall(HEALTH)
        if not sock.recv(4096).startswith(b"HTTP/1.1 200 "):
            fail("not healthy")
