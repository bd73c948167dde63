"""``topicsvc send``: sends messages over HTTP."""

from __future__ import annotations

import sys
from argparse import Namespace
from codecs import BOM_UTF8
from collections.abc import Generator, Sequence
from io import BufferedReader, FileIO
from typing import Any, NoReturn

from hyperlink import URL
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool

from topicsvc.cli.client import (
    TIMEOUT,
    connection_error,
    find_token,
    parse_url,
    run_reactor,
)
from topicsvc.cli.line_reader import BATCH_LINES, LineReader
from topicsvc.cli.terminal import CommandFailed, print_error
from topicsvc.client.rules.responses import pause_before_retry, status_text
from topicsvc.errors import InvalidBody, ValidatorUnavailable
from topicsvc.explain import explain
from topicsvc.strict_json import json_text
from topicsvc.validators.http_client import HttpClient, Response, bearer

__all__ = ["Sender", "run"]

CONNECTION_IDLE_TIME = 2
"""Seconds that a connection is kept for the next message. Most servers and proxies keep theirs
for longer, so a message is not sent on a connection that is being closed."""

JSON = "application/json"
NDJSON = "application/x-ndjson"

OK = 200
TOO_LONG = 413
"""The body is longer than `send.max_body`, or it has more messages than one request may have."""


def run(options: Namespace) -> None:
    """Send one message, or each line of standard input, in their order.

    Raises:
        CommandFailed: a message is not JSON or was not accepted. The messages before it were sent.
            Or standard input is closed.
    """
    token = find_token(options)
    url = parse_url(options.url, "http", "https")
    if options.json is None or options.json == "-":
        lines = _standard_input()
        run_reactor(
            lambda reactor: _send_lines(Sender(reactor, url, token), LineReader(lines, reactor))
        )
    else:
        line = options.json.encode("utf-8", "surrogateescape")
        run_reactor(lambda reactor: _send_batch(Sender(reactor, url, token), [line], 1))


def _standard_input() -> BufferedReader:
    if sys.stdin is None:
        raise CommandFailed("standard input is closed; give the message as JSON")
    if sys.stdin.isatty():
        print_error(
            "reading messages from standard input, one JSON value on each line; Ctrl-D ends"
        )
    # Python closes sys.stdin when it exits, and aborts if the thread still reads from it.
    return BufferedReader(FileIO(sys.stdin.fileno(), closefd=False))


@inlineCallbacks
def _send_lines(sender: Sender, reader: LineReader) -> Generator[Deferred[Any], Any, None]:
    reader.start()
    number = 1
    while True:
        try:
            lines = yield reader.next_batch()
        except OSError as error:
            raise CommandFailed(f"standard input: {explain(error)}") from error
        if not lines:
            return
        if number == 1:
            lines[0] = lines[0].removeprefix(BOM_UTF8)
        yield _send_batch(sender, lines, number)
        number += len(lines)


@inlineCallbacks
def _send_batch(
    sender: Sender, lines: Sequence[bytes], number: int
) -> Generator[Deferred[Any], Any, None]:
    """Send these messages. The first is the message of that number."""
    bodies: list[bytes] = []
    invalid: InvalidBody | None = None
    for line in lines:
        try:
            bodies.append(json_text(line))
        except InvalidBody as error:
            invalid = error
            break
    if bodies:
        accepted, refused, problem = yield sender.post_all(bodies)
        first = number + accepted
        if refused == 1:
            raise CommandFailed(f"message {first}: {problem}")
        if refused:
            raise CommandFailed(f"messages {first} to {first + refused - 1}: {problem}")
    if invalid is not None:
        raise CommandFailed(f"message {number + len(bodies)}: {invalid}") from invalid


class Sender:
    """Sends messages to one topic.

    Args:
        reactor: the reactor.
        url: the URL of the topic.
        token: the token.
        host: the Host header, if it is not the host of `url`.
    """

    def __init__(self, reactor: Any, url: URL, token: str, host: str = "") -> None:
        pool = HTTPConnectionPool(reactor)
        pool.maxPersistentPerHost = 1
        pool.cachedConnectionTimeout = CONNECTION_IDLE_TIME
        self._client = HttpClient(Agent(reactor, connectTimeout=TIMEOUT, pool=pool))
        self._reactor = reactor
        self._url = url
        self._most = BATCH_LINES
        self._headers = {"authorization": bearer(token)}
        if host:
            self._headers["host"] = host

    @inlineCallbacks
    def post(self, body: bytes) -> Generator[Deferred[Any], Any, str]:
        """Send one message once.

        Args:
            body: a JSON value.

        Returns:
            Fires with the reason if the message was not accepted, else with an empty string.

        Fails with:
            CommandFailed: there was no response.
        """
        response = yield self._request(body, JSON, is_patient=False)
        return _problem(response)

    @inlineCallbacks
    def post_all(
        self, bodies: Sequence[bytes]
    ) -> Generator[Deferred[Any], Any, tuple[int, int, str]]:
        """Send messages in their order, in as few requests as the service allows.

        A request is sent again if the service says when (``Retry-After``). If one with several
        messages is too long (413), later requests have half as many.

        Args:
            bodies: the messages, a JSON value each, without line feeds.

        Returns:
            Fires with the number of messages that were accepted, the number of messages in the
            request that was refused behind them, and the reason. Without such a request they are
            0 and an empty string.

        Fails with:
            CommandFailed: there was no response.
        """
        accepted = 0
        while accepted < len(bodies):
            part = bodies[accepted : accepted + self._most]
            media_type = JSON if len(part) == 1 else NDJSON
            response = yield self._request(b"\n".join(part), media_type, is_patient=True)
            if response.status == TOO_LONG and len(part) > 1:
                self._most = len(part) // 2
            elif response.status != OK:
                return accepted, len(part), _problem(response)
            else:
                accepted += len(part)
        return accepted, 0, ""

    @inlineCallbacks
    def _request(
        self, body: bytes, media_type: str, *, is_patient: bool
    ) -> Generator[Deferred[Any], Any, Response]:
        """Send a request, again if the service says when; fires with the last response."""
        headers = {**self._headers, "content-type": media_type}
        paused = 0.0
        while True:
            sending = self._client.request("POST", self._url.to_text(), headers, body=body)
            sending.addTimeout(TIMEOUT, self._reactor, self._raise_timeout)
            try:
                response: Response = yield sending
            except ValidatorUnavailable as error:
                raise connection_error(self._url, str(error).removeprefix("POST: ")) from error
            retry_after = response.header("retry-after")
            pause = pause_before_retry(response.status, retry_after, paused)
            if pause is None or not is_patient:
                return response
            print_error(f"{status_text(response.status, response.body)} Waiting {pause:.0f} s")
            paused += pause
            yield deferLater(self._reactor, pause)

    def _raise_timeout(self, _: object, seconds: float) -> NoReturn:
        raise connection_error(
            self._url,
            f"no response within {seconds:.0f} s; it is not known whether the message was sent",
        )


def _problem(response: Response) -> str:
    """Why a message was not accepted; an empty string: it was."""
    if response.status == OK:
        return ""
    if 300 <= response.status < 400:
        return f"{response.status}: it redirects to {response.header('location')}"
    return status_text(response.status, response.body)
