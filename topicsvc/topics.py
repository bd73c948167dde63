"""Pure: which URL names which topic, and the one grammar of names.

A topic has four spellings, and this module is the only place that knows them::

    wss://cell1.unit1.example/__topic/box1/dir.col.topic.name       cell by host
    wss://unit1.example/cell1/__topic/box1/dir.col.topic.name       cell by path
    https://cell1.unit1.example/box1/dir/col/topic/name             where data is sent
    cell1.box1.dir.col.topic.name                                   in the broker

No name can hold a dot, so no two topics share a broker name, and none can hold a
character that a broker reads as a wildcard, a list or an option.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, unquote_to_bytes, urlsplit

from topicsvc.errors import HostRefused, PathRefused

__all__ = [
    "MAX_NAME",
    "MAX_PARTS",
    "ONE_HOST",
    "CellUrlStyle",
    "TopicAddress",
    "TopicPattern",
    "Unit",
]

CellUrlStyle = Literal["host", "path"]

MAX_PARTS = 16
"""Most parts of a path below the box, ``topic`` and the topic's name included."""

MAX_KEPT = 1024
"""Addresses of topics that are kept as they were read; the longest takes some 3 KB."""

MAX_NAME = 249
"""Most characters of a broker name: what Kafka allows."""

ONE_HOST = "exactly one Host header is needed"
"""What is wrong with a request that has another number of them."""

_CELL = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
_BOX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}|__")
_MAX_PART = 128
_LETTERS_AND_DIGITS = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"})
_WEBSOCKET_MARK = "__topic"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?|\[[0-9a-f:.]+\]")
_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:]*)(:(?P<port>[0-9]{1,5}))?")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_UNPRINTED = re.compile(rb"[^!-~]")


def _is_part(name: str) -> bool:
    if name.isascii() and name.isalnum():
        return len(name) <= _MAX_PART
    return 1 <= len(name) <= _MAX_PART and all(
        char in "_-" or unicodedata.category(char) in _LETTERS_AND_DIGITS for char in name
    )


@dataclass(frozen=True, slots=True)
class TopicAddress:
    """One topic. Every instance obeys the grammar; there is no other way to make one.

    Attributes:
        cell: ``[a-z0-9][a-z0-9-]{0,127}``.
        box: ``[A-Za-z0-9][A-Za-z0-9_-]{0,127}``, or ``__``, the main box.
        collection: the path of the stream collection below the box, at least one part.
        topic: the topic's name.

    Raises:
        PathRefused: a name outside the grammar, or too many or too long in all.
    """

    cell: str
    box: str
    collection: tuple[str, ...]
    topic: str

    def __post_init__(self) -> None:
        if not _CELL.fullmatch(self.cell):
            raise PathRefused("not a cell name")
        if not _BOX.fullmatch(self.box):
            raise PathRefused("not a box name")
        if not self.collection:
            raise PathRefused("no collection before the topic")
        if len(self.collection) + 2 > MAX_PARTS:
            raise PathRefused(f"more than {MAX_PARTS} parts")
        if not all(map(_is_part, (*self.collection, self.topic))):
            raise PathRefused("not a name of a collection or a topic")
        if len(self.broker_name) > MAX_NAME:
            raise PathRefused(f"more than {MAX_NAME} characters")

    @classmethod
    def from_parts(cls, cell: str, box: str, parts: list[str]) -> TopicAddress:
        """Build an address from the path below the box: ``[*collection, "topic", name]``.

        Raises:
            PathRefused: the last part but one is not ``topic``, or a bad name.
        """
        if len(parts) < 3 or parts[-2] != "topic":
            raise PathRefused("not the path of a topic")
        return cls(cell, box, tuple(parts[:-2]), parts[-1])

    @classmethod
    def from_path(cls, path: str) -> TopicAddress:
        """Read ``/cell1/box1/dir/col/topic/name``, as it is written in settings.

        Raises:
            PathRefused: anything else.
        """
        root, *segments = path.split("/")
        if root or len(segments) < 5:
            raise PathRefused("not /{cell}/{box}/{collection}/topic/{name}")
        return cls.from_parts(segments[0], segments[1], segments[2:])

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts: cell, box, collection, ``topic``, name."""
        return (self.cell, self.box, *self.collection, "topic", self.topic)

    @property
    def broker_name(self) -> str:
        """The name of this topic in the broker; injective, because no part holds a dot."""
        return ".".join(self.parts)

    @property
    def path(self) -> str:
        """``/cell1/box1/dir/col/topic/name``, as it is written in settings."""
        return "/" + "/".join(self.parts)

    @property
    def websocket_path(self) -> str:
        """The WebSocket URL's path with the cell by path, percent-encoded."""
        return quote(f"/{self.cell}/{_WEBSOCKET_MARK}/{self.box}/{'.'.join(self.parts[2:])}")

    @property
    def send_path(self) -> str:
        """The send URL's path with the cell by path, percent-encoded."""
        return quote(self.path)


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """Which topics a setting or a token speaks of: one path, or all below a ``/*``."""

    prefix: str
    exact: bool

    @classmethod
    def parse(cls, text: str) -> TopicPattern:
        """Read ``/cell1/box1/col/topic/name``, ``/cell1/box1/*`` or ``/*``.

        Raises:
            PathRefused: anything else; a ``*`` stands only alone, at the end.
        """
        if not text.endswith("/*"):
            return cls(TopicAddress.from_path(text).path, True)
        root, *segments = text[:-2].split("/")
        if root:
            raise PathRefused("a pattern begins with /")
        if segments and not _CELL.fullmatch(segments[0]):
            raise PathRefused("not a cell name")
        if len(segments) > 1 and not _BOX.fullmatch(segments[1]):
            raise PathRefused("not a box name")
        if not all(map(_is_part, segments[2:])):
            raise PathRefused("not a name of a collection")
        return cls(text[:-1], False)

    def matches(self, topic: TopicAddress) -> bool:
        """Whether this pattern speaks of `topic`."""
        return topic.path == self.prefix if self.exact else topic.path.startswith(self.prefix)


class Unit:
    """A Personium unit seen from outside: the hosts it answers to and the URLs of its cells.

    Args:
        url: the unit's own URL, ``https://unit1.example/``.
        hosts: the host names that are served; none: the host of `url` alone.
        cell_urls: how this unit writes the URL of a cell: ``host`` or ``path``.

    Raises:
        ValueError: `url` or a host cannot be used; the text says why.
    """

    __slots__ = ("_cell_urls", "_hosts", "_netloc", "_scheme", "_send", "_websocket")

    def __init__(
        self, url: str, hosts: Iterable[str] = (), cell_urls: CellUrlStyle = "host"
    ) -> None:
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise ValueError("not an http or https URL")
        if split.path not in ("", "/") or split.query or split.fragment or "@" in split.netloc:
            raise ValueError("a unit's URL is https://{host}[:{port}]/ and nothing more")
        try:
            # Reading the port is what makes urlsplit look at it.
            port = "" if split.port is None else f":{split.port}"
            if split.port == 0:
                raise ValueError
        except ValueError:
            raise ValueError("not a port number") from None
        self._scheme = split.scheme
        host = f"[{split.hostname}]" if ":" in split.hostname else split.hostname
        self._netloc = host + port
        self._hosts = frozenset(name.lower() for name in hosts) or frozenset({host})
        self._cell_urls = cell_urls
        # The same topics are asked for again and again. What is refused is not kept.
        self._websocket = lru_cache(MAX_KEPT)(self._websocket_topic)
        self._send = lru_cache(MAX_KEPT)(self._send_topic)
        for name in (host, *self._hosts):
            if not _HOST.fullmatch(name):
                raise ValueError(f"{name!r} is not a host name{_as_punycode(name)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unit) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    @property
    def _parts(self) -> tuple[object, ...]:
        return self._scheme, self._netloc, self._hosts, self._cell_urls

    @property
    def hosts(self) -> frozenset[str]:
        """The host names that are served, each also with a cell in front."""
        return self._hosts

    @property
    def url(self) -> str:
        """The unit's URL, with its closing slash."""
        return f"{self._scheme}://{self._netloc}/"

    def cell_url(self, cell: str) -> str:
        """The URL of a cell, with its closing slash."""
        if self._cell_urls == "host":
            return f"{self._scheme}://{cell}.{self._netloc}/"
        return f"{self.url}{cell}/"

    def cell_host(self, cell: str) -> str | None:
        """The host that is the cell's own; None: its URL stands below the unit's."""
        if self._cell_urls == "path":
            return None
        return f"{cell}.{self._netloc.partition(':')[0]}"

    def collection_url(self, topic: TopicAddress) -> str:
        """The URL of the stream collection that holds `topic`."""
        return self.cell_url(topic.cell) + quote("/".join((topic.box, *topic.collection)))

    def topic_url(self, topic: TopicAddress) -> str:
        """The URL that data is sent to."""
        return self.cell_url(topic.cell) + quote("/".join(topic.parts[1:]))

    def websocket_topic(self, hosts: Sequence[bytes] | None, path: bytes) -> TopicAddress:
        """Read the Host headers and the path of a WebSocket URL, in either form.

        Raises:
            HostRefused, PathRefused: it names no topic of this unit.
        """
        return self._websocket(_only(hosts), path)

    def _websocket_topic(self, host: bytes, path: bytes) -> TopicAddress:
        cell, segments = self._resolve(host, path)
        if len(segments) != 3 or segments[0] != _WEBSOCKET_MARK:
            raise PathRefused("not a WebSocket URL of a topic")
        return TopicAddress.from_parts(cell, segments[1], segments[2].split("."))

    def send_topic(self, hosts: Sequence[bytes] | None, path: bytes) -> TopicAddress:
        """Read the Host headers and the path of a send URL, in either form.

        Raises:
            HostRefused, PathRefused: it names no topic of this unit.
        """
        return self._send(_only(hosts), path)

    def _send_topic(self, host: bytes, path: bytes) -> TopicAddress:
        cell, segments = self._resolve(host, path)
        if not segments:
            raise PathRefused("not the URL of a topic")
        return TopicAddress.from_parts(cell, segments[0], segments[1:])

    def is_websocket_path(self, path: bytes) -> bool:
        """Whether a path is in the WebSocket side's part of the URL space."""
        return _WEBSOCKET_MARK.encode() in path.split(b"/")[1:3]

    def _resolve(self, host: bytes, path: bytes) -> tuple[str, list[str]]:
        """Find the cell that host and path name, and the path's segments below it."""
        cell = self._cell_of_host(host)
        segments = _segments(path)
        if cell is None:
            return segments[0], segments[1:]
        return cell, segments

    def _cell_of_host(self, header: bytes) -> str | None:
        try:
            host = header.decode("ascii").lower()
        except UnicodeDecodeError:
            raise HostRefused("not a host name") from None
        match = _AUTHORITY.fullmatch(host)
        if match is None or int(match["port"] or 0) > 65535:
            raise HostRefused("not a host name and a port")
        name = match["name"]
        if name in self._hosts:
            return None
        label, _, unit = name.partition(".")
        if unit in self._hosts and _CELL.fullmatch(label):
            return label
        raise HostRefused("this host is not served here")


def _as_punycode(name: str) -> str:
    """What to write instead of a name of another script (RFC 3492)."""
    return "" if name.isascii() else "; other scripts are written as xn--..."


def _only(hosts: Sequence[bytes] | None) -> bytes:
    """The one Host header.

    Raises:
        HostRefused: there is none, or more than one.
    """
    if hosts is None or len(hosts) != 1:
        raise HostRefused(ONE_HOST)
    return hosts[0]


def _segments(path: bytes) -> list[str]:
    """Split a request path and decode each segment once.

    Raises:
        PathRefused: not absolute, a bad escape, not UTF-8, or a character that a URL
            cannot hold unescaped.
    """
    if _UNPRINTED.search(path) or _BAD_ESCAPE.search(path):
        raise PathRefused("not a URL path")
    root, *segments = path.split(b"/")
    if root or not segments:
        raise PathRefused("not an absolute path")
    try:
        return [unquote_to_bytes(segment).decode("utf-8") for segment in segments]
    except UnicodeDecodeError:
        raise PathRefused("not UTF-8") from None
