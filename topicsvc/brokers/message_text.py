"""Converts the text of a JMS TextMessage from and to the bytes of a STOMP body.

ActiveMQ stores a text as Java's "modified UTF-8" (java.io.DataInput) and passes exactly these
bytes from and to STOMP clients: U+0000 is ``C0 80``, and a character beyond U+FFFF is a pair of
surrogates of three bytes each (CESU-8). If a client sends a four-byte character, JMS clients
cannot read the message.
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
    r"""Write each character of a JSON text that is not ASCII as ``\uXXXX``; change nothing else.

    In valid JSON such characters occur only inside strings, and never in an escape sequence.

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
    """Decode UTF-8, modified UTF-8, or a mixture of both.

    A surrogate without its other half is kept. Other invalid bytes become U+FFFD.
    """
    text = content.decode("utf-8", _JAVA)
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")


def json_body(content: bytes) -> bytes:
    """Return a text that is JSON as UTF-8, and any other text as ``{"content":"..."}``."""
    text = decode_text(content)
    try:
        if _SURROGATE.search(text):
            # A lone surrogate has no UTF-8. Check with another character in its place whether
            # the text is JSON: the result is the same. In JSON it can then be escaped.
            json_text(text.encode("utf-8", "replace"))
        return json_text(text.encode("utf-8", "backslashreplace"))
    except InvalidBody:
        return wrap_text(text)


def _java_form(error: UnicodeError) -> tuple[str, int]:
    """Decode one sequence that UTF-8 forbids and Java writes."""
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
