"""A process of strangers that flood a service, each in its own way, all at once.

``python -m tests.integration.floods`` reads what to do from its standard input, as JSON, and
writes what became of them: for each kind, after how many seconds each connection was closed
by the service, and what else there is to tell.
"""

from __future__ import annotations

import asyncio
import json
import select
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.integration.raw import CLOSE, PING, TEXT, RawClient, frame, handshake

LONGEST = 60.0
"""Seconds after which a connection that still lives is given up."""

PIECE = 65536


@dataclass
class Orders:
    """What the process is told.

    Attributes:
        port: of the service.
        tls_port: of the same over TLS.
        host: its name.
        websocket_path: of a topic with much data.
        send_path: of any topic.
        token: a good one.
        silent: connections that say nothing.
        per_second: how many of them come in a second.
        dripping: connections that drip a byte a second, of each kind.
        fragments: empty ones, of one message.
        pings: from a client that never reads.
        stopped: readers that stop.
    """

    port: int
    tls_port: int
    host: str
    websocket_path: str
    send_path: str
    token: str
    silent: int
    per_second: int
    dripping: int
    fragments: int
    pings: int
    stopped: int


class Stranger(asyncio.Protocol):
    """Says something, and then a byte a second or nothing; notes when it is closed."""

    transport: asyncio.Transport

    def __init__(self, says: bytes, drips: bytes, closed: list[float]) -> None:
        self._says = says
        self._drips = drips
        self._closed = closed
        self._began = time.monotonic()  # before the service can know
        self.is_gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._says:
            transport.write(self._says)

    def drip(self) -> None:
        if self._drips and not self.is_gone.done():
            self.transport.write(self._drips)

    def connection_lost(self, reason: Exception | None) -> None:
        self._closed.append(round(time.monotonic() - self._began, 2))
        self.is_gone.set_result(None)


class Floods:
    """All of them."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.closed: dict[str, list[float]] = defaultdict(list)
        self.told: dict[str, Any] = {}
        self._strangers: list[Stranger] = []

    async def run(self) -> None:
        orders = self.orders
        threads_at_once = ThreadPoolExecutor(orders.stopped + 3)
        asyncio.get_running_loop().set_default_executor(threads_at_once)
        upgrade = handshake(orders.websocket_path, orders.host)
        post = (
            f"POST {orders.send_path} HTTP/1.1\r\nHost: {orders.host}\r\n"
            f"Authorization: Bearer {orders.token}\r\n"
        ).encode()
        dripping = asyncio.create_task(self.drip())
        threads = [
            asyncio.to_thread(self.send_fragments),
            asyncio.to_thread(self.send_pings, False),
            asyncio.to_thread(self.send_pings, True),
            *(asyncio.to_thread(self.stop_reading) for _ in range(orders.stopped)),
        ]
        waits = [asyncio.create_task(each) for each in threads]
        for _ in range(orders.dripping):
            for kind, port, says, drips in (
                ("a head that drips", orders.port, upgrade[:60], b"x"),
                ("a body that drips", orders.port, post + b"Content-Length: 999\r\n\r\n", b"x"),
                (
                    "chunks that drip",
                    orders.port,
                    post + b"Transfer-Encoding: chunked\r\n\r\n",
                    b"1\r\nx\r\n",
                ),
                ("a TLS handshake that drips", orders.tls_port, b"\x16\x03\x01\x02\x00\x01", b"x"),
                (
                    "a token that drips",
                    orders.port,
                    upgrade + b"\x81\xfe\x03\xe7" + bytes(4),  # 999 bytes, under a mask of zeros
                    b"x",
                ),
            ):
                await self.connect(kind, port, says, drips)
        await self.say_nothing()
        await asyncio.wait_for(
            asyncio.gather(*waits, *(each.is_gone for each in self._strangers)), LONGEST
        )
        dripping.cancel()

    async def connect(self, kind: str, port: int, says: bytes = b"", drips: bytes = b"") -> None:
        stranger = Stranger(says, drips, self.closed[kind])
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: stranger, "127.0.0.1", port)
        self._strangers.append(stranger)

    async def say_nothing(self) -> None:
        """Come evenly."""
        began = time.monotonic()
        for number in range(self.orders.silent):
            early = began + number / self.orders.per_second - time.monotonic()
            if early > 0.002:
                await asyncio.sleep(early)
            port = self.orders.tls_port if number % 10 == 0 else self.orders.port
            await self.connect("says nothing", port)

    async def drip(self) -> None:
        while True:
            await asyncio.sleep(1)
            for stranger in self._strangers:
                stranger.drip()

    # Each in a thread of its own.

    def upgraded(self, room: int = 0) -> RawClient:
        client = RawClient(self.orders.port, room=room)
        assert client.upgrade(self.orders.websocket_path, self.orders.host) == 101
        return client

    def present(self, client: RawClient) -> None:
        client.write(frame(TEXT, json.dumps({"AccessToken": self.orders.token}).encode()))
        told = client.read_frame()
        assert told is not None
        assert b'"Success"' in told[1], told

    def send_fragments(self) -> None:
        """All of one message; what comes meanwhile is read."""
        client = self.upgraded()
        began = time.monotonic()
        one = frame(0, fin=False)
        piece = one * (PIECE // len(one))
        sent, code = 0, None
        try:
            client.write(frame(TEXT, fin=False))
            while sent < self.orders.fragments:
                client.write(piece)
                sent += len(piece) // len(one)
                while code is None and select.select([client.socket], [], [], 0)[0]:
                    told = client.read_frame()
                    if told is None or told[0] == CLOSE:
                        code = int.from_bytes(told[1][:2], "big") if told else 0
        except OSError:
            pass  # the service has had enough
        if code is None:
            code = client.read_to_end().code
        self.wait_for_end(client)
        self.note("fragments", began)
        self.told["fragments sent"], self.told["fragments code"] = sent, code

    def send_pings(self, is_active: bool) -> None:
        """And never read a byte."""
        client = self.upgraded()
        if is_active:
            self.present(client)
        began = time.monotonic()
        one = frame(PING, b"x" * 125)
        piece = one * (PIECE // len(one))
        sent = 0
        try:
            while sent < self.orders.pings:
                client.write(piece)
                sent += len(piece) // len(one)
        except OSError:
            pass  # the service has had enough
        self.wait_for_end(client)
        kind = "pings of a session" if is_active else "pings without a token"
        self.note(kind, began)
        self.told[f"{kind} sent"] = sent

    def stop_reading(self) -> None:
        client = self.upgraded(room=4096)
        self.present(client)
        began = time.monotonic()
        self.wait_for_end(client)
        self.note("a reader that stops", began)

    def wait_for_end(self, client: RawClient) -> None:
        """Wait, without reading, until the service has cut the connection off."""
        poll = select.poll()
        poll.register(client.socket, select.POLLHUP | select.POLLERR)
        assert poll.poll(LONGEST * 1000), "not cut off"
        client.close()

    def note(self, kind: str, began: float) -> None:
        self.closed[kind].append(round(time.monotonic() - began, 2))


async def flood(orders: Orders) -> dict[str, Any]:
    floods = Floods(orders)
    await floods.run()
    return {"closed": floods.closed, "told": floods.told}


if __name__ == "__main__":
    json.dump(asyncio.run(flood(Orders(**json.load(sys.stdin)))), sys.stdout)
