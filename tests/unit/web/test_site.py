"""The HTTP side: sending, asking what is allowed, and asking for a WebSocket."""

from __future__ import annotations

import json

from twisted.internet.error import ConnectionDone

from tests.support.harness import (
    HANDSHAKE,
    HOST,
    SEND_PATH,
    TOPIC,
    WEBSOCKET_PATH,
    Client,
    ServiceTestCase,
)
from topicsvc.delivery import hub
from topicsvc.errors import TopicNotFound
from topicsvc.interfaces import Message
from topicsvc.topics import Unit
from topicsvc.web import send, site

BEARER = {"Authorization": "Bearer a-token"}


class HttpTestCase(ServiceTestCase):
    def assert_answer(self, client: Client, body: bytes, status: int, code: str, text: str) -> None:
        self.assertEqual(client.status, status)
        self.assertEqual(client.headers["content-type"], ["application/json"])
        golden = '{"code":"%s","message":{"lang":"en","value":"%s"}}'
        self.assertEqual(body.decode(), golden % (code, text))

    def begin(self, method: str = "POST", body: bytes = b"1", path: str = SEND_PATH) -> Client:
        """A client that has sent a request with a token and waits."""
        client = self.client()
        self.assertEqual(client.request(method, path, BEARER, body), b"")
        self.assertEqual(client.status, 0)
        return client


class SendTests(HttpTestCase):
    def test_data_is_published_as_it_was_sent(self) -> None:
        for method in ("POST", "PUT"):
            client = self.begin(method, b' {"hoge": 2.50, "hoge":1}\n')
            self.assertEqual(self.validator.last.token, "a-token")
            self.assertEqual(self.validator.last.topic, TOPIC)
            self.validator.last.grant(self.now + 60)
            self.assertEqual(client.read_answer(), b"")
            self.assertEqual(client.status, 200)
            self.assertEqual(
                self.broker.published[-1],
                Message(TOPIC, "https://cell2.unit1.example/", b'{"hoge": 2.50, "hoge":1}'),
            )

    def test_it_reaches_a_subscriber(self) -> None:
        subscriber = self.subscribe()
        self.begin()
        self.validator.last.grant(self.now + 60)
        self.iterate()
        self.assertEqual(subscriber.texts(), [b'{"From":"https://cell2.unit1.example/","Body":1}'])

    def test_both_forms_of_the_cell(self) -> None:
        client = self.client()
        client.request("POST", "/cell1" + SEND_PATH, {"Host": "unit1.example", **BEARER}, b"1")
        self.assertEqual(self.validator.last.topic, TOPIC)

    def test_200_comes_only_when_the_broker_has_taken_it(self) -> None:
        from twisted.internet.defer import Deferred

        taken: Deferred[None] = Deferred()
        self.patch(self.broker, "publish", lambda message: taken)
        client = self.begin()
        self.validator.last.grant(self.now + 60)
        self.assertEqual((client.read_answer(), client.status), (b"", 0))
        taken.callback(None)
        client.read_answer()
        self.assertEqual(client.status, 200)

    def test_from_is_the_cell_of_the_subject_or_the_topic_s_own(self) -> None:
        for subject, sender in (
            ("https://cell2.unit1.example/#me", "https://cell2.unit1.example/"),
            ("https://cell2.unit1.example/#a#b", "https://cell2.unit1.example/#a"),
            ("https://cell2.unit1.example/", "https://cell2.unit1.example/"),
            ("user-17", "https://cell1.unit1.example/"),
            ("#me", "https://cell1.unit1.example/"),
            (None, "https://cell1.unit1.example/"),
        ):
            self.begin()
            self.validator.last.grant(self.now + 60, subject)
            self.assertEqual(self.broker.published[-1].sender, sender)

    def test_via_is_not_believed_from_anybody(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH, {"X-Personium-Via": "https://evil/", **BEARER}, b"1")
        self.validator.last.grant(self.now + 60)
        self.assertEqual(self.broker.published[-1].sender, "https://cell2.unit1.example/")

    def test_several_requests_on_one_connection(self) -> None:
        client = self.begin()
        for number in range(3):
            self.validator.last.grant(self.now + 60)
            client.read_answer()
            client.request("POST", SEND_PATH, BEARER, b"%d" % number)
        self.assertEqual([each.body for each in self.broker.published], [b"1", b"0", b"1"])

    def test_a_client_that_vanishes_cancels_its_question(self) -> None:
        client = self.begin()
        client.transport.lose(ConnectionDone())
        self.assertTrue(self.validator.last.was_cancelled)
        self.assertEqual(self.broker.published, [])


class TrustedViaTests(HttpTestCase):
    trust_via = True

    def test_the_first_cell_of_the_chain_is_from(self) -> None:
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
            client = self.begin(body=body)
            self.validator.last.grant(self.now + 60)
            answer = client.read_answer()
            self.assert_answer(client, answer, 400, "PR400-OD-0001", "JSON parse error.")
        self.assertEqual(self.broker.published, [])

    def test_another_host(self) -> None:
        for host in ("unit2.example", "a.b.unit1.example"):
            client = self.client()
            answer = client.request("POST", SEND_PATH, {"Host": host, **BEARER}, b"1")
            text = "Host is not this unit. [this host is not served here]."
            self.assert_answer(client, answer, 400, "PR400-CM-0005", text)

    def test_two_hosts(self) -> None:
        client = self.client()
        hosts = [("Host", HOST), ("Host", HOST)]
        client.request("POST", SEND_PATH, [*hosts, *BEARER.items()], b"1")
        self.assertEqual(client.status, 400)

    def test_no_token(self) -> None:
        for header in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}):
            client = self.client()
            answer = client.request("POST", SEND_PATH, header, b"1")
            self.assert_answer(client, answer, 401, "PR401-AU-0001", "Authorization required.")
            self.assertEqual(
                client.headers["www-authenticate"], ['Bearer realm="https://cell1.unit1.example/"']
            )

    def test_a_token_in_the_query_is_not_read(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH + "?access_token=a-token", {}, b"1")
        self.assertEqual((client.status, self.validator.questions), (401, []))

    def test_a_token_that_is_inactive(self) -> None:
        client = self.begin()
        self.validator.last.refuse()
        answer = client.read_answer()
        self.assert_answer(client, answer, 401, "PR401-AU-0006", "Token parse error.")
        self.assertIn("www-authenticate", client.headers)
        client = self.begin()
        self.validator.last.grant(self.now)
        client.read_answer()
        self.assertEqual(client.status, 401)

    def test_a_malformed_token_is_not_asked_about(self) -> None:
        for token in ("a b", "\x7f", "caf\xe9", "x" * 9000 + " y"):
            client = self.client()
            client.request("POST", SEND_PATH, {"Authorization": f"Bearer {token}"}, b"1")
            self.assertEqual((client.status, self.validator.questions), (401, []))

    def test_a_token_that_may_not_send(self) -> None:
        client = self.begin()
        self.validator.last.grant(self.now + 60, may_send=False)
        answer = client.read_answer()
        text = "Necessary privilege is lacking."
        self.assert_answer(client, answer, 403, "PR403-AU-0002", text)

    def test_no_such_topic(self) -> None:
        client = self.begin()
        self.validator.last.answer.errback(TopicNotFound("said the test"))
        answer = client.read_answer()
        text = "Resource not found. [http://cell1.unit1.example/box1/col/topic/name]."
        self.assert_answer(client, answer, 404, "PR404-DV-0001", text)

    def test_not_a_topic_url_and_the_query_is_not_repeated(self) -> None:
        for path in ("/", "/box1", "/box1/col", "/box1/col/topics/name", "/box1/a,b/topic/name",
                     "/box1/col/topic/name/", "/__topic/box1/col/topic/name"):  # fmt: skip
            client = self.client()
            answer = client.request("POST", path + "?access_token=secret", BEARER, b"1")
            self.assertEqual(client.status, 404, path)
            self.assertNotIn(b"secret", answer)

    def test_another_method(self) -> None:
        for method in ("GET", "DELETE", "PATCH", "NONSENSE"):
            client = self.client()
            answer = client.request(method, SEND_PATH, BEARER)
            self.assert_answer(client, answer, 405, "PR405-MC-0001", "Method not allowed.")
            self.assertEqual(client.headers["allow"], ["OPTIONS, POST, PUT"])

    def test_nobody_can_be_asked(self) -> None:
        client = self.begin()
        self.validator.last.be_unavailable()
        answer = client.read_answer()
        self.assert_answer(client, answer, 503, "PR503-SV-0002", "Server connection error.")
        self.assertEqual(client.headers["retry-after"], ["1"])

    def test_the_broker_is_down(self) -> None:
        self.broker.is_down = True
        client = self.begin()
        self.validator.last.grant(self.now + 60)
        answer = client.read_answer()
        self.assert_answer(client, answer, 503, "PR503-SV-0002", "Server connection error.")
        self.assertEqual(client.headers["retry-after"], ["1"])

    def test_too_many_requests_under_way(self) -> None:
        self.patch(send, "MAX_IN_FLIGHT", 2)
        waiting = [self.begin(), self.begin()]
        client = self.client()
        answer = client.request("POST", SEND_PATH, BEARER, b"1")
        self.assert_answer(client, answer, 503, "PR503-SV-0001", "Too many concurrent requests.")
        self.assertEqual(client.headers["retry-after"], ["1"])
        waiting[0].disconnect()
        self.begin()

    def test_no_more_is_taken_while_too_much_waits_for_its_delivery(self) -> None:
        self.patch(hub, "HIGH_WATER", 100)
        self.patch(hub, "LOW_WATER", 50)
        session = self.subscribe()
        in_flight = [self.begin(), self.begin()]
        self.broker.bring(Message(TOPIC, None, b'"%s"' % (b"x" * 100)))
        self.assertTrue(self.hub.is_full)
        for client, question in zip(in_flight, self.validator.questions[-2:], strict=True):
            question.grant(self.now + 60)
            answer = client.read_answer()
            text = "Too many concurrent requests."
            self.assert_answer(client, answer, 503, "PR503-SV-0001", text)
            self.assertEqual(client.headers["retry-after"], ["1"])
        self.assertEqual(self.broker.published, [])
        self.iterate()
        self.assertEqual(len(session.texts()), 1, "sessions go on")
        client = self.begin()
        self.validator.last.grant(self.now + 60)
        client.read_answer()
        self.assertEqual(client.status, 200)
        self.assertEqual(len(self.broker.published), 1)

    def test_a_fault_of_ours_tells_nothing(self) -> None:
        client = self.begin()
        self.validator.last.answer.errback(ZeroDivisionError("said the test"))
        answer = client.read_answer()
        self.assert_answer(client, answer, 500, "PR500-SV-0001", "Internal error.")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class BodyLimitTests(HttpTestCase):
    """The harness allows 1000 bytes."""

    def assert_too_big(self, client: Client) -> None:
        answer = client.read_answer()
        text = "The body is larger than 1000 bytes."
        self.assert_answer(client, answer, 413, "PR413-SV-0001", text)
        self.assertEqual(client.headers["access-control-allow-origin"], ["*"])
        self.assertTrue(client.transport.has_ended)
        client.send_raw(b"x" * 100_000)
        self.assertEqual(bytes(client.transport.written), b"")
        self.advance(site.CLOSE_TIMEOUT)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assertEqual(self.validator.questions, [])

    def head(self, *lines: str) -> bytes:
        return "\r\n".join([f"POST {SEND_PATH} HTTP/1.1", f"Host: {HOST}", *lines, "", ""]).encode()

    def test_at_the_limit(self) -> None:
        self.begin(body=b'"%s"' % (b"x" * 998))
        self.validator.last.grant(self.now + 60)
        self.assertEqual(len(self.broker.published), 1)

    def test_announced_it_is_refused_at_once(self) -> None:
        client = self.client()
        client.send_raw(self.head("Content-Length: 1001", "Expect: 100-continue"))
        self.assert_too_big(client)

    def test_chunked_it_is_refused_as_it_comes(self) -> None:
        client = self.client()
        client.send_raw(self.head("Transfer-Encoding: chunked"))
        client.send_raw(b"1f4\r\n" + b"x" * 500 + b"\r\n")
        self.assertEqual(bytes(client.transport.written), b"")
        client.send_raw(b"1f5\r\n" + b"x" * 501 + b"\r\n0\r\n\r\n")
        self.assert_too_big(client)

    def test_chunked_below_the_limit_is_taken(self) -> None:
        client = self.client()
        head = self.head("Transfer-Encoding: chunked", "Authorization: Bearer a-token")
        client.send_raw(head + b'3\r\n"ab\r\n2\r\nc"\r\n0\r\n\r\n')
        self.validator.last.grant(self.now + 60)
        self.assertEqual(self.broker.published[0].body, b'"abc"')


class OptionsTests(HttpTestCase):
    def test_without_a_token_all_methods(self) -> None:
        client = self.client()
        self.assertEqual(client.request("OPTIONS", SEND_PATH), b"")
        self.assertEqual(client.status, 200)
        self.assertEqual(client.headers["allow"], ["OPTIONS, POST, PUT, GET"])

    def test_with_a_token_what_it_may(self) -> None:
        for receive, may_send, allow in (
            (True, True, "OPTIONS, POST, PUT, GET"),
            (True, False, "OPTIONS, GET"),
            (False, True, "OPTIONS, POST, PUT"),
            (False, False, "OPTIONS"),
        ):
            client = self.begin("OPTIONS", b"")
            self.validator.last.grant(self.now + 60, may_receive=receive, may_send=may_send)
            self.assertEqual(client.read_answer(), b"")
            self.assertEqual((client.status, client.headers["allow"]), (200, [allow]))

    def test_with_a_token_that_is_inactive_nothing_else(self) -> None:
        client = self.begin("OPTIONS", b"")
        self.validator.last.refuse()
        client.read_answer()
        self.assertEqual((client.status, client.headers["allow"]), (200, ["OPTIONS"]))
        client = self.client()
        client.request("OPTIONS", SEND_PATH, {"Authorization": "Bearer a b"})
        self.assertEqual((client.status, client.headers["allow"]), (200, ["OPTIONS"]))

    def test_no_such_topic_and_nobody_to_ask(self) -> None:
        client = self.begin("OPTIONS", b"")
        self.validator.last.answer.errback(TopicNotFound("said the test"))
        client.read_answer()
        self.assertEqual(client.status, 404)
        client = self.begin("OPTIONS", b"")
        self.validator.last.be_unavailable()
        client.read_answer()
        self.assertEqual(client.status, 503)

    def test_a_browser_s_preflight_is_answered(self) -> None:
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


class UpgradeTests(HttpTestCase):
    def test_the_sample_of_the_rfc(self) -> None:
        client = self.client()
        self.assertEqual(client.upgrade(), 101)
        self.assertEqual(
            client.headers,
            {
                "upgrade": ["WebSocket"],
                "connection": ["Upgrade"],
                "sec-websocket-accept": ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="],
            },
        )

    def test_both_forms_lead_to_the_topic(self) -> None:
        for host, path in (
            (HOST, WEBSOCKET_PATH),
            ("unit1.example:443", "/cell1" + WEBSOCKET_PATH),
        ):
            client = self.connect(path, host)
            client.present("a-token")
            self.assertEqual(self.validator.last.topic, TOPIC)

    def test_a_query_is_ignored(self) -> None:
        client = self.connect(WEBSOCKET_PATH + "?access_token=secret&AccessToken=x")
        client.assert_nothing()
        self.assertEqual(self.validator.questions, [])

    def test_nothing_is_negotiated(self) -> None:
        client = self.client()
        offers = {
            "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x-webkit",
            "Sec-WebSocket-Protocol": "chat, superchat",
        }
        client.request("GET", WEBSOCKET_PATH, {**HANDSHAKE, **offers})
        self.assertEqual(client.status, 101)
        self.assertEqual(len(client.headers), 3)

    def test_what_is_sent_behind_the_handshake_is_read(self) -> None:
        client = self.client()
        lines = [f"GET {WEBSOCKET_PATH} HTTP/1.1", f"Host: {HOST}"]
        lines += [f"{name}: {value}" for name, value in HANDSHAKE.items()]
        client.send_raw("\r\n".join([*lines, "", ""]).encode() + b"\x89\x80\0\0\0\0")
        client.read_answer()
        self.assertEqual((client.status, client.frames()), (101, [(10, b"")]))

    def test_header_names_and_values_in_any_case(self) -> None:
        client = self.client()
        client.request(
            "GET",
            WEBSOCKET_PATH,
            {
                "UPGRADE": "h2c, WebSocket",
                "connection": "keep-alive, UPGRADE",
                "sec-websocket-version": "13",
                "SEC-WEBSOCKET-KEY": HANDSHAKE["Sec-WebSocket-Key"],
            },
        )
        self.assertEqual(client.status, 101)

    def test_names_outside_the_grammar(self) -> None:
        for path in ("/__topic/box1/col.topics.name", "/__topic/box1/col,x.topic.name",
                     "/__topic/box1/%2e%2e.topic.name", "/__topic/box1/col.topic.name/x",
                     "/__topic", "/__topic/", "/__topic/b"):  # fmt: skip
            with self.subTest(path=path):
                self.assertEqual(self.client().upgrade(path), 404)

    def test_hosts_of_somebody_else(self) -> None:
        for host in ("unit2.example", "a.b.unit1.example", "unit1.example,x"):
            with self.subTest(host=host):
                self.assertEqual(self.client().upgrade(host=host), 400)

    def test_handshakes_that_are_none(self) -> None:
        def change(**changes: str) -> dict[str, str]:
            names = {name.replace("-", "_").lower(): name for name in HANDSHAKE}
            return {**HANDSHAKE, **{names[name]: value for name, value in changes.items()}}

        table = [
            (change(upgrade="h2c"), 426),
            (change(sec_websocket_version="8"), 426),
            (change(sec_websocket_version="13, 8"), 426),
            (change(connection="close"), 400),
            (change(sec_websocket_key="short=="), 400),
            (change(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ="), 400),
            (change(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==x"), 400),
        ]
        for headers, status in table:
            with self.subTest(headers=headers):
                client = self.client()
                client.request("GET", WEBSOCKET_PATH, headers)
                self.assertEqual(client.status, status)
                if status == 426:
                    self.assertEqual(client.headers["sec-websocket-version"], ["13"])

    def test_other_methods_bodies_and_versions(self) -> None:
        client = self.client()
        client.request("POST", WEBSOCKET_PATH, HANDSHAKE)
        self.assertEqual((client.status, client.headers["allow"]), (405, ["GET"]))
        client = self.client()
        client.request("GET", WEBSOCKET_PATH, HANDSHAKE, b"body")
        self.assertEqual(client.status, 400)
        client = self.client()
        client.request("GET", WEBSOCKET_PATH, HANDSHAKE, version="HTTP/1.0")
        self.assertEqual(client.status, 400)
        client = self.client()
        twice = [*HANDSHAKE.items(), ("Sec-WebSocket-Key", HANDSHAKE["Sec-WebSocket-Key"])]
        client.request("GET", WEBSOCKET_PATH, twice)
        self.assertEqual(client.status, 400)

    def test_no_answer_has_a_banner(self) -> None:
        for path, headers in ((WEBSOCKET_PATH, HANDSHAKE), (WEBSOCKET_PATH, {}), ("/", {})):
            client = self.client()
            client.request("GET", path, headers)
            self.assertNotIn("server", client.headers)
        for method, status in (("OPTIONS", 200), ("GET", 405), ("POST", 405)):
            client = self.client()
            client.request(method, "*")
            self.assertEqual(client.status, status)
            self.assertNotIn("server", client.headers)


class DeadlineTests(HttpTestCase):
    def assert_dropped(self, client: Client, drip: bytes, after: float) -> None:
        """Dropped so many seconds from now, whatever drips in meanwhile."""
        for _ in range(int(after) - 1):
            self.clock.advance(1)
            if drip:
                client.send_raw(drip)
        self.assertIsNone(client.transport.lost)
        self.clock.advance(1)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assertEqual(self.clock.getDelayedCalls()[1:], [])  # but the heart

    def test_a_connection_that_says_nothing(self) -> None:
        self.assert_dropped(self.client(), b"", site.HEAD_TIMEOUT)

    def test_a_head_that_drips(self) -> None:
        client = self.client()
        client.send_raw(b"GET / HTTP/1.1\r\nX: ")
        self.assert_dropped(client, b"x", site.HEAD_TIMEOUT)

    def test_a_body_that_drips(self) -> None:
        client = self.client()
        head = f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500\r\n\r\n"
        client.send_raw(head.encode())
        self.assert_dropped(client, b"x", site.BODY_TIMEOUT)

    def test_chunks_that_drip(self) -> None:
        client = self.client()
        head = f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send_raw(head.encode())
        self.assert_dropped(client, b"1\r\nx\r\n", site.BODY_TIMEOUT)

    def test_silence_between_requests(self) -> None:
        client = self.client()
        client.request("OPTIONS", SEND_PATH)
        self.assert_dropped(client, b"", site.IDLE_TIMEOUT)

    def test_a_head_that_drips_after_another_request(self) -> None:
        client = self.client()
        client.request("OPTIONS", SEND_PATH)
        self.advance(site.IDLE_TIMEOUT - 1)
        client.send_raw(b"GET / HTTP/1.1\r\nX: ")
        self.assert_dropped(client, b"x", site.HEAD_TIMEOUT)

    def test_a_request_that_is_being_decided_has_none(self) -> None:
        client = self.begin()
        self.advance(300)
        self.validator.last.grant(self.now + 60)
        client.read_answer()
        self.assertEqual(client.status, 200)

    def test_a_peer_that_does_not_take_its_answer_is_aborted(self) -> None:
        client = self.client()
        client.transport.is_congested = True
        client.request("OPTIONS", SEND_PATH)
        self.advance(site.IDLE_TIMEOUT + site.CLOSE_TIMEOUT)
        self.iterate()
        self.assertEqual(client.transport.lost.type.__name__, "ConnectionAborted")

    def test_a_websocket_is_not(self) -> None:
        client = self.subscribe()
        self.advance(3 * site.IDLE_TIMEOUT)
        self.assertIsNone(client.transport.lost)


class DisabledSendTests(ServiceTestCase):
    def test_without_sending_only_websockets_are_there(self) -> None:
        tree = self.site.resource
        self.site.resource = site.TopicTree(Unit("https://unit1.example/"), tree._upgrade, None)
        client = self.client()
        answer = client.request("POST", SEND_PATH, BEARER, b"1")
        self.assertEqual(client.status, 404)
        self.assertEqual(json.loads(answer)["code"], "PR404-DV-0001")
        self.connect()
