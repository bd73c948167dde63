"""Text of the network for a terminal."""

from __future__ import annotations

import json
import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.printable import counted, host_and_port, printable


class PrintableTests(SynchronousTestCase):
    def test_text_that_a_terminal_shows_as_it_is_stays(self) -> None:
        for text in (
            "",
            '{"a": 1}',
            "b\u00fcro",
            "\u30c6\u30b9\u30c8",
            "\u0928\u092e\u0938\u094d\u0924\u0947",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # a joiner that Persian needs
            "\U0001f468\u200d\U0001f469",
            "\u00a0",
        ):
            self.assertEqual(printable(text), text)

    def test_characters_that_drive_a_terminal_or_hide_text_are_escaped(self) -> None:
        for text, escaped in (
            ("\x1b[2J", r"\u001b[2J"),
            ("\x9b2J", r"\u009b2J"),  # C1: the same command in one character
            ("\x7f", r"\u007f"),
            ("a\nb\rc\td", r"a\u000ab\u000dc\u0009d"),
            ("\u202etxt", r"\u202etxt"),  # right-to-left override
            ("\u2066x\u2069\u061c\u200e\u200f", r"\u2066x\u2069\u061c\u200e\u200f"),
            ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
            ("\ufeff\u200b\u00ad", r"\ufeff\u200b\u00ad"),
            ("\ud800", r"\ud800"),
            ("\U000e0041", r"\udb40\udc41"),  # an invisible tag
        ):
            self.assertEqual(printable(text), escaped)

    def test_every_control_and_format_but_the_joiners_is_escaped(self) -> None:
        for code in range(sys.maxunicode + 1):
            character = chr(code)
            if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
                is_joiner = character in "\u200c\u200d"
                self.assertEqual(printable(character) == character, is_joiner, hex(code))

    @given(st.text())
    def test_json_keeps_its_value(self, text: str) -> None:
        body = json.dumps({"a": text}, ensure_ascii=False)
        self.assertEqual(json.loads(printable(body)), {"a": text})


class CountedTests(SynchronousTestCase):
    def test_one_is_not_a_plural(self) -> None:
        lines = [counted(count, "topic gets", "topics get") for count in range(3)]
        self.assertEqual(lines, ["0 topics get", "1 topic gets", "2 topics get"])


class HostAndPortTests(SynchronousTestCase):
    def test_an_address_of_the_internet(self) -> None:
        self.assertEqual(host_and_port(IPv4Address("TCP", "192.0.2.7", 50000)), "192.0.2.7:50000")

    def test_a_unix_socket_without_a_name(self) -> None:
        self.assertEqual(host_and_port(UNIXAddress(None)), "UNIXAddress(None)")
