"""Strict JSON: bodies that are sent, and texts that are not JSON."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.strategies import json_values
from topicsvc import strict_json
from topicsvc.errors import InvalidBody


class JsonTextTests(SynchronousTestCase):
    def test_bodies_stay_the_same_byte_for_byte(self) -> None:
        for body in (
            b"null",
            b'"text"',
            b"[1, 2.50, 1e400, -0, 123456789012345678901234567890]",
            b'{"b":1, "a":2, "a":3}',
            b'"\\ud83d\\ude00 \\ud800 \\/"',
            '"\N{GRINNING FACE}"'.encode(),
            b"9" * 5000,
        ):
            with self.subTest(body=body[:60]):
                self.assertEqual(strict_json.json_text(body), body)
                self.assertEqual(strict_json.json_text(b" \r\n\t" + body + b"\n"), body)

    def test_bodies_that_are_not_one_json_value(self) -> None:
        for body in (
            b"",
            b" ",
            b"hello",
            b"{} {}",
            b"{'a':1}",
            b"NaN",
            b"-Infinity",
            b"[1,]",
            b'"\n"',
            b"\xff",
            b"\xef\xbb\xbf1",
            b"\xa01",
            b"\x0c1",
            b"01",
            b"[" * 5000,
            b'"\xed\xa0\x80"',
        ):
            with self.subTest(body=body[:20]), self.assertRaises(InvalidBody):
                strict_json.json_text(body)

    @given(json_values, st.booleans())
    def test_every_json_value_is_valid(self, value: object, ascii_only: bool) -> None:
        try:
            body = json.dumps(value, ensure_ascii=ascii_only).encode()
        except UnicodeEncodeError:
            return
        self.assertEqual(strict_json.json_text(body), body.strip(b" \t\r\n"))


class DecoderHookTests(SynchronousTestCase):
    def test_a_key_that_occurs_twice_is_rejected(self) -> None:
        pairs = [("a", 1), ("b", 2)]
        self.assertEqual(strict_json.reject_duplicates(pairs), {"a": 1, "b": 2})
        self.assertRaises(ValueError, strict_json.reject_duplicates, [*pairs, ("a", 1)])

    def test_constants_are_rejected(self) -> None:
        self.assertRaises(ValueError, strict_json.reject_constant, "NaN")


class EncodingTests(SynchronousTestCase):
    def test_objects_are_compact_ascii(self) -> None:
        self.assertEqual(
            strict_json.compact({"b": [1, "é"], "a": None}), b'{"b":[1,"\\u00e9"],"a":null}'
        )

    def test_a_text_that_is_not_json_is_wrapped(self) -> None:
        for text in ("hello", 'quote " and \\', "\0", "\N{GRINNING FACE}", "\ud800", ""):
            self.assertEqual(json.loads(strict_json.wrap_text(text)), {"content": text})
