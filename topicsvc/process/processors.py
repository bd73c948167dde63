"""Counts the processors that this process may use."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path

__all__ = ["usable_processors"]


def usable_processors(
    cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return how many processors this process may use, at least 1.

    Its affinity (``taskset``, ``CPUAffinity=``) limits them, and the quotas of its control group
    and of those above it (``CPUQuota=``, ``docker run --cpus``), rounded up.

    Args:
        cgroup: the control group of this process (cgroups(7), version 2).
        root: the root of the control groups.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    count = len(os.sched_getaffinity(0))
    try:
        group = cgroup.read_text("utf-8").strip().rpartition("::")[2].lstrip("/")
    except (OSError, UnicodeDecodeError):
        return count
    for directory in (root / group, *(root / group).parents):
        if directory == root.parent:
            break
        count = min(count, _quota(directory / "cpu.max") or count)
    return max(count, 1)


def _quota(file: Path) -> int | None:
    """The processors of a ``cpu.max``: microseconds of processor time, and the period of these."""
    try:
        quota, period = file.read_text("ascii").split()
        return ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max", or no such file
