"""Reads a unit's PROPFIND response about a stream collection (RFC 4918, section 14)."""

from __future__ import annotations

import re
from xml.parsers.expat import ExpatError, ParserCreate, XMLParserType

from topicsvc.errors import ValidatorUnavailable

__all__ = ["MAX_ATTRIBUTES", "MAX_ATTRIBUTE_LENGTH", "MAX_DEPTH", "has_topic"]

MAX_DEPTH = 32
"""Most levels of elements; a unit's response has seven."""

MAX_ATTRIBUTES = 32
"""Most attributes of an element, with namespace declarations; a unit's has three."""

MAX_ATTRIBUTE_LENGTH = 256
"""Most characters in the name or the value of an attribute.

The parser writes the namespace in front of every name that has its prefix. A long namespace
with many such names would take seconds, and a gigabyte of memory.
"""

_DAV = "DAV:"
_PERSONIUM = "urn:x-personium:xmlns"

_RESPONSE = (f"{_DAV} multistatus", f"{_DAV} response")
_PROPSTAT = (*_RESPONSE, f"{_DAV} propstat")
_STATUS = (*_PROPSTAT, f"{_DAV} status")
_STATUS_OF_ALL = (*_RESPONSE, f"{_DAV} status")
_STREAM = (*_PROPSTAT, f"{_DAV} prop", f"{_DAV} resourcetype", f"{_PERSONIUM} stream")
_TOPIC = (*_PROPSTAT, f"{_DAV} prop", f"{_PERSONIUM} topics", f"{_PERSONIUM} topic")

_CHARSET = re.compile(r'charset\s*=\s*"?([A-Za-z0-9._-]+)', re.IGNORECASE)


def has_topic(body: bytes, content_type: str, topic: str) -> bool:
    """Whether `body` describes a stream collection in which `topic` is registered.

    Only properties with status 200 count. Namespaces are compared, prefixes are not. If the
    topic is missing but a status is 5xx, the unit may have failed to look for it.

    Args:
        body: the body of a 207 response to a PROPFIND of depth 0.
        content_type: the header; its charset takes precedence over the one in the XML.
        topic: the name of the topic; case matters.

    Raises:
        ValidatorUnavailable: `body` is not XML; it has something that no unit sends, such as
            a document type (the source of entities), more than one resource, elements within
            a status or a name, deep nesting, or too many or too long attributes; or the topic
            is missing and a status is 5xx.
    """
    match = _CHARSET.search(content_type)
    charset = None if match is None else match[1]
    try:
        _check_syntax(body, charset)
        return _Reader(charset).read(body, topic)
    except _Unacceptable as error:
        raise ValidatorUnavailable(f"PROPFIND: {error}") from None
    except (ExpatError, LookupError, ValueError):
        raise ValidatorUnavailable("PROPFIND: not XML") from None


class _Unacceptable(Exception):
    """XML that no unit sends, or a failure of the unit."""


def _check_syntax(body: bytes, charset: str | None) -> None:
    """Refuse what no unit sends, before another parser writes out the namespaces.

    Raises:
        _Unacceptable, ExpatError, LookupError, ValueError: `body` must not be read.
    """
    depth = 0

    def refuse_doctype(*_: object) -> None:
        raise _Unacceptable("a document type")

    def start(_: str, attributes: list[str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _Unacceptable("elements nested too deeply")
        if len(attributes) > 2 * MAX_ATTRIBUTES:
            raise _Unacceptable("too many attributes")
        if any(len(text) > MAX_ATTRIBUTE_LENGTH for text in attributes):
            raise _Unacceptable("too long an attribute")

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser = ParserCreate(charset)
    parser.ordered_attributes = True
    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.Parse(body, True)


class _Reader:
    """Collects the topics of a stream collection."""

    def __init__(self, charset: str | None) -> None:
        # Without an intern table: it would keep each name with its namespace to the end.
        self._parser: XMLParserType = ParserCreate(charset, " ", None)
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._take_text
        self._path: tuple[str, ...] = ()
        self._text = ""
        self._responses = 0
        self._unit_failed = False
        self._begin_propstat()
        self._is_stream = False
        self._topics: set[str] = set()

    def read(self, body: bytes, topic: str) -> bool:
        self._parser.Parse(body, True)
        if self._is_stream and topic in self._topics:
            return True
        if self._unit_failed:
            raise _Unacceptable("a status of 5xx inside")
        return False

    def _begin_propstat(self) -> None:
        self._status = ""
        self._found_stream = False
        self._found_topics: set[str] = set()

    def _start(self, name: str, _: object) -> None:
        if self._path in (_TOPIC, _STATUS):
            raise _Unacceptable("an element within a name or a status")
        self._path += (name,)
        self._text = ""
        if self._path == _PROPSTAT:
            self._begin_propstat()
        elif self._path == _STREAM:
            self._found_stream = True
        elif self._path == _RESPONSE:
            self._responses += 1
            if self._responses > 1:
                raise _Unacceptable("more than one resource")

    def _end(self, _: str) -> None:
        if self._path == _TOPIC:
            self._found_topics.add(self._text)
        elif self._path in (_STATUS, _STATUS_OF_ALL):
            # HTTP/1.1 200 OK
            self._status = "".join(self._text.split()[1:2])
            self._unit_failed |= self._status.startswith("5")
        elif self._path == _PROPSTAT and self._status == "200":
            self._is_stream |= self._found_stream
            self._topics |= self._found_topics
        self._path = self._path[:-1]

    def _take_text(self, text: str) -> None:
        self._text += text
