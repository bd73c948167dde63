"""Reads web origins (RFC 6454): the site or the application whose page a browser engine runs."""

from __future__ import annotations

import re

__all__ = ["NULL", "parse_origin"]

NULL = "null"
"""The origin that a browser sends for a page without an origin, such as a sandboxed page."""

_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://((?:[a-z0-9._~-]|%[0-9a-f]{2})*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?",
    re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
_BEHIND_HOST = re.compile(r"[/?#]")


def parse_origin(text: str) -> str:
    """Return an origin in the form in which origins are compared: ``https://a.example``.

    As in RFC 6454, section 6.2: scheme and host become lower case, and the default port of the
    scheme is left out. ``null`` is returned as it is. Schemes other than those of the web may be
    without a host: engines send ``file://`` for local files, and ``app://`` for some applications.

    Raises:
        ValueError: `text` is no origin, or more than one; the message explains why.
    """
    if text == NULL:
        return text
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError(_problem(text))
    scheme, host, port = match[1].lower(), match[2].lower(), match[3]
    if not host and (port is not None or scheme in _DEFAULT_PORTS):
        raise ValueError(f"no host behind {scheme}://")
    if int(port or 0) > 65535:
        raise ValueError("a port is at most 65535")
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


def _problem(text: str) -> str:
    """Return why `text` is no origin."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "not scheme://host[:port], nor null"
    if "*" in rest:
        return "there are no patterns: list each origin"
    behind_host = _BEHIND_HOST.search(rest)
    if behind_host is not None:
        return f"an origin has no path: {scheme}://{rest[: behind_host.start()]}"
    return "not scheme://host[:port]"
