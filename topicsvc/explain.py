"""Explains exceptions of other libraries in words that an operator can act on."""

from __future__ import annotations

import errno
import os
import re

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet import error as errors
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.python.filepath import UnlistableError

__all__ = [
    "NO_ADDRESS",
    "explain",
    "explain_endpoint_error",
    "explain_http_error",
    "explain_listen_error",
]

NO_ADDRESS = "no address is known for its host"
"""The explanation if the resolver does not know a host."""

_WRONG_NAME = "its certificate is for another name"

_HTTP_MESSAGES = (
    (errors.ConnectionRefusedError, "the connection was refused"),
    (errors.ConnectionClosed, "the connection was lost"),
    ((errors.DNSLookupError, errors.UnknownHostError), NO_ADDRESS),
    (
        (errors.TCPTimedOutError, errors.TimeoutError, TimedOut),
        "no connection could be made in time",
    ),
    (errors.NoRouteError, "there is no route to its host"),
    (VerificationError, f"TLS: {_WRONG_NAME}"),
)

_HTTP_NAMES = {"ParseError": "the answer is not HTTP"}
"""Messages for exceptions of Twisted that have no public name."""

_LOCKED = "Cannot acquire lock"
"""Twisted's reason if another process listens on a UNIX socket."""

_COLONS = r"; a colon that belongs to a value is written \\:"
_PARSER_MESSAGES = [
    (re.compile(pattern), words)
    for pattern, words in (
        (r"invalid literal for int\(\) with base \d+: (.*)", r"\1 is not a number"),
        (r".*got an unexpected keyword argument '(\w+)'", r"it does not take \1="),
        (r"\('unrecognized keyword arguments present', \['(\w+)'.*", r"it does not take \1="),
        (r".* missing \d+ required positional arguments?: '(\w+)'.*", r"\1= is missing"),
        (r".*got multiple values for argument '(\w+)'", rf"\1= is given twice{_COLONS}"),
        (r".* takes .* positional arguments? but \d+ were given", f"too many parts{_COLONS}"),
    )
]
"""Messages of Twisted's endpoint parsers, which are meant for programmers."""


def explain(error: BaseException) -> str:
    """Explain any exception; its own text is part of the explanation."""
    error = _root_cause(error)
    if isinstance(error, errors.CannotListenError):
        error = error.socketError
    if isinstance(error, UnlistableError):
        error = error.originalException
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, VerificationError):
        return _WRONG_NAME
    return _openssl_reasons(error) or str(error) or type(error).__name__


def explain_http_error(error: BaseException) -> str:
    """Explain why an HTTP request got no response.

    The exception's own text is left out: it may quote a token that was sent.
    """
    error = _root_cause(error)
    reasons = _openssl_reasons(error)
    if reasons is not None:
        return f"TLS: {reasons}"
    for kind, message in _HTTP_MESSAGES:
        if isinstance(error, kind):
            return message
    if isinstance(error, errors.ConnectError) and isinstance(error.osError, int):
        return os.strerror(error.osError)
    name = type(error).__name__
    return _HTTP_NAMES.get(name, name)


def explain_listen_error(error: BaseException) -> str:
    """Explain why an endpoint cannot listen, and what to type."""
    cause = getattr(error, "socketError", error)
    number = getattr(cause, "errno", None)
    reason = getattr(cause, "strerror", None) or explain(error)
    port = getattr(error, "port", None)
    if number == errno.EADDRINUSE and isinstance(port, int):
        advice = (
            f"to find the process: ss -ltnp 'sport = :{port}'; to listen elsewhere: "
            "--listen tcp:PORT"
        )
    elif number == errno.EADDRINUSE or reason == _LOCKED:
        advice = "another process has this UNIX socket: stop it, or give another --listen"
    elif number in (errno.EACCES, errno.EPERM) and isinstance(port, int):
        advice = (
            "for a port below 1024 start as root with twistd's --uid, let systemd open it, or "
            "grant CAP_NET_BIND_SERVICE"
        )
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "let the service's user write to the directory: chown USER DIRECTORY"
    elif number == errno.ENOENT:
        advice = "make the directory first: mkdir -p DIRECTORY"
    elif number == errno.EADDRNOTAVAIL:
        advice = "this host has no such address; to list them: ip address"
    else:
        return reason
    return f"{reason}; {advice}"


def explain_endpoint_error(error: BaseException) -> str:
    """Explain why Twisted cannot parse an endpoint string."""
    reason = explain(error)
    for pattern, words in _PARSER_MESSAGES:
        found = pattern.fullmatch(reason)
        if found is not None:
            return found.expand(words)
    return reason


def _root_cause(error: BaseException) -> BaseException:
    """The first of the reasons that Twisted's HTTP client wraps, at any depth."""
    while reasons := getattr(error, "reasons", None):
        error = reasons[0].value
    return error


def _openssl_reasons(error: BaseException) -> str | None:
    """The reasons in OpenSSL's error queue; None: not an error of OpenSSL, or without a queue."""
    if not isinstance(error, (SSL.Error, crypto.Error)):
        return None
    if not error.args or not isinstance(error.args[0], (list, tuple)):
        return None
    reasons = [str(entry[-1]) for entry in error.args[0] if entry]
    return "; ".join(reasons) or "OpenSSL gives no reason"
