"""Topic names and URLs, and the grammar of both.

A topic has four forms. No other module knows them::

    wss://cell1.unit1.example/__topic/box1/dir.col.topic.name       cell by host
    wss://unit1.example/cell1/__topic/box1/dir.col.topic.name       cell by path
    https://cell1.unit1.example/box1/dir/col/topic/name             send URL
    cell1.box1.dir.col.topic.name                                   name in the broker

No part of a name contains a dot, so no two topics share a broker name. No part contains a
character that a broker reads as a wildcard, a list or an option.

Names are compared by code points, as a unit and the brokers compare them. They are not normalized:
a collection whose name a unit has stored in NFD could not be found under its name in NFC.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, unquote_to_bytes, urlsplit
from weakref import WeakMethod

from topicsvc.errors import HostRefused, PathRefused

__all__ = [
    "MAX_NAME",
    "MAX_PARTS",
    "ONE_HOST",
    "SUBJECT",
    "CellUrlStyle",
    "SubjectPattern",
    "TopicAddress",
    "TopicPattern",
    "Unit",
]

CellUrlStyle = Literal["host", "path"]

MAX_PARTS = 16
"""Most parts of a path below the box, including ``topic`` and the topic's name."""

MAX_CACHED = 1024
"""Most parsed URLs that are cached; the longest takes some 3 KB."""

MAX_NAME = 249
"""Most characters of a broker name: Kafka's limit."""

SUBJECT = "{sub}"
"""Stands for the subject of a token in a `SubjectPattern`."""

ONE_HOST = "exactly one Host header is needed"
"""The error for a request with another number of ``Host`` headers."""

_CELL = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
_MAIN_BOX = "__"
_BOX = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,127}}|{_MAIN_BOX}")
_MAX_PART = 128
_LETTERS_AND_DIGITS = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"})
_MARKS = frozenset({"Mn", "Mc", "Me"})
"""Words of many scripts need marks behind letters, for example Hindi and Thai; so does NFD."""
_PART_CHARS = _LETTERS_AND_DIGITS | _MARKS
_WEBSOCKET_MARK = "__topic"
_WEBSOCKET_SEGMENT = _WEBSOCKET_MARK.encode()
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?|\[[0-9a-f:.]+\]")
_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:]*)(:(?P<port>[0-9]{1,5}))?")
_WITH_KEY = re.compile(r"(?P<name>[^()]+)\(.+\)", re.DOTALL)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NOT_VISIBLE_ASCII = re.compile(rb"[^!-~]")


def _is_part(name: str) -> bool:
    if name.isascii() and name.isalnum():
        return len(name) <= _MAX_PART
    return (
        1 <= len(name) <= _MAX_PART
        and all(char in "_-" or unicodedata.category(char) in _PART_CHARS for char in name)
        and unicodedata.category(name[0]) not in _MARKS
    )


@dataclass(frozen=True, slots=True)
class TopicAddress:
    """One topic. The constructor checks the grammar, so every instance is valid.

    Attributes:
        cell: ``[a-z0-9][a-z0-9-]{0,127}``.
        box: ``[A-Za-z0-9][A-Za-z0-9_-]{0,127}``, or ``__``, the main box.
        collection: the path of the stream collection below the box, at least one part.
        topic: the topic's name.
        path: ``/cell1/box1/dir/col/topic/name``, the form used in settings.

    Raises:
        PathRefused: a part is outside the grammar, or there are too many parts, or they are
            too long together.
    """

    cell: str
    box: str
    collection: tuple[str, ...]
    topic: str
    path: str = field(init=False, repr=False, compare=False)

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
        # Each use of a token compares it.
        object.__setattr__(self, "path", "/" + "/".join(self.parts))

    @classmethod
    def from_parts(cls, cell: str, box: str, parts: list[str]) -> TopicAddress:
        """Make an address from the path below the box: ``[*collection, "topic", name]``.

        Raises:
            PathRefused: the last part but one is not ``topic``, or a part is outside the grammar.
        """
        if len(parts) < 3 or parts[-2] != "topic":
            raise PathRefused("not the path of a topic")
        return cls(cell, box, tuple(parts[:-2]), parts[-1])

    @classmethod
    def from_path(cls, path: str) -> TopicAddress:
        """Parse ``/cell1/box1/dir/col/topic/name``, the form used in settings.

        Raises:
            PathRefused: `path` has another form, or a part is outside the grammar.
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
        """The name of this topic in the broker; unique, because no part contains a dot."""
        return ".".join(self.parts)

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
    """The topics that a setting or a token refers to: one path, or all below a ``/*``.

    Attributes:
        prefix: the path, without the ``*``.
        exact: whether only the topic with this path matches.
    """

    prefix: str
    exact: bool

    @classmethod
    def parse(cls, text: str) -> TopicPattern:
        """Parse ``/cell1/box1/col/topic/name``, ``/cell1/box1/*`` or ``/*``.

        Raises:
            PathRefused: `text` has another form. A ``*`` is allowed only as the last segment.
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

    def __str__(self) -> str:
        return self.prefix if self.exact else f"{self.prefix}*"

    def matches(self, topic: TopicAddress) -> bool:
        """Whether this pattern covers `topic`."""
        return topic.path == self.prefix if self.exact else topic.path.startswith(self.prefix)


@dataclass(frozen=True, slots=True)
class SubjectPattern:
    """A pattern with ``{sub}`` in place of whole parts: each subject has topics of its own.

    Attributes:
        text: the pattern, such as ``/{sub}/inbox/*``.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> SubjectPattern:
        """Parse ``/{sub}/inbox/*`` or ``/cell1/box1/col/topic/{sub}``.

        Raises:
            PathRefused: without ``{sub}``, `text` is no pattern; or ``{sub}`` is a piece of a
                part, or in a place that allows only the part ``topic``.
        """
        if SUBJECT not in text.split("/"):
            raise PathRefused(f"{SUBJECT} must be a whole part")
        TopicPattern.parse(_with_subject(text, "x"))
        return cls(text)

    def __str__(self) -> str:
        return self.text

    def of(self, subject: str) -> TopicPattern | None:
        """The pattern of one subject; None: the subject cannot stand in a topic's name."""
        # With a slash or a star it would cover other topics; the main box is no user's.
        if not _is_part(subject) or subject == _MAIN_BOX:
            return None
        try:
            return TopicPattern.parse(_with_subject(self.text, subject))
        except PathRefused:
            return None


def _with_subject(text: str, subject: str) -> str:
    return "/".join(subject if part == SUBJECT else part for part in text.split("/"))


_Lookup = Callable[[bytes, bytes], TopicAddress]


def _weak(method: _Lookup) -> _Lookup:
    """Return a function that calls a method and does not keep its object.

    With the method itself in an attribute, each object would be a reference cycle.
    """
    reference = WeakMethod(method)

    def call(host: bytes, path: bytes) -> TopicAddress:
        found = reference()
        assert found is not None  # noqa: S101 - only the object calls this
        return found(host, path)

    return call


class Unit:
    """The public hosts and URLs of a Personium unit.

    Args:
        url: the unit's own URL, ``https://unit1.example/``.
        hosts: the host names that are served; empty: only the host of `url`.
        cell_urls: where the unit's URLs have the cell: in the ``host`` or the ``path``.

    Raises:
        ValueError: `url` or a host is not usable; the message explains why.
    """

    __slots__ = ("__weakref__", "_cell_urls", "_hosts", "_netloc", "_scheme", "_send", "_websocket")

    def __init__(
        self, url: str, hosts: Iterable[str] = (), cell_urls: CellUrlStyle = "host"
    ) -> None:
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise ValueError("not an http or https URL")
        if split.path not in ("", "/") or split.query or split.fragment or "@" in split.netloc:
            raise ValueError("a unit's URL is https://{host}[:{port}]/ and nothing more")
        try:
            # Reading the attribute makes urlsplit check the port.
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
        # Requests repeat the same URLs. lru_cache does not keep exceptions, so refused URLs
        # take no memory.
        self._websocket = lru_cache(MAX_CACHED)(_weak(self._websocket_topic))
        self._send = lru_cache(MAX_CACHED)(_weak(self._send_topic))
        for name in (host, *self._hosts):
            if not _HOST.fullmatch(name):
                raise ValueError(f"{name!r} is not a host name{_as_punycode(name)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unit) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes it equal to another."""
        return self._scheme, self._netloc, self._hosts, self._cell_urls

    @property
    def hosts(self) -> frozenset[str]:
        """The host names that are served, each also with a cell as first label."""
        return self._hosts

    @property
    def scheme(self) -> str:
        """The scheme of the unit's URL: ``https`` or ``http``."""
        return self._scheme

    @property
    def url(self) -> str:
        """The unit's URL, with a trailing slash."""
        return f"{self._scheme}://{self._netloc}/"

    def cell_url(self, cell: str) -> str:
        """The URL of a cell, with a trailing slash."""
        if self._cell_urls == "host":
            return f"{self._scheme}://{cell}.{self._netloc}/"
        return f"{self.url}{cell}/"

    def cell_host(self, cell: str) -> str | None:
        """The cell's own host; None: the unit's URLs have the cell in the path."""
        if self._cell_urls == "path":
            return None
        return f"{cell}.{self._netloc.partition(':')[0]}"

    def collection_url(self, topic: TopicAddress) -> str:
        """The URL of the stream collection that contains `topic`."""
        return self.cell_url(topic.cell) + quote("/".join((topic.box, *topic.collection)))

    def topic_url(self, topic: TopicAddress) -> str:
        """The send URL of `topic`."""
        return self.cell_url(topic.cell) + quote("/".join(topic.parts[1:]))

    def websocket_topic(self, hosts: Sequence[bytes] | None, path: bytes) -> TopicAddress:
        """Parse the Host headers and the path of a WebSocket URL, with the cell in either place.

        Raises:
            HostRefused: there is not exactly one Host header, or it is not this unit's.
            PathRefused: the path is not that of a topic.
        """
        return self._websocket(_only(hosts), path)

    def _websocket_topic(self, host: bytes, path: bytes) -> TopicAddress:
        cell, segments = self._resolve(host, path)
        if len(segments) != 3 or segments[0] != _WEBSOCKET_MARK:
            raise PathRefused("not a WebSocket URL of a topic")
        return TopicAddress.from_parts(cell, segments[1], segments[2].split("."))

    def send_topic(self, hosts: Sequence[bytes] | None, path: bytes) -> TopicAddress:
        """Parse the Host headers and the path of a send URL, with the cell in either place.

        Raises:
            HostRefused: there is not exactly one Host header, or it is not this unit's.
            PathRefused: the path is not that of a topic.
        """
        return self._send(_only(hosts), path)

    def _send_topic(self, host: bytes, path: bytes) -> TopicAddress:
        cell, segments = self._resolve(host, path)
        if not segments:
            raise PathRefused("not the URL of a topic")
        return TopicAddress.from_parts(cell, segments[0], segments[1:])

    def origin(self, hosts: Sequence[bytes] | None) -> str:
        """The URL of the unit or of a cell, as the Host headers name it, with a trailing slash.

        Raises:
            HostRefused: there is not exactly one Host header, or it is not this unit's.
        """
        cell = self._cell_of_host(_only(hosts))
        return self.url if cell is None else f"{self._scheme}://{cell}.{self._netloc}/"

    def is_websocket_path(self, path: bytes) -> bool:
        """Whether `path` is a WebSocket URL's."""
        return _WEBSOCKET_SEGMENT in path and _WEBSOCKET_SEGMENT in path.split(b"/")[1:3]

    def send_topic_with_key(self, hosts: Sequence[bytes] | None, path: bytes) -> TopicAddress:
        """Parse a send URL that ends with a key: ``.../topic/name('key')``.

        The rules of a unit send so when they relay changes of data. The key has no meaning.
        The result is not cached, because there are many keys.

        Raises:
            HostRefused, PathRefused: see `send_topic`.
        """
        cell, segments = self._resolve(_only(hosts), path)
        match = _WITH_KEY.fullmatch(segments[-1]) if segments else None
        if match is None:
            raise PathRefused("not the URL of a topic")
        return TopicAddress.from_parts(cell, segments[0], [*segments[1:-1], match["name"]])

    def _resolve(self, host: bytes, path: bytes) -> tuple[str, list[str]]:
        """Return the cell that host and path name, and the path's segments below it."""
        cell = self._cell_of_host(host)
        segments = _segments(path)
        if len(segments) > 1 and not segments[-1]:
            segments.pop()  # one slash at the end
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
    """A hint for host names that are not ASCII (RFC 3492)."""
    return "" if name.isascii() else "; other scripts are written as xn--..."


def _only(hosts: Sequence[bytes] | None) -> bytes:
    """Return the only Host header.

    Raises:
        HostRefused: there is none, or more than one.
    """
    if hosts is None or len(hosts) != 1:
        raise HostRefused(ONE_HOST)
    return hosts[0]


def _segments(path: bytes) -> list[str]:
    """Split a request path and decode each segment once.

    Raises:
        PathRefused: the path is not absolute, has an invalid escape or a character that must
            be escaped, or is not UTF-8.
    """
    if _NOT_VISIBLE_ASCII.search(path) or _BAD_ESCAPE.search(path):
        raise PathRefused("not a URL path")
    root, *segments = path.split(b"/")
    if root or not segments:
        raise PathRefused("not an absolute path")
    try:
        return [unquote_to_bytes(segment).decode("utf-8") for segment in segments]
    except UnicodeDecodeError:
        raise PathRefused("not UTF-8") from None
