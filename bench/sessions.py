"""Opens sessions over raw sockets."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = [
    "READ",
    "WAIT",
    "Figures",
    "Target",
    "fail",
    "masked",
    "open_session",
    "open_sessions",
    "pin",
    "start_sessions",
]

HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SUCCESS = b'"Result":"Success"'
UPGRADED = b"HTTP/1.1 101 "
WAIT = 30.0
READ = select.EPOLLIN


@dataclass
class Target:
    """A server under load.

    Attributes:
        port: its port on the loopback address.
        path: path of the WebSocket URL; ``%d`` is the number of the topic.
        request: returns the bytes that send one message to a topic.
        frame: bytes that one request brings to a subscriber's socket.
        tokens: tokens to present after the handshake, one for each session in turn. If empty,
            a session is complete after its handshake.
        by_websocket: whether messages are sent through a WebSocket instead of HTTP.
        context: the TLS context; None: no TLS.
        host: value of the ``Host`` header.
        batch: number of messages in one request.
        has_positions: whether the sessions ask for positions.
    """

    port: int
    path: str
    request: Callable[[int], bytes]
    frame: int
    tokens: Sequence[str] = ()
    by_websocket: bool = False
    context: ssl.SSLContext | None = None
    host: str = "localhost"
    batch: int = 1
    has_positions: bool = False

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_hostname=self.host)
        return sock

    def handshake(self, topic: int) -> bytes:
        path = self.path % topic if "%d" in self.path else self.path
        return HANDSHAKE % (path.encode(), self.host.encode())

    def present(self, number: int = 0) -> bytes:
        token = self.tokens[number % len(self.tokens)]
        since = {"Since": None} if self.has_positions else {}
        return masked(1, json.dumps({"AccessToken": token, **since}).encode())


@dataclass
class Figures:
    """The figures of one measurement; times in seconds."""

    deliveries: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    idle: float = 0.0

    @property
    def rate(self) -> float:
        return self.deliveries / self.seconds

    def percentile(self, part: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a client's frame. The mask is zero, so that masking costs the load nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


def open_session(target: Target, topic: int = 0) -> socket.socket:
    """Open one session and return its blocking socket."""
    sock = target.connect()
    sock.sendall(target.handshake(topic))
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096) or fail(f"no handshake: {head!r}")
    if b" 101 " not in head.split(b"\r\n")[0]:
        fail(f"no handshake: {head!r}")
    if target.tokens:
        sock.sendall(target.present())
        reply = b""
        while SUCCESS not in reply:
            reply += sock.recv(4096) or fail(f"no session: {reply!r}")
    return sock


def open_sessions(target: Target, count: int, topics: int = 1) -> list[socket.socket]:
    """Open `count` sessions, distributed over `topics`."""
    return [open_session(target, number % topics) for number in range(count)]


def start_sessions(target: Target, count: int, at_once: int) -> tuple[Figures, list[socket.socket]]:
    """Start `count` sessions, `at_once` at a time.

    A session has started when its ``Success`` arrives, or its handshake response if there are
    no tokens. Each session presents its own token. No TLS session is resumed.

    Returns:
        The figures, and the sockets of the sessions.
    """
    poll = select.epoll()
    states: dict[int, _Start] = {}
    done: list[socket.socket] = []
    begun = 0
    waited = 0.0
    started = time.perf_counter()
    while len(done) < count:
        while begun < count and len(states) < at_once:
            start = _Start(target, begun)
            poll.register(start.sock.fileno(), READ)
            states[start.sock.fileno()] = start
            begun += 1
        before = time.perf_counter()
        ready = poll.poll(WAIT) or fail("no response")
        waited += time.perf_counter() - before
        for fd, _ in ready:
            start = states[fd]
            if start.read():
                poll.unregister(fd)
                del states[fd]
                start.sock.setblocking(False)
                done.append(start.sock)
    seconds = time.perf_counter() - started
    poll.close()
    return Figures(count, seconds, idle=waited / seconds), done


class _Start:
    """The start of one session.

    Attributes:
        sock: the client's socket.
    """

    def __init__(self, target: Target, number: int) -> None:
        self._handshake = target.handshake(0)
        self._present = target.present(number) if target.tokens else b""
        self._is_secure = target.context is None
        self.sock: socket.socket = socket.socket()
        self.sock.connect(("127.0.0.1", target.port))
        if target.context is None:
            self.sock.send(self._handshake)
        else:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.setblocking(False)
            self.sock = target.context.wrap_socket(
                self.sock, server_hostname=target.host, do_handshake_on_connect=False
            )
            self._secure()

    def read(self) -> bool:
        """Read what has arrived, and send the next step. True: the session has started."""
        if not self._is_secure:
            self._secure()
            return False
        try:
            # A response is one small segment or record, so it arrives whole.
            data = self.sock.recv(4096)
        except ssl.SSLWantReadError:
            return False
        if SUCCESS in data or (not self._present and data.startswith(UPGRADED)):
            return True
        if not data.startswith(UPGRADED):
            fail(f"no session: {data!r}")
        self.sock.send(self._present)
        return False

    def _secure(self) -> None:
        assert isinstance(self.sock, ssl.SSLSocket)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.sock.do_handshake()
            self._is_secure = True
            self.sock.send(self._handshake)


def pin(core: int) -> None:
    """Run this process on one core only."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def fail(reason: str) -> bytes:
    """End the benchmark with an error."""
    raise SystemExit(f"bench: {reason}")
