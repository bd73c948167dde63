"""Settings of the whole process, made once, and how the process ends if it cannot start."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterable
from typing import Any, NoReturn

__all__ = ["CannotStart", "fail_to_start", "max_open_files", "tune_gc", "use_monotonic_clock"]

GC_THRESHOLDS = (50_000, 20, 50)
"""Net allocations that start a collection of the youngest generation, and how many collections of
one generation start one of the next; see `gc.set_threshold`."""


def use_monotonic_clock(reactor: Any) -> None:
    """Make the reactor's clock monotonic, so that setting the system time does not affect timers.

    By default Twisted's reactor uses the time of day. If that were set back by an hour, no ping,
    deadline or token recheck would happen for an hour; if it were set forward, all would be due
    at once. The new clock continues from the old value, so timers that exist already stay right.

    Token expiry is still measured by the time of day: see `TopicService`.
    """
    offset = reactor.seconds() - time.monotonic()
    reactor.seconds = lambda: offset + time.monotonic()


def tune_gc() -> None:
    """Make full garbage collections rare: with thousands of sessions one takes 100 ms.

    Objects that exist now are excluded from later collections: modules and classes stay until the
    process ends. Sessions are long-lived, and closing one leaves few reference cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def max_open_files() -> int | None:
    """The process's limit of open files (RLIMIT_NOFILE); None: no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class CannotStart(SystemExit, Exception):
    """Ends the process with exit code 1 and prints its text on standard error.

    It derives from Exception too: a daemonized twistd reports only such errors to the process
    that started it.

    Attributes:
        problems: one line for each problem.
    """

    __module__ = "builtins"  # A daemon reports 100 bytes at most, the class's full name included.

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"topicsvc: {problem}" for problem in self.problems))


def fail_to_start(problems: Iterable[str]) -> NoReturn:
    """End the process; print each problem on one line of standard error."""
    raise CannotStart(problems)
