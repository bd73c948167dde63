"""Composition: ``topicsvc send``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Generator, Iterable
from typing import Any

import treq
from hyperlink import URL
from twisted.internet.defer import Deferred, inlineCallbacks

from topicsvc.cli.terminal import Failed, ascii_url, find_token, reason_in, run_reactor
from topicsvc.errors import InvalidBody
from topicsvc.strict_json import json_text

__all__ = ["post", "run"]

TIMEOUT = 30


def run(options: Namespace) -> None:
    """Send one message, or one a line of standard input, each after the one before.

    Raises:
        Failed: a message is no JSON or was not taken; those before it were.
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
            raise Failed(f"message {number}: {error}") from error
        refused = yield post(url, token, body)
        if refused:
            raise Failed(f"message {number}: {refused}")


@inlineCallbacks
def post(url: URL, token: str, body: bytes, host: str = "") -> Generator[Deferred[Any], Any, str]:
    """Send one message; fires with why it was not taken, or nothing.

    Args:
        url: the topic's.
        token: the sender's.
        body: one JSON value.
        host: the service's own name, where `url` has only its address.
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
