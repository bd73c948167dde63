"""Functions that the commands share: tokens, URLs, output, errors, running the reactor."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from hyperlink import URL
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python.failure import Failure

from topicsvc.explain import explain
from topicsvc.validators.http_client import AsciiUrl

__all__ = [
    "CommandFailed",
    "ascii_url",
    "find_token",
    "print_line",
    "reason_in",
    "run_reactor",
    "with_advice",
]


class CommandFailed(Exception):
    """A command failed.

    Attributes:
        lines: the reasons, and what to do, for standard error.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def print_line(line: str) -> bool:
    """Print `line` and flush; returns whether standard output is still open."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # Otherwise Python would report its unflushed data again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def find_token(options: Namespace) -> str:
    """Return the token from the options, a file or the environment.

    Raises:
        CommandFailed: there is no token.
    """
    if options.token_file is not None:
        try:
            token: str = options.token_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise CommandFailed(f"{options.token_file}: {reason}") from error
    else:
        token = options.token or os.environ.get("TOPICSVC_TOKEN", "")
    if not token.strip():
        raise CommandFailed("no token: give --token, --token-file or $TOPICSVC_TOKEN")
    return token.strip()


def ascii_url(text: str, *schemes: str) -> URL:
    """Parse a URL that may contain names in any script; returns its ASCII form.

    Raises:
        CommandFailed: it is not a URL, or has none of `schemes`.
    """
    try:
        url = URL.from_text(text)
        url = url.replace(scheme=url.scheme.lower())
        if url.scheme in schemes and url.host:
            # An IPv6 address is not a name, and is not encoded.
            host = url.host if ":" in url.host else url.replace(path=()).to_uri().host
            encoded = url.replace(host="").to_uri().replace(host=host)
            return AsciiUrl.from_text(encoded.to_text())
    except ValueError as error:
        raise CommandFailed(f"{text}: {error}") from error
    begin = " or ".join(f"{scheme}://" for scheme in schemes)
    raise CommandFailed(f"{text!r}: not a URL that begins with {begin} and a host")


def reason_in(body: str) -> str:
    """The reason in the body of an HTTP error response, on one line."""
    try:
        return str(json.loads(body)["message"]["value"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body[:200].split())


def with_advice(reason: str) -> str:
    """The reason of a failed connection, with advice if there is any."""
    if "certificate verify failed" in reason:
        reason += "; $SSL_CERT_FILE names the authorities to trust"
    return reason


def run_reactor(work: Callable[[Any], Deferred[None]]) -> None:
    """Run the reactor until `work` is done.

    Raises:
        CommandFailed: `work` failed; another exception is replaced by one with its reason.
        KeyboardInterrupt: a signal stopped the reactor first.
    """
    failures: list[Failure] = []
    unfinished: list[Deferred[None]] = []

    def begin(reactor: Any) -> Deferred[None]:
        working = work(reactor)

        def stopped() -> None:
            if not working.called:
                unfinished.append(working)

        # Failures after this event are caused by the shutdown itself.
        reactor.addSystemEventTrigger("before", "shutdown", stopped)
        return working.addErrback(failures.append)

    with contextlib.suppress(SystemExit):
        react(begin)
    if unfinished:
        raise KeyboardInterrupt
    if not failures:
        return
    error: Any = failures[0].value
    raise error if isinstance(error, CommandFailed) else CommandFailed(with_advice(explain(error)))
