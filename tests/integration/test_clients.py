"""Close codes as a client library reports them: aiohttp, over TCP and over TLS."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from tests.integration.support.requirements import need
from tests.support.certificates import Authority
from tests.support.twistd_case import LOOPBACK, WEBSOCKET_PATH, TwistdTestCase

try:
    aiohttp: Any = importlib.import_module("aiohttp")
except ImportError:
    aiohttp = None

TIMEOUT = 60.0
MAX_MESSAGES = 5

LINGER = 0.1
"""Seconds in which aiohttp closes its sockets, which it does after it has returned."""


async def send_too_long(socket: Any) -> None:
    await socket.send_str("x" * 70_000)


async def send_binary(socket: Any) -> None:
    await socket.send_bytes(b"x")


async def send_nonsense(socket: Any) -> None:
    await socket.send_str("nonsense")


async def send_too_many_pings(socket: Any) -> None:
    for _ in range(MAX_MESSAGES + 1):
        await socket.ping()


async def close(socket: Any) -> None:
    await socket.close(code=1000)


class AiohttpTests(TwistdTestCase):
    def setUp(self) -> None:
        super().setUp()
        need(aiohttp, "aiohttp (in the extra test)")
        authority = Authority(self.directory)
        key, cert = authority.issue("127.0.0.1")
        self.context = authority.client_context()
        file = self.configure(
            LOOPBACK,
            f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1",
            more=f"[limits]\nmessages_per_minute = {MAX_MESSAGES}",
        )
        file.write_text('hosts = ["127.0.0.1"]\n' + file.read_text())
        self.service = self.start("--config", str(file))
        tcp, tls = self.service.ports
        path = f"/cell1{WEBSOCKET_PATH}"
        self.urls = {
            "tcp": (f"ws://127.0.0.1:{tcp}{path}", None),
            "tls": (f"wss://127.0.0.1:{tls}{path}", self.context),
        }

    async def close_code(
        self, url: str, context: ssl.SSLContext | None, act: Callable[[Any], Awaitable[None]]
    ) -> int | None:
        """Connect, act, read to the end; return the code that the library reports."""
        options = {} if context is None else {"ssl": context}
        async with aiohttp.ClientSession() as session, session.ws_connect(url, **options) as socket:
            await socket.send_str(json.dumps({"AccessToken": self.token()}))
            reply = await socket.receive(timeout=TIMEOUT)
            self.assertEqual(json.loads(reply.data)["Result"], "Success")
            await act(socket)
            ends = {aiohttp.WSMsgType[name] for name in ("CLOSE", "CLOSED", "CLOSING", "ERROR")}
            while (await socket.receive(timeout=TIMEOUT)).type not in ends:
                pass
            code: int | None = socket.close_code
        await asyncio.sleep(LINGER)
        return code

    def assert_code(self, code: int, act: Callable[[Any], Awaitable[None]]) -> None:
        for name, (url, context) in self.urls.items():
            for _ in range(3):
                with self.subTest(over=name):
                    self.assertEqual(asyncio.run(self.close_code(url, context, act)), code)

    def test_a_message_that_is_too_big(self) -> None:
        self.assert_code(1009, send_too_long)

    def test_too_many_messages(self) -> None:
        self.assert_code(1008, send_too_many_pings)

    def test_a_binary_message(self) -> None:
        self.assert_code(1003, send_binary)

    def test_a_message_that_is_no_token(self) -> None:
        self.assert_code(1008, send_nonsense)

    def test_a_close_by_the_client(self) -> None:
        self.assert_code(1000, close)

    def test_a_stop_of_the_service(self) -> None:
        async def stop(_: Any) -> None:
            await asyncio.gather(*self.opened)
            self.service.child.send_signal(signal.SIGTERM)

        async def all_codes() -> list[int | None]:
            events = [asyncio.Event() for _ in self.urls]
            self.opened = [event.wait() for event in events]

            def act(event: asyncio.Event) -> Callable[[Any], Awaitable[None]]:
                async def wait(socket: Any) -> None:
                    event.set()

                return wait

            clients = [
                self.close_code(url, context, act(event))
                for event, (url, context) in zip(events, self.urls.values(), strict=True)
            ]
            *codes, _ = await asyncio.gather(*clients, stop(None))
            return codes

        self.assertEqual(asyncio.run(all_codes()), [1001, 1001])
