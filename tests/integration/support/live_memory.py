"""How much memory of a process is in use, as its allocators tell it: what lives, not what is kept.

A process that is `watched_by` this module answers SIGUSR1 with a line on standard error.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.processes import Process

_LINE = r"live memory: (\d+)"


class _Heap(ctypes.Structure):
    """See mallinfo2(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    ]  # fmt: skip


def here() -> int:
    """Bytes in use in this process: in blocks of Python's allocator and of the C library's.

    The arenas of the first are got by mmap(2), so nothing is counted twice.
    """
    gc.collect()
    heap = ctypes.CDLL(None).mallinfo2
    heap.restype = _Heap
    large = heap()
    return int(large.uordblks + large.hblkhd) + _small()


def _small() -> int:
    """Bytes of blocks of Python's own allocator."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        found = re.search(rb"# bytes in allocated blocks +=\s+([\d,]+)", file.read())
    return int(found[1].replace(b",", b"")) if found else 0


def of(process: Process) -> int:
    """Ask a process that is watched."""
    read = len(process.output)
    process.child.send_signal(signal.SIGUSR1)
    return int(process.wait_for(_LINE, after=read)[1])


def watch() -> None:
    """In the process: answer."""

    def answer(*_: Any) -> None:
        print(f"live memory: {here()}", file=sys.__stderr__, flush=True)

    signal.signal(signal.SIGUSR1, answer)
