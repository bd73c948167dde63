"""Pure: the text of a JMS TextMessage, as it passes through STOMP.

Inside ActiveMQ a text is Java's "modified UTF-8" (java.io.DataInput), and STOMP clients get
and give just those bytes: U+0000 is ``C0 80`` and a character beyond U+FFFF is a pair of
surrogates, three bytes each (CESU-8). A four-byte character that is sent breaks the readers.
"""

from __future__ import annotations

import codecs
import re

from topicsvc.errors import InvalidBody
from topicsvc.strict_json import json_text, wrap_text

__all__ = ["ascii_json", "decode_text", "json_body"]

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def ascii_json(body: bytes) -> bytes:
    r"""A JSON text with what is not ASCII written as ``\uXXXX``; nothing else is changed.

    What is not ASCII stands only inside strings, and never behind a lone backslash.

    Args:
        body: one JSON value in UTF-8.
    """
    if body.isascii():
        return body
    return _NOT_ASCII.sub(_escape, body.decode("utf-8")).encode("ascii")


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be").hex()
    return f"\\u{units}" if len(units) == 4 else f"\\u{units[:4]}\\u{units[4:]}"


def decode_text(content: bytes) -> str:
    """Read UTF-8, modified UTF-8, or a mixture.

    A surrogate without its other half stays what it is; bytes that are none of these
    become U+FFFD.
    """
    text = content.decode("utf-8", _JAVA)
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")


def json_body(content: bytes) -> bytes:
    """The JSON value in UTF-8 that a text is, or ``{"content":"..."}`` where it is none."""
    text = decode_text(content)
    try:
        if _SURROGATE.search(text):
            # It has no UTF-8. Whether the text is JSON does not depend on which character
            # stands there; once it is, an escape may take its place.
            json_text(text.encode("utf-8", "replace"))
        return json_text(text.encode("utf-8", "backslashreplace"))
    except InvalidBody:
        return wrap_text(text)


def _java_form(error: UnicodeError) -> tuple[str, int]:
    """Read at one place what UTF-8 forbids and Java writes."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    rest = error.object[error.start : error.start + 3]
    if rest[:2] == b"\xc0\x80":
        return "\0", error.start + 2
    try:
        return rest.decode("utf-8", "surrogatepass"), error.start + 3
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}", error.end


_JAVA = "topicsvc.java"
codecs.register_error(_JAVA, _java_form)
