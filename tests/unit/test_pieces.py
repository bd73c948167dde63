"""Pieces of a body or message take little more memory than their bytes."""

from __future__ import annotations

import sys

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.pieces import JOINED_PIECE, SMALL_PIECE, keep_piece

SIZE = 65_536


class PiecesTests(SynchronousTestCase):
    def test_no_byte_is_lost_or_moved(self) -> None:
        pieces: list[bytes | bytearray] = []
        whole = b""
        for size in (1, 0, SMALL_PIECE, 5, SMALL_PIECE - 1, *[700] * 9, 1, 20_000, 2):
            piece = bytes(number % 251 for number in range(len(whole), len(whole) + size))
            keep_piece(pieces, piece)
            whole += piece
            self.assertEqual(b"".join(pieces), whole)

    def test_pieces_of_each_size_take_at_most_a_tenth_more_than_their_bytes(self) -> None:
        for size in (1, 100, 500, SMALL_PIECE - 1, SMALL_PIECE, JOINED_PIECE, 16_384):
            pieces: list[bytes | bytearray] = []
            for _ in range(SIZE // size):
                keep_piece(pieces, b"x" * size)
            taken = sum(map(sys.getsizeof, pieces)) + sys.getsizeof(pieces)
            self.assertLess(taken, 1.1 * SIZE, size)

    def test_a_long_piece_is_not_copied(self) -> None:
        pieces: list[bytes | bytearray] = []
        long = b"x" * SMALL_PIECE
        keep_piece(pieces, long)
        self.assertIs(pieces[0], long)
