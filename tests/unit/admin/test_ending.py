"""Ending sessions on the admin endpoint."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import LogLevel, eventAsText, globalLogPublisher

from tests.support.harness import TOPIC, Client
from tests.unit.admin.test_inspection import OTHER, InspectionTestCase
from topicsvc.admin.query import MAX_REASON
from topicsvc.admin.site import MAX_BODY
from topicsvc.settings import OperatorSettings

TOKEN = "an-operator-token"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class EndingTestCase(InspectionTestCase):
    operator = OperatorSettings(token=TOKEN)

    def setUp(self) -> None:
        super().setUp()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def post(
        self, members: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        body = members if isinstance(members, bytes) else json.dumps(members).encode()
        client = Client(self, site=self.admin)
        headers = AUTHORIZED if headers is None else headers
        text = client.request("POST", "/sessions/end", headers, body)
        self.assertEqual(client.status, status)
        self.challenge = client.headers.get("www-authenticate")
        client.disconnect()
        found: dict[str, Any] = json.loads(text)
        return found

    def lines(self, word: str) -> list[str]:
        return [text for text in map(eventAsText, self.events) if word in text]


class AccessTests(EndingTestCase):
    def request_end(self) -> int:
        client, _ = self.request("/sessions/end", "POST", AUTHORIZED)
        return client.status

    def test_without_a_token_file_the_page_does_not_exist(self) -> None:
        for settings in (OperatorSettings(), OperatorSettings(inspect=True)):
            self.admin_tree.configure(settings)
            for method in ("POST", "GET"):
                client, body = self.request("/sessions/end", method, AUTHORIZED)
                self.assertEqual((client.status, body), (404, b"not found\n"))

    def test_a_reload_adds_replaces_and_removes_the_token(self) -> None:
        self.assertEqual(self.request_end(), 400)
        self.admin_tree.configure(OperatorSettings(token="another"))
        self.assertEqual(self.request_end(), 401)
        self.admin_tree.configure(OperatorSettings())
        self.assertEqual(self.request_end(), 404)

    def test_only_post_is_allowed_and_the_error_says_so(self) -> None:
        client, body = self.request("/sessions/end", "GET", AUTHORIZED)
        self.assertEqual((client.status, client.headers["allow"]), (405, ["POST"]))
        error = "this page has another method; allowed: POST"
        self.assertEqual(json.loads(body), {"error": error})

    def test_without_the_token_nothing_is_ended(self) -> None:
        client = self.join()
        for authorization in (
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            TOKEN,
            f"Bearer {TOKEN} {TOKEN}",
            "Bearer \xe4",
        ):
            headers = {} if authorization is None else {"Authorization": authorization}
            found = self.post({"id": 1, "reason": "x"}, 401, headers)
            self.assertIn("; allowed: ", found["error"])
            self.assertEqual(self.challenge, ['Bearer realm="topicsvc admin"'])
        client.assert_nothing()

    def test_two_headers_are_refused(self) -> None:
        client = Client(self, site=self.admin)
        pairs = list(AUTHORIZED.items()) * 2
        client.request("POST", "/sessions/end", pairs, b'{"id": 1, "reason": "x"}')
        self.assertEqual(client.status, 401)

    def test_the_scheme_may_have_any_case(self) -> None:
        headers = {"Authorization": f"bearer {TOKEN}"}
        self.assertEqual(self.post({"id": 1, "reason": "x"}, 200, headers), {"ended": 0})

    def test_a_wrong_token_is_logged_once_a_minute_without_the_token(self) -> None:
        for _ in range(3):
            self.post({}, 401, {"Authorization": "Bearer secret-guess"})
        [line] = self.lines("wrong token")
        self.assertIn("a request of 192.0.2.7 to end sessions has a wrong token", line)
        self.advance(60)
        self.post({}, 401, {"Authorization": "Bearer secret-guess"})
        self.assertEqual(len(self.lines("wrong token")), 2)
        self.assertEqual(self.lines("secret-guess") + self.lines(TOKEN), [])


class EndTests(EndingTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.subject = "one"
        self.clients = [self.join(TOPIC, "192.0.2.7"), self.join(OTHER, "192.0.2.8")]
        self.subject = "two"
        self.clients += [self.join(TOPIC, "192.0.2.8"), self.join(OTHER, "2001:db8::1")]

    def assert_ended(self, *numbers: int) -> None:
        for number, client in enumerate(self.clients, 1):
            if number in numbers:
                client.assert_closed(1008, "Ended by operator")
            else:
                client.assert_nothing()

    def test_by_id(self) -> None:
        self.assertEqual(self.post({"id": 3, "reason": "abuse"}), {"ended": 1})
        self.assert_ended(3)
        self.assertEqual(self.post({"id": 3, "reason": "abuse"}), {"ended": 0})

    def test_by_subject(self) -> None:
        self.assertEqual(self.post({"subject": "one", "reason": "abuse"}), {"ended": 2})
        self.assert_ended(1, 2)

    def test_by_topic(self) -> None:
        self.assertEqual(self.post({"topic": OTHER.path, "reason": "abuse"}), {"ended": 2})
        self.assert_ended(2, 4)

    def test_by_address_and_network(self) -> None:
        self.assertEqual(self.post({"address": "192.0.2.8", "reason": "abuse"}), {"ended": 2})
        self.assert_ended(2, 3)
        self.assertEqual(self.post({"address": "2001:db8::/64", "reason": "abuse"}), {"ended": 1})
        self.assert_ended(4)

    def test_ended_sessions_are_counted_and_get_no_data(self) -> None:
        self.post({"topic": TOPIC.path, "reason": "abuse"})
        self.assert_ended(1, 3)
        self.publish()
        self.assert_ended()
        self.assert_metrics({'sessions_ended_total{reason="ended_by_operator"}': 2})

    def test_without_log_subjects_the_line_does_not_name_the_subject(self) -> None:
        self.websocket_server.context.session_log.has_subjects = False
        self.assertEqual(self.post({"subject": "one", "reason": "x"}), {"ended": 2})
        [line] = self.lines("ended by the operator")
        self.assertIn("2 sessions of subject - ended by the operator", line)

    def test_the_reason_is_in_the_log_and_in_the_list_and_not_sent(self) -> None:
        self.admin_tree.configure(OperatorSettings(inspect=True, token=TOKEN))
        self.post({"subject": "one", "reason": "abuse, ticket 17"})
        self.assert_ended(1, 2)
        [line] = self.lines("ended by the operator")
        self.assertIn(
            "2 sessions of subject one ended by the operator at 192.0.2.7: abuse, ticket 17", line
        )
        self.assertEqual(len(self.lines(": Ended by operator (abuse, ticket 17)")), 2)
        [ended, _] = self.get("/sessions/ended")["sessions"]
        self.assertEqual(
            (ended["reason"], ended["detail"]), ("Ended by operator", "abuse, ticket 17")
        )

    def test_the_log_line_names_what_was_selected(self) -> None:
        for members, selected in (
            ({"id": 1}, "1 session of id 1 ended"),
            ({"topic": OTHER.path}, f"2 sessions of topic {OTHER.path} ended"),
            ({"address": "192.0.2.8"}, "1 session of address 192.0.2.8/32 ended"),
        ):
            self.post({**members, "reason": "abuse"})
            self.assertEqual(len(self.lines(selected)), 1, selected)

    def test_a_reason_cannot_forge_a_line_of_the_log(self) -> None:
        self.post({"id": 1, "reason": "a\n\x1b[31m\u202eb ä"})
        self.post({"subject": "x\r\ny" * 500, "reason": "c"})
        for line in self.lines("operator"):
            self.assertTrue(line.isprintable(), line)
            self.assertLess(len(line), 500)
        self.assertEqual(len(self.lines(r"a\u000a\u001b[31m\u202eb ä")), 2)

    def test_a_wrong_body_ends_nothing_and_says_what_is_allowed(self) -> None:
        for body in (
            b"",
            b"nonsense",
            b"[" * 10_000,
            {"reason": "x"},
            {"id": 1, "subject": "one", "reason": "x"},
            {"id": 1},
            {"id": 1, "reason": "x" * (MAX_REASON + 1)},
            {"id": "1", "reason": "x"},
            {"all": True, "reason": "x"},
        ):
            self.assertIn("; allowed: ", self.post(body, 400)["error"])
        self.assert_ended()

    def test_a_session_that_cannot_be_ended_does_not_stop_the_others(self) -> None:
        [first, *_] = self.websocket_server.active_sessions()
        first.end_by_operator = lambda detail: 1 // 0
        self.assertEqual(self.post({"topic": TOPIC.path, "reason": "abuse"}), {"ended": 2})
        self.assert_ended(3)
        [event] = [each for each in self.events if each["log_level"] is LogLevel.critical]
        self.assertIn("could not end 192.0.2.7", eventAsText(event))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_the_ends_are_spread_over_iterations(self) -> None:
        """Each session takes 1 ms here, and an iteration has 3 ms."""
        for _ in range(20):
            self.clients.append(self.join())
        for connection in self.websocket_server.active_sessions():
            self.slow_down(connection)
        client = Client(self, site=self.admin)
        body = json.dumps({"topic": TOPIC.path, "reason": "abuse"}).encode()
        client.request("POST", "/sessions/end", AUTHORIZED, body)
        ended = [self.count_ended()]
        while not client.status:
            self.iterate_once()
            ended.append(self.count_ended() - sum(ended))
            client.read_answer()
        self.assertEqual((client.status, sum(ended)), (200, 22))
        self.assertLessEqual(max(ended), 4)

    def test_a_client_that_disconnects_does_not_stop_the_end(self) -> None:
        for _ in range(20):
            self.join()
        for connection in self.websocket_server.active_sessions():
            self.slow_down(connection)
        client = Client(self, site=self.admin)
        body = json.dumps({"topic": TOPIC.path, "reason": "abuse"}).encode()
        client.request("POST", "/sessions/end", AUTHORIZED, body)
        client.disconnect()
        self.assertLess(self.count_ended(), 22)
        for _ in range(30):
            self.iterate_once()
        self.assertEqual(self.count_ended(), 22)

    def slow_down(self, connection: Any) -> None:
        end = connection.end_by_operator

        def slowly(detail: str) -> None:
            self.clock.rightNow += 0.001
            end(detail)

        connection.end_by_operator = slowly

    def count_ended(self) -> int:
        return self.websocket_server.context.session_log.ended["ended_by_operator"]

    def iterate_once(self) -> None:
        """One reactor iteration: a call that it schedules runs in the next one."""
        for call in tuple(self.clock.getDelayedCalls()):
            if call.getTime() <= self.clock.seconds():
                self.clock.calls.remove(call)
                call.called = True
                call.func(*call.args, **call.kw)


class BodyTests(EndingTestCase):
    def send(self, text: str) -> tuple[Client, str]:
        client = Client(self, site=self.admin)
        client.send_raw(text.encode())
        self.iterate()
        return client, bytes(client.transport.written).decode()

    def head(self, *lines: str) -> str:
        begin = ("POST /sessions/end HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}")
        return "\r\n".join([*begin, *lines, "", ""])

    def test_a_long_body_is_refused_before_it_arrives(self) -> None:
        client, text = self.send(self.head(f"Content-Length: {MAX_BODY + 1}"))
        self.assertIn("HTTP/1.1 413 ", text)
        self.assertIsNotNone(client.transport.lost)

    def test_a_long_chunked_body_is_refused_while_it_arrives(self) -> None:
        chunk = f"1000\r\n{'x' * 4096}\r\n"
        client, text = self.send(self.head("Transfer-Encoding: chunked") + 4 * chunk)
        self.assertEqual((text, client.transport.lost), ("", None))
        client.send_raw((chunk * 20 + "0\r\n\r\n").encode())
        self.iterate()
        self.assertEqual(bytes(client.transport.written).count(b"HTTP/1.1 "), 1)
        self.assertIn(b"HTTP/1.1 413 ", client.transport.written)
        self.assertIsNotNone(client.transport.lost)

    def test_the_longest_body_is_read(self) -> None:
        body = '{"id": 1, "reason": "x"}'.ljust(MAX_BODY)
        _, text = self.send(self.head(f"Content-Length: {len(body)}") + body)
        self.assertIn('{"ended": 0}', text)

    def test_other_pages_read_no_long_body_either(self) -> None:
        lines = ["GET /metrics HTTP/1.1", "Host: x", f"Content-Length: {MAX_BODY + 1}", "", ""]
        client, text = self.send("\r\n".join(lines))
        self.assertIn("HTTP/1.1 413 ", text)
        self.assertIsNotNone(client.transport.lost)
