"""`parse_origin`: the form in which origins are compared."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.admission.origins import parse_origin


class OriginTests(SynchronousTestCase):
    def test_case_and_the_default_port_are_normalized(self) -> None:
        for text, origin in (
            ("https://app.example", "https://app.example"),
            ("HTTPS://App.Example", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://app.example:80", "http://app.example"),
            ("http://app.example:443", "http://app.example:443"),
            ("https://app.example:8443", "https://app.example:8443"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
            ("null", "null"),
        ):
            with self.subTest(text=text):
                self.assertEqual(parse_origin(text), origin)

    def test_other_text_is_no_origin(self) -> None:
        for text in (
            "", "*", "app.example", "//app.example", "https://", "https://app.example/",
            "https://app.example https://b.example", "https://a@app.example", "NULL",
            "https://app.example:", "https://app.example:65536", "https://app.example:x",
            "https://app.example\n", "https://*.example",
        ):  # fmt: skip
            with self.subTest(text=text):
                self.assertRaises(ValueError, parse_origin, text)

    @given(st.text())
    def test_a_normalized_origin_does_not_change(self, text: str) -> None:
        try:
            origin = parse_origin(text)
        except ValueError:
            return
        self.assertEqual(parse_origin(origin), origin)
