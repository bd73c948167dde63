"""The load: subscribers and senders in one process, counting.

It is made for speed: raw sockets, one epoll, no objects between a readable socket and a
counter. Its share of idle time is measured with each figure, so that a client that is the
bottleneck shows.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

__all__ = ["Burst", "FanOut", "Figures", "Target", "open_sessions", "start_sessions"]

HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SUCCESS = b'"Result":"Success"'
UPGRADED = b"HTTP/1.1 101 "
WAIT = 30.0
RECEIVE = 1 << 18
READ = select.EPOLLIN


@dataclass
class Target:
    """A server under load.

    Attributes:
        port: where it listens on the loopback address.
        path: of the WebSocket URL; ``%d`` is the number of the topic.
        tokens: what is presented after the handshake, by each session the next; none: the
            handshake is all.
        send: makes the request that sends a body, as bytes.
        by_websocket: data is sent through a WebSocket, not by HTTP.
        frame: bytes of one message on a subscriber's socket.
        context: for TLS.
    """

    port: int
    path: str
    send: Callable[[bytes], bytes]
    frame: int
    tokens: Sequence[str] = ()
    by_websocket: bool = False
    context: ssl.SSLContext | None = None
    host: str = "localhost"

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
        return masked(1, json.dumps({"AccessToken": token}).encode())


@dataclass
class Figures:
    """What one measurement found; times in seconds."""

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
    """A client's frame. The mask is zero: its cost is the server's, not ours."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


def open_session(target: Target, topic: int = 0) -> socket.socket:
    """One session, ready to receive; blocking."""
    sock = target.connect()
    sock.sendall(target.handshake(topic))
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096) or _fail(f"no handshake: {head!r}")
    if b" 101 " not in head.split(b"\r\n")[0]:
        _fail(f"no handshake: {head!r}")
    if target.tokens:
        sock.sendall(target.present())
        reply = b""
        while SUCCESS not in reply:
            reply += sock.recv(4096) or _fail(f"no session: {reply!r}")
    return sock


def open_sessions(target: Target, count: int, topics: int = 1) -> list[socket.socket]:
    """Many sessions, spread over `topics`."""
    return [open_session(target, number % topics) for number in range(count)]


def start_sessions(target: Target, count: int, at_once: int) -> tuple[Figures, list[socket.socket]]:
    """Start `count` sessions, `at_once` at a time; return what was found, and the sessions.

    A session has started when its Success has come, or its handshake where that is all. Each
    shows a token of its own. Plain TCP only.
    """
    address, handshake = ("127.0.0.1", target.port), target.handshake(0)
    presents = [target.present(number) for number in range(count if target.tokens else 0)]
    poll = select.epoll()
    states: dict[int, tuple[socket.socket, int]] = {}
    done: list[socket.socket] = []
    begun = 0
    waited = 0.0
    began = time.perf_counter()
    while len(done) < count:
        while begun < count and len(states) < at_once:
            sock = socket.socket()
            sock.connect(address)
            sock.send(handshake)
            fd = sock.fileno()
            poll.register(fd, READ)
            states[fd] = sock, begun
            begun += 1
        before = time.perf_counter()
        ready = poll.poll(WAIT) or _fail("nobody answers")
        waited += time.perf_counter() - before
        for fd, _ in ready:
            sock, number = states[fd]
            # An answer is one small segment: it comes whole or not at all.
            data = sock.recv(4096)
            if SUCCESS in data or (not presents and data.startswith(UPGRADED)):
                poll.unregister(fd)
                del states[fd]
                sock.setblocking(False)
                done.append(sock)
            elif data.startswith(UPGRADED):
                sock.send(presents[number])
            else:
                _fail(f"no session: {data!r}")
    seconds = time.perf_counter() - began
    return Figures(count, seconds, idle=waited / seconds), done


class _Counter:
    """Counts whole messages on many sockets, and how many of them everybody has."""

    def __init__(self, sockets: list[socket.socket], frame: int) -> None:
        self.frame = frame
        self.sockets = {sock.fileno(): sock for sock in sockets}
        self.got = dict.fromkeys(self.sockets, 0)
        self.have = [len(sockets)]
        self.complete = 0
        self._buffer = bytearray(RECEIVE)

    def read(self, fd: int) -> None:
        sock = self.sockets[fd]
        before = self.got[fd]
        size = 0
        try:
            size = sock.recv_into(self._buffer)
            while isinstance(sock, ssl.SSLSocket) and sock.pending():
                size += sock.recv_into(self._buffer)
        except ssl.SSLWantReadError:
            pass
        except BlockingIOError:
            return
        else:
            if not size:
                _fail("a subscriber was closed")
        after = self.got[fd] = before + size
        old, new = before // self.frame, after // self.frame
        if new != old:
            have = self.have
            while len(have) <= new:
                have.append(0)
            have[old] -= 1
            have[new] += 1
            while have[self.complete] == 0:
                self.complete += 1

    def finish(self) -> None:
        """Fail unless everybody has had exactly the same."""
        sizes = set(self.got.values())
        if sizes != {self.complete * self.frame}:
            _fail(f"lost or torn messages: {sorted(sizes)[:5]}... of {self.frame}")


class FanOut:
    """Closed loop: so many messages are in flight until every subscriber has each."""

    def __init__(self, target: Target, subscribers: list[socket.socket]) -> None:
        self.target = target
        self.subscribers = subscribers

    def run(self, in_flight: int, seconds: float, warm_up: float) -> Figures:
        target, poll = self.target, select.epoll()
        counter = _Counter(self.subscribers, target.frame)
        for sock in self.subscribers:
            sock.setblocking(False)
            poll.register(sock, READ)
        senders = [self._sender() for _ in range(in_flight)]
        for sock in senders:
            poll.register(sock, READ)
        by_fd = {sock.fileno(): sock for sock in senders}
        request = target.send(b"%060d" % 0)
        idle, started = deque(senders), deque[float]()
        figures, measuring, ending = Figures(), False, False
        began = time.perf_counter()
        waited = first_waited = 0.0
        first = last = 0
        measured_from = began
        while True:
            now = time.perf_counter()
            if not measuring and now - began >= warm_up:
                measuring, measured_from = True, now
                first, first_waited = counter.complete, waited
            if measuring and not ending and now - measured_from >= seconds:
                ending = True
                last = counter.complete
                figures.seconds = now - measured_from
                figures.idle = (waited - first_waited) / figures.seconds
            while not ending and idle and len(started) < in_flight:
                idle.popleft().sendall(request)
                started.append(time.perf_counter())
            if ending and not started:
                break
            before = time.perf_counter()
            events = poll.poll(WAIT)
            waited += time.perf_counter() - before
            if not events:
                _fail("messages are missing")
            complete = counter.complete
            for fd, _ in events:
                sender = by_fd.get(fd)
                if sender is None:
                    counter.read(fd)
                else:
                    answer = sender.recv(4096) or _fail("a sender was closed")
                    if answer.startswith(b"HTTP/1.1 ") and answer[9:12] not in (
                        b"200",
                        b"201",
                        b"202",
                    ):
                        _fail(f"not taken: {answer!r}")
                    idle.append(sender)
            now = time.perf_counter()
            for _ in range(counter.complete - complete):
                latency = now - started.popleft()
                if measuring and not ending:
                    figures.latencies.append(latency)
            if target.by_websocket and not idle:
                idle.extend(senders)
        counter.finish()
        figures.deliveries = (last - first) * len(self.subscribers)
        for sock in senders:
            sock.close()
        poll.close()
        return figures

    def _sender(self) -> socket.socket:
        target = self.target
        by_websocket = replace(target, path="/send")
        sock = open_session(by_websocket) if target.by_websocket else target.connect()
        sock.settimeout(WAIT)
        return sock


class Burst:
    """One message to each topic at a time, made inside the server; each has one subscriber."""

    def __init__(self, subscribers: list[socket.socket], frame: int, trigger: Callable[[], None]):
        self.subscribers = subscribers
        self.frame = frame
        self.trigger = trigger

    def run(self, seconds: float) -> Figures:
        poll = select.epoll()
        counter = _Counter(self.subscribers, self.frame)
        for sock in self.subscribers:
            sock.setblocking(False)
            poll.register(sock, READ)
        self._burst(poll, counter)  # warm-up
        figures = Figures()
        began = time.perf_counter()
        waited = 0.0
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            waited += self._burst(poll, counter)
            figures.latencies.append(time.perf_counter() - start)
            figures.deliveries += len(self.subscribers)
        figures.seconds = time.perf_counter() - began
        figures.idle = waited / figures.seconds
        counter.finish()
        poll.close()
        return figures

    def _burst(self, poll: select.epoll, counter: _Counter) -> float:
        """One message to each; returns for how long there was nothing to read."""
        waited = 0.0
        target = counter.complete + 1
        self.trigger()
        while counter.complete < target:
            before = time.perf_counter()
            events = poll.poll(WAIT) or _fail("messages are missing")
            waited += time.perf_counter() - before
            for fd, _ in events:
                counter.read(fd)
        return waited


def pin(core: int) -> None:
    """Keep this process on one core, where there are several."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def _fail(why: str) -> bytes:
    raise SystemExit(f"bench: {why}")
