"""The time in which a thread could run, but others had the processors."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def run_delay(process: int | None = None) -> float:
    """Seconds for which a thread has waited for a processor so far, by Linux' schedstat.

    On a machine with other load, the difference of two calls tells how much of a duration is not
    due to the measured code. It is always 0 on a kernel without these statistics.

    Args:
        process: the process whose first thread it is; None: the thread of the caller.
    """
    directory = "/proc/thread-self" if process is None else f"/proc/{process}"
    with contextlib.suppress(OSError):
        return int(Path(directory, "schedstat").read_text().split()[1]) / 1e9
    return 0.0


class RunningClock:
    """A clock that stands still while this thread or a service waits for a processor.

    Args:
        service: process id of the service.
    """

    PRECISION = 0.0005
    """Seconds for which the waiting times are not read again: reading them takes time, too."""

    def __init__(self, service: int) -> None:
        self._service = service
        self._read_at = self._waited = 0.0

    def seconds(self) -> float:
        """The time in seconds."""
        now = time.monotonic()
        if now - self._read_at > self.PRECISION:
            self._read_at, self._waited = now, run_delay() + run_delay(self._service)
        return now - self._waited
