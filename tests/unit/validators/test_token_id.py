"""Identifiers of tokens in the log."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.validators.token_id import ID_LENGTH, TokenIds


class TokenIdTests(SynchronousTestCase):
    def test_a_token_has_the_same_identifier_within_a_process(self) -> None:
        ids = TokenIds()
        self.assertEqual(ids("a"), ids("a"))
        self.assertNotEqual(ids("a"), ids("b"))
        self.assertRegex(ids("x" * 32768), rf"\A[0-9a-f]{{{ID_LENGTH}}}\Z")
        self.assertEqual(len(ids("\ud800")), ID_LENGTH)

    def test_another_process_gives_another_identifier(self) -> None:
        self.assertNotEqual(TokenIds()("a"), TokenIds()("a"))
        self.assertEqual(TokenIds(b"key")("a"), TokenIds(b"key")("a"))
