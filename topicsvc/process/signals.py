"""Installs signal handlers that run in the reactor, and restores the previous ones."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Signals"]


class Signals:
    """Installs signal handlers; `restore` puts the previous ones back.

    Args:
        reactor: calls the actions of the handlers.

    Attributes:
        counted: how many signals have arrived whose numbers were given to `count`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._previous: dict[int, Any] = {}
        self._counting: set[int] = set()
        self.counted = 0

    def count(self, number: int) -> None:
        """Count signal `number`, and pass only the first counted signal to its previous handler.

        The second signal sets the default handlers of all counted signals, so that a third one
        kills the process, even if the reactor is blocked. A signal without a handler in this
        process is left as it is.
        """
        previous: Any = signal.getsignal(number)
        if not callable(previous):
            return

        def on_signal(*arguments: object) -> None:
            self.counted += 1
            if self.counted == 1:
                previous(*arguments)
            else:
                for each in self._counting:
                    signal.signal(each, signal.SIG_DFL)

        self._counting.add(number)
        self._install(number, on_signal)

    def handle(self, number: int, action: Callable[[], None]) -> None:
        """Let the reactor call `action` for each signal `number`."""

        def on_signal(*_: object) -> None:
            # The only reactor method that is safe in a signal handler; it wakes the reactor.
            self._reactor.callFromThread(action)

        self._install(number, on_signal)

    def handle_once(self, number: int, action: Callable[[], None]) -> None:
        """As `handle`, but a second signal kills the process, even if the reactor is blocked."""

        def on_signal(*_: object) -> None:
            signal.signal(number, signal.SIG_DFL)
            self._reactor.callFromThread(action)

        self._install(number, on_signal)

    def handle_twice(
        self, numbers: Sequence[int], first: Callable[[], None], second: Callable[[], None]
    ) -> None:
        """Let the reactor call `first` for one of the signals, and call `second` for the next one.

        `second` is called in the signal handler, even if the reactor is blocked. A third signal
        kills the process.
        """
        count = 0

        def on_signal(*_: object) -> None:
            nonlocal count
            count += 1
            if count == 1:
                self._reactor.callFromThread(first)
                return
            for each in numbers:
                signal.signal(each, signal.SIG_DFL)
            second()

        for each in numbers:
            self._install(each, on_signal)

    def restore(self) -> None:
        """Put the previous handlers back."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def _install(self, number: int, handler: Callable[..., None]) -> None:
        previous = signal.signal(number, handler)
        self._previous.setdefault(number, previous)
