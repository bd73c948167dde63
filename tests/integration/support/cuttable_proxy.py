"""A TCP proxy on the asyncio side of a test, whose connections can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence


class CuttableProxy:
    """Forwards connections to the first of several ports that accepts them.

    Args:
        targets: the ports.

    Attributes:
        port: its own port, once it is open.
        connections: how many connections it has forwarded.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.port = 0
        self.connections = 0
        self._targets = targets
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CuttableProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Abort all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for port in self._targets:
            with contextlib.suppress(OSError):
                upstream = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            writer.transport.abort()
            return
        self.connections += 1
        await asyncio.gather(self._forward(reader, upstream[1]), self._forward(upstream[0], writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.transport.abort() if reader.exception() else writer.close()
