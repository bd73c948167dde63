"""A process of strangers that flood a service, each in its own way, all at once.

``python -m tests.integration.support.floods`` reads what to do from its standard input, as JSON,
and writes what became of them: for each kind, after how many seconds each connection was closed
by the service, and what else there is to tell.
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
        per_second: how many come in a second.
        silent: connections that say nothing.
        dripping: connections that drip a byte a second, how many of each kind; see `Floods.drips`.
        fragments: empty ones, of one message.
        pings: from a client that never reads, with a token and from another without.
        stopped: readers that stop.
    """

    port: int
    tls_port: int
    host: str
    websocket_path: str
    send_path: str
    token: str
    per_second: int
    silent: int
    dripping: dict[str, int]
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
    """All of them.

    Attributes:
        closed: seconds after which the connections of a kind were closed.
        told: what else there is to tell.
    """

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.closed: dict[str, list[float]] = defaultdict(list)
        self.told: dict[str, Any] = {"most at once": 0}
        self._strangers: list[Stranger] = []
        self._upgraded: list[RawClient] = []
        self._began = 0.0

    def drips(self, kind: str) -> tuple[int, bytes, bytes]:
        """Where one of this kind connects, what it says at once, and what it drips."""
        orders = self.orders
        upgrade = handshake(orders.websocket_path, orders.host)
        post = (
            f"POST {orders.send_path} HTTP/1.1\r\nHost: {orders.host}\r\n"
            f"Authorization: Bearer {orders.token}\r\n"
        ).encode()
        unfinished = b"\x81\xfe\x03\xe7" + bytes(4)  # of 999 bytes, under a mask of zeros
        return {
            "a head that drips": (orders.port, upgrade[:60], b"x"),
            "a body that drips": (orders.port, post + b"Content-Length: 999\r\n\r\n", b"x"),
            "chunks that drip": (
                orders.port,
                post + b"Transfer-Encoding: chunked\r\n\r\n",
                b"1\r\nx\r\n",
            ),
            "a TLS handshake that drips": (orders.tls_port, b"\x16\x03\x01\x02\x00\x01", b"x"),
            "a token that drips": (orders.port, upgrade + unfinished, b"x"),
        }[kind]

    async def run(self) -> None:
        orders = self.orders
        jobs = [self.stop_reading] * orders.stopped
        if orders.fragments:
            jobs.append(self.send_fragments)
        if orders.pings:
            jobs += [partial(self.send_pings, is_active) for is_active in (False, True)]
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(jobs) + 1))
        threads = [asyncio.create_task(asyncio.to_thread(job)) for job in jobs]
        dripping = asyncio.create_task(self.drip())
        while len(self._upgraded) < len(jobs):  # those come in before there is no room
            assert not any(thread.done() for thread in threads), "was not let in"
            await asyncio.sleep(0.01)
        self._began = time.monotonic()
        for kind, count in orders.dripping.items():
            port, says, drips = self.drips(kind)
            for _ in range(count):
                await self.come(kind, port, says, drips)
        for number in range(orders.silent):
            await self.come("says nothing", orders.port if number % 10 else orders.tls_port)
        gone = [each.is_gone for each in self._strangers]
        await asyncio.wait_for(asyncio.gather(*threads, *gone), LONGEST)
        dripping.cancel()

    async def come(self, kind: str, port: int, says: bytes = b"", drips: bytes = b"") -> None:
        """Connect, evenly among all."""
        early = self._began + len(self._strangers) / self.orders.per_second - time.monotonic()
        if early > 0.002:
            await asyncio.sleep(early)
        stranger = Stranger(says, drips, self.closed[kind])
        loop = asyncio.get_running_loop()
        self._strangers.append(stranger)
        try:
            await loop.create_connection(lambda: stranger, "127.0.0.1", port)
        except ConnectionResetError as error:  # accepted and dropped before we have seen it
            stranger.connection_lost(error)
        there = len(self._strangers) - sum(map(len, self.closed.values()))
        self.told["most at once"] = max(self.told["most at once"], there)

    async def drip(self) -> None:
        while True:
            await asyncio.sleep(1)
            for stranger in self._strangers:
                stranger.drip()

    # Each in a thread of its own.

    def upgraded(self, room: int = 0) -> RawClient:
        client = RawClient(self.orders.port, room=room)
        assert client.upgrade(self.orders.websocket_path, self.orders.host) == 101
        self._upgraded.append(client)
        return client

    def present(self, client: RawClient) -> None:
        client.write(frame(TEXT, json.dumps({"AccessToken": self.orders.token}).encode()))
        told = client.read_frame()
        assert told is not None
        assert b'"Success"' in told[1], told

    def send_fragments(self) -> None:
        """All of one message; what comes meanwhile is read."""
        client = self.upgraded()
        client.write(frame(TEXT, fin=False))
        began = time.monotonic()
        told: list[tuple[int, bytes] | None] = []

        def read() -> None:
            while not told and select.select([client.socket], [], [], 0)[0]:
                told.append(client.read_frame())

        self.send("fragments", client, frame(0, fin=False), self.orders.fragments, read)
        if not told:
            told.append(client.read_frame())
        self.wait_for_end(client)
        self.note("fragments", began)
        opcode, payload = told[0] or (0, b"")
        if opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big")
            self.told["fragments are answered with"] = [code, payload[2:].decode()]

    def send_pings(self, is_active: bool) -> None:
        """And never read a byte."""
        client = self.upgraded()
        if is_active:
            self.present(client)
        began = time.monotonic()
        kind = "pings of a session" if is_active else "pings without a token"
        self.send(kind, client, frame(PING, b"x" * 125), self.orders.pings)
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
        """Send so many, unless the service cuts it off; tells how many those were, and which."""
        piece = one * (PIECE // len(one))
        sent, was_cut = 0, False
        try:
            while sent < count:
                client.write(piece)
                sent += len(piece) // len(one)
                meanwhile()
        except OSError:
            was_cut = True
        self.told[kind] = {"sent": sent, "was cut off": was_cut}

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
