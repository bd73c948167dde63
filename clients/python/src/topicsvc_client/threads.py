"""Runs blocking functions in threads of their own."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, TypeVar

__all__ = ["Threads"]

_T = TypeVar("_T")


class Threads:
    """A bounded number of daemon threads: they do not hold the end of a loop or of the process.

    The default executor of the loop would do so. Functions that hang would also fill it, and it
    looks up the names of hosts.

    Args:
        most: functions that run at a time. The others wait; one whose caller is cancelled
            meanwhile does not run.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._forget()
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Begin without threads: a new process has none of its parent's."""
        self._lock = Lock()
        self._running = 0
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    async def run(self, function: Callable[[], _T]) -> _T:
        """Return the result of the function.

        If the caller is cancelled, the function runs to its end, and its result is dropped.

        Raises:
            RuntimeError: the system allows no more threads.
        """
        future: Future[_T] = Future()
        with self._lock:
            if self._running < self._most:
                Thread(target=self._work, name="topicsvc_client", daemon=True).start()
                self._running += 1
            self._waiting.append((future, function))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        """Run the functions of the queue, until it is empty."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                future, function = self._waiting.popleft()
            _fulfil(future, function)
            del future, function


def _fulfil(future: Future[Any], function: Callable[[], Any]) -> None:
    """Run the function for the future, unless it was cancelled before."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
