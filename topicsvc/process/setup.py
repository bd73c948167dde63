"""Composition: what is set once for the whole process, and how it ends when it cannot start."""

from __future__ import annotations

import gc
import resource
import time
from typing import Any, NoReturn

__all__ = ["fail_to_start", "max_open_files", "tune_gc", "use_monotonic_clock"]

GC_THRESHOLDS = (50_000, 20, 50)
"""Net allocations before a pass over the youngest objects, and passes before one over older."""


def use_monotonic_clock(reactor: Any) -> None:
    """Let `reactor` count seconds that nobody sets: its timers keep to them.

    By itself it goes by the time of day. Were that set back by an hour, nobody would be
    pinged, no deadline kept and no token looked at again for an hour; set forward, all would
    be due at once. What it tells goes on from where it was, so that what it keeps already
    stays right. Expiry is measured by the time of day all the same: see `TopicService`.
    """
    ahead = reactor.seconds() - time.monotonic()
    reactor.seconds = lambda: ahead + time.monotonic()


def tune_gc() -> None:
    """Keep its full passes rare: with thousands of sessions one stops the world for 100 ms.

    What is loaded by now stays for good and is not looked at again. Sessions live long, and
    little of what they leave is circular.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def max_open_files() -> int | None:
    """How many files this process may have open; None: any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class CannotStart(SystemExit, Exception):
    """Ends the process with exit code 1 and its text on standard error.

    It is an ordinary exception as well, because only such does a twistd that has become a
    daemon tell the process that waits for it.
    """

    __module__ = "builtins"  # of what a daemon tells, the first 100 bytes arrive


def fail_to_start(problems: Any) -> NoReturn:
    """End the process: each problem on one line of standard error."""
    raise CannotStart("\n".join(f"topicsvc: {problem}" for problem in problems))
