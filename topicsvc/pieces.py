"""Keeps the pieces of a body or message that is not complete, in little more than their bytes."""

from __future__ import annotations

from typing import Final

__all__ = ["keep_piece"]

SMALL_PIECE: Final = 1024
"""Bytes from which a piece is kept as it arrived."""

JOINED_PIECE: Final = 16384
"""Bytes up to which small pieces are joined."""


def keep_piece(pieces: list[bytes | bytearray], piece: bytes) -> None:
    """Add `piece` to `pieces`. Small ones are joined: each alone would take 56 bytes more.

    A complete piece is a bytes object, because a bytearray that has grown takes up to an eighth
    more than its bytes.
    """
    if len(piece) >= SMALL_PIECE:
        pieces.append(piece)
        return
    last = pieces[-1] if pieces else None
    if isinstance(last, bytearray):
        last += piece
        if len(last) >= JOINED_PIECE:
            pieces[-1] = bytes(last)
    else:
        pieces.append(bytearray(piece))
