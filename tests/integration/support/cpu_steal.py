"""The processor time that other processes use during a measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path


class OtherLoad:
    """Measures the processor time of other processes, from its construction on.

    Args:
        service: process id of the service. The service, this process and its children are not
            counted.
    """

    def __init__(self, service: int) -> None:
        self._service = service
        self._began, self._busy = time.monotonic(), self._seconds()

    @property
    def cores(self) -> float:
        """Cores that other processes have used on average."""
        return (self._seconds() - self._busy) / (time.monotonic() - self._began)

    def _seconds(self) -> float:
        """Seconds of processor time of all other processes, and of other machines (steal)."""
        user, nice, system, _, _, _, _, steal, *_ = map(
            int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        )
        service = Path(f"/proc/{self._service}/stat").read_text().rpartition(")")[2].split()
        ticks = user + nice + system + steal - int(service[11]) - int(service[12])
        return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
