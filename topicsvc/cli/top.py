"""``topicsvc top``: shows topics, sessions and senders of a running service.

Imports only the standard library, so that the first answer appears at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from topicsvc.cli.parser import SORTS
from topicsvc.cli.table import fit, table
from topicsvc.cli.terminal import CommandFailed, print_line, print_text
from topicsvc.errors import PathRefused
from topicsvc.printable import printable
from topicsvc.topics import TopicAddress

__all__ = ["AdminClient", "Screen", "Unreachable", "check_options", "make_screen", "run"]

TIMEOUT = 10.0
"""Seconds for a response."""

_MAX_RESPONSE = 16 * 2**20
"""Bytes; 1,000 items have less than 2 MiB."""

_ENDED = 1000
"""Ended connections that the service keeps; all are searched."""

_CLEAR, _HOME, _END_OF_LINE, _REST = "\x1b[2J\x1b[H", "\x1b[H", "\x1b[K", "\x1b[J"


class Unreachable(CommandFailed):
    """The service did not answer; a later request may succeed."""


class AdminClient:
    """Requests lists from an admin endpoint.

    Args:
        url: its URL, ``http://127.0.0.1:9090``.
        token: sent as ``Authorization: Bearer``; None: no token is sent.

    Raises:
        CommandFailed: `url` is not such a URL.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            parts = urlsplit(self.url)
            self._port = parts.port
        except ValueError as error:
            raise CommandFailed(f"--admin {url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
            raise CommandFailed(f"--admin {url!r}: not a URL; allowed: http://127.0.0.1:9090")
        if parts.username is not None or parts.query or parts.fragment:
            raise CommandFailed(
                "--admin: the URL has a user name or a password, a query or a fragment"
            )
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname
        self._path = parts.path
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **parameters: object) -> dict[str, Any]:
        """Request a list; return it, or an object with the member ``error``.

        Raises:
            Unreachable: there was no response.
            CommandFailed: the response is not a list, or the service refuses the request.
        """
        given = {key: value for key, value in parameters.items() if value is not None}
        target = self._path + path + (f"?{urlencode(given)}" if given else "")
        connection = (HTTPSConnection if self._is_tls else HTTPConnection)(
            self._host, self._port, timeout=TIMEOUT
        )
        try:
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            body = response.read(_MAX_RESPONSE)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or "no response"
            raise Unreachable(
                f"{self.url}: {reason}; is topicsvc running, with this address in admin.listen?"
            ) from error
        finally:
            connection.close()
        return self._checked(response.status, body)

    def _checked(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and status in (200, 404):
            return found
        match status:
            case 404:
                why = "there are no lists; set inspect = true in [admin], and reload (SIGHUP)"
            case 401 | 403:
                why = f"{status}: it requires a token; give --token-file"
            case 503:
                error = found.get("error") if isinstance(found, dict) else None
                raise Unreachable(f"{self.url}: 503: {error or 'too many requests; try again'}")
            case 400 if isinstance(found, dict):
                why = str(found.get("error"))
            case _:
                why = f"{status}: this is not the admin endpoint of topicsvc"
        raise CommandFailed(f"{self.url}: {why}")


@dataclass(frozen=True, slots=True)
class Screen:
    """One list as text: a title and the lines of a table."""

    title: str
    lines: list[str]


def make_screen(client: AdminClient, options: Namespace) -> Screen:
    """Request the list that the options select.

    Raises:
        CommandFailed: see `AdminClient.get`; or the list has another form than expected.
    """
    try:
        return _MAKERS[options.view](client, options)
    except (KeyError, TypeError, ValueError) as error:
        raise CommandFailed(
            f"{client.url}: an unexpected answer; is it another version of topicsvc?"
        ) from error


def _topics(client: AdminClient, options: Namespace) -> Screen:
    if options.topic is None:
        sort = options.sort or SORTS[0]
        found = client.get("/topics", sort=sort, limit=options.limit)
        topics, total = found["topics"], found["total"]
        title = f"{_count(total, 'topic')}, those with the most {sort} first{_without(found)}"
    else:
        found = client.get(f"/topics{quote(options.topic)}")
        topics = [] if "error" in found else [found]
        sessions = found.get("sessions", 0)
        on_topic = f"{_count(sessions, 'session')} on {options.topic}{_without(found)}"
        title = found.get("error") or on_topic
    return Screen(
        title,
        table(
            ("SESSIONS", "MESSAGES/MIN", "BYTES/MIN", "QUEUED", "TOPIC"),
            [
                (
                    each["sessions"],
                    each["messages_per_minute"],
                    each["bytes_per_minute"],
                    each["queued_bytes"],
                    each["topic"],
                )
                for each in topics
            ],
            numbers=4,
        ),
    )


def _sessions(client: AdminClient, options: Namespace) -> Screen:
    found = client.get(
        "/sessions",
        topic=options.topic,
        address=options.address,
        subject=options.subject,
        limit=options.limit,
    )
    head = ("ID", "AGE", "EXPIRES IN", "MESSAGES", "QUEUED", "ADDRESS", "TOKEN", "SUBJECT", "TOPIC")
    rows = [
        (
            each["id"],
            _seconds(each["age"]),
            _seconds(each["expires_in"]),
            each["messages"],
            each["queued_bytes"],
            each["address"],
            each["token"],
            each["subject"],
            each["topic"],
        )
        for each in found["sessions"]
    ]
    title = _count(found["total"], "session") + _without(found)
    return Screen(title, table(head, rows, numbers=5))


def _ended(client: AdminClient, options: Namespace) -> Screen:
    found = client.get("/sessions/ended", limit=_ENDED)
    ended = [each for each in found["sessions"] if _matches(each, options)]
    rows = [
        (
            each["id"],
            _seconds(each["age"]),
            each["messages"],
            each["address"],
            each["token"],
            each["subject"],
            each["topic"],
            each["reason"] + (f" ({each['detail']})" if each["detail"] else ""),
        )
        for each in ended[: options.limit]
    ]
    head = ("ID", "AGE", "MESSAGES", "ADDRESS", "TOKEN", "SUBJECT", "TOPIC", "REASON")
    title = f"{_count(len(ended), 'ended connection')}, the last one first{_without(found)}"
    return Screen(title, table(head, rows, numbers=3))


def _senders(client: AdminClient, options: Namespace) -> Screen:
    found = client.get("/senders", limit=_ENDED)
    senders = [each for each in found["senders"] if _matches(each, options)]
    rows = [
        (each["sends_per_minute"], each["address"], each["subject"])
        for each in senders[: options.limit]
    ]
    head = ("MESSAGES/MIN", "ADDRESS", "SUBJECT")
    title = f"{_count(len(senders), 'sender')} in the last minute{_without(found)}"
    return Screen(title, table(head, rows, 1))


def _matches(item: dict[str, Any], options: Namespace) -> bool:
    """Whether an item of a list that the service does not filter is selected."""
    return all(
        wanted is None or key not in item or item[key] == wanted
        for key, wanted in (
            ("topic", options.topic),
            ("address", options.address),
            ("subject", options.subject),
        )
    )


def _without(found: dict[str, Any]) -> str:
    """Which workers are left out, for the title."""
    places = [str(int(each)) for each in found.get("unanswered", ())]
    return f" (no answer of worker {', '.join(places)})" if places else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _seconds(value: float | None) -> str | None:
    """A duration for people: ``59 s``, ``12:05`` or ``3:00:00``."""
    if value is None:
        return None
    minutes, seconds = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}" if minutes else f"{seconds} s"


_MAKERS: dict[str, Callable[[AdminClient, Namespace], Screen]] = {
    "topics": _topics,
    "sessions": _sessions,
    "ended": _ended,
    "senders": _senders,
}

_OPTIONS = {
    "topics": ("topic", "sort"),
    "sessions": ("topic", "address", "subject"),
    "ended": ("topic", "address", "subject"),
    "senders": ("address", "subject"),
}
"""The options that each list has."""


def check_options(options: Namespace) -> None:
    """Check that the options fit the list and one another.

    Raises:
        CommandFailed: they do not.
    """
    allowed = _OPTIONS[options.view]
    for name in ("topic", "sort", "address", "subject"):
        if getattr(options, name) is not None and name not in allowed:
            names = ", ".join(f"--{each}" for each in allowed)
            raise CommandFailed(f"{options.view} have no --{name}; allowed: {names}")
    if options.topic is not None:
        if options.sort is not None:
            raise CommandFailed("--topic and --sort exclude each other")
        try:
            TopicAddress.from_path(options.topic)
        except PathRefused as error:
            raise CommandFailed(f"--topic {options.topic!r}: {error}") from error


def run(options: Namespace) -> None:
    """Print a list once; to a terminal again and again, until it is interrupted.

    Raises:
        CommandFailed: the first request failed, or a later one was refused.
    """
    check_options(options)
    client = AdminClient(options.admin, _token(options))
    screen = make_screen(client, options)
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    if options.once or not is_terminal or os.environ.get("TERM") == "dumb":
        for line in (printable(screen.title), *screen.lines):
            print_line(line)
        return
    print_text(_CLEAR)
    while True:
        _draw(client.url, screen, shutil.get_terminal_size())
        time.sleep(options.interval)
        try:
            screen = make_screen(client, options)
        except Unreachable as error:  # the service may be restarting
            screen = Screen(error.lines[0], screen.lines)


def _draw(url: str, screen: Screen, size: os.terminal_size) -> None:
    """Draw a screen over the previous one, cut to the size of the terminal."""
    title = printable(f"{url}  {time.strftime('%H:%M:%S')}  {screen.title}")
    lines = [title, "", *screen.lines]
    # The last line stays empty: a line break there would scroll.
    shown = [fit(line, size.columns) for line in lines[: size.lines - 1]]
    text = _HOME + "".join(f"{line}{_END_OF_LINE}\n" for line in shown) + _REST
    encoding = sys.stdout.encoding
    print_text(text.encode(encoding, "backslashreplace").decode(encoding))


def _token(options: Namespace) -> str | None:
    if options.token_file is None:
        return None
    options.token = None
    from topicsvc.cli.client import find_token

    return find_token(options)
