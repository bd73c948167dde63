"""Composition: what the commands share: failing in a line, finding the token."""

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

__all__ = ["Failed", "ascii_url", "find_token", "reason_in", "run_reactor", "say", "with_advice"]


class Failed(Exception):
    """A command cannot do what it was asked to.

    Attributes:
        lines: why, and what to do, for standard error.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def say(line: str) -> bool:
    """Print `line` at once. False: nobody reads what is printed any more."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # What Python still holds would be complained of again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def find_token(options: Namespace) -> str:
    """The token that options, a file or the environment give.

    Raises:
        Failed: there is none.
    """
    if options.token_file is not None:
        try:
            token: str = options.token_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise Failed(f"{options.token_file}: {reason}") from error
    else:
        token = options.token or os.environ.get("TOPICSVC_TOKEN", "")
    if not token.strip():
        raise Failed("no token: give --token, --token-file or $TOPICSVC_TOKEN")
    return token.strip()


def ascii_url(text: str, *schemes: str) -> URL:
    """Read a URL, in which names may be of any script; what goes over the wire is ASCII.

    Raises:
        Failed: it is none, or has none of `schemes`.
    """
    try:
        url = URL.from_text(text)
        url = url.replace(scheme=url.scheme.lower())
        if url.scheme in schemes and url.host:
            # An address in brackets is no name that could be encoded.
            host = url.host if ":" in url.host else url.replace(path=()).to_uri().host
            encoded = url.replace(host="").to_uri().replace(host=host)
            return AsciiUrl.from_text(encoded.to_text())
    except ValueError as error:
        raise Failed(f"{text}: {error}") from error
    begin = " or ".join(f"{scheme}://" for scheme in schemes)
    raise Failed(f"{text!r}: a URL is needed that begins with {begin} and a host")


def reason_in(answer: str) -> str:
    """What an answer over HTTP says is wrong, on one line."""
    try:
        return str(json.loads(answer)["message"]["value"])
    except (ValueError, KeyError, TypeError):
        return " ".join(answer[:200].split())


def with_advice(reason: str) -> str:
    """Why a connection failed, and what to do where something can be done."""
    if "certificate verify failed" in reason:
        reason += "; $SSL_CERT_FILE names the authorities to trust"
    return reason


def run_reactor(work: Callable[[Any], Deferred[None]]) -> None:
    """Run the reactor until `work` is done.

    Raises:
        Failed: `work` failed; what is no `Failed` is told by its reason alone.
        KeyboardInterrupt: a signal came first.
    """
    failures: list[Failure] = []
    unfinished: list[Deferred[None]] = []

    def begin(reactor: Any) -> Deferred[None]:
        working = work(reactor)

        def stopped() -> None:
            if not working.called:
                unfinished.append(working)

        # What fails from then on fails because we leave.
        reactor.addSystemEventTrigger("before", "shutdown", stopped)
        return working.addErrback(failures.append)

    with contextlib.suppress(SystemExit):
        react(begin)
    if unfinished:
        raise KeyboardInterrupt
    if not failures:
        return
    error: Any = failures[0].value
    raise error if isinstance(error, Failed) else Failed(with_advice(explain(error)))
