"""Reads queries and JSON bodies of requests to the admin endpoint, strictly.

Each error names the key, what is wrong, and what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qsl, unquote

from topicsvc.admission.addresses import parse_network
from topicsvc.errors import PathRefused, TopicsvcError
from topicsvc.settings import Network
from topicsvc.strict_json import reject_constant, reject_duplicates
from topicsvc.topics import TopicAddress

__all__ = [
    "DEFAULT_LIMIT",
    "MAX_LIMIT",
    "MAX_REASON",
    "MAX_TOPICS",
    "SELECTORS",
    "SORTS",
    "TOPICS",
    "InvalidRequest",
    "Query",
    "read_end",
    "read_limit",
    "read_sessions",
    "read_topics",
    "topic_in_path",
]

DEFAULT_LIMIT = 100
"""Items of a list, if the query has no ``limit``."""

MAX_LIMIT = 1000
"""Most items of a list."""

MAX_TOPICS = 10_000
"""Most topics of a list for the parent of several workers, which merges their lists."""

SORTS = ("sessions", "messages", "bytes")
"""The orders of topics; the first one is the default."""

TOPICS = b"/topics/"
"""Begins the paths of the pages about one topic."""

MAX_REASON = 200
"""Most characters of the reason for which sessions are ended."""

SELECTORS = ("id", "subject", "topic", "address")
"""The members of a body that select sessions to end: exactly one of them."""

_TOPIC = "/cell1/box1/col/topic/name"
_ADDRESS = '"192.0.2.1", "10.0.0.0/8" or "2001:db8::/32"'


class InvalidRequest(TopicsvcError):
    """A request cannot be used; the text says what is allowed."""

    def __init__(self, key: str, wrong: str, allowed: str) -> None:
        super().__init__(f"{key}: {wrong}; allowed: {allowed}")


class Query:
    """The query of a URL.

    Args:
        query: the query, percent-encoded.
        allowed: the keys that are allowed.

    Raises:
        InvalidRequest: another key, a key that occurs twice, or not a query in UTF-8.
    """

    def __init__(self, query: bytes, allowed: Collection[str]) -> None:
        self._values: dict[str, str] = {}
        try:
            pairs = parse_qsl(
                query.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(query),
                errors="strict",
                max_num_fields=2 * len(SELECTORS),
            )
        except ValueError as error:
            raise InvalidRequest(
                "query", "not key=value pairs in UTF-8", _names(allowed)
            ) from error
        for key, value in pairs:
            if key not in allowed:
                raise InvalidRequest(_quoted(key), "there is no such key", _names(allowed))
            if key in self._values:
                raise InvalidRequest(key, "given twice", "once")
            self._values[key] = value

    def limit(self, most: int = MAX_LIMIT) -> int:
        """The key ``limit``, at most `most`."""
        text = self._values.get("limit", str(DEFAULT_LIMIT))
        is_number = text.isascii() and text.isdecimal() and len(text) < 10
        if not is_number or not 1 <= int(text) <= most:
            raise InvalidRequest(
                "limit", f"{_quoted(text)} is not valid", f"a whole number from 1 to {most}"
            )
        return int(text)

    def choice(self, key: str, allowed: Collection[str]) -> str:
        """A key with fixed values; the default is the first of `allowed`."""
        value = self._values.get(key, next(iter(allowed)))
        if value not in allowed:
            raise InvalidRequest(key, f"{_quoted(value)} is not one of these", _names(allowed))
        return value

    def text(self, key: str) -> str | None:
        """A key with any value; None: not given."""
        return self._values.get(key)

    def topic(self, key: str) -> TopicAddress | None:
        """A key with the path of a topic; None: not given."""
        value = self._values.get(key)
        return None if value is None else _topic(key, value)

    def network(self, key: str) -> Network | None:
        """A key with an address or a network; None: not given."""
        value = self._values.get(key)
        return None if value is None else _network(key, value)


def read_topics(query: bytes, most: int = MAX_LIMIT) -> tuple[str, int]:
    """Read the query of a list of topics.

    Args:
        query: the query, percent-encoded.
        most: the most items that it may ask for.

    Returns:
        One of `SORTS`, and the most items.

    Raises:
        InvalidRequest: the query cannot be used.
    """
    keys = Query(query, ("sort", "limit"))
    return keys.choice("sort", SORTS), keys.limit(most)


def read_sessions(query: bytes) -> tuple[dict[str, Any], int]:
    """Read the query of a list of sessions.

    Returns:
        The values of the `SELECTORS` that are given: see `read_end`; and the most items.

    Raises:
        InvalidRequest: the query cannot be used.
    """
    keys = Query(query, ("topic", "address", "subject", "limit"))
    wanted = {
        "topic": keys.topic("topic"),
        "subject": keys.text("subject"),
        "address": keys.network("address"),
    }
    return {key: value for key, value in wanted.items() if value is not None}, keys.limit()


def read_limit(query: bytes) -> int:
    """Read the query of a list that has a limit alone.

    Raises:
        InvalidRequest: the query cannot be used.
    """
    return Query(query, ("limit",)).limit()


def topic_in_path(path: bytes) -> TopicAddress | None:
    """The topic of a URL, percent-encoded behind `TOPICS`; None: it is not the path of a topic."""
    try:
        text = unquote(path.removeprefix(TOPICS).decode("ascii"), errors="strict")
        return TopicAddress.from_path(f"/{text}")
    except (ValueError, PathRefused):
        return None


def read_end(body: bytes) -> tuple[str, Any, str]:
    """Read the body of a request to end sessions.

    Returns:
        One of `SELECTORS`; its value: an integer, a string, a `TopicAddress` or a network; and the
        reason.

    Raises:
        InvalidRequest: not such a body.
    """
    allowed = f'{{"reason": ...}} and exactly one of {_names(SELECTORS)}'
    try:
        members = json.loads(
            body.decode("utf-8"),
            parse_constant=reject_constant,
            object_pairs_hook=reject_duplicates,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("body", "not JSON in UTF-8 with different keys", allowed) from error
    if not isinstance(members, dict):
        raise InvalidRequest("body", "not an object", allowed)
    for key in members:
        if key not in (*SELECTORS, "reason"):
            raise InvalidRequest(_quoted(key), "there is no such key", allowed)
    given = [key for key in SELECTORS if key in members]
    if len(given) != 1:
        raise InvalidRequest("body", f"{len(given)} of {_names(SELECTORS)}", allowed)
    reason = members.get("reason")
    if not isinstance(reason, str) or not 1 <= len(reason) <= MAX_REASON or not reason.strip():
        raise InvalidRequest("reason", "missing or not valid", f"1 to {MAX_REASON} characters")
    [key] = given
    return key, _selected(key, members[key]), reason


def _selected(key: str, value: Any) -> Any:
    if key == "id":
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidRequest("id", "not a whole number", "the number of a session, as listed")
        return value
    if not isinstance(value, str) or not value:
        raise InvalidRequest(key, "not a string with at least one character", "a string")
    if key == "topic":
        return _topic(key, value)
    return _network(key, value) if key == "address" else value


def _topic(key: str, text: str) -> TopicAddress:
    try:
        return TopicAddress.from_path(text)
    except PathRefused as error:
        raise InvalidRequest(key, f"{_quoted(text)}: {error}", f'"{_TOPIC}"') from error


def _network(key: str, text: str) -> Network:
    try:
        return parse_network(text)
    except ValueError as error:
        raise InvalidRequest(key, f"{_quoted(text)} is no address", _ADDRESS) from error


def _names(names: Collection[str]) -> str:
    return ", ".join(names) or "none"


def _quoted(text: str) -> str:
    return json.dumps(text[:80])
