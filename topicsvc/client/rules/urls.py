"""Checks the URL that an application gives. No error has the text of it."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote, urlsplit, urlunsplit

__all__ = ["ascii_url"]

_KEPT = ":/?#[]@!$&'()*+,;=%"
"""The reserved characters of a URL (RFC 3986, section 2.2), and the sign of encoded ones."""


def ascii_url(url: str, secure: str, plain: str) -> str:
    """Return a URL in ASCII: path and query as encoded UTF-8, the host as a name of the DNS.

    Args:
        url: the URL of a topic.
        secure: its scheme with TLS.
        plain: its scheme without TLS.

    Raises:
        ValueError: it has another scheme, no host, or a part that a topic's URL cannot have. The
            text says which.
    """
    if not url.isprintable() or " " in url:
        raise ValueError("the URL has a blank or a control character; percent-encode it")
    parts = None
    with suppress(ValueError):  # its text may have a password
        parts = urlsplit(url)
    if parts is None:
        raise ValueError("the URL has no valid host")
    if parts.scheme not in (secure, plain) or not parts.hostname:
        raise ValueError(f"the URL must begin with {secure}:// or {plain}:// and a host")
    if "@" in parts.netloc:
        raise ValueError(
            "the URL has a user name or a password, which is not sent; get_token returns the token"
        )
    host, port = _split(parts.netloc)
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise ValueError("the port of the URL is not a number from 1 to 65535")
    if "#" in url:
        raise ValueError("the URL of a topic has no fragment; write # as %23")
    path, query = parts.path, parts.query
    if not url.isascii():
        path, query = quote(path, safe=_KEPT), quote(query, safe=_KEPT)
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError(f"the URL has no valid host: {error}") from None
    return urlunsplit((parts.scheme, f"{host}:{port}" if port else host, path, query, ""))


def _split(netloc: str) -> tuple[str, str]:
    """Return the host, with its brackets, and the port; empty: there is none."""
    host, bracket, rest = netloc.rpartition("]")
    name, _, port = rest.partition(":")
    return host + bracket + name, port
