"""Functions that commands with a connection share: tokens, URLs, errors, running the reactor."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import idna
from hyperlink import URL
from twisted.internet._resolver import GAIResolver
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from topicsvc.cli.terminal import INTERRUPTED, CommandFailed
from topicsvc.client.rules.tokens import checked_token
from topicsvc.explain import explain
from topicsvc.validators.http_client import AsciiUrl

__all__ = [
    "TIMEOUT",
    "connection_error",
    "find_token",
    "parse_url",
    "run_reactor",
    "shown",
]

TIMEOUT = 10.0
"""Seconds for connecting and for a response."""

_NO_AUTHORITY = "certificate verify failed"
_NO_TLS = ("wrong version number", "record layer failure", "packet length too long")
"""OpenSSL's reasons if the server answers without TLS."""

_NO_ANSWER = ("the connection was lost", "no response within")
_NO_HTTP = ("the answer is not HTTP",)


def find_token(options: Namespace) -> str:
    """Return the token from the options, a file or the environment.

    Raises:
        CommandFailed: there is no token, or what is given is not one.
    """
    if options.token_file is not None:
        try:
            # Editors of other systems put a byte order mark at the beginning.
            token: str = options.token_file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text in UTF-8"
            raise CommandFailed(f"{options.token_file}: {reason}") from error
        if not token.strip():
            raise CommandFailed(f"{options.token_file}: the file is empty; it must have a token")
    else:
        if options.token is not None and not options.token.strip():
            raise CommandFailed("option --token is empty")
        token = options.token or os.environ.get("TOPICSVC_TOKEN", "")
        if not token.strip():
            raise CommandFailed("no token: give --token-file, --token or $TOPICSVC_TOKEN")
    try:
        return checked_token(token.strip())
    except ValueError as error:
        raise CommandFailed(
            "the token has characters that no token has: blanks, or not ASCII"
        ) from error


def parse_url(text: str, *schemes: str) -> URL:
    """Parse a URL that may contain names in any script; returns its ASCII form.

    Raises:
        CommandFailed: it is not a URL, has none of `schemes`, or has parts that no topic has.
    """
    begin = " or ".join(f"{scheme}://" for scheme in schemes)
    authority = re.split(r"[/?#]", text.partition("://")[2], maxsplit=1)[0]
    if "@" in authority:
        raise CommandFailed(
            "the URL has a user name or password, which is not sent; give the token with "
            "--token-file"
        )
    if not text.isprintable() or " " in text:
        raise CommandFailed(f"{text!r}: a URL has no blanks and no control characters")
    try:
        url = URL.from_text(text)
        url = url.replace(scheme=url.scheme.lower())
    except ValueError as error:
        raise CommandFailed(f"{text!r}: not a URL: {error}") from error
    if url.scheme not in schemes or not url.host:
        raise CommandFailed(f"{text!r}: not a URL that begins with {begin} and a host")
    if url.port is not None and not 0 < url.port < 65536:
        raise CommandFailed(f"{text!r}: {url.port} is not a port from 1 to 65535")
    if url.fragment:
        raise CommandFailed(f"{text!r}: a topic's URL has no # in it; write %23")
    try:
        encoded = url.replace(host="").to_uri().replace(host=_ascii_host(url.host))
        return AsciiUrl.from_text(encoded.to_text())
    except (ValueError, UnicodeError) as error:
        raise CommandFailed(f"{text!r}: {url.host} is not the name of a host: {error}") from error


def _ascii_host(host: str) -> str:
    """The name of a host in ASCII, or its address. For the errors see `idna.encode`."""
    return (
        host
        if isIPAddress(host) or isIPv6Address(host)
        else idna.encode(host, uts46=True).decode("ascii")
    )


def shown(url: URL) -> str:
    """The URL for error messages: without its query, which may have a secret."""
    return url.replace(query=()).to_text()


def connection_error(url: URL, reason: str) -> CommandFailed:
    """The error of a connection that failed: the URL, the reason, and advice if there is any.

    Args:
        url: the URL.
        reason: as `explain_http_error` returns it.
    """
    plain, secure = ("ws", "wss") if url.scheme.startswith("ws") else ("http", "https")
    if _NO_AUTHORITY in reason:
        reason += "; $SSL_CERT_FILE names the authorities to trust"
    elif url.scheme == secure and any(each in reason for each in (*_NO_TLS, *_NO_ANSWER)):
        reason += f"; if the server has no TLS at this port, write {plain}://"
    elif url.scheme == plain and any(each in reason for each in (*_NO_HTTP, *_NO_ANSWER)):
        reason += f"; if the server has TLS at this port, write {secure}://"
    return CommandFailed(f"{shown(url)}: {reason}")


def run_reactor(
    work: Callable[[Any], Deferred[None]], on_interrupt: Callable[[], object] | None = None
) -> None:
    """Run the reactor until `work` is done.

    Args:
        work: called with the reactor.
        on_interrupt: called at the first SIGINT or SIGTERM, after which `work` must end soon.
            A second signal ends the process at once. None: the first one does.

    Raises:
        CommandFailed: `work` failed; another exception is replaced by one with its reason.
        KeyboardInterrupt: a signal stopped the work.
    """
    failures: list[Failure] = []
    interrupts: list[int] = []
    unfinished: list[Deferred[None]] = []

    def begin(reactor: Any) -> Deferred[None]:
        _use_daemon_threads(reactor)
        if on_interrupt is not None:
            reactor.callWhenRunning(_install, reactor, on_interrupt, interrupts)
        working = work(reactor)

        def stopped() -> None:
            if not working.called:
                unfinished.append(working)

        # Failures after this event are caused by the shutdown itself.
        reactor.addSystemEventTrigger("before", "shutdown", stopped)
        return working.addErrback(failures.append)

    with contextlib.suppress(SystemExit):  # react always ends so
        react(begin)
    if unfinished or interrupts:
        raise KeyboardInterrupt
    if not failures:
        return
    error: Any = failures[0].value
    raise error if isinstance(error, CommandFailed) else CommandFailed(explain(error))


def _use_daemon_threads(reactor: Any) -> None:
    """Look names up in threads that do not hold the exit: a lookup cannot be stopped."""
    pool = ThreadPool(minthreads=0, name="resolver")
    pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
    pool.start()
    reactor.installNameResolver(GAIResolver(reactor, lambda: pool))


def _install(reactor: Any, on_interrupt: Callable[[], object], interrupts: list[int]) -> None:
    """Handle SIGINT and SIGTERM, unless the process ignores them."""

    def interrupted(number: int, _: object) -> None:
        if interrupts:
            os._exit(INTERRUPTED)
        interrupts.append(number)
        reactor.callFromThread(on_interrupt)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupted)
