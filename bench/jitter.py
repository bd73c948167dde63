"""Clients that are cut again and again: ``python -m bench.jitter``; `main` has its options.

Each client loses its connection some seconds after its session has started, and comes back later
with its position. Messages are sent all the time. Each client has to get each message once, in
their order. AnyCable published this test for its own server.
"""

from __future__ import annotations

import argparse
import select
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.servers import HOST, TOPIC, Topicsvc, processor_time, running
from bench.sessions import READ, SUCCESS, UPGRADED, WAIT, Target, fail, masked, pin
from tests.support.certificates import Authority

__all__ = ["Jitter", "Result"]

TOPIC_NUMBER = 0
CATCH_UP = 30.0
"""Seconds in which all clients must have the last message after the last cut."""

_BODY = b'"Body":'
_POSITION = b'"Position":"'
_MISSED = b'"Missed":true'


@dataclass
class Result:
    """What the clients got.

    Attributes:
        sent: messages.
        received: deliveries, those of replays included.
        missing: messages that a client did not get, added up.
        doubled: messages that a client got again, or in a wrong order, added up.
        told: how often a client was told that messages may be missing.
        returns: how often a client came back.
        replays: for each return: seconds from the token to the last message that was accepted
            before it.
        processor: share of one core that the server used while messages were sent.
        idle: share of this time in which the load waited.
    """

    sent: int = 0
    received: int = 0
    missing: int = 0
    doubled: int = 0
    told: int = 0
    returns: int = 0
    replays: list[float] = field(default_factory=list)
    processor: float = 0.0
    idle: float = 0.0

    def percentile(self, part: float) -> float:
        ordered = sorted(self.replays)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


class _Client:
    """One client, over all its connections."""

    __slots__ = ("buffer", "last", "number", "position", "presented_at", "sock", "target")

    def __init__(self, number: int) -> None:
        self.number = number
        self.sock: socket.socket | None = None
        self.buffer = b""
        self.position: bytes | None = None
        self.last = 0  # the number of the last message; 0: none yet
        self.presented_at = 0.0
        self.target = 0  # the message that ends the replay


class Jitter:
    """The load.

    Args:
        target: the server.
        clients: their number.
        has_positions: whether they ask for positions.
        stays: seconds from a client's `Success` until its connection is cut.
        away: seconds until it comes back.
        interval: seconds between two messages.
    """

    def __init__(
        self,
        target: Target,
        clients: int,
        has_positions: bool,
        stays: float = 15.0,
        away: float = 2.0,
        interval: float = 0.5,
    ) -> None:
        self._target = target
        self._has_positions = has_positions
        self._stays = stays
        self._away = away
        self._interval = interval
        self._clients = [_Client(number) for number in range(clients)]
        self._by_fd: dict[int, _Client] = {}
        self._poll = select.epoll()
        self._cuts: deque[tuple[float, _Client]] = deque()
        self._returns: deque[tuple[float, _Client]] = deque()
        self._accepted = 0
        self._sender: socket.socket
        self._waited = 0.0
        self.result = Result()

    def run(self, seconds: float, processor_time: Callable[[], float]) -> Result:
        """Let all clients start, send for `seconds`, and wait until all have the last message.

        Args:
            seconds: duration of the measurement.
            processor_time: returns the seconds of processor time of the server so far.
        """
        began = time.perf_counter()
        # The starts are spread over one cycle, as the returns are later.
        cycle = self._stays + self._away
        for number, client in enumerate(self._clients):
            self._returns.append((began + cycle * number / len(self._clients), client))
        self._work_until(began + cycle)
        self._sender = self._target.connect()
        self._sender.setblocking(False)
        self._poll.register(self._sender, READ)
        result, started = self.result, time.perf_counter()
        first_time, first_waited, first_returns = processor_time(), self._waited, result.returns
        number = 0
        while (now := time.perf_counter()) < started + seconds:
            number += 1
            self._send(number)
            self._work_until(started + number * self._interval)
        result.sent = number
        result.processor = (processor_time() - first_time) / (now - started)
        result.idle = (self._waited - first_waited) / (now - started)
        result.returns -= first_returns
        self._cuts.clear()
        last = time.perf_counter() + (CATCH_UP if self._has_positions else self._away + 1)
        while not self._are_complete(number) and time.perf_counter() < last:
            self._work_until(time.perf_counter() + 0.1)
        for client in self._clients:
            result.missing += number - client.last
            if client.sock is not None:
                client.sock.close()
        self._sender.close()
        self._poll.close()
        return result

    def _are_complete(self, number: int) -> bool:
        return not self._returns and all(
            client.last == number and not client.target for client in self._clients
        )

    def _send(self, number: int) -> None:
        body = b"%d" % number
        head = (
            f"POST {TOPIC % TOPIC_NUMBER} HTTP/1.1\r\nHost: {HOST}\r\n"
            f"Authorization: Bearer {self._target.tokens[0]}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._sender.send(head.encode() + body)

    def _work_until(self, end: float) -> None:
        """Read, cut and return until `end`."""
        while (now := time.perf_counter()) < end:
            while self._cuts and self._cuts[0][0] <= now:
                self._cut(self._cuts.popleft()[1], now)
            while self._returns and self._returns[0][0] <= now:
                self._return(self._returns.popleft()[1])
            due = min(end, *(queue[0][0] for queue in (self._cuts, self._returns) if queue))
            before = time.perf_counter()
            events = self._poll.poll(max(0.0, due - before))
            self._waited += time.perf_counter() - before
            for fd, _ in events:
                client = self._by_fd.get(fd)
                if client is not None:
                    self._read(client)
                else:
                    self._read_response()

    def _read_response(self) -> None:
        response = self._sender.recv(4096)
        if not response.startswith(b"HTTP/1.1 200 "):
            fail(f"not accepted: {response!r}")
        self._accepted += 1

    def _cut(self, client: _Client, now: float) -> None:
        sock = client.sock
        if sock is not None:
            self._by_fd.pop(sock.fileno())
            sock.close()
            client.sock = None
        self._returns.append((now + self._away, client))

    def _return(self, client: _Client) -> None:
        sock = socket.create_connection(("127.0.0.1", self._target.port), WAIT)
        sock.setblocking(False)
        sock.send(self._target.handshake(TOPIC_NUMBER))
        client.sock, client.buffer, client.presented_at = sock, b"", 0.0
        self._by_fd[sock.fileno()] = client
        self._poll.register(sock, READ)

    def _read(self, client: _Client) -> None:
        sock = client.sock
        if sock is None:
            return
        data = sock.recv(65536)
        if not data:
            fail("a connection was closed by the server")
        data = client.buffer + data
        if not client.presented_at:
            if not data.startswith(UPGRADED):
                fail(f"no handshake: {data!r}")
            client.presented_at = time.perf_counter()
            client.target = self._accepted if self.result.returns or client.last else 0
            sock.send(self._token(client))
            return
        at = 0
        while len(data) - at >= 4:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if len(data) < start + length:
                break
            if data[at] == 0x81:
                self._read_text(client, data[start : start + length])
            at = start + length
        client.buffer = data[at:]
        if client.target and client.last >= client.target:
            client.target = 0
            self.result.replays.append(time.perf_counter() - client.presented_at)

    def _token(self, client: _Client) -> bytes:
        token = self._target.tokens[client.number % len(self._target.tokens)].encode()
        since = b""
        if self._has_positions:
            position = client.position
            since = b',"Since":' + (b"null" if position is None else b'"%s"' % position)
        return masked(1, b'{"AccessToken":"%s"%s}' % (token, since))

    def _read_text(self, client: _Client, text: bytes) -> None:
        result = self.result
        if SUCCESS in text:
            if client.position is not None or client.last:
                result.returns += 1
            if not self._has_positions:
                client.target = 0
            elif _MISSED in text:
                result.told += 1
                client.target = 0
            elif client.position is None:
                client.target = 0
            self._cuts.append((time.perf_counter() + self._stays, client))
        elif _BODY in text:
            start = text.index(_BODY) + len(_BODY)
            number = int(text[start:].partition(b",")[0].rstrip(b"}"))
            result.received += 1
            if number <= client.last:
                result.doubled += 1
                return
            result.missing += number - client.last - 1
            client.last = number
        elif _POSITION not in text:
            fail(f"unexpected: {text!r}")
        _, found, position = text.rpartition(_POSITION)
        if found:
            client.position = position.partition(b'"')[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.jitter")
    parser.add_argument("--clients", type=int, default=10000, help="number of clients (10000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the sending (60)")
    parser.add_argument("--stays", type=float, default=15.0, help="seconds until a cut (15)")
    parser.add_argument("--away", type=float, default=2.0, help="seconds until a return (2)")
    parser.add_argument("--interval", type=float, default=0.5, help="seconds per message (0.5)")
    parser.add_argument("--plain", action="store_true", help="clients without positions")
    parser.add_argument(
        "--broker", default='kind = "memory"', help="lines of the table [broker] (memory)"
    )
    options = parser.parse_args()
    pin(1)
    with tempfile.TemporaryDirectory(prefix="topicsvc-jitter-") as name:
        directory = Path(name)
        authority = Authority(directory)
        tables = f"[broker]\n{options.broker}"
        with running(lambda: Topicsvc(directory, authority, tables=tables)) as server:
            load = Jitter(
                server.target(),
                options.clients,
                not options.plain,
                options.stays,
                options.away,
                options.interval,
            )
            result = load.run(options.seconds, lambda: processor_time(server.process))
    wanted = options.clients * result.sent
    print(f"{options.clients} clients, {result.sent} messages, {result.returns} returns")
    print(f"{result.received} of {wanted} deliveries, {result.missing / wanted:.2%} missing")
    print(f"{result.missing} missing, {result.doubled} doubled, {result.told} told")
    if result.replays:
        print(
            f"replay p50 {result.percentile(0.5) * 1000:.1f} ms, "
            f"p99 {result.percentile(0.99) * 1000:.1f} ms, {len(result.replays)} replays"
        )
    print(f"server {result.processor:.0%} of a core, load idle {result.idle:.0%}")
    if not options.plain and (result.missing or result.doubled or result.told):
        fail("a client did not get each message once")


if __name__ == "__main__":
    main()
