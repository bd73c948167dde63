"""JSON as RFC 8259 has it: no duplicate keys, no NaN, no Infinity, and texts left as they are."""

from __future__ import annotations

import json
from typing import Any

from topicsvc.errors import InvalidBody

__all__ = ["compact", "json_text", "no_constant", "skip_number", "unique", "wrapped_text"]


_JSON_BLANKS = b" \t\n\r"


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members, for `json`'s ``object_pairs_hook``.

    Raises:
        ValueError: a key stands twice: readers differ in which they take (RFC 8259, section 4).
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice")
    return members


def no_constant(name: str) -> Any:
    """Refuse ``NaN`` and ``Infinity``, for `json`'s ``parse_constant``.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is not JSON")


def skip_number(_: str) -> int:
    """Stand for any number: none is ever used, and a long one is slow to convert."""
    return 0


_body_decoder = json.JSONDecoder(
    parse_int=skip_number, parse_float=skip_number, parse_constant=no_constant
)


_encoder = json.JSONEncoder(separators=(",", ":"))


def json_text(body: bytes) -> bytes:
    """Check that `body` is one JSON value in UTF-8; return it without the blanks around it.

    The value is never written anew, so numbers, key order and duplicates stay as they are.

    Raises:
        InvalidBody: it is not, or it nests deeper than the parser can follow.
    """
    try:
        _body_decoder.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidBody("not one JSON value in UTF-8") from error
    return body.strip(_JSON_BLANKS)


def wrapped_text(text: str) -> bytes:
    """The body that carries a broker's text which is not JSON: ``{"content":"..."}``."""
    return compact({"content": text})


def compact(members: dict[str, Any]) -> bytes:
    """An object in its shortest form, in ASCII."""
    return _encoder.encode(members).encode("ascii")
