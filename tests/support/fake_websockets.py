"""A connection of the library websockets in memory, for asyncio clients in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

__all__ = ["FakeWebSocket"]


class FakeWebSocket:
    """A connection, as the client and as the server see it.

    Args:
        on_text: called with each text message of the client.
        on_close: called with 1000 if the client closes the connection, or with ``handshake`` if it
            gives up before the opening handshake is done.

    Attributes:
        closed: what `on_close` was called with.
    """

    def __init__(
        self,
        on_text: Callable[[str], object] = lambda _: None,
        on_close: Callable[[int | str], object] = lambda _: None,
    ) -> None:
        self.on_data: Callable[[], None] | None = None
        self.closed: list[int | str] = []
        self._on_text = on_text
        self._on_close = on_close
        self._handshake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrived: asyncio.Queue[str | bytes | ConnectionClosed] = asyncio.Queue()
        self._is_over = False

    # For the client.

    async def open(self) -> FakeWebSocket:
        try:
            await self._handshake
        except asyncio.CancelledError:
            self._close("handshake")
            raise
        return self

    async def recv(self) -> str | bytes:
        item = await self._arrived.get()
        if isinstance(item, ConnectionClosed):
            raise item
        return item

    async def send(self, text: str) -> None:
        self._on_text(text)

    async def ping(self) -> None:
        if self.on_data is not None:
            self.on_data()  # each server answers at once

    async def close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._close(1000)

    def _close(self, what: int | str) -> None:
        self.closed.append(what)
        self._on_close(what)

    # For the server.

    @property
    def unread(self) -> int:
        """How many messages the client has not read."""
        return self._arrived.qsize()

    def accept(self) -> None:
        if not self._handshake.done():
            self._handshake.set_result(None)

    def refuse(self, status: int, retry_after: int | None) -> None:
        headers = Headers() if retry_after is None else Headers({"Retry-After": str(retry_after)})
        self._handshake.set_exception(InvalidStatus(Response(status, "", headers)))

    def send_text(self, text: str) -> None:
        self._arrive(text)

    def send_binary(self, data: bytes) -> None:
        self._arrive(data)

    def cut(self, code: int, reason: str) -> None:
        self._arrive(ConnectionClosed(Close(code, reason), None))
        self._is_over = True

    def drop(self) -> None:
        if not self._handshake.done():
            self._handshake.set_exception(ConnectionRefusedError("refused"))
        else:
            self._arrive(ConnectionClosed(None, None))
            self._is_over = True

    def _arrive(self, item: str | bytes | ConnectionClosed) -> None:
        if not self._is_over:
            if self.on_data is not None:
                self.on_data()
            self._arrived.put_nowait(item)
