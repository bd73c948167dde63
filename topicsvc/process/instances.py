"""Finds other processes of the same service.

A memory broker delivers messages inside one process. With several processes, a send gets 200, and
the sessions of the others miss its message.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["SharedFile", "count_locks", "enabled_instances", "running_instances", "shares_port"]

_INSTANCE = re.compile(r"(?P<template>[^/@]+)@[^/]*\.service")

_UNIT_DIRECTORIES = (
    Path("/etc/systemd/system"),
    Path("/run/systemd/system"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
)


class SharedFile:
    """A lock on the configuration file, which all processes of a service have together.

    The lock (flock(2)) blocks nobody. It shows only that another process uses the file.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def join(self, path: Path) -> bool:
        """Lock the file, as it is now; a lock of an earlier file under this name is released.

        Returns:
            Whether another process has it locked.

        Raises:
            OSError: the file cannot be opened, or its file system has no locks.
        """
        self.leave()
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_shared = False
            except BlockingIOError:
                is_shared = True
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return is_shared

    def leave(self) -> None:
        """Release the lock. Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def count_locks(path: Path, locks: Path = Path("/proc/locks")) -> int:
    """Return how many processes have locked a file as `SharedFile` does; 0: not known.

    Args:
        path: the file.
        locks: the kernel's list of locks (proc_locks(5)).
    """
    try:
        inode = path.stat().st_ino
        lines = locks.read_text("ascii").splitlines()
    except OSError:
        return 0
    shared = re.compile(rf"\d+: FLOCK +ADVISORY +READ +\S+ +[0-9a-f]+:[0-9a-f]+:{inode} .*")
    return sum(1 for line in lines if shared.fullmatch(line))


def running_instances(
    cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> tuple[str, int]:
    """Return systemd's template of this process, ``topicsvc@.service``, and its active instances.

    Args:
        cgroup: the control group of this process (cgroups(7), version 2).
        root: the root of the control groups.

    Returns:
        An empty template and 0, if this process is no instance.
    """
    with suppress(OSError, UnicodeDecodeError):
        group = cgroup.read_text("utf-8").strip().rpartition("::")[2]
        match = _INSTANCE.fullmatch(Path(group).name)
        if match is not None:
            siblings = (root / group.lstrip("/")).parent.glob(f"{match['template']}@*.service")
            return f"{match['template']}@.service", len(list(siblings))
    return "", 0


def enabled_instances(
    config: Path, directories: Iterable[Path] = _UNIT_DIRECTORIES
) -> tuple[str, int]:
    """Return a template of systemd that starts with `config`, and its enabled instances.

    Args:
        config: the configuration file.
        directories: the directories of unit files.

    Returns:
        An empty template and 0, if there is none with several instances.
    """
    directories = tuple(directories)
    instances: dict[str, set[str]] = {}
    for directory in directories:
        for link in directory.glob("*.wants/*@?*.service"):
            match = _INSTANCE.fullmatch(link.name)
            if match is not None:
                instances.setdefault(match["template"], set()).add(link.name)
    for template, names in sorted(instances.items()):
        unit = f"{template}@.service"
        if len(names) > 1 and any(
            _names_file(directory / unit, names, config) for directory in directories
        ):
            return unit, len(names)
    return "", 0


def _names_file(unit: Path, names: Iterable[str], config: Path) -> bool:
    """Whether a template names the file, perhaps with the instance (``%i``) in its path."""
    try:
        text = unit.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    paths = re.findall(r"(?:--config|-c)[ =]+(\S+)", text)
    identifiers = {name.partition("@")[2].removesuffix(".service") for name in names}
    return any(
        Path(path.replace("%i", each).replace("%I", each)) == config.absolute()
        for path in paths
        for each in identifiers
    )


def shares_port(port: Any) -> bool:
    """Whether other processes may listen on the same address as a port (``SO_REUSEPORT``)."""
    listening = getattr(port, "socket", None)
    if listening is None or listening.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    with suppress(OSError):
        return bool(listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    return False
