"""Adapter: what an exception means, for those who can do something about it."""

from __future__ import annotations

import re

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet.error import CannotListenError
from twisted.python.filepath import UnlistableError

__all__ = ["explain", "explain_endpoint_error"]

_COLONS = r"; a colon that belongs to a value is written \\:"
_PARSER_MESSAGES = [
    (re.compile(pattern), words)
    for pattern, words in (
        (r"invalid literal for int\(\) with base \d+: (.*)", r"\1 is no number"),
        (r".*got an unexpected keyword argument '(\w+)'", r"there is no \1= for it"),
        (r"\('unrecognized keyword arguments present', \['(\w+)'.*", r"there is no \1= for it"),
        (r".* missing \d+ required positional arguments?: '(\w+)'.*", r"\1= is missing"),
        (r".*got multiple values for argument '(\w+)'", rf"\1= stands there twice{_COLONS}"),
        (r".* takes .* positional arguments? but \d+ were given", f"too many parts{_COLONS}"),
    )
]
"""What a parser of endpoints says to a wrong one is meant for programmers."""


def explain_endpoint_error(error: BaseException) -> str:
    """Why an endpoint string cannot be parsed, for those who have written it."""
    reason = explain(error)
    for pattern, words in _PARSER_MESSAGES:
        found = pattern.fullmatch(reason)
        if found is not None:
            return found.expand(words)
    return reason


def explain(error: BaseException) -> str:
    """An exception's reason, in words where it has some."""
    reasons = getattr(error, "reasons", None)
    while reasons:  # an HTTP client's, around what was wrong
        error = reasons[0].value
        reasons = getattr(error, "reasons", None)
    if isinstance(error, CannotListenError):
        error = error.socketError
    if isinstance(error, UnlistableError):
        error = error.originalException
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, VerificationError):
        return "its certificate is for another name"
    is_tls = isinstance(error, (SSL.Error, crypto.Error))
    if is_tls and error.args and isinstance(error.args[0], (list, tuple)):
        reasons = [str(entry[-1]) for entry in error.args[0] if entry]
        return "; ".join(reasons) or "OpenSSL does not say why"
    return str(error) or type(error).__name__
