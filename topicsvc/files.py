"""Reads files that settings name. A file of any kind is read or refused without waiting."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from topicsvc.printable import printable

__all__ = ["MAX_SIZE", "explain_file_error", "read_file", "shown"]

MAX_SIZE = 1024 * 1024
"""The most bytes that a file may have."""

_PIECE = 65536

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_file(path: Path) -> bytes:
    """Read a regular file of at most `MAX_SIZE` bytes.

    A FIFO without a writer and a terminal would block the process, so they are refused.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file, is too big, or changed while it was read.
    """
    _require_regular(os.stat(path))  # before it is opened: opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        before = os.fstat(descriptor)
        _require_regular(before)
        data = bytearray()
        while piece := os.read(descriptor, _PIECE):
            data += piece
            if len(data) > MAX_SIZE:
                raise ValueError(f"it has more than {MAX_SIZE} bytes")
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError("it changed while it was read: try again when it is complete")
    return bytes(data)


def explain_file_error(path: Path, error: OSError | ValueError, name: str = "") -> str:
    """Explain on one line why a file cannot be used, and what to do.

    Args:
        path: the file.
        error: the error of `read_file`.
        name: the name that is shown; empty: the path.
    """
    name = shown(name or path)
    if not isinstance(error, OSError):
        return f"{name}: {error}"
    reason = error.strerror or str(error)
    if error.errno == errno.EACCES:
        reason += ": let the user of the service read it"
    elif error.errno == errno.ENOENT and path.is_symlink():
        reason += f": it is a link to {shown(os.readlink(path))}, which does not exist"
    elif error.errno == errno.ELOOP:
        reason += ": it is a link to itself"
    return f"{name}: {reason}"


def shown(path: Path | str) -> str:
    """The name of a file, for a message on one line."""
    return printable(str(path))


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    [kind, *_] = [name for test, name in _KINDS if test(status.st_mode)] or ["no file"]
    raise ValueError(f"it is {kind}, not a regular file")
