"""Pure: what a unit's PROPFIND answer says about a stream collection (RFC 4918, section 14)."""

from __future__ import annotations

import re
from xml.parsers.expat import ExpatError, ParserCreate, XMLParserType

from topicsvc.errors import ValidatorUnavailable

__all__ = ["MAX_ATTRIBUTES", "MAX_ATTRIBUTE_LENGTH", "MAX_DEPTH", "has_topic"]

MAX_DEPTH = 32
"""Levels of elements; the answer that is looked for has seven."""

MAX_ATTRIBUTES = 32
"""Attributes of one element, declarations of namespaces included; a unit's has three."""

MAX_ATTRIBUTE_LENGTH = 256
"""Characters in the name or the value of an attribute.

A namespace is written out in front of every name that has its prefix: a long one with many
such names is seconds of work and a gigabyte of memory.
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
    """Whether `body` tells of a stream collection in which `topic` is registered.

    Only properties under status 200 count. Namespaces count, prefixes do not. What is missing
    because the unit failed to look for it may be there all the same.

    Args:
        body: a 207 answer to a PROPFIND of depth 0.
        content_type: its header; a charset in it goes before what the XML says of itself.
        topic: the name to look for, letter by letter.

    Raises:
        ValidatorUnavailable: not XML, or XML with what no unit sends: a document type,
            which is where entities come from; more than one resource; elements within a
            status or a name; too deep; too many or too long attributes. Or no yes, and a
            status of 5xx inside.
    """
    match = _CHARSET.search(content_type)
    charset = None if match is None else match[1]
    try:
        _look_over(body, charset)
        return _Reader(charset).read(body, topic)
    except _Refused as error:
        raise ValidatorUnavailable(f"PROPFIND: {error}") from None
    except (ExpatError, LookupError, ValueError):
        raise ValidatorUnavailable("PROPFIND: not XML") from None


class _Refused(Exception):
    """XML of a kind that is not read."""


def _look_over(body: bytes, charset: str | None) -> None:
    """Refuse what no unit sends, before names are read with their namespaces.

    Raises:
        _Refused, ExpatError, LookupError, ValueError: it is not to be read.
    """
    depth = 0

    def refuse_doctype(*_: object) -> None:
        raise _Refused("a document type")

    def start(_: str, attributes: list[str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _Refused("nested too deep")
        if len(attributes) > 2 * MAX_ATTRIBUTES:
            raise _Refused("too many attributes")
        if any(len(text) > MAX_ATTRIBUTE_LENGTH for text in attributes):
            raise _Refused("a long attribute")

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
    """Follows the parser through the elements."""

    def __init__(self, charset: str | None) -> None:
        # Nothing is interned: that would keep each name, with its namespace, to the end.
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
            raise _Refused("a status of 5xx inside")
        return False

    def _begin_propstat(self) -> None:
        self._status = ""
        self._found_stream = False
        self._found_topics: set[str] = set()

    def _start(self, name: str, _: object) -> None:
        if self._path in (_TOPIC, _STATUS):
            raise _Refused("an element within a text")
        self._path += (name,)
        self._text = ""
        if self._path == _PROPSTAT:
            self._begin_propstat()
        elif self._path == _STREAM:
            self._found_stream = True
        elif self._path == _RESPONSE:
            self._responses += 1
            if self._responses > 1:
                raise _Refused("more than one resource")

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
