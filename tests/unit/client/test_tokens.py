"""What an application may return as a token."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.client.rules.tokens import checked_token


class TokenTests(SynchronousTestCase):
    def test_blanks_and_line_ends_around_a_token_are_removed(self) -> None:
        """A file with a token ends with a line end. The service removes the same characters."""
        self.assertEqual(checked_token(" \t\n\v\f\rt1\r\n"), "t1")

    def test_only_a_string_is_a_token(self) -> None:
        for value, name in ((b"t1", "bytes"), ({"a": 1}, "dict"), (None, "NoneType"), ({1}, "set")):
            with self.assertRaises(ValueError) as caught:
                checked_token(value)
            text = f"get_token returned a {name}, not a string"
            self.assertEqual(str(caught.exception), text)

    def test_an_empty_string_is_not_a_token(self) -> None:
        for value in ("", " \n"):
            self.assertRaises(ValueError, checked_token, value)

    def test_no_error_has_the_token(self) -> None:
        for value in ("sec ret", "secr\u20act", "secret\n2", "secret\xa0", b"secret", ["secret"]):
            with self.assertRaises(ValueError) as caught:
                checked_token(value)
            error = caught.exception
            self.assertNotIn("sec", str(error))
            self.assertEqual((error.__cause__, error.__context__), (None, None))
