"""An asyncio event loop in virtual time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any

LONGEST = 1e6
"""Seconds that a test can last."""


class _Selector(selectors.BaseSelector):
    """Lets time pass instead of waiting; there are no files but the loop's own."""

    def __init__(self) -> None:
        self.now = 0.0
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen"
        self.now += timeout
        assert self.now < LONGEST, "the test does not end"
        return self._real.select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while it has nothing to do, and then at once."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def run_until(self, seconds: float) -> None:
        """Run what is ready, and what is due until this time."""
        self.run_until_complete(self._pass(seconds))

    async def _pass(self, seconds: float) -> None:
        if seconds > self.time():
            await asyncio.sleep(seconds - self.time())
        for _ in range(20):
            await asyncio.sleep(0)
