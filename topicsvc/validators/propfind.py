"""Reads a unit's PROPFIND response about a stream collection (RFC 4918, section 14).

The owner of a collection decides how many topics it has, and can add properties of any kind. So
the response is read while it arrives, unknown properties are skipped, and the bounds here only
limit the work and the memory for one response.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from xml.parsers.expat import ExpatError, ParserCreate, XMLParserType

from topicsvc.errors import CollectionUnreadable, ValidatorUnavailable

__all__ = ["MAX_DEPTH", "MAX_PARTS", "MAX_PROPERTIES", "MAX_TAG", "TopicReader"]

MAX_PROPERTIES: Final = 4194304
"""Most bytes of a response. A topic with a name of 20 characters takes some 60."""

MAX_PARTS: Final = 65536
"""Most elements and attributes: the parser keeps each new name, and each takes 1 µs."""

MAX_DEPTH: Final = 10000
"""Most levels of elements: the parser keeps each open one, in some 150 bytes."""

MAX_TAG: Final = 131072
"""Most bytes of a tag, a comment or a processing instruction: the parser keeps it as a whole."""

_SLICE = 16384
"""Bytes that the parser gets at once. For each, it reads an incomplete tag again."""

_MAX_TEXT = 1024
"""Most characters of a name or a status. A name has at most 128."""

_DAV = "DAV:"
_PERSONIUM = "urn:x-personium:xmlns"

_CHARSET = re.compile(r'charset\s*=\s*"?([A-Za-z0-9._-]+)', re.IGNORECASE)


class _Node:
    """A kind of element that is read.

    Attributes:
        children: the elements in it that are read, by namespace and local name.
        has_text: whether its text is read.
    """

    __slots__ = ("children", "has_text")

    def __init__(
        self, children: Mapping[tuple[str, str], _Node] | None = None, has_text: bool = False
    ) -> None:
        self.children = children or {}
        self.has_text = has_text


_STREAM = _Node()
_TOPIC = _Node(has_text=True)
_STATUS = _Node(has_text=True)
_PROP = _Node(
    {
        (_DAV, "resourcetype"): _Node({(_PERSONIUM, "stream"): _STREAM}),
        (_PERSONIUM, "topics"): _Node({(_PERSONIUM, "topic"): _TOPIC}),
    }
)
_PROPSTAT = _Node({(_DAV, "prop"): _PROP, (_DAV, "status"): _STATUS})
_RESPONSE = _Node({(_DAV, "propstat"): _PROPSTAT, (_DAV, "status"): _STATUS})
_ROOT = _Node({(_DAV, "multistatus"): _Node({(_DAV, "response"): _RESPONSE})})


class _Unacceptable(Exception):
    """Something that no unit sends, or that exceeds a bound."""


class TopicReader:
    """Finds out whether a response describes a stream collection with a certain topic.

    Only properties with status 200 count. Namespaces are compared, prefixes are not.

    Args:
        topic: the name of the topic; case matters.
        content_type: the header; its charset takes precedence over the one in the XML.
    """

    def __init__(self, topic: str, content_type: str) -> None:
        match = _CHARSET.search(content_type)
        # The elements do not refer to the parser. In a reference cycle, its memory would stay
        # until the next garbage collection.
        self._elements = _Elements(topic)
        # Without namespaces, which are looked up by the elements. The parser would write the
        # namespace in front of every name: a long one takes a gigabyte of memory.
        self._parser: XMLParserType = ParserCreate(None if match is None else match[1], None, None)
        self._parser.buffer_text = True
        self._parser.ordered_attributes = True
        self._parser.StartDoctypeDeclHandler = _refuse_doctype
        self._parser.StartElementHandler = self._elements.start
        self._parser.EndElementHandler = self._elements.end
        self._parser.CharacterDataHandler = self._elements.take_text
        self._buffer = bytearray()
        self._fed = 0

    def feed(self, data: bytes) -> None:
        """Read more bytes.

        Raises:
            CollectionUnreadable: they are not XML, have a document type (the source of
                entities), describe more than one resource, or exceed a bound.
        """
        self._buffer += data
        while len(self._buffer) >= _SLICE:
            piece = bytes(self._buffer[:_SLICE])
            del self._buffer[:_SLICE]
            self._parse(piece, False)

    def close(self) -> bool:
        """Return whether the topic is registered, after all bytes.

        Raises:
            CollectionUnreadable: as above, or the XML is not complete.
            ValidatorUnavailable: the topic is missing and a status is 5xx, so the unit may have
                failed to look for it.
        """
        self._parse(bytes(self._buffer), True)
        return self._elements.result()

    def _parse(self, piece: bytes, is_last: bool) -> None:
        self._fed += len(piece)
        if self._fed > MAX_PROPERTIES:
            raise CollectionUnreadable(f"PROPFIND: a body of more than {MAX_PROPERTIES} bytes")
        try:
            self._parser.Parse(piece, is_last)
            if self._fed - self._parser.CurrentByteIndex > MAX_TAG:
                raise _Unacceptable(f"a tag of more than {MAX_TAG} bytes")
        except _Unacceptable as error:
            raise CollectionUnreadable(f"PROPFIND: {error}") from None
        except (ExpatError, LookupError, ValueError):
            raise CollectionUnreadable("PROPFIND: not XML") from None


def _refuse_doctype(*_: object) -> None:
    raise _Unacceptable("a document type")


class _Elements:
    """Takes the elements of a response, and keeps what matters of them."""

    __slots__ = (
        "_depth",
        "_found_stream",
        "_found_topic",
        "_has_topic",
        "_is_stream",
        "_last_topic",
        "_parts",
        "_path",
        "_prefixes",
        "_responses",
        "_skipped",
        "_status",
        "_text",
        "_topic",
        "_unit_failed",
    )

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._parts = 0
        self._depth = 0
        self._skipped = 0  # levels of an element that is not read
        self._path = [_ROOT]
        self._prefixes: list[dict[str, str]] = [{}]  # those that each element of the path declares
        self._last_topic = ""  # the tag of the topic before, if a sibling with this tag is one too
        self._text: str | None = None  # None: it is not read
        self._responses = 0
        self._unit_failed = False
        self._status = ""
        self._found_stream = self._found_topic = False
        self._is_stream = self._has_topic = False

    def result(self) -> bool:
        """See `TopicReader.close`."""
        if self._is_stream and self._has_topic:
            return True
        if self._unit_failed:
            raise ValidatorUnavailable("PROPFIND: a status of 5xx inside")
        return False

    def start(self, name: str, attributes: list[str]) -> None:
        """Take a start tag.

        Args:
            name: with its prefix.
            attributes: names and values in turn.
        """
        self._parts += 1 + len(attributes) // 2
        self._depth += 1
        if self._parts > MAX_PARTS:
            raise _Unacceptable(f"more than {MAX_PARTS} elements and attributes")
        if self._depth > MAX_DEPTH:
            raise _Unacceptable(f"more than {MAX_DEPTH} levels of elements")
        if self._skipped:
            self._skipped += 1
        elif name == self._last_topic and not attributes:
            self._enter(_TOPIC, _NOTHING)
        else:
            self._last_topic = ""
            self._find(name, _declared(attributes) if attributes else _NOTHING)

    def _find(self, name: str, declared: dict[str, str]) -> None:
        """Find out whether an element is read; `declared` has the namespaces that it declares."""
        parent = self._path[-1]
        self._prefixes.append(declared)
        node = parent.children.get(self._resolve(name))
        self._prefixes.pop()
        if node is not None:
            self._enter(node, declared)
            return
        if parent is _ROOT:
            raise _Unacceptable("another root than multistatus")
        if parent is _STATUS:
            raise _Unacceptable("an element within a status")
        if parent is _TOPIC:
            self._text = None  # not a name
        self._skipped = 1

    def _enter(self, node: _Node, declared: dict[str, str]) -> None:
        """Read an element of a known kind."""
        self._path.append(node)
        self._prefixes.append(declared)
        self._text = "" if node.has_text else None
        if node is _PROPSTAT:
            self._status = ""
            self._found_stream = self._found_topic = False
        elif node is _STREAM:
            self._found_stream = True
        elif node is _RESPONSE:
            self._responses += 1
            if self._responses > 1:
                raise _Unacceptable("more than one resource")

    def _resolve(self, name: str) -> tuple[str, str]:
        """Return the namespace of an element, and its name without the prefix."""
        prefix, _, local = name.rpartition(":")
        for declared in reversed(self._prefixes):
            if prefix in declared:
                return declared[prefix], local
        return "", name

    def end(self, name: str) -> None:
        """Take an end tag."""
        self._depth -= 1
        if self._skipped:
            self._skipped -= 1
            return
        node = self._path.pop()
        declared = self._prefixes.pop()
        self._last_topic = ""
        if node is _TOPIC:
            self._found_topic |= self._text == self._topic
            if not declared:
                self._last_topic = name
        elif node is _STATUS:
            # HTTP/1.1 200 OK
            self._status = "".join((self._text or "").split()[1:2])
            self._unit_failed |= self._status.startswith("5")
        elif node is _PROPSTAT and self._status == "200":
            self._is_stream |= self._found_stream
            self._has_topic |= self._found_topic
        self._text = None

    def take_text(self, text: str) -> None:
        """Take text between tags."""
        if self._text is not None and not self._skipped:
            self._text = self._text + text if len(self._text) + len(text) <= _MAX_TEXT else None


_NOTHING: dict[str, str] = {}


def _declared(attributes: list[str]) -> dict[str, str]:
    """Return the namespaces that attributes declare, by prefix; the default one by ``""``."""
    return {
        name[6:]: value
        for name, value in zip(attributes[::2], attributes[1::2], strict=True)
        if name == "xmlns" or name.startswith("xmlns:")
    }
