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
from topicsvc.errors import ValidatorUnavailable
from topicsvc.validators.propfind import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTES, MAX_DEPTH, has_topic

XML = "application/xml"

GOOD = multistatus(["name", "other"]).decode()

PREFIXED = """<D:multistatus xmlns:D="DAV:" xmlns:q="urn:x-personium:xmlns"><D:response>
<D:propstat><D:prop><D:resourcetype><q:stream/></D:resourcetype><q:topics><q:topic>name</q:topic>
</q:topics></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
</D:multistatus>"""


class FoundTests(SynchronousTestCase):
    def assert_found(self, body: bytes, content_type: str = XML, topic: str = "name") -> None:
        self.assertTrue(has_topic(body, content_type, topic))

    def test_the_response_of_a_unit(self) -> None:
        self.assert_found(GOOD.encode())
        self.assert_found(GOOD.encode(), topic="other")

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
        self.assert_not_found(GOOD.replace('xmlns="DAV:"', 'xmlns="dav:"'))
        self.assert_not_found(GOOD.replace('xmlns="DAV:"', ""))

    def test_a_207_with_a_403_inside(self) -> None:
        self.assert_not_found(GOOD.replace("HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"))
        self.assert_not_found(GOOD.replace("<status>HTTP/1.1 200 OK</status>", ""))
        self.assert_not_found(GOOD.replace("HTTP/1.1 200 OK", "HTTP/1.1 403 200"))

    def test_properties_in_a_wrong_place(self) -> None:
        self.assert_not_found(
            GOOD.replace("<prop>", "<prop><prop>").replace("</prop>", "</prop></prop>")
        )
        self.assert_not_found(GOOD.replace("<response>", "").replace("</response>", ""))
        self.assert_not_found(GOOD.replace("p:topics", "p:topiks"))

    def test_a_name_with_a_comment_inside(self) -> None:
        self.assert_not_found(GOOD.replace("name", "na<!-- --> me"))


class InvalidTests(SynchronousTestCase):
    def assert_invalid(self, body: bytes, content_type: str = XML) -> None:
        self.assertRaises(ValidatorUnavailable, has_topic, body, content_type, "name")

    def assert_not_found(self, body: bytes) -> None:
        self.assertFalse(has_topic(body, XML, "name"))

    def test_a_body_that_is_not_xml(self) -> None:
        for body in (b"", b"{}", b"<multistatus", b"\xff\xfe\x00", GOOD.encode()[:-5], b"\0"):
            self.assert_invalid(body)
        self.assert_invalid(GOOD.encode() + b"<more/>")

    def test_a_document_type(self) -> None:
        self.assert_invalid(
            GOOD.replace("?>", '?><!DOCTYPE multistatus SYSTEM "x.dtd">', 1).encode()
        )

    def test_entity_bombs_and_external_entities(self) -> None:
        self.assert_invalid(ENTITY_BOMB)
        self.assert_invalid(EXTERNAL_ENTITY)

    def test_an_undeclared_entity(self) -> None:
        self.assert_invalid(GOOD.replace(">name<", ">&name;<").encode())

    def test_elements_nested_too_deeply(self) -> None:
        deep = b"<a>" * (MAX_DEPTH + 1) + b"</a>" * (MAX_DEPTH + 1)
        self.assert_invalid(deep)
        self.assertFalse(has_topic(b"<a>" * MAX_DEPTH + b"</a>" * MAX_DEPTH, XML, "name"))

    def test_namespace_bombs_take_little_memory(self) -> None:
        for bomb in (NAMESPACE_BOMB, PREFIX_BOMB):
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)
            self.assert_invalid(bomb)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(peak, 4 * 2**20)

    def test_too_many_attributes(self) -> None:
        for count, check in (
            (MAX_ATTRIBUTES, self.assert_not_found),
            (MAX_ATTRIBUTES + 1, self.assert_invalid),
        ):
            attributes = b" ".join(b"a%d=''" % number for number in range(count))
            check(b"<m %s/>" % attributes)

    def test_long_attributes(self) -> None:
        fits = b"x" * MAX_ATTRIBUTE_LENGTH
        for attribute in (b"a='%s'", b"xmlns:p='%s'", b"%s=''"):
            self.assert_not_found(b"<m %s/>" % (attribute % fits))
            self.assert_invalid(b"<m %s/>" % (attribute % (fits + b"x")))

    def test_an_element_within_a_name_or_a_status(self) -> None:
        self.assert_invalid(GOOD.replace(">name<", ">other<b/>name<").encode())
        self.assert_invalid(GOOD.replace("HTTP/1.1 200", "HTTP/1.1 403<b/>HTTP/1.1 200").encode())

    def test_a_failure_of_the_unit(self) -> None:
        for status in ("500 Internal Server Error", "503 x", "507 x"):
            self.assert_invalid(GOOD.replace("200 OK", status).encode())
        self.assert_invalid(
            b"<multistatus xmlns='DAV:'><response><href>x</href>"
            b"<status>HTTP/1.1 503 Service Unavailable</status></response></multistatus>"
        )

    def test_more_than_one_resource(self) -> None:
        response = GOOD[GOOD.index("<response>") : GOOD.index("</multistatus>")]
        self.assert_invalid(GOOD.replace("</multistatus>", response + "</multistatus>").encode())

    def test_an_unknown_charset(self) -> None:
        self.assert_invalid(GOOD.encode(), "application/xml; charset=klingon")
        self.assert_invalid(GOOD.replace("UTF-8", "klingon").encode())

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
