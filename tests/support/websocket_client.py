"""A WebSocket client of the ``websockets`` library, with blocking methods."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from typing import Any

from websockets.asyncio.client import connect

TIMEOUT = 60.0
"""Seconds for one step: more than a loaded machine needs, also to start a service."""


class WebSocketClient:
    """A connection to a loopback port, under any host name.

    It uses the library's asyncio client, in a loop of its own: the library's client for
    threads uses one TLS object in two threads, and loses data under load.
    """

    def __init__(
        self,
        port: int,
        host: str,
        path: str,
        context: ssl.SSLContext | None = None,
        source: str = "127.0.0.1",
    ) -> None:
        self._runner = asyncio.Runner()
        options = {"server_hostname": host} if context else {}
        try:
            self._connection = self._run(
                connect(
                    f"{'wss' if context else 'ws'}://{host}{path}",
                    host="127.0.0.1",
                    port=port,
                    local_addr=(source, 0),
                    ssl=context,
                    compression="deflate",
                    open_timeout=TIMEOUT,
                    close_timeout=TIMEOUT,
                    **options,
                ).__aenter__()
            )
        except BaseException:
            self._runner.close()
            raise

    def send(self, message: str | bytes) -> None:
        self._run(self._connection.send(message))

    def recv(self) -> Any:
        """Return the next message; raise TimeoutError after `TIMEOUT` seconds."""
        return self._run(asyncio.wait_for(self._connection.recv(), TIMEOUT))

    def wait(self, seconds: float) -> None:
        """Wait so many seconds; the library replies to pings meanwhile."""
        self._run(asyncio.sleep(seconds))

    def close(self) -> None:
        try:
            self._run(self._connection.close())
        finally:
            self._runner.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)
