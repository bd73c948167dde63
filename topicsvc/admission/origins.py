"""Reads web origins (RFC 6454): the site whose page a browser runs."""

from __future__ import annotations

import re

__all__ = ["NULL", "parse_origin"]

NULL = "null"
"""The origin that a browser sends for a page without an origin, such as a local file."""

_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?", re.IGNORECASE
)
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


def parse_origin(text: str) -> str:
    """Return an origin in the form in which origins are compared: ``https://a.example``.

    As in RFC 6454, section 6.2: scheme and host become lower case, and the default port of the
    scheme is left out. ``null`` is returned as it is.

    Raises:
        ValueError: `text` is no origin, or more than one.
    """
    if text == NULL:
        return text
    match = _ORIGIN.fullmatch(text)
    if match is None or int(match[3] or 0) > 65535:
        raise ValueError("not scheme://host[:port], nor null")
    scheme, host, port = match[1].lower(), match[2].lower(), match[3]
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"
