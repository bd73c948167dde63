"""Lays out tables as text. Imports only the standard library."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from topicsvc.printable import printable

__all__ = ["fit", "table"]

_GAP = "  "


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers: int) -> list[str]:
    """Return the lines of a table: the head, then the rows.

    Names in rows may come from the network: what could drive a terminal is escaped.

    Args:
        head: the names of the columns.
        rows: the cells; None is written as ``-``.
        numbers: the first columns that are aligned at the right; the others at the left.
    """
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blanks = " " * (width - _width(cell))
            padded.append(blanks + cell if place < numbers else cell + blanks)
        lines.append(_GAP.join(padded).rstrip())
    return lines


def fit(line: str, columns: int) -> str:
    """Cut a line to the columns of a terminal."""
    used = 0
    for place, character in enumerate(line):
        used += _width(character)
        if used > columns:
            return line[:place]
    return line


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def _width(text: str) -> int:
    """The columns of a text in a terminal (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(each) in ("Mn", "Me", "Cf")
        else 1 + (unicodedata.east_asian_width(each) in ("W", "F"))
        for each in text
    )
