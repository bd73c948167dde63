"""Strict JSON (RFC 8259): no NaN, no Infinity, on demand no duplicate keys."""

from __future__ import annotations

import json
from typing import Any

from topicsvc.errors import InvalidBody

__all__ = [
    "compact",
    "ignore_number",
    "json_text",
    "reject_constant",
    "reject_duplicates",
    "wrap_text",
]

_WHITESPACE = b" \t\n\r"


def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these members, for `json`'s ``object_pairs_hook``.

    Raises:
        ValueError: a key occurs twice. Parsers differ in the value they take (RFC 8259,
            section 4).
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key occurs twice")
    return members


def reject_constant(name: str) -> Any:
    """Reject ``NaN`` and ``Infinity``, for `json`'s ``parse_constant``.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is not JSON")


def ignore_number(_: str) -> int:
    """Replace every number by 0: numbers are not used here, and long ones are slow to convert."""
    return 0


_body_decoder = json.JSONDecoder(
    parse_int=ignore_number, parse_float=ignore_number, parse_constant=reject_constant
)
_encoder = json.JSONEncoder(separators=(",", ":"))


def json_text(body: bytes) -> bytes:
    """Check that `body` is one JSON value in UTF-8; return it without surrounding whitespace.

    The value is not encoded again, so numbers, key order and duplicate keys stay as they are.

    Raises:
        InvalidBody: it is not one JSON value in UTF-8, or it nests too deep for the parser.
    """
    try:
        _body_decoder.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidBody("not one JSON value in UTF-8") from error
    return body.strip(_WHITESPACE)


def wrap_text(text: str) -> bytes:
    """The body for a broker's text that is not JSON: ``{"content":"..."}``."""
    return compact({"content": text})


def compact(members: dict[str, Any]) -> bytes:
    """Encode an object without whitespace, in ASCII."""
    return _encoder.encode(members).encode("ascii")
