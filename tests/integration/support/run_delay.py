"""The time in which a thread could run, but others had the processors."""

from __future__ import annotations

import contextlib
from pathlib import Path


def run_delay() -> float:
    """Seconds for which this thread has waited for a processor so far, by Linux' schedstat.

    On a machine with other load, the difference of two calls tells how much of a duration is not
    due to the measured code. It is always 0 on a kernel without these statistics.
    """
    with contextlib.suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0
