"""The conversion of message texts from and to Java's form of UTF-8."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.message_text import ascii_json, decode_text, json_body
from topicsvc.strict_json import json_text

java_strings = st.text(st.characters(codec=None))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def modified_utf8(text: str) -> bytes:
    """Encode as Java's DataOutput.writeUTF does, without the length."""
    out = bytearray()
    units = text.encode("utf-16-be", "surrogatepass")
    for high, low in zip(units[::2], units[1::2], strict=True):
        unit = high << 8 | low
        if 0 < unit < 0x80:
            out.append(unit)
        elif unit < 0x800:
            out += bytes([0xC0 | unit >> 6, 0x80 | unit & 0x3F])
        else:
            out += bytes([0xE0 | unit >> 12, 0x80 | unit >> 6 & 0x3F, 0x80 | unit & 0x3F])
    return bytes(out)


def joined(text: str) -> str:
    """Join adjacent surrogates to one character: in Java they are the same string."""
    return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")


class DecodeTests(SynchronousTestCase):
    @given(java_strings)
    def test_modified_utf8_is_decoded(self, text: str) -> None:
        self.assertEqual(decode_text(modified_utf8(text)), joined(text))

    @given(st.text())
    def test_utf8_is_decoded(self, text: str) -> None:
        self.assertEqual(decode_text(text.encode()), text)

    @given(st.binary())
    def test_any_bytes_are_decoded(self, content: bytes) -> None:
        self.assertIsInstance(decode_text(content), str)

    def test_java_s_special_forms_are_decoded(self) -> None:
        self.assertEqual(decode_text(b"\xed\xa0\xbd\xed\xb8\x80"), "\N{GRINNING FACE}")
        self.assertEqual(decode_text(b"a\xc0\x80b"), "a\0b")
        self.assertEqual(decode_text(b"\xed\xa0\xbd"), "\ud83d")
        self.assertEqual(
            decode_text(b"\xff\xed\xa0\xbd\xed\xb8\x80\xc0\x81"),
            "\ufffd\N{GRINNING FACE}\ufffd\ufffd",
        )


class AsciiJsonTests(SynchronousTestCase):
    @given(json_values)
    def test_the_ascii_text_has_the_same_value(self, value: object) -> None:
        written = ascii_json(json.dumps(value, ensure_ascii=False).encode())
        self.assertTrue(written.isascii())
        self.assertEqual(json.loads(written), value)

    def test_only_characters_beyond_ascii_are_changed(self) -> None:
        body = '{"\xe9" : [1.50, 1e400, "\\u00e9\\n\\ud800", "\U0001f600"],\t"a":1,"a":2}'
        self.assertEqual(
            ascii_json(body.encode()),
            b'{"\\u00e9" : [1.50, 1e400, "\\u00e9\\n\\ud800", "\\ud83d\\ude00"],\t"a":1,"a":2}',
        )

    def test_an_ascii_text_is_not_copied(self) -> None:
        body = b'{"a":"\x7f"}'
        self.assertIs(ascii_json(body), body)


class JsonBodyTests(SynchronousTestCase):
    @given(java_strings)
    def test_each_text_becomes_one_json_value(self, text: str) -> None:
        body = json_body(modified_utf8(text))
        self.assertEqual(json_text(body), body)
        try:
            json_text(text.encode("utf-8", "replace"))
        except Exception:
            self.assertEqual(json.loads(body), {"content": joined(text)})

    @given(json_values)
    def test_a_json_text_is_not_changed(self, value: object) -> None:
        text = json.dumps(value, ensure_ascii=False)
        self.assertEqual(json_body(modified_utf8(text)), text.encode())

    @given(java_strings.map(lambda text: json.dumps(text, ensure_ascii=False)))
    def test_lone_surrogates_in_json_keep_their_value(self, text: str) -> None:
        self.assertEqual(json.loads(json_body(modified_utf8(text))), joined(json.loads(text)))

    def test_whitespace_around_the_value_is_removed(self) -> None:
        self.assertEqual(
            json_body(b' [2.50,1e400, {"a":1,"a":2}]\n'), b'[2.50,1e400, {"a":1,"a":2}]'
        )

    def test_text_that_is_not_json_is_wrapped(self) -> None:
        self.assertEqual(json_body(b'hello "you"'), b'{"content":"hello \\"you\\""}')
        self.assertEqual(json_body(b""), b'{"content":""}')
        self.assertEqual(json_body(b"\xc0\x80"), b'{"content":"\\u0000"}')
        self.assertEqual(json_body(b"NaN"), b'{"content":"NaN"}')
        self.assertEqual(json_body(b"[" * 100000)[:13], b'{"content":"[')

    def test_a_backslash_before_a_lone_surrogate_is_not_json(self) -> None:
        # If the surrogate were escaped first, this would be the valid string "\\ud800".
        self.assertEqual(json_body(b'"\\\xed\xa0\x80"'), b'{"content":"\\"\\\\\\ud800\\""}')
