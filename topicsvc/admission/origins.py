"""Pure: web origins (RFC 6454), which say whose page a browser runs."""

from __future__ import annotations

import re

__all__ = ["NULL", "parse_origin"]

NULL = "null"
"""What a browser sends for a page that has no origin it would tell."""

_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?", re.IGNORECASE
)
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


def parse_origin(text: str) -> str:
    """An origin in the one form in which origins are compared, section 6.2: ``https://a.example``.

    Scheme and host are taken in any case, and a scheme's own port says nothing. ``null``
    stays what it is.

    Raises:
        ValueError: it is no origin, or more than one.
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
