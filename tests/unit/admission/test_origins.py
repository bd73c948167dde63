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

    def test_origins_of_applications_are_taken_as_their_engines_send_them(self) -> None:
        """Electron, Cordova, Capacitor, Ionic, Tauri, extensions: with a host or without."""
        for text in (
            "file://", "app://", "app://localhost", "app://-", "app://.", "app://my%20app",
            "capacitor://localhost", "ionic://localhost", "tauri://localhost",
            "http://localhost:8100", "moz-extension://0e1cb0e2-3f3b-4a3a-8a33-6f2b5a3c0b11",
            "app://obsidian.md", "content://", "x-my.app+2://", "null",
        ):  # fmt: skip
            with self.subTest(text=text):
                self.assertEqual(parse_origin(text), text)
        self.assertEqual(parse_origin("FILE://"), "file://")

    def test_each_error_says_what_is_wrong(self) -> None:
        for text, problem in (
            ("app.example", "not scheme://host[:port], nor null"),
            ("file:", "not scheme://host[:port], nor null"),
            ("https://", "no host behind https://"),
            ("wss://:443", "no host behind wss://"),
            ("app://:80", "no host behind app://"),
            ("file:///", "an origin has no path: file://"),
            ("https://a.example/", "an origin has no path: https://a.example"),
            ("app://localhost/index.html", "an origin has no path: app://localhost"),
            ("https://*.example", "there are no patterns: list each origin"),
            ("https://a.example:70000", "a port is at most 65535"),
            ("https://a@b.example", "not scheme://host[:port]"),
        ):
            with self.subTest(text=text):
                error = self.assertRaises(ValueError, parse_origin, text)
                self.assertEqual(str(error), problem)

    def test_other_text_is_no_origin(self) -> None:
        for text in (
            "", "*", "app.example", "//app.example", "https://", "https://app.example/",
            "https://app.example https://b.example", "https://a@app.example", "NULL",
            "https://app.example:", "https://app.example:65536", "https://app.example:x",
            "https://app.example\n", "https://*.example", "file:", "file:///", "app://localhost/",
            "file://:1", "app://a b", "app://%2", "://", "://host", "1app://host", "http://", "ws://",
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
