"""The URLs that a client takes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.client.rules.urls import ascii_url

BEGIN = "the URL must begin with wss:// or ws:// and a host"
HOST = "the URL has no valid host"
PORT = "the port of the URL is not a number from 1 to 65535"
FRAGMENT = "the URL of a topic has no fragment; write # as %23"
BLANK = "the URL has a blank or a control character; percent-encode it"


class UrlTests(SynchronousTestCase):
    def url(self, text: str) -> str:
        return ascii_url(text, "wss", "ws")

    def test_a_url_in_ascii_stays(self) -> None:
        for url in (
            "ws://localhost",
            "wss://cell1.unit1.example/__topic/box1/col.topic.name",
            "ws://127.0.0.1:1/a%2Fb/%zz;c=1?key=%20&x=[y]",
            "ws://[::1]:65535/x",
            "ws://a..b/{x}",
        ):
            self.assertEqual(self.url(url), url)
        self.assertEqual(self.url("WS://localhost/x"), "ws://localhost/x")
        self.assertEqual(self.url("ws://localhost:/x"), "ws://localhost/x")

    def test_other_characters_are_encoded_and_encoded_ones_stay(self) -> None:
        self.assertEqual(
            self.url("ws://b\u00fccher.example:8080/c\u00f6l%20/x?k=\u20ac&l=%26"),
            "ws://xn--bcher-kva.example:8080/c%C3%B6l%20/x?k=%E2%82%AC&l=%26",
        )
        self.assertEqual(self.url("ws://[::1]:1/\u00f6"), "ws://[::1]:1/%C3%B6")

    def test_the_error_says_what_is_wrong(self) -> None:
        for url, text in (
            ("http://localhost/", BEGIN),
            ("ws://", BEGIN),
            ("ws://:80/", BEGIN),
            ("localhost", BEGIN),
            ("ws://localhost:0/", PORT),
            ("ws://localhost:99999/", PORT),
            ("ws://localhost:65536/", PORT),
            ("ws://localhost:" + "9" * 5000, PORT),
            ("ws://[::1]:1:2/", PORT),
            ("ws://localhost:x/", PORT),
            ("ws://localhost:\u0661/", PORT),
            ("ws://localhost:-1/", PORT),
            ("ws://localhost/#x", FRAGMENT),
            ("ws://localhost/#", FRAGMENT),
            ("ws://localhost/a b", BLANK),
            ("ws://localhost/a\r\nX: y", BLANK),
            ("ws://localhost/\x00", BLANK),
            ("ws://[::1/", HOST),
        ):
            with self.subTest(url=url[:40]), self.assertRaises(ValueError) as caught:
                self.url(url)
            self.assertEqual(str(caught.exception), text, url[:40])

    def test_no_host_has_this_name(self) -> None:
        with self.assertRaises(ValueError) as caught:
            self.url("ws://\u00fc..b/")
        self.assertTrue(str(caught.exception).startswith(HOST))

    def test_no_error_has_a_password(self) -> None:
        for url in (
            "ws://me:secret@localhost/",
            "ws://me:secret@localhost:99999/",
            "ws://me:secret@a\u2100b/",
            "ws://me:secret@/",
            "ws://me:secret @localhost/",
            "ws://me:secret@[::1/",
        ):
            with self.assertRaises(ValueError) as caught:
                self.url(url)
            error = caught.exception
            self.assertNotIn("secret", str(error))
            self.assertEqual((error.__cause__, error.__context__), (None, None))
