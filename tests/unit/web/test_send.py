"""Sending over HTTP: POST, PUT and OPTIONS."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone

from tests.support.fakes import INJECTED, FakeValidator
from tests.support.harness import BEARER, HOST, SEND_PATH, TOPIC, HttpTestCase
from topicsvc.delivery import hub
from topicsvc.errors import TopicNotFound
from topicsvc.interfaces import Message
from topicsvc.web import send


class SendTests(HttpTestCase):
    def test_the_body_is_published_byte_for_byte(self) -> None:
        for method in ("POST", "PUT"):
            client = self.start_request(method, b' {"hoge": 2.50, "hoge":1}\n')
            self.assertEqual(self.validator.last.token, "a-token")
            self.assertEqual(self.validator.last.topic, TOPIC)
            self.validator.last.grant(self.now + 60)
            self.assertEqual(client.read_answer(), b"")
            self.assertEqual(client.status, 200)
            self.assertEqual(
                self.broker.published[-1],
                Message(TOPIC, "https://cell2.unit1.example/", b'{"hoge": 2.50, "hoge":1}'),
            )

    def test_a_sent_message_reaches_a_subscriber(self) -> None:
        subscriber = self.subscribe()
        self.start_request()
        self.validator.last.grant(self.now + 60)
        self.iterate()
        self.assertEqual(subscriber.texts(), [b'{"From":"https://cell2.unit1.example/","Body":1}'])

    def test_the_cell_may_be_in_the_path(self) -> None:
        client = self.client()
        client.request("POST", "/cell1" + SEND_PATH, {"Host": "unit1.example", **BEARER}, b"1")
        self.assertEqual(self.validator.last.topic, TOPIC)

    def test_the_response_waits_until_the_broker_has_accepted_the_message(self) -> None:
        accepted: Deferred[None] = Deferred()
        self.patch(self.broker, "publish", lambda message: accepted)
        client = self.start_request()
        self.validator.last.grant(self.now + 60)
        self.assertEqual((client.read_answer(), client.status), (b"", 0))
        accepted.callback(None)
        client.read_answer()
        self.assertEqual(client.status, 200)

    def test_from_is_the_subject_s_cell_or_the_topic_s_own(self) -> None:
        for subject, sender in (
            ("https://cell2.unit1.example/#me", "https://cell2.unit1.example/"),
            ("https://cell2.unit1.example/#a#b", "https://cell2.unit1.example/#a"),
            ("https://cell2.unit1.example/", "https://cell2.unit1.example/"),
            ("user-17", "https://cell1.unit1.example/"),
            ("#me", "https://cell1.unit1.example/"),
            (None, "https://cell1.unit1.example/"),
        ):
            self.start_request()
            self.validator.last.grant(self.now + 60, subject)
            self.assertEqual(self.broker.published[-1].sender, sender)

    def test_x_personium_via_is_ignored_by_default(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH, {"X-Personium-Via": "https://evil/", **BEARER}, b"1")
        self.validator.last.grant(self.now + 60)
        self.assertEqual(self.broker.published[-1].sender, "https://cell2.unit1.example/")

    def test_several_requests_on_one_connection(self) -> None:
        client = self.start_request()
        for number in range(3):
            self.validator.last.grant(self.now + 60)
            client.read_answer()
            client.request("POST", SEND_PATH, BEARER, b"%d" % number)
        self.assertEqual([each.body for each in self.broker.published], [b"1", b"0", b"1"])

    def test_a_disconnect_cancels_the_token_check(self) -> None:
        client = self.start_request()
        client.transport.lose(ConnectionDone())
        self.assertTrue(self.validator.last.was_cancelled)
        self.assertEqual(self.broker.published, [])


class TrustedViaTests(HttpTestCase):
    trust_via = True

    def test_from_is_the_first_cell_of_the_header(self) -> None:
        for via, sender in (
            ("https://cell7.unit1.example/", "https://cell7.unit1.example/"),
            ("https://cell7.unit1.example/, https://cell8.unit1.example/",
             "https://cell7.unit1.example/"),
            ("nonsense", "https://cell2.unit1.example/"),
        ):  # fmt: skip
            client = self.client()
            client.request("POST", SEND_PATH, {"X-Personium-Via": via, **BEARER}, b"1")
            self.validator.last.grant(self.now + 60)
            self.assertEqual(self.broker.published[-1].sender, sender)


class SendErrorTests(HttpTestCase):
    def test_a_body_that_is_not_one_json_value(self) -> None:
        for body in (b"hello", b"", b"{} {}", b"\xff", b"NaN"):
            client = self.start_request(body=body)
            self.validator.last.grant(self.now + 60)
            answer = client.read_answer()
            self.assert_error_response(client, answer, 400, "PR400-OD-0001", "JSON parse error.")
        self.assertEqual(self.broker.published, [])

    def test_a_host_of_another_unit(self) -> None:
        for host in ("unit2.example", "a.b.unit1.example"):
            client = self.client()
            answer = client.request("POST", SEND_PATH, {"Host": host, **BEARER}, b"1")
            text = "Host is not this unit. [this host is not served here]."
            self.assert_error_response(client, answer, 400, "PR400-CM-0005", text)

    def test_two_host_headers(self) -> None:
        client = self.client()
        hosts = [("Host", HOST), ("Host", HOST)]
        client.request("POST", SEND_PATH, [*hosts, *BEARER.items()], b"1")
        self.assertEqual(client.status, 400)

    def test_no_token(self) -> None:
        for header in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}):
            client = self.client()
            answer = client.request("POST", SEND_PATH, header, b"1")
            self.assert_error_response(
                client, answer, 401, "PR401-AU-0001", "Authorization required."
            )
            self.assertEqual(
                client.headers["www-authenticate"], ['Bearer realm="https://cell1.unit1.example/"']
            )

    def test_a_token_in_the_query_is_not_read(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH + "?access_token=a-token", {}, b"1")
        self.assertEqual((client.status, self.validator.checks), (401, []))

    def test_a_token_that_is_inactive(self) -> None:
        client = self.start_request()
        self.validator.last.refuse()
        answer = client.read_answer()
        self.assert_error_response(client, answer, 401, "PR401-AU-0006", "Token parse error.")
        self.assertIn("www-authenticate", client.headers)
        client = self.start_request()
        self.validator.last.grant(self.now)
        client.read_answer()
        self.assertEqual(client.status, 401)

    def test_a_malformed_token_is_not_validated(self) -> None:
        for token in ("a b", "caf\xe9", "x" * 9000 + " y"):
            client = self.client()
            client.request("POST", SEND_PATH, {"Authorization": f"Bearer {token}"}, b"1")
            self.assertEqual((client.status, self.validator.checks), (401, []))

    def test_a_token_without_the_right_to_send(self) -> None:
        client = self.start_request()
        self.validator.last.grant(self.now + 60, may_send=False)
        answer = client.read_answer()
        text = "Necessary privilege is lacking."
        self.assert_error_response(client, answer, 403, "PR403-AU-0002", text)

    def test_a_topic_that_does_not_exist(self) -> None:
        client = self.start_request()
        self.validator.last.result.errback(TopicNotFound(INJECTED))
        answer = client.read_answer()
        text = "Resource not found. [https://cell1.unit1.example/box1/col/topic/name]."
        self.assert_error_response(client, answer, 404, "PR404-DV-0001", text)

    def test_a_url_without_a_topic_and_the_response_omits_the_query(self) -> None:
        for path in ("/", "/box1", "/box1/col", "/box1/col/topics/name", "/box1/a,b/topic/name",
                     "/box1/col/topic/name//", "/__topic/box1/col/topic/name"):  # fmt: skip
            client = self.client()
            answer = client.request("POST", path + "?access_token=secret", BEARER, b"1")
            self.assertEqual(client.status, 404, path)
            self.assertNotIn(b"secret", answer)

    def test_one_slash_at_the_end_is_ignored(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH + "/", BEARER, b"1")
        self.assertEqual(self.validator.last.topic, TOPIC)

    def test_put_with_a_key_is_a_send_to_the_name(self) -> None:
        for end in ("('key')", "('key')/", "(1)?x", "%28'key'%29"):
            client = self.client()
            client.request("PUT", SEND_PATH + end, BEARER, b'{"relayed":true}')
            self.validator.last.grant(self.now + 60)
            client.read_answer()
            self.assertEqual(client.status, 200, end)
            self.assertEqual(self.broker.published[-1].topic, TOPIC)
        for method in ("POST", "OPTIONS", "GET", "DELETE"):
            client = self.client()
            client.request(method, SEND_PATH + "('key')", BEARER, b"")
            self.assertEqual(client.status, 404, method)

    def test_blanks_around_a_token_are_ignored(self) -> None:
        for value in ("Bearer  a-token", "Bearer a-token \t", "bearer   \ta-token"):
            client = self.client()
            client.request("POST", SEND_PATH, {"Authorization": value}, b"1")
            self.assertEqual(self.validator.last.token, "a-token")
        checks = len(self.validator.checks)
        for value in ("Bearer ", "Bearer \xa0a-token", "Bearer a-token\xa0", "Bearer \x85"):
            client = self.client()
            client.request("POST", SEND_PATH, {"Authorization": value}, b"1")
            self.assertEqual((client.status, len(self.validator.checks)), (401, checks), value)

    def test_a_404_names_the_url_with_the_public_scheme(self) -> None:
        for scheme in ("https", "http"):
            self.patch(self.unit, "_scheme", scheme)
            client = self.client()
            answer = client.request("POST", "/nowhere?x", BEARER, b"1")
            self.assertIn(b"[%s://cell1.unit1.example/nowhere]" % scheme.encode(), answer)
            client = self.client()
            answer = client.request("GET", "/__topic/nowhere?x")
            self.assertIn(b"[%s://cell1.unit1.example/__topic/nowhere]" % scheme.encode(), answer)

    def test_another_method(self) -> None:
        for method in ("GET", "DELETE", "PATCH", "NONSENSE"):
            client = self.client()
            answer = client.request(method, SEND_PATH, BEARER)
            self.assert_error_response(client, answer, 405, "PR405-MC-0001", "Method not allowed.")
            self.assertEqual(client.headers["allow"], ["OPTIONS, POST, PUT"])

    def test_the_validator_is_unavailable(self) -> None:
        client = self.start_request()
        self.validator.last.be_unavailable()
        answer = client.read_answer()
        self.assert_error_response(client, answer, 503, "PR503-SV-0002", "Server connection error.")
        self.assertEqual(client.headers["retry-after"], ["1"])

    def test_the_broker_is_unavailable(self) -> None:
        self.broker.is_down = True
        client = self.start_request()
        self.validator.last.grant(self.now + 60)
        answer = client.read_answer()
        self.assert_error_response(client, answer, 503, "PR503-SV-0002", "Server connection error.")
        self.assertEqual(client.headers["retry-after"], ["1"])

    def test_too_many_requests_in_progress(self) -> None:
        self.patch(send, "MAX_IN_FLIGHT", 2)
        waiting = [self.start_request(), self.start_request()]
        client = self.client()
        answer = client.request("POST", SEND_PATH, BEARER, b"1")
        self.assert_error_response(
            client, answer, 503, "PR503-SV-0001", "Too many concurrent requests."
        )
        self.assertEqual(client.headers["retry-after"], ["1"])
        waiting[0].disconnect()
        self.start_request()

    def test_sends_are_refused_while_the_hub_is_full(self) -> None:
        self.patch(hub, "HIGH_WATER", 100)
        self.patch(hub, "LOW_WATER", 50)
        session = self.subscribe()
        in_flight = [self.start_request(), self.start_request()]
        self.broker.deliver(Message(TOPIC, None, b'"%s"' % (b"x" * 100)))
        self.assertTrue(self.hub.is_full)
        for client, check in zip(in_flight, self.validator.checks[-2:], strict=True):
            check.grant(self.now + 60)
            answer = client.read_answer()
            text = "Too many concurrent requests."
            self.assert_error_response(client, answer, 503, "PR503-SV-0001", text)
            self.assertEqual(client.headers["retry-after"], ["1"])
        self.assertEqual(self.broker.published, [])
        self.iterate()
        self.assertEqual(len(session.texts()), 1, "sessions still get data")
        client = self.start_request()
        self.validator.last.grant(self.now + 60)
        client.read_answer()
        self.assertEqual(client.status, 200)
        self.assertEqual(len(self.broker.published), 1)

    def test_an_internal_error_gives_no_details(self) -> None:
        client = self.start_request()
        self.validator.last.result.errback(ZeroDivisionError("injected by the test"))
        answer = client.read_answer()
        self.assert_error_response(client, answer, 500, "PR500-SV-0001", "Internal error.")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class OptionsTests(HttpTestCase):
    def test_without_a_token_all_methods_are_allowed(self) -> None:
        client = self.client()
        self.assertEqual(client.request("OPTIONS", SEND_PATH), b"")
        self.assertEqual(client.status, 200)
        self.assertEqual(client.headers["allow"], ["OPTIONS, POST, PUT, GET"])

    def test_with_a_token_its_rights_are_listed(self) -> None:
        for receive, may_send, allow in (
            (True, True, "OPTIONS, POST, PUT, GET"),
            (True, False, "OPTIONS, GET"),
            (False, True, "OPTIONS, POST, PUT"),
            (False, False, "OPTIONS"),
        ):
            client = self.start_request("OPTIONS", b"")
            self.validator.last.grant(self.now + 60, may_receive=receive, may_send=may_send)
            self.assertEqual(client.read_answer(), b"")
            self.assertEqual((client.status, client.headers["allow"]), (200, [allow]))

    def test_options_finds_out_both_rights(self) -> None:
        rights = FakeValidator()
        self.send_resource.configure(self.validator, self.trust_via, 1, rights)
        client = self.start_request("OPTIONS", b"")
        rights.last.grant(self.now + 60, may_receive=False)
        client.read_answer()
        self.assertEqual(client.headers["allow"], ["OPTIONS, POST, PUT"])
        self.start_request()
        self.assertEqual((len(self.validator.checks), len(rights.checks)), (1, 1))

    def test_an_inactive_token_allows_only_options(self) -> None:
        client = self.start_request("OPTIONS", b"")
        self.validator.last.refuse()
        client.read_answer()
        self.assertEqual((client.status, client.headers["allow"]), (200, ["OPTIONS"]))
        client = self.client()
        client.request("OPTIONS", SEND_PATH, {"Authorization": "Bearer a b"})
        self.assertEqual((client.status, client.headers["allow"]), (200, ["OPTIONS"]))

    def test_a_topic_that_does_not_exist_and_a_validator_that_is_unavailable(self) -> None:
        client = self.start_request("OPTIONS", b"")
        self.validator.last.result.errback(TopicNotFound(INJECTED))
        client.read_answer()
        self.assertEqual(client.status, 404)
        client = self.start_request("OPTIONS", b"")
        self.validator.last.be_unavailable()
        client.read_answer()
        self.assertEqual(client.status, 503)

    def test_a_browser_s_preflight_request(self) -> None:
        client = self.client()
        client.request(
            "OPTIONS",
            SEND_PATH,
            {
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            },
        )
        self.assertEqual(client.status, 200)
        self.assertEqual(client.headers["access-control-allow-origin"], ["*"])
        self.assertIn("POST", client.headers["access-control-allow-methods"][0])
        self.assertIn("Authorization", client.headers["access-control-allow-headers"][0])
        self.assertNotIn("access-control-allow-credentials", client.headers)
