"""``topicsvc send``: sends messages over HTTP."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Generator, Iterable
from typing import Any

import treq
from hyperlink import URL
from twisted.internet.defer import Deferred, inlineCallbacks

from topicsvc.cli.terminal import CommandFailed, ascii_url, find_token, reason_in, run_reactor
from topicsvc.errors import InvalidBody
from topicsvc.strict_json import json_text

__all__ = ["post", "run"]

TIMEOUT = 30
"""Seconds for a response."""


def run(options: Namespace) -> None:
    """Send one message, or each line of standard input, one after another.

    Raises:
        CommandFailed: a message is not JSON or was not accepted. The messages before it were sent.
    """
    token = find_token(options)
    url = ascii_url(options.url, "http", "https")
    lines: Iterable[bytes]
    if options.json == "-":
        lines = (line for line in sys.stdin.buffer if line.strip())
    else:
        lines = [options.json.encode("utf-8", "surrogateescape")]
    run_reactor(lambda _: _send_all(url, token, lines))


@inlineCallbacks
def _send_all(url: URL, token: str, lines: Iterable[bytes]) -> Generator[Deferred[Any], Any, None]:
    for number, line in enumerate(lines, 1):
        try:
            body = json_text(line)
        except InvalidBody as error:
            raise CommandFailed(f"message {number}: {error}") from error
        problem = yield post(url, token, body)
        if problem:
            raise CommandFailed(f"message {number}: {problem}")


@inlineCallbacks
def post(url: URL, token: str, body: bytes, host: str = "") -> Generator[Deferred[Any], Any, str]:
    """Send one message.

    Args:
        url: the URL of the topic.
        token: the token.
        body: one JSON value.
        host: the Host header, if it is not the host of `url`.

    Returns:
        Fires with the reason if the message was not accepted, else with an empty string.
    """
    headers: dict[bytes | str, bytes | str] = {
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
    }
    if host:
        headers["host"] = host
    response = yield treq.post(
        url, data=body, headers=headers, allow_redirects=False, timeout=TIMEOUT
    )
    text = yield response.text("utf-8")
    return "" if response.code == 200 else f"{response.code} {reason_in(text)}"
