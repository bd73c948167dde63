"""Adapter: signals of the process, taken up by the reactor in its own time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

__all__ = ["Signals"]


class Signals:
    """Handlers that can be taken away again.

    Args:
        reactor: calls what a signal asks for.

    Attributes:
        counted: signals that have come and are only counted.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._before: dict[int, Any] = {}
        self._counting: set[int] = set()
        self.counted = 0

    def count(self, number: int) -> None:
        """From now on signal `number` is counted: the first does what it did, the next nothing.

        One after that kills, whichever of those that are counted it is, for a loop that does not
        turn any more. What nobody in this process has taken up is left as it is.
        """
        before: Any = signal.getsignal(number)
        if not callable(before):
            return

        def handle(*arguments: object) -> None:
            self.counted += 1
            if self.counted == 1:
                before(*arguments)
            else:
                for each in self._counting:
                    signal.signal(each, signal.SIG_DFL)

        self._counting.add(number)
        self._put(number, handle)

    def take(self, number: int, action: Callable[[], None]) -> None:
        """From now on signal `number` makes the reactor call `action`."""

        def handle(*_: object) -> None:
            # The one call that may come from a signal handler: it also wakes the loop.
            self._reactor.callFromThread(action)

        self._put(number, handle)

    def take_once(self, number: int, action: Callable[[], None]) -> None:
        """As `take`, but a second signal kills, for a loop that does not turn any more."""

        def handle(*_: object) -> None:
            signal.signal(number, signal.SIG_DFL)
            self._reactor.callFromThread(action)

        self._put(number, handle)

    def restore(self) -> None:
        """Put back what was there before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _put(self, number: int, handler: Callable[..., None]) -> None:
        before = signal.signal(number, handler)
        self._before.setdefault(number, before)
