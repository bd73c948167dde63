"""A process with many hostile clients of a service, of several kinds at the same time.

``python -m tests.integration.support.floods`` reads `FloodSettings` as JSON from its standard
input. It writes the results as JSON: for each kind of client the seconds after which the
service closed each connection, and some counts.
"""

from __future__ import annotations

import asyncio
import json
import select
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.support.raw_client import CLOSE, PING, TEXT, RawClient, frame, handshake

TIMEOUT = 60.0
"""Seconds in which the service must close each connection."""

PIECE = 65536
"""Bytes that a flood writes at a time."""


@dataclass
class FloodSettings:
    """What the process does.

    Attributes:
        port: port of the service.
        tls_port: its port with TLS.
        host: its host name.
        websocket_path: path of a topic with much data.
        send_path: path for sending to any topic.
        token: a valid token.
        per_second: new connections per second.
        silent: connections that send nothing.
        slow: connections that send one byte per second, for each kind; see `Floods.first_bytes`.
        fragments: empty fragments of one message.
        pings: pings of a client that never reads; sent with a token, and once more without.
        stopped: sessions that stop reading.
    """

    port: int
    tls_port: int
    host: str
    websocket_path: str
    send_path: str
    token: str
    per_second: int
    silent: int
    slow: dict[str, int]
    fragments: int
    pings: int
    stopped: int


class SlowClient(asyncio.Protocol):
    """Sends some bytes at once, then one byte per second or nothing; notes when it is closed."""

    transport: asyncio.Transport

    def __init__(self, first: bytes, each_second: bytes, closed: list[float]) -> None:
        self._first = first
        self._each_second = each_second
        self._closed = closed
        self._began = time.monotonic()  # before the service can notice the connection
        self.is_gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._first:
            transport.write(self._first)

    def send_next(self) -> None:
        if self._each_second and not self.is_gone.done():
            self.transport.write(self._each_second)

    def connection_lost(self, reason: Exception | None) -> None:
        self._closed.append(round(time.monotonic() - self._began, 2))
        self.is_gone.set_result(None)


class Floods:
    """All clients.

    Attributes:
        closed: for each kind, the seconds after which its connections were closed.
        counts: other results.
    """

    def __init__(self, settings: FloodSettings) -> None:
        self.settings = settings
        self.closed: dict[str, list[float]] = defaultdict(list)
        self.counts: dict[str, Any] = {"most connections": 0}
        self._slow_clients: list[SlowClient] = []
        self._upgraded: list[RawClient] = []
        self._began = 0.0

    def first_bytes(self, kind: str) -> tuple[int, bytes, bytes]:
        """The port of a kind, the bytes that it sends at once, and those that it repeats."""
        settings = self.settings
        upgrade = handshake(settings.websocket_path, settings.host)
        # Without a token: a client with a valid one is not an unauthenticated client.
        post = f"POST {settings.send_path} HTTP/1.1\r\nHost: {settings.host}\r\n".encode()
        unfinished = b"\x81\xfe\x03\xe7" + bytes(4)  # of 999 bytes, with a mask of zeros
        return {
            "slow request head": (settings.port, upgrade[:60], b"x"),
            "slow request body": (settings.port, post + b"Content-Length: 999\r\n\r\n", b"x"),
            "slow chunks": (
                settings.port,
                post + b"Transfer-Encoding: chunked\r\n\r\n",
                b"1\r\nx\r\n",
            ),
            "slow TLS handshake": (settings.tls_port, b"\x16\x03\x01\x02\x00\x01", b"x"),
            "slow token": (settings.port, upgrade + unfinished, b"x"),
        }[kind]

    async def run(self) -> None:
        settings = self.settings
        jobs = [self.stop_reading] * settings.stopped
        if settings.fragments:
            jobs.append(self.send_fragments)
        if settings.pings:
            jobs += [partial(self.send_pings, has_token) for has_token in (False, True)]
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(jobs) + 1))
        threads = [asyncio.create_task(asyncio.to_thread(job)) for job in jobs]
        sending = asyncio.create_task(self.send_slowly())
        # These connect first, as the others may use up the limit of connections.
        while len(self._upgraded) < len(jobs):
            assert not any(thread.done() for thread in threads), "no WebSocket was opened"
            await asyncio.sleep(0.01)
        self._began = time.monotonic()
        for kind, count in settings.slow.items():
            port, first, each_second = self.first_bytes(kind)
            for _ in range(count):
                await self.connect(kind, port, first, each_second)
        began = time.monotonic()
        for number in range(settings.silent):
            port = settings.port if number % 10 else settings.tls_port
            await self.connect("silent connection", port)
        self.counts["seconds of silent connections"] = round(time.monotonic() - began, 2)
        gone = [each.is_gone for each in self._slow_clients]
        await asyncio.wait_for(asyncio.gather(*threads, *gone), TIMEOUT)
        sending.cancel()

    async def connect(
        self, kind: str, port: int, first: bytes = b"", each_second: bytes = b""
    ) -> None:
        """Open a connection, at the rate of the settings."""
        due = self._began + len(self._slow_clients) / self.settings.per_second
        wait = due - time.monotonic()
        if wait > 0.002:
            await asyncio.sleep(wait)
        client = SlowClient(first, each_second, self.closed[kind])
        loop = asyncio.get_running_loop()
        self._slow_clients.append(client)
        try:
            await loop.create_connection(lambda: client, "127.0.0.1", port)
        except ConnectionResetError as error:  # accepted and reset before the call returned
            client.connection_lost(error)
        connections = len(self._slow_clients) - sum(map(len, self.closed.values()))
        self.counts["most connections"] = max(self.counts["most connections"], connections)

    async def send_slowly(self) -> None:
        while True:
            await asyncio.sleep(1)
            for client in self._slow_clients:
                client.send_next()

    # Each of the following methods runs in a thread of its own.

    def upgraded(self, receive_buffer: int = 0) -> RawClient:
        client = RawClient(self.settings.port, receive_buffer=receive_buffer)
        assert client.upgrade(self.settings.websocket_path, self.settings.host) == 101
        self._upgraded.append(client)
        return client

    def present(self, client: RawClient) -> None:
        client.write(frame(TEXT, json.dumps({"AccessToken": self.settings.token}).encode()))
        reply = client.read_frame()
        assert reply is not None
        assert b'"Success"' in reply[1], reply

    def send_fragments(self) -> None:
        """Send the fragments of one message, and read the service's frames meanwhile."""
        client = self.upgraded()
        client.write(frame(TEXT, fin=False))
        began = time.monotonic()
        frames: list[tuple[int, bytes] | None] = []

        def read() -> None:
            while not frames and select.select([client.socket], [], [], 0)[0]:
                frames.append(client.read_frame())

        self.send("fragments", client, frame(0, fin=False), self.settings.fragments, read)
        if not frames:
            frames.append(client.read_frame())
        self.wait_for_end(client)
        self.note("fragments", began)
        opcode, payload = frames[0] or (0, b"")
        if opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big")
            self.counts["close of the fragments"] = [code, payload[2:].decode()]

    def send_pings(self, has_token: bool) -> None:
        """Send pings and read nothing."""
        client = self.upgraded()
        if has_token:
            self.present(client)
        began = time.monotonic()
        kind = "pings with a token" if has_token else "pings without a token"
        self.send(kind, client, frame(PING, b"x" * 125), self.settings.pings)
        self.wait_for_end(client)
        self.note(kind, began)

    def send(
        self,
        kind: str,
        client: RawClient,
        one: bytes,
        count: int,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Send `one` so many times, or until the service closes the connection."""
        piece = one * (PIECE // len(one))
        sent, was_closed = 0, False
        try:
            while sent < count:
                client.write(piece)
                sent += len(piece) // len(one)
                meanwhile()
        except OSError:
            was_closed = True
        self.counts[kind] = {"sent": sent, "was closed": was_closed}

    def stop_reading(self) -> None:
        client = self.upgraded(receive_buffer=4096)
        self.present(client)
        began = time.monotonic()
        self.wait_for_end(client)
        self.note("stopped reader", began)

    def wait_for_end(self, client: RawClient) -> None:
        """Wait without reading until the service has closed the connection."""
        poll = select.poll()
        poll.register(client.socket, select.POLLHUP | select.POLLERR)
        assert poll.poll(TIMEOUT * 1000), "the connection is still open"
        client.close()

    def note(self, kind: str, began: float) -> None:
        self.closed[kind].append(round(time.monotonic() - began, 2))


async def flood(settings: FloodSettings) -> dict[str, Any]:
    """Run all clients; return the results."""
    floods = Floods(settings)
    await floods.run()
    return {"closed": floods.closed, "counts": floods.counts}


if __name__ == "__main__":
    json.dump(asyncio.run(flood(FloodSettings(**json.load(sys.stdin)))), sys.stdout)
