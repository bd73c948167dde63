"""The asyncio client with the scripted servers, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from tests.support.fake_websockets import FakeWebSocket
from tests.support.python_client import client
from tests.support.scripted_servers import ScriptedClient, ScriptedServerTestCase, add_cases
from tests.support.virtual_loop import VirtualLoop


class _Future:
    """The result of a call that the script decides."""

    def __init__(self, name: str, runner: ScriptedClient) -> None:
        self._name = name
        self._runner = runner
        self._future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def result(self) -> Any:
        try:
            return await self._future
        except asyncio.CancelledError:
            self._runner.aborted(self._name, self)
            raise

    def returns(self, value: Any) -> None:
        self._future.set_result(value)

    def fails(self) -> None:
        self._future.set_exception(OSError("unreachable"))


OUTAGE = "not connected: %s; trying again"
"""The warning about an outage. The runner sees its state."""


class _Notes(logging.Handler):
    """Passes what the client logs to the runner, except outages."""

    def __init__(self, runner: ScriptedClient) -> None:
        super().__init__(logging.WARNING)
        self._runner = runner

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg != OUTAGE:
            self._runner.note(record.getMessage())


class AsyncioClient(ScriptedClient):
    """Runs a script with `Topic`."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__(case)
        self._loop = VirtualLoop()
        self._notes = _Notes(self)
        self._logger = logging.getLogger("topicsvc_client")
        self._logger.addHandler(self._notes)
        self._logger.propagate = False
        self._topic: client.Topic
        self.perform(self._make)

    def perform(self, action: Callable[[], None]) -> None:
        async def run() -> None:
            action()

        self._loop.run_until_complete(run())

    def _make(self) -> None:
        class ScriptedTopic(client.Topic):
            """A topic whose connections are fakes."""

            _random = staticmethod(self.random)

            async def _connect(_) -> Any:  # noqa: N805
                socket = FakeWebSocket(self.sent, self.closed)
                self.connected(socket)
                return await socket.open()

        self._topic = ScriptedTopic(
            "ws://localhost/",
            self._get_token,
            self.options["recover"],
            self.options["since"],
            self._handle_gap if self.has_on_gap else None,
            on_state=self.changed,
            policy=client.Policy(**self.policy()),
        )

    async def _get_token(self, reason: str) -> str:
        call = _Future("getToken", self)
        self.called_get_token(reason, call)
        return await call.result()

    async def _handle_gap(self, gap: client.Gap) -> None:
        call = _Future("onGap", self)
        self.called_on_gap(gap, call)
        await call.result()

    async def _iterate(self) -> None:
        try:
            async with self._topic as messages:
                async for message in messages:
                    assert isinstance(message, client.Message)
                    self.got(message)
        except client.TokenRefused:
            self.seen["error"].append("refused")
        except client.Failed:
            self.seen["error"].append("failed")

    def start(self) -> None:
        self._iterating = self._loop.create_task(self._iterate())

    def refresh(self) -> None:
        self._topic.refresh()

    def close(self) -> None:
        self._closing = self._loop.create_task(self._topic.close())

    def run_until(self, seconds: float) -> None:
        self._loop.run_until(seconds)

    def position(self) -> str | None:
        return self._topic.position

    def stop(self) -> None:
        self._loop.run_until_complete(self._topic.close())
        self._loop.run_until(self._loop.time())
        self._loop.close()
        self._logger.removeHandler(self._notes)
        self._logger.propagate = True


@add_cases
class AsyncioScriptTests(ScriptedServerTestCase):
    client_class = AsyncioClient
