"""Validation at a Personium unit.

The unit is in this process; requests reach it over HTTP in memory. Failures of connections are
tested in integration/test_faults.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support import fake_unit
from tests.support.fake_unit import (
    ENTITY_BOMB,
    EXTERNAL_ENTITY,
    NAMESPACE_BOMB,
    PASSWORD,
    PREFIX_BOMB,
    USERNAME,
    Token,
    Trap,
    adds_header,
    answers,
    claims,
    describes_collection,
    multistatus,
    redirects_to,
    sends_gzip_bomb,
)
from tests.support.validator_cases import EXPIRY, NOW, UNIT_TOPIC, HttpValidatorTestCase
from topicsvc.errors import (
    CollectionUnreadable,
    TokenInactive,
    TopicNotFound,
    ValidatorUnavailable,
)
from topicsvc.topics import TopicAddress, Unit
from topicsvc.validators.http_client import MAX_BODY, HttpClient, basic
from topicsvc.validators.personium import PersoniumValidator, methods
from topicsvc.validators.propfind import MAX_PROPERTIES


class PersoniumTestCase(HttpValidatorTestCase):
    def build(self, http_client: HttpClient) -> Any:
        unit = Unit("http://unit1.example/", cell_urls="host" if self.host else "path")
        return PersoniumValidator(http_client, unit, USERNAME, PASSWORD, self.clock.seconds)


class RequestTests(PersoniumTestCase):
    """The requests to the unit."""

    def test_three_requests(self) -> None:
        self.assert_granted()
        self.assertEqual(
            sorted((method, path) for method, path, _ in self.unit.requests),
            [
                ("OPTIONS", "/cell1/box1/dir/col/topic/name"),
                ("POST", "/cell1/__introspect"),
                ("PROPFIND", "/cell1/box1/dir/col"),
            ],
        )

    def test_two_requests_have_the_token_and_one_has_the_credentials(self) -> None:
        self.assert_granted()
        sent = {method: headers["authorization"] for method, _, headers in self.unit.requests}
        self.assertEqual(sent["PROPFIND"], "Bearer valid-token")
        self.assertEqual(sent["OPTIONS"], "Bearer valid-token")
        self.assertEqual(sent["POST"], basic(USERNAME, PASSWORD))

    def test_no_encoding_is_accepted_and_no_cookie_is_kept(self) -> None:
        self.unit.inject(answers(503, Set_Cookie="crumb=1"))
        self.assert_unavailable()
        self.unit.recover()
        self.assert_granted()
        for _, _, headers in self.unit.requests:
            self.assertEqual(headers["accept-encoding"], "identity")
            self.assertNotIn("cookie", headers)

    def test_a_unit_with_an_ip_address(self) -> None:
        for host in ("127.0.0.1:8080", "[::1]", "[2001:db8::1]:8080"):
            unit = Unit(f"http://{host}/", cell_urls="path")
            http = HttpClient(self.agent)
            self.validator = PersoniumValidator(http, unit, USERNAME, PASSWORD, self.clock.seconds)
            self.unit.requests.clear()
            self.assert_granted()
            self.assertEqual({headers["host"] for _, _, headers in self.unit.requests}, {host})

    def test_names_outside_ascii(self) -> None:
        topic = TopicAddress("cell1", "__", ("\N{HIRAGANA LETTER A}",), "n\xe9")
        self.unit._topics.append(topic)
        self.successResultOf(self.validate(topic=topic))

    def test_a_saml_token_of_several_kib(self) -> None:
        token = "PEFzc2VydGlvbg==" * 500
        self.unit.tokens[token] = Token(EXPIRY)
        self.successResultOf(self.validate(token))

    def test_a_token_that_no_header_can_carry_is_not_sent(self) -> None:
        for token in ("a\r\nX: y", "a b", "\x00", "", "\xe9", "a\n"):
            self.failureResultOf(self.validate(token), TokenInactive)
        self.assertEqual(self.unit.requests, [])


class CellByHostTests(PersoniumTestCase):
    host = "unit1.example"

    def test_the_cell_is_part_of_the_host(self) -> None:
        self.assert_granted()
        self.assertEqual(
            sorted((path, headers["host"]) for _, path, headers in self.unit.requests),
            [
                ("/__introspect", "cell1.unit1.example"),
                ("/box1/dir/col", "cell1.unit1.example"),
                ("/box1/dir/col/topic/name", "cell1.unit1.example"),
            ],
        )

    def test_a_cell_whose_name_no_host_can_have_is_refused(self) -> None:
        for cell in ("a" * 64, "cell-", "ab--cd", "xn--a"):
            self.assert_refused(topic=TopicAddress(cell, "box1", ("col",), "name"))
        self.assertEqual(self.unit.requests, [])

    def test_cells_whose_name_a_host_can_have(self) -> None:
        for cell in ("a" * 63, "a--b", "1", "xn--bcher-kva"):
            self.assert_not_found(TopicAddress(cell, "box1", ("col",), "name"))
            self.assertTrue(self.unit.requests)
            self.unit.requests.clear()


class ResultTests(PersoniumTestCase):
    """The result of the unit's responses."""

    def test_a_grant_has_what_the_unit_says(self) -> None:
        self.unit.tokens["valid-token"].subject = "https://cell2.unit1.example/#me"
        self.assert_granted(
            subject="https://cell2.unit1.example/#me",
            expires_at=EXPIRY,
            may_receive=True,
            may_send=True,
        )

    def test_the_rights_are_the_allowed_methods(self) -> None:
        for may, receive, send in (
            ("OPTIONS, GET", True, False),
            ("OPTIONS,POST,PUT", False, True),
            ("OPTIONS", False, False),
            ("OPTIONS, GETTER, XPOST, get", False, False),
        ):
            self.unit.tokens["valid-token"].may = may
            self.assert_granted(may_receive=receive, may_send=send)

    def test_an_unknown_token(self) -> None:
        self.assert_refused("unknown")

    def test_a_token_that_may_not_read_the_collection(self) -> None:
        self.unit.tokens["valid-token"].reads_properties = False
        self.assert_refused()

    def test_a_topic_that_does_not_exist(self) -> None:
        self.assert_not_found(TopicAddress("cell1", "box1", ("dir", "col"), "other"))
        self.assert_not_found(TopicAddress("cell1", "box9", ("dir", "col"), "name"))
        self.assert_not_found(TopicAddress("cell9", "box1", ("dir", "col"), "name"))

    def test_a_missing_or_plain_collection(self) -> None:
        """A unit answers 403 to both requests, or 404 if the token has rights on the box."""
        topic = TopicAddress("cell1", "box1", ("plain",), "name")
        self.unit.plain.add(topic.path)
        for reads_box in (False, True):
            self.unit.tokens["valid-token"].reads_box = reads_box
            self.failureResultOf(self.validate(topic=topic), TokenInactive)

    def test_a_token_with_all_rights_gets_the_privileges_too(self) -> None:
        self.unit.tokens["valid-token"].has_all = True
        self.assert_granted(may_receive=True, may_send=True)

    def test_an_invalid_token_does_not_reveal_which_topics_exist(self) -> None:
        other = TopicAddress("cell1", "box1", ("dir", "col"), "other")
        self.assert_refused("unknown", UNIT_TOPIC)
        self.assert_refused("unknown", other)
        self.unit.inject(fake_unit.never_answers, "PROPFIND")
        self.assert_refused("unknown", other)

    def test_the_first_refusal_cancels_the_other_requests(self) -> None:
        for method, fault in (
            ("PROPFIND", answers(401)),
            ("PROPFIND", answers(403)),
            ("PROPFIND", answers(404)),
            ("PROPFIND", describes_collection(multistatus([]))),
            ("OPTIONS", answers(401)),
            ("POST", claims(active=False)),
        ):
            self.unit.recover()
            self.unit.inject(fake_unit.never_answers)
            self.unit.inject(fault, method)
            self.failureResultOf(self.validate(), TokenInactive)
            self.agent.flush()
            self.assertEqual(self.unit.in_flight, 0, method)

    def test_cancelling_cancels_all_requests(self) -> None:
        self.unit.inject(fake_unit.never_answers)
        check = self.validate()
        self.assertEqual(self.unit.in_flight, 3)
        check.addErrback(lambda _: None)
        check.cancel()
        self.agent.flush()
        self.assertEqual(self.unit.in_flight, 0)


class FaultTests(PersoniumTestCase):
    """A faulty unit: a refused token is not confused with an unavailable unit."""

    def test_statuses(self) -> None:
        for method, status, expected in (
            *(("PROPFIND", status, TokenInactive) for status in (401, 403, 404)),
            *(("OPTIONS", status, TokenInactive) for status in (401, 403, 404)),
            ("POST", 404, TokenInactive),
            # A unit answers these two to the credentials, never to a token.
            ("POST", 401, ValidatorUnavailable),
            ("POST", 403, ValidatorUnavailable),
            *(
                (method, status, ValidatorUnavailable)
                for method in ("PROPFIND", "OPTIONS", "POST", "*")
                for status in (204, 206, 301, 302, 303, 307, 308, 400, 405, 408, 418, 429, 500,
                               502, 503, 504, 599)
            ),
            *(("*", status, TokenInactive) for status in (401, 403, 404)),
            ("PROPFIND", 200, ValidatorUnavailable),
            ("OPTIONS", 207, ValidatorUnavailable),
        ):  # fmt: skip
            with self.subTest(method=method, status=status):
                self.unit.recover()
                self.unit.inject(answers(status), method)
                self.failureResultOf(self.validate(), expected)

    def test_a_collection_without_the_topic(self) -> None:
        good = multistatus(["name"])
        for body in (
            multistatus(["nam", "named"]),
            multistatus(["name"], stream=""),
            good.replace(b"urn:x-personium:xmlns", b"urn:x-other"),
            good.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 403 Forbidden"),
            b"<multistatus xmlns='DAV:'/>",
        ):
            self.unit.inject(describes_collection(body), "PROPFIND")
            self.assert_not_found()

    def test_any_prefix_and_charset(self) -> None:
        body = multistatus(["name"]).replace(b"p:", b"zz:").replace(b":p=", b":zz=")
        self.unit.inject(describes_collection(body, "text/xml; charset=UTF-8"), "PROPFIND")
        self.assert_granted()

    def test_a_collection_with_twenty_thousand_topics(self) -> None:
        for length in (7, 128):
            names = [f"{number:0{length}}" for number in range(19999)]
            body = multistatus([*names, "name"])
            self.unit.inject(describes_collection(body), "PROPFIND")
            self.assert_granted()

    def test_properties_that_the_owner_of_a_collection_adds(self) -> None:
        for more in (f"<x a='{'y' * 300}'/>", "<x>" * 40 + "</x>" * 40):
            body = multistatus(["name"], more=more)
            self.unit.inject(describes_collection(body), "PROPFIND")
            self.assert_granted()

    def test_a_malformed_answer_concerns_one_collection(self) -> None:
        good = multistatus(["name"])
        for body in (b"", b"<html>", good[:-5], ENTITY_BOMB):
            self.unit.inject(describes_collection(body), "PROPFIND")
            self.failureResultOf(self.validate(), CollectionUnreadable)
        self.unit.inject(describes_collection(good + b" " * MAX_PROPERTIES), "PROPFIND")
        self.assertIn(str(MAX_PROPERTIES), str(self.failureResultOf(self.validate()).value))

    def test_invalid_xml(self) -> None:
        for body in (b"", b"<html>", b"{}", ENTITY_BOMB, EXTERNAL_ENTITY,
                     NAMESPACE_BOMB, PREFIX_BOMB, b"<a>" * 80000):  # fmt: skip
            self.unit.inject(describes_collection(body), "PROPFIND")
            self.assert_unavailable()

    def test_an_invalid_allow_header(self) -> None:
        for allow in ("", "GET, POST", "options, GET", "OPTION"):
            self.unit.inject(answers(200, Allow=allow), "OPTIONS")
            self.assert_unavailable()
        self.unit.inject(answers(200), "OPTIONS")
        self.assert_unavailable()

    def test_headers_that_are_not_text(self) -> None:
        for method, header, expected in (
            ("OPTIONS", "Allow", ValidatorUnavailable),
            ("PROPFIND", "Content-Encoding", ValidatorUnavailable),
            ("POST", "Content-Encoding", ValidatorUnavailable),
            ("PROPFIND", "Content-Type", None),  # without a charset
            ("POST", "Set-Cookie", None),
        ):
            with self.subTest(method=method, header=header):
                self.unit.recover()
                self.unit.inject(adds_header(header, b"\xff\xfe\x80"), method)
                if expected is None:
                    self.assert_granted()
                else:
                    self.assert_unavailable()
                self.assertEqual(self.unit.in_flight, 0)

    def test_an_invalid_introspection_response(self) -> None:
        for fault in (
            claims(active="true", exp=EXPIRY),
            claims(active=1, exp=EXPIRY),
            claims(exp=EXPIRY),
            claims(active=True),
            claims(active=True, exp=str(EXPIRY)),
            claims(active=True, exp=EXPIRY * 1000),
            claims(active=True, exp=10**400),
            answers(200, b'{"active":true,"active":false,"exp":%d}' % EXPIRY),
            answers(200, b"[" * 100000),
            answers(200, b""),
            answers(200, b"<html>"),
        ):
            self.unit.inject(fault, "POST")
            self.assert_unavailable()

    def test_an_expired_token(self) -> None:
        for expiry in (0, int(NOW) - 1, int(NOW)):
            self.unit.inject(claims(active=True, exp=expiry), "POST")
            self.assert_refused()

    def test_a_body_that_is_too_long(self) -> None:
        good = json.dumps({"active": True, "exp": EXPIRY}).encode()
        self.unit.inject(answers(200, good + b" " * (MAX_BODY - len(good))), "POST")
        self.assert_granted()
        self.unit.inject(answers(200, good + b" " * (MAX_BODY - len(good) + 1)), "POST")
        self.assertIn("262144", self.assert_unavailable())

    def test_a_gzip_bomb_is_not_decompressed(self) -> None:
        for method in ("PROPFIND", "OPTIONS", "POST"):
            self.unit.recover()
            self.unit.inject(sends_gzip_bomb, method)
            self.assertIn("encoded", self.assert_unavailable())

    def test_no_redirect_is_followed(self) -> None:
        trap = Trap()
        for status in (301, 302, 303, 307, 308):
            self.unit.inject(redirects_to("http://unit1.example/trap", status))
            self.assert_unavailable()
        self.assertEqual(trap.requests, [])
        self.assertEqual([path for _, path, _ in self.unit.requests if "trap" in path], [])

    def test_a_failed_request_does_not_hide_a_refusal(self) -> None:
        self.unit.inject(answers(503), "OPTIONS")
        self.unit.inject(claims(active=False), "POST")
        self.assert_refused()

    def test_credentials_that_the_unit_refuses(self) -> None:
        """A unit answers 400 ``invalid_client``, or 403 if the name is that of an account."""
        unit = Unit("http://unit1.example/", cell_urls="path")
        http, now = HttpClient(self.agent), self.clock.seconds
        for username, password, status in (
            (USERNAME, "wrong", 400),
            (USERNAME, "", 400),
            ("wrong", PASSWORD, 400),
            ("", "", 400),
            ("me", PASSWORD, 403),
        ):
            self.validator = PersoniumValidator(http, unit, username, password, now)
            self.assertEqual(
                self.assert_unavailable(),
                f"introspection: status {status}: wrong credentials; are username and password "
                "the unit's? (username, password_file)",
            )
            sending = self.validator.for_sending.validate("valid-token", UNIT_TOPIC)
            self.agent.flush()
            self.failureResultOf(sending, ValidatorUnavailable)

    def test_a_400_names_the_style_of_cell_urls(self) -> None:
        for method in ("PROPFIND", "OPTIONS", "POST", "*"):
            self.unit.recover()
            self.unit.inject(answers(400, b'{"code":"PR400-CM-0005"}'), method)
            self.assertIn("status 400; is cell_urls the unit's style?", self.assert_unavailable())


class SendingTests(PersoniumTestCase):
    """For sending, OPTIONS and introspection decide."""

    def build(self, http_client: HttpClient) -> Any:
        return super().build(http_client).for_sending

    def test_two_requests(self) -> None:
        self.assert_granted(may_send=True, subject="https://cell2.unit1.example/#me")
        self.assertEqual(sorted(method for method, _, _ in self.unit.requests), ["OPTIONS", "POST"])

    def test_a_token_that_may_not_read_the_collection_may_send(self) -> None:
        token = self.unit.tokens["valid-token"]
        token.reads_properties, token.may = False, "OPTIONS, POST, PUT"
        self.assert_granted(may_send=True, may_receive=False)

    def test_a_faulty_answer_to_propfind_does_not_matter(self) -> None:
        for fault in (fake_unit.never_answers, answers(503), describes_collection(b"{}")):
            self.unit.inject(fault, "PROPFIND")
            self.assert_granted(may_send=True)

    def test_a_live_token_without_any_right_is_not_refused(self) -> None:
        self.unit.tokens["valid-token"].may = "OPTIONS"
        self.assert_granted(may_send=False)
        self.assertIsNotNone(self.assert_granted().refusal)

    def test_a_missing_or_plain_collection(self) -> None:
        topic = TopicAddress("cell1", "box1", ("plain",), "name")
        grant = self.successResultOf(self.validate(topic=topic))
        self.assertEqual((grant.may_send, grant.expires_at), (False, EXPIRY))
        self.unit.tokens["valid-token"].reads_box = True
        self.assert_not_found(topic)
        self.unit.plain.add(topic.path)
        self.assertFalse(self.successResultOf(self.validate(topic=topic)).may_send)

    def test_a_topic_that_does_not_exist(self) -> None:
        self.assert_not_found(TopicAddress("cell1", "box1", ("dir", "col"), "other"))

    def test_an_invalid_token_does_not_reveal_which_topics_exist(self) -> None:
        for path in (UNIT_TOPIC, TopicAddress("cell1", "box1", ("dir", "col"), "other"),
                     TopicAddress("cell1", "box1", ("plain",), "name")):  # fmt: skip
            self.assert_refused("unknown", path)
        self.unit.inject(answers(403), "OPTIONS")
        self.assert_refused("unknown")
        self.assert_refused("a b")

    def test_statuses(self) -> None:
        for method, status, expected in (
            ("OPTIONS", 401, TokenInactive),
            ("OPTIONS", 404, TopicNotFound),
            ("POST", 404, TokenInactive),
            *(
                (method, status, ValidatorUnavailable)
                for method in ("OPTIONS", "POST")
                for status in (204, 302, 400, 429, 500, 503)
            ),
        ):
            with self.subTest(method=method, status=status):
                self.unit.recover()
                self.unit.inject(answers(status), method)
                self.failureResultOf(self.validate(), expected)


class AllowTests(SynchronousTestCase):
    def test_methods(self) -> None:
        self.assertEqual(methods("OPTIONS, POST ,PUT,, GET"), {"OPTIONS", "POST", "PUT", "GET"})
        self.assertEqual(methods(""), frozenset())
