"""Makes text for a terminal: safe if it is from the network, and with the right number."""

from __future__ import annotations

import unicodedata
from typing import Any

__all__ = ["counted", "host_and_port", "printable"]

_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""General categories of Unicode: controls, formats, lone surrogates, line and paragraph breaks.

Controls drive a terminal. Formats change the order of the text or are invisible.
"""

_JOINERS = frozenset("\u200c\u200d")
"""Formats that Persian, Hindi and emoji need. They only choose the shape of letters."""


def printable(text: str) -> str:
    r"""Replace each character that could drive a terminal, or hide text, by ``\uXXXX``.

    Within a string of JSON this is an escape of JSON, so JSON keeps its value. There is one
    exception: whitespace between the values of JSON. Replace line breaks in it first.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(each) if _is_escaped(each) else each for each in text)


def counted(count: int, one: str, more: str) -> str:
    """Return the number and what is counted: ``1 topic is``, ``2 topics are``."""
    return f"{count} {one if count == 1 else more}"


def host_and_port(peer: Any) -> str:
    """Return the text of a Twisted address: ``192.0.2.7:50000``; of a UNIX socket, its repr."""
    host = getattr(peer, "host", None)
    return repr(peer) if host is None else f"{host}:{peer.port}"


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED and character not in _JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:  # as JSON has it: two surrogates
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
