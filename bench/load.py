"""The load: subscribers and senders in one process, counting.

It is made for speed: raw sockets, one epoll, no objects between a readable socket and a
counter. Its share of idle time is measured with each figure, so that a client that is the
bottleneck shows.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import cycle

from bench.sessions import READ, WAIT, Figures, Target, fail, open_session

__all__ = ["Burst", "FanOut", "Spread"]

RECEIVE = 1 << 18


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
                fail("a subscriber was closed")
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
            fail(f"lost or torn messages: {sorted(sizes)[:5]}... of {self.frame}")


class _ClosedLoop(ABC):
    """So many messages are in flight, each until all whom it is for have it."""

    def __init__(self, target: Target, subscribers: list[socket.socket]) -> None:
        self.target = target
        self.subscribers = subscribers
        self.counter = _Counter(subscribers, target.frame)
        self.in_flight = 0

    @abstractmethod
    def next(self, now: float) -> bytes:
        """The request that sends the next message."""

    @abstractmethod
    def read(self, fd: int) -> Iterable[float]:
        """Read a subscriber's socket; return when those were sent that are complete with it."""

    @abstractmethod
    def finish(self) -> None:
        """Fail unless everybody has had what was for it."""

    def run(self, in_flight: int, seconds: float, warm_up: float) -> Figures:
        target, poll = self.target, select.epoll()
        for sock in self.subscribers:
            sock.setblocking(False)
            poll.register(sock, READ)
        senders = [self._sender() for _ in range(in_flight)]
        for sock in senders:
            poll.register(sock, READ)
        by_fd = {sock.fileno(): sock for sock in senders}
        idle = deque(senders)
        figures, measuring, ending = Figures(), False, False
        began = time.perf_counter()
        waited = first_waited = 0.0
        measured_from = began
        while True:
            now = time.perf_counter()
            if not measuring and now - began >= warm_up:
                measuring, measured_from = True, now
                first_waited = waited
            if measuring and not ending and now - measured_from >= seconds:
                ending = True
                figures.seconds = now - measured_from
                figures.idle = (waited - first_waited) / figures.seconds
            while not ending and idle and self.in_flight < in_flight:
                self.in_flight += 1
                idle.popleft().sendall(self.next(time.perf_counter()))
            if ending and not self.in_flight:
                break
            before = time.perf_counter()
            events = poll.poll(WAIT)
            waited += time.perf_counter() - before
            if not events:
                fail("messages are missing")
            complete: list[float] = []
            for fd, _ in events:
                sender = by_fd.get(fd)
                if sender is None:
                    complete += self.read(fd)
                else:
                    _look_at(sender.recv(4096))
                    idle.append(sender)
            now = time.perf_counter()
            self.in_flight -= len(complete)
            if measuring and not ending:
                figures.latencies += [now - sent_at for sent_at in complete]
            if target.by_websocket and not idle:
                idle.extend(senders)
        self.finish()
        figures.deliveries = len(figures.latencies) * self.reach
        for sock in senders:
            sock.close()
        poll.close()
        return figures

    @property
    def reach(self) -> int:
        """How many have each message when it is complete."""
        return 1

    def _sender(self) -> socket.socket:
        target = self.target
        by_websocket = replace(target, path="/send")
        sock = open_session(by_websocket) if target.by_websocket else target.connect()
        sock.settimeout(WAIT)
        return sock


class FanOut(_ClosedLoop):
    """All are subscribers of one topic."""

    def __init__(self, target: Target, subscribers: list[socket.socket]) -> None:
        super().__init__(target, subscribers)
        self._sent_at = deque[float]()
        self._request = target.request(0)

    @property
    def reach(self) -> int:
        return len(self.subscribers)

    def next(self, now: float) -> bytes:
        self._sent_at.append(now)
        return self._request

    def read(self, fd: int) -> Iterable[float]:
        before = self.counter.complete
        self.counter.read(fd)
        return [self._sent_at.popleft() for _ in range(self.counter.complete - before)]

    def finish(self) -> None:
        self.counter.finish()


class Spread(_ClosedLoop):
    """Each is the one subscriber of a topic of its own; the messages go to one after another."""

    def __init__(self, target: Target, subscribers: list[socket.socket]) -> None:
        super().__init__(target, subscribers)
        self._turns = cycle(enumerate(sock.fileno() for sock in subscribers))
        self._sent_at: dict[int, deque[float]] = {}
        self._sent: Counter[int] = Counter()

    def next(self, now: float) -> bytes:
        topic, fd = next(self._turns)
        self._sent_at.setdefault(fd, deque()).append(now)
        self._sent[fd] += 1
        return self.target.request(topic)

    def read(self, fd: int) -> Iterable[float]:
        before = self.counter.got[fd] // self.target.frame
        self.counter.read(fd)
        count = self.counter.got[fd] // self.target.frame - before
        return [self._sent_at[fd].popleft() for _ in range(count)]

    def finish(self) -> None:
        for fd, size in self.counter.got.items():
            if size != self._sent[fd] * self.target.frame:
                fail("a message came to a topic that it was not for")


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
            events = poll.poll(WAIT) or fail("messages are missing")
            waited += time.perf_counter() - before
            for fd, _ in events:
                counter.read(fd)
        return waited


def _look_at(answer: bytes) -> None:
    """Fail where a message was not taken; a WebSocket has no answer to look at."""
    if not answer:
        fail("a sender was closed")
    if answer.startswith(b"HTTP/1.1 ") and answer[9:12] not in (b"200", b"201", b"202"):
        fail(f"not taken: {answer!r}")
