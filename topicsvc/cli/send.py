"""``topicsvc send``: sends messages over HTTP."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Generator, Sequence
from io import BufferedReader, FileIO
from typing import Any

import treq
from hyperlink import URL
from twisted.internet.defer import Deferred, inlineCallbacks

from topicsvc.cli.line_reader import LineReader
from topicsvc.cli.terminal import CommandFailed, ascii_url, find_token, reason_in, run_reactor
from topicsvc.errors import InvalidBody
from topicsvc.strict_json import json_text

__all__ = ["post", "run"]

TIMEOUT = 30
"""Seconds for a response."""

NDJSON = "application/x-ndjson"


def run(options: Namespace) -> None:
    """Send one message, or each line of standard input, in their order.

    Raises:
        CommandFailed: a message is not JSON or was not accepted. The messages before it were sent.
            Or standard input is closed.
    """
    token = find_token(options)
    url = ascii_url(options.url, "http", "https")
    if options.json == "-":
        if sys.stdin is None:
            raise CommandFailed("standard input is closed")
        # Python closes sys.stdin when it exits, and aborts if the thread still reads from it.
        lines = BufferedReader(FileIO(sys.stdin.fileno(), closefd=False))
        run_reactor(lambda reactor: _send_lines(url, token, LineReader(lines, reactor)))
    else:
        line = options.json.encode("utf-8", "surrogateescape")
        run_reactor(lambda _: _send_batch(url, token, [line], 1))


@inlineCallbacks
def _send_lines(url: URL, token: str, reader: LineReader) -> Generator[Deferred[Any], Any, None]:
    reader.start()
    number = 1
    while lines := (yield reader.next_batch()):
        yield _send_batch(url, token, lines, number)
        number += len(lines)


@inlineCallbacks
def _send_batch(
    url: URL, token: str, lines: Sequence[bytes], number: int
) -> Generator[Deferred[Any], Any, None]:
    """Send these messages in one request. The first is the message of that number."""
    bodies: list[bytes] = []
    invalid: InvalidBody | None = None
    for line in lines:
        try:
            bodies.append(json_text(line))
        except InvalidBody as error:
            invalid = error
            break
    if len(bodies) == 1:
        problem = yield post(url, token, bodies[0])
        if problem:
            raise CommandFailed(f"message {number}: {problem}")
    elif bodies:
        problem = yield post(url, token, b"\n".join(bodies), media_type=NDJSON)
        if problem:
            raise CommandFailed(f"messages {number} to {number + len(bodies) - 1}: {problem}")
    if invalid is not None:
        raise CommandFailed(f"message {number + len(bodies)}: {invalid}") from invalid


@inlineCallbacks
def post(
    url: URL, token: str, body: bytes, host: str = "", media_type: str = "application/json"
) -> Generator[Deferred[Any], Any, str]:
    """Send one request.

    Args:
        url: the URL of the topic.
        token: the token.
        body: one JSON value, or one a line.
        host: the Host header, if it is not the host of `url`.
        media_type: of the body.

    Returns:
        Fires with the reason if the body was not accepted, else with an empty string.
    """
    headers: dict[bytes | str, bytes | str] = {
        "authorization": f"Bearer {token}",
        "content-type": media_type,
    }
    if host:
        headers["host"] = host
    response = yield treq.post(
        url, data=body, headers=headers, allow_redirects=False, timeout=TIMEOUT
    )
    text = yield response.text("utf-8")
    return "" if response.code == 200 else f"{response.code} {reason_in(text)}"
