"""The load: subscribers and senders in one process.

For speed it uses raw sockets, one epoll, and no objects between a readable socket and a counter.
Each figure has the share of time in which the load was idle. If it is near zero, the load is the
bottleneck.
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

__all__ = ["Burst", "FanOut", "ManyTopics", "Sends"]

RECEIVE = 1 << 18


class _Counter:
    """Counts complete messages on many sockets.

    Attributes:
        received: bytes received, by file descriptor.
        sockets_at: number of sockets that have received exactly ``index`` messages.
        complete: messages that each socket has received.
    """

    def __init__(self, sockets: list[socket.socket], frame: int) -> None:
        self.frame = frame
        self.sockets = {sock.fileno(): sock for sock in sockets}
        self.received = dict.fromkeys(self.sockets, 0)
        self.sockets_at = [len(sockets)]
        self.complete = 0
        self._buffer = bytearray(RECEIVE)

    def read(self, fd: int) -> None:
        sock = self.sockets[fd]
        before = self.received[fd]
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
                fail("the connection of a subscriber was closed")
        after = self.received[fd] = before + size
        old, new = before // self.frame, after // self.frame
        if new != old:
            sockets_at = self.sockets_at
            while len(sockets_at) <= new:
                sockets_at.append(0)
            sockets_at[old] -= 1
            sockets_at[new] += 1
            while sockets_at[self.complete] == 0:
                self.complete += 1

    def finish(self) -> None:
        """Fail unless all sockets have received the same number of complete messages."""
        sizes = set(self.received.values())
        if sizes != {self.complete * self.frame}:
            fail(f"lost or torn messages: {sorted(sizes)[:5]}... of {self.frame}")


class _ClosedLoop(ABC):
    """Keeps a number of messages in flight. A message is in flight until its last delivery."""

    def __init__(self, target: Target, subscribers: list[socket.socket]) -> None:
        self.target = target
        self.subscribers = subscribers
        self.counter = _Counter(subscribers, target.frame)
        self.in_flight = 0

    @abstractmethod
    def next(self, now: float) -> bytes:
        """Return the request that sends the next message."""

    @abstractmethod
    def read(self, fd: int) -> Iterable[float]:
        """Read a subscriber's socket.

        Returns:
            For each message that this read completes, the time at which it was sent.
        """

    @abstractmethod
    def finish(self) -> None:
        """Fail unless each subscriber has received all of its messages."""

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
        started = time.perf_counter()
        waited = first_waited = 0.0
        measured_from = started
        while True:
            now = time.perf_counter()
            if not measuring and now - started >= warm_up:
                measuring, measured_from = True, now
                first_waited = waited
            # On a busy machine, a short measurement lasts until the first message is complete.
            if measuring and not ending and figures.latencies and now - measured_from >= seconds:
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
                    _check_response(sender.recv(4096))
                    idle.append(sender)
            now = time.perf_counter()
            self.in_flight -= len(complete)
            if measuring and not ending:
                figures.latencies += [now - sent_at for sent_at in complete]
            if target.by_websocket and not idle:
                idle.extend(senders)
        self.finish()
        figures.deliveries = len(figures.latencies) * self.deliveries_per_message
        for sock in senders:
            sock.close()
        poll.close()
        return figures

    @property
    def deliveries_per_message(self) -> int:
        """Number of deliveries of each message."""
        return 1

    def _sender(self) -> socket.socket:
        target = self.target
        by_websocket = replace(target, path="/send")
        sock = open_session(by_websocket) if target.by_websocket else target.connect()
        sock.settimeout(WAIT)
        return sock


class FanOut(_ClosedLoop):
    """All subscribers listen to one topic."""

    def __init__(self, target: Target, subscribers: list[socket.socket]) -> None:
        super().__init__(target, subscribers)
        self._sent_at = deque[float]()
        self._request = target.request(0)

    @property
    def deliveries_per_message(self) -> int:
        return len(self.subscribers) * self.target.batch

    def next(self, now: float) -> bytes:
        self._sent_at.append(now)
        return self._request

    def read(self, fd: int) -> Iterable[float]:
        before = self.counter.complete
        self.counter.read(fd)
        return [self._sent_at.popleft() for _ in range(self.counter.complete - before)]

    def finish(self) -> None:
        self.counter.finish()


class ManyTopics(_ClosedLoop):
    """Each subscriber listens to its own topic. Messages go to one topic after another.

    Attributes:
        sent: number of messages sent, those of the warm-up included.
    """

    def __init__(self, target: Target, subscribers: list[socket.socket]) -> None:
        super().__init__(target, subscribers)
        self._next_topic = cycle(enumerate(sock.fileno() for sock in subscribers))
        self._sent_at: dict[int, deque[float]] = {}
        self._sent: Counter[int] = Counter()
        self.sent = 0

    def next(self, now: float) -> bytes:
        topic, fd = next(self._next_topic)
        self._sent_at.setdefault(fd, deque()).append(now)
        self._sent[fd] += 1
        self.sent += 1
        return self.target.request(topic)

    def read(self, fd: int) -> Iterable[float]:
        before = self.counter.received[fd] // self.target.frame
        self.counter.read(fd)
        count = self.counter.received[fd] // self.target.frame - before
        return [self._sent_at[fd].popleft() for _ in range(count)]

    def finish(self) -> None:
        for fd, size in self.counter.received.items():
            if size != self._sent[fd] * self.target.frame:
                fail("a message arrived at another topic than its own")


class Sends:
    """Requests on one connection, several of them in flight. Nobody listens to the topic.

    Attributes:
        sent: number of messages sent, those of the warm-up included.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.sent = 0
        self._buffer = b""

    def run(self, in_flight: int, seconds: float, warm_up: float) -> Figures:
        """Measure accepted messages. The latency is the time until the response."""
        request, sock = self.target.request(0), self.target.connect()
        figures = Figures()
        waited = measured_from = 0.0
        sent_at = deque[float]()
        started = time.perf_counter()
        sock.sendall(request * in_flight)
        sent_at.extend([started] * in_flight)
        while True:
            before = time.perf_counter()
            data = sock.recv(RECEIVE)
            now = time.perf_counter()
            count = self._count(data)
            self.sent += count
            answered = [now - sent_at.popleft() for _ in range(count)]
            if measured_from:
                waited += now - before
                figures.latencies += answered
                figures.seconds = now - measured_from
                if figures.latencies and figures.seconds >= seconds:
                    break
            elif now - started >= warm_up:
                measured_from = now
            sock.sendall(request * count)
            sent_at.extend([now] * count)
        sock.close()
        figures.deliveries = len(figures.latencies)
        figures.idle = waited / figures.seconds
        return figures

    def _count(self, data: bytes) -> int:
        """Return the number of status lines; fail if one refuses the message."""
        if not data:
            fail("the connection of a sender was closed")
        data = self._buffer + data
        lines = data.split(b"HTTP/1.1 ")
        # A status line whose status has not arrived yet is counted with the next data.
        last = lines[-1]
        is_torn = len(lines) > 1 and len(last) < 3
        self._buffer = b"HTTP/1.1 " + last if is_torn else data[-8:]
        statuses = lines[1:-1] if is_torn else lines[1:]
        for status in statuses:
            if not status.startswith(b"20"):
                fail(f"not accepted: {status!r}")
        return len(statuses)


class Burst:
    """The server publishes one message to each topic at a time. Each topic has one subscriber."""

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
        started = time.perf_counter()
        waited = 0.0
        while not figures.latencies or time.perf_counter() - started < seconds:
            start = time.perf_counter()
            waited += self._burst(poll, counter)
            figures.latencies.append(time.perf_counter() - start)
            figures.deliveries += len(self.subscribers)
        figures.seconds = time.perf_counter() - started
        figures.idle = waited / figures.seconds
        counter.finish()
        poll.close()
        return figures

    def _burst(self, poll: select.epoll, counter: _Counter) -> float:
        """Publish one message to each topic; return the seconds in which the load was idle."""
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


def _check_response(response: bytes) -> None:
    """Fail if a message was not accepted. A WebSocket peer sends no HTTP response."""
    if not response:
        fail("the connection of a sender was closed")
    if response.startswith(b"HTTP/1.1 ") and response[9:12] not in (b"200", b"201", b"202"):
        fail(f"not accepted: {response!r}")
