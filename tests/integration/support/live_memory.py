"""The memory in use in a process, without free memory that its allocators keep.

A process that has called `watch` replies to SIGUSR1 with a line on standard error; see
`TwistdProcess`.
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
    """Bytes in use in this process, in blocks of Python's allocator and of the C library's.

    Python's allocator gets its arenas with mmap(2), so no byte is counted twice.
    """
    gc.collect()
    heap = ctypes.CDLL(None).mallinfo2
    heap.restype = _Heap
    info = heap()
    return int(info.uordblks + info.hblkhd) + _python_blocks()


def _python_blocks() -> int:
    """Bytes in blocks of Python's own allocator."""
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
    """Bytes in use in a process that has called `watch`."""
    read = len(process.output)
    process.child.send_signal(signal.SIGUSR1)
    return int(process.wait_for(_LINE, after=read)[1])


def watch() -> None:
    """Print the bytes in use of this process after each SIGUSR1."""

    def report(*_: Any) -> None:
        print(f"live memory: {here()}", file=sys.__stderr__, flush=True)

    signal.signal(signal.SIGUSR1, report)
