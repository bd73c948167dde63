"""Mutates what a target starts from, where atheris is not installed.

It does not follow the code's branches. It joins inputs, and moves, repeats and replaces their
parts, so that most of what it makes is nearly valid.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

__all__ = ["Mutator", "run"]

SPECIAL = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b" ", b"\t", b"\0", b":", b",", b";", b"/", b"%",
    b"#", b"?", b"@", b'"', b"0", b"1", b"f", b"-", b"+", b"_", b"\x0b", b"\x7f", b"\x80", b"\xff",
)  # fmt: skip
"""Bytes that parsers treat differently from others."""

_PART = re.compile(rb"\r\n|[\w-]+|\W", re.DOTALL)
_LINE = re.compile(rb"[^\n]*\n|[^\n]+\Z")


class Mutator:
    """Makes inputs from others.

    Args:
        seeds: what it starts from.
        random: chooses.
        max_bytes: most bytes of an input.
    """

    def __init__(self, seeds: Sequence[bytes], random: Random, max_bytes: int) -> None:
        self._seeds = [seed for seed in seeds if 0 < len(seed) <= max_bytes] or [b"\0"]
        self._random = random
        self._max_bytes = max_bytes
        self._parts = sorted({part for seed in self._seeds for part in _PART.findall(seed)})
        self._lines = sorted({line for seed in self._seeds for line in _LINE.findall(seed)})

    def next(self) -> bytes:
        """Make an input."""
        random = self._random
        data = b"".join(random.choices(self._seeds, k=random.choice((1, 1, 2, 2, 3))))
        for _ in range(random.choice((0, 1, 1, 2, 2, 3, 5))):
            data = random.choice(self._EDITS)(self, data)
        return data[: self._max_bytes]

    def _span(self, data: bytes, most: int) -> tuple[int, int]:
        start = self._random.randint(0, len(data))
        return start, min(len(data), start + self._random.randint(0, most))

    def _part(self) -> bytes:
        return self._random.choice(self._random.choice((self._parts, SPECIAL)))

    def _insert(self, data: bytes) -> bytes:
        at = self._random.randint(0, len(data))
        return data[:at] + self._part() + data[at:]

    def _insert_line(self, data: bytes) -> bytes:
        ends = [match.end() for match in _LINE.finditer(data)] or [0]
        at = self._random.choice(ends)
        return data[:at] + self._random.choice(self._lines) + data[at:]

    def _replace(self, data: bytes) -> bytes:
        spans = [match.span() for match in _PART.finditer(data)] or [(0, 0)]
        start, end = self._random.choice(spans)
        return data[:start] + self._part() + data[end:]

    def _delete(self, data: bytes) -> bytes:
        start, end = self._span(data, 8)
        return data[:start] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        start, end = self._span(data, 40)
        return data[:end] + data[start:]

    def _delete_line(self, data: bytes) -> bytes:
        spans = [match.span() for match in _LINE.finditer(data)] or [(0, 0)]
        start, end = self._random.choice(spans)
        return data[:start] + data[end:]

    def _change_byte(self, data: bytes) -> bytes:
        start, end = self._span(data, 1)
        return data[:start] + self._random.randbytes(end - start) + data[end:]

    _EDITS: Sequence[Callable[[Mutator, bytes], bytes]] = (
        _insert, _insert, _insert_line, _insert_line, _replace, _replace, _delete, _repeat,
        _delete_line, _change_byte,
    )  # fmt: skip


def run(
    name: str, target: Callable[[bytes], None], mutator: Mutator, seconds: float, slow: float
) -> int:
    """Call `target` with new inputs for that time; return how many there were.

    An input that makes it raise, or takes longer than `slow` seconds, is written to a file.
    """
    start = now = time.monotonic()
    runs = 0
    while now - start < seconds:
        data = mutator.next()
        try:
            target(data)
            since, now = now, time.monotonic()
            assert now - since < slow, f"took {now - since:.1f} s"
        except BaseException as error:
            Path(f"fuzz-{name}-input").write_bytes(data)
            error.add_note(f"input {runs}: {data!r}")
            raise
        runs += 1
    return runs
