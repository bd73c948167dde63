"""PROPFIND responses are read strictly."""

from __future__ import annotations

import contextlib
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fake_unit import (
    ENTITY_BOMB,
    EXTERNAL_ENTITY,
    NAMESPACE_BOMB,
    PREFIX_BOMB,
    multistatus,
)
from topicsvc.errors import CollectionUnreadable, ValidatorUnavailable
from topicsvc.validators.propfind import (
    MAX_DEPTH,
    MAX_PARTS,
    MAX_PROPERTIES,
    MAX_TAG,
    TopicReader,
)

XML = "application/xml"

GOOD = multistatus(["name", "other"]).decode()
DECLARED = f'<?xml version="1.0" encoding="UTF-8"?>{GOOD}'


PREFIXED = """<D:multistatus xmlns:D="DAV:" xmlns:q="urn:x-personium:xmlns"><D:response>
<D:propstat><D:prop><D:resourcetype><q:stream/></D:resourcetype><q:topics><q:topic>name</q:topic>
</q:topics></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
</D:multistatus>"""


def has_topic(body: bytes, content_type: str, topic: str, piece: int = 1000) -> bool:
    """Read a body that arrives in pieces."""
    reader = TopicReader(topic, content_type)
    for at in range(0, len(body), piece):
        reader.feed(body[at : at + piece])
    return reader.close()


def in_root(body: bytes) -> bytes:
    return b"<multistatus xmlns='DAV:'>%s</multistatus>" % body


def with_property(text: str) -> bytes:
    """A response with a further property."""
    return multistatus(["name"], more=text)


class FoundTests(SynchronousTestCase):
    def assert_found(self, body: bytes, content_type: str = XML, topic: str = "name") -> None:
        self.assertTrue(has_topic(body, content_type, topic))

    def test_the_response_of_a_unit(self) -> None:
        self.assert_found(GOOD.encode())
        self.assert_found(GOOD.encode(), topic="other")
        self.assert_found(DECLARED.encode())

    def test_the_response_to_a_token_with_all_rights(self) -> None:
        body = multistatus(["name"], reads_acl=True)
        self.assertIn(b"<acl xml:base=", body)
        self.assert_found(body)

    def test_a_body_may_arrive_in_any_pieces(self) -> None:
        for piece in (1, 7, 16384, 65536):
            self.assertTrue(has_topic(GOOD.encode(), XML, "other", piece))

    def test_twenty_thousand_topics(self) -> None:
        for length in (7, 128):
            body = multistatus([f"{number:0{length}}" for number in range(20000)])
            self.assertGreater(len(body), 900_000)
            self.assertTrue(has_topic(body, XML, f"{19999:0{length}}", 65536))
            self.assertFalse(has_topic(body, XML, f"{20000:0{length}}", 65536))

    def test_unknown_properties_of_any_form_are_skipped(self) -> None:
        for text in (
            f"<x a='{'y' * 300}'/>",
            f"<x a='{'y' * 100_000}'/>",
            f"<x {' '.join(f'a{number}=' + chr(39) * 2 for number in range(1000))}/>",
            f"<x xmlns:p='{'y' * 1000}'>{'<p:x/>' * 1000}</x>",
            "<x>" * 40 + "</x>" * 40,
            "<x>" * 5000 + "</x>" * 5000,
            f"<x>{'y' * 1_000_000}</x>",
            f"<x>{'<y>z</y>' * 20_000}</x>",
            "<x><topics xmlns='urn:x-personium:xmlns'><topic>n</topic></topics></x>",
            "<x:unbound/>",
            "<x><![CDATA[<topic>]]><?pi?><!-- c --></x>",
            "<p:topics xmlns:p='urn:other'><p:topic>other</p:topic></p:topics>",
        ):
            self.assert_found(with_property(text))
            self.assertFalse(has_topic(with_property(text), XML, "other"))
            self.assertFalse(has_topic(with_property(text), XML, "n"))

    def test_a_name_with_an_element_inside_does_not_hide_the_others(self) -> None:
        for name in ("<b/>odd", "odd<b/>", "o<b>d</b>d", "<b>odd</b>", "x" * 100_000):
            body = multistatus([name, "name"])
            self.assert_found(body)
            self.assertFalse(has_topic(body, XML, "odd"))

    def test_prefixes_may_be_declared_again_and_anywhere(self) -> None:
        self.assert_found(
            PREFIXED.replace("<q:topic>", '<z:topic xmlns:z="urn:x-personium:xmlns">')
            .replace("</q:topic>", "</z:topic>")
            .encode()
        )
        other = PREFIXED.replace("<q:topic>", '<q:topic xmlns:q="urn:other">')
        self.assertFalse(has_topic(other.encode(), XML, "name"))
        both = PREFIXED.replace("<q:topic>", '<q:topic xmlns:q="urn:other">x</q:topic><q:topic>')
        self.assert_found(both.encode())
        self.assertFalse(has_topic(both.encode(), XML, "x"))

    def test_any_prefixes(self) -> None:
        self.assert_found(PREFIXED.encode())

    def test_the_charset_of_the_content_type(self) -> None:
        for charset in ("utf-8", '"UTF-8"', "iso-8859-1"):
            self.assert_found(GOOD.encode(), f"application/xml; charset={charset}")

    def test_the_charset_of_the_content_type_takes_precedence(self) -> None:
        body = multistatus(["n\xe9"]).decode().encode("iso-8859-1")
        self.assert_found(body, "text/xml;charset=ISO-8859-1", "n\xe9")

    def test_a_name_outside_ascii(self) -> None:
        name = "\N{HIRAGANA LETTER A}\N{CJK UNIFIED IDEOGRAPH-6F22}"
        self.assert_found(multistatus([name]), topic=name)

    def test_a_failed_propstat_beside_one_with_the_topic(self) -> None:
        for status in ("403 Forbidden", "500 Internal Server Error"):
            failed = f"<propstat><prop><x/></prop><status>HTTP/1.1 {status}</status></propstat>"
            self.assert_found(GOOD.replace("</response>", failed + "</response>").encode())


class NotFoundTests(SynchronousTestCase):
    def assert_not_found(self, body: str, topic: str = "name") -> None:
        self.assertFalse(has_topic(body.encode(), XML, topic))

    def test_another_topic(self) -> None:
        for topic in ("nam", "Name", "name ", "", "nameother"):
            self.assert_not_found(GOOD, topic)

    def test_another_kind_of_collection(self) -> None:
        self.assert_not_found(multistatus(["name"], stream="").decode())

    def test_the_wrong_namespace(self) -> None:
        self.assert_not_found(
            GOOD.replace('xmlns:p="urn:x-personium:xmlns"/>', 'xmlns:p="urn:x-dc"/>')
        )
        self.assert_not_found(GOOD.replace("urn:x-personium:xmlns", "urn:x-dc1:xmlns"))
        for namespace in ('xmlns="dav:"', ""):
            text = GOOD.replace('xmlns="DAV:"', namespace)
            self.assertRaises(CollectionUnreadable, has_topic, text.encode(), XML, "name")

    def test_a_207_with_a_403_inside(self) -> None:
        self.assert_not_found(GOOD.replace("HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"))
        self.assert_not_found(GOOD.replace("<status>HTTP/1.1 200 OK</status>", ""))
        self.assert_not_found(GOOD.replace("HTTP/1.1 200 OK", "HTTP/1.1 403 200"))

    def test_properties_in_a_wrong_place(self) -> None:
        self.assert_not_found(
            GOOD.replace("<prop>", "<prop><prop>").replace("</prop>", "</prop></prop>")
        )
        self.assert_not_found(GOOD.replace("<response>", "").replace("</response>", ""))
        self.assert_not_found(GOOD.replace("response>", "reply>"))
        self.assert_not_found(GOOD.replace("p:topics", "p:topiks"))

    def test_a_name_with_a_comment_inside(self) -> None:
        self.assert_not_found(GOOD.replace("name", "na<!-- --> me"))


class InvalidTests(SynchronousTestCase):
    def assert_invalid(self, body: bytes, content_type: str = XML) -> None:
        self.assertRaises(CollectionUnreadable, has_topic, body, content_type, "name")

    def assert_not_found(self, body: bytes) -> None:
        self.assertFalse(has_topic(body, XML, "name"))

    def test_a_body_that_is_not_xml(self) -> None:
        for body in (b"", b"{}", b"<multistatus", b"\xff\xfe\x00", GOOD.encode()[:-5], b"\0"):
            self.assert_invalid(body)
        self.assert_invalid(GOOD.encode() + b"<more/>")

    def test_a_document_type(self) -> None:
        self.assert_invalid(
            DECLARED.replace("?>", '?><!DOCTYPE multistatus SYSTEM "x.dtd">', 1).encode()
        )

    def test_entity_bombs_and_external_entities(self) -> None:
        self.assert_invalid(ENTITY_BOMB)
        self.assert_invalid(EXTERNAL_ENTITY)

    def test_an_undeclared_entity(self) -> None:
        self.assert_invalid(GOOD.replace(">name<", ">&name;<").encode())

    def test_elements_nested_too_deeply(self) -> None:
        for levels, check in ((MAX_DEPTH, self.assert_not_found),
                              (MAX_DEPTH + 1, self.assert_invalid)):  # fmt: skip
            check(in_root(b"<a>" * (levels - 1) + b"</a>" * (levels - 1)))

    def test_what_an_owner_can_add_takes_little_memory(self) -> None:
        for bomb in (
            NAMESPACE_BOMB,
            PREFIX_BOMB,
            with_property("<a/>" * 100_000),
            with_property("".join(f"<a{number}/>" for number in range(300_000))),
            with_property("".join(f"<a b{number}=''/>" for number in range(300_000))),
            with_property(f"<a b='{'x' * 3_000_000}'/>"),
            with_property(f"<a>{'x' * 3_000_000}</a>"),
            with_property(f"<!--{'x' * 3_000_000}-->"),
            multistatus(["x" * 3_000_000]),
            multistatus(["x"] * 60_000),
        ):
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)
            with contextlib.suppress(CollectionUnreadable):
                self.assertFalse(has_topic(bomb, XML, "name\0", 65536))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(peak, 2**23, bomb[:1000])

    def test_namespace_bombs(self) -> None:
        self.assert_invalid(NAMESPACE_BOMB)
        self.assert_invalid(PREFIX_BOMB)

    def test_the_number_of_elements_and_attributes_is_limited(self) -> None:
        for part in (b"<a/>", b"<a b=''/>"):
            count = (MAX_PARTS - 2) // (1 + part.count(b"="))  # the root has an attribute
            self.assert_not_found(in_root(part * count))
            self.assert_invalid(in_root(part * (count + 1)))

    def test_the_length_of_a_tag_is_limited(self) -> None:
        for before, after in ((b"<a b='", b"'/>"), (b"<!--", b"-->"), (b"<?a ", b"?>")):
            self.assert_not_found(in_root(before + b"x" * (MAX_TAG - 20000) + after))
            self.assert_invalid(in_root(before + b"x" * (MAX_TAG + 20000) + after))

    def test_the_length_of_a_body_is_limited(self) -> None:
        fits = in_root(b"x" * (MAX_PROPERTIES - len(in_root(b""))))
        self.assertFalse(has_topic(fits, XML, "name", 65536))
        self.assertRaises(CollectionUnreadable, has_topic, fits + b" ", XML, "name", 65536)

    def test_an_element_within_a_status(self) -> None:
        self.assert_invalid(GOOD.replace("HTTP/1.1 200", "HTTP/1.1 403<b/>HTTP/1.1 200").encode())

    def test_a_failure_of_the_unit_is_not_the_fault_of_a_collection(self) -> None:
        for body in (
            *(
                GOOD.replace("200 OK", status)
                for status in ("500 Internal Server Error", "503 x", "507 x")
            ),
            "<multistatus xmlns='DAV:'><response><href>x</href>"
            "<status>HTTP/1.1 503 Service Unavailable</status></response></multistatus>",
        ):
            error = self.assertRaises(ValidatorUnavailable, has_topic, body.encode(), XML, "name")
            self.assertNotIsInstance(error, CollectionUnreadable)

    def test_more_than_one_resource(self) -> None:
        response = GOOD[GOOD.index("<response>") : GOOD.index("</multistatus>")]
        self.assert_invalid(GOOD.replace("</multistatus>", response + "</multistatus>").encode())

    def test_an_unknown_charset(self) -> None:
        self.assert_invalid(GOOD.encode(), "application/xml; charset=klingon")
        self.assert_invalid(DECLARED.replace("UTF-8", "klingon").encode())

    @given(st.binary(max_size=200))
    def test_any_bytes_are_invalid_or_without_the_topic(self, body: bytes) -> None:
        with contextlib.suppress(ValidatorUnavailable):
            self.assertFalse(has_topic(body, XML, "name"))

    @given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3), st.text(max_size=20))
    def test_a_damaged_response_raises_no_other_error(
        self, place: int, damage: bytes, content_type: str
    ) -> None:
        body = GOOD.encode()
        with contextlib.suppress(ValidatorUnavailable):
            has_topic(body[:place] + damage + body[place + 1 :], content_type, "name")
