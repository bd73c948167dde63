"""Checks what an application returned as a token. No error has the text of it."""

from __future__ import annotations

import re

__all__ = ["checked_token"]

_BLANKS = " \t\n\v\f\r"
_VISIBLE_ASCII = re.compile(r"[!-~]+")
"""The characters of a token: all that a header ``Authorization`` can carry."""


def checked_token(value: object) -> str:
    """Return the token without the blanks and line ends around it, as the service reads it.

    Args:
        value: what ``get_token`` has returned.

    Raises:
        ValueError: it is not a token.
    """
    if not isinstance(value, str):
        raise ValueError(f"get_token returned a {type(value).__name__}, not a string")
    token = value.strip(_BLANKS)
    if not token:
        raise ValueError("get_token returned an empty string")
    if not _VISIBLE_ASCII.fullmatch(token):
        raise ValueError("get_token returned a string with whitespace or not in visible ASCII")
    return token
