"""Lists of topics, sessions and senders on the admin endpoint."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any
from urllib.parse import quote

from tests.support.admin_case import AdminTestCase
from tests.support.harness import BEARER, EPOCH, HANDSHAKE, SEND_PATH, TOPIC, Client
from topicsvc.admin.query import MAX_LIMIT, MAX_TOPICS
from topicsvc.admin.request import AdminRequest
from topicsvc.interfaces import Grant, Message
from topicsvc.settings import LimitSettings, OperatorSettings, SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.web.batch import MEDIA_TYPE
from topicsvc.websocket.server import MAX_ENDED
from topicsvc.websocket.session_log import MAX_SUBJECT

OTHER = TopicAddress("cell1", "box1", ("col",), "other")
PAGES = ("/topics", "/sessions", "/sessions/ended", "/senders", f"/topics{TOPIC.path}")


class InspectionTestCase(AdminTestCase):
    operator = OperatorSettings(inspect=True)
    subject: str | None = "https://cell2.unit1.example/#me"

    def setUp(self) -> None:
        super().setUp()
        self.validator.at_once = lambda *_: Grant(self.subject, self.now + 3600, True, True)
        self.broker.confirms_at_once = True

    def get(self, path: str, status: int = 200) -> dict[str, Any]:
        client, body = self.request(path)
        self.assertEqual(
            (client.status, client.headers["content-type"]), (status, ["application/json"])
        )
        found: dict[str, Any] = json.loads(body)
        return found

    def join(self, topic: TopicAddress = TOPIC, address: str = "192.0.2.7") -> Client:
        client = self.connect(path=f"/__topic/box1/col.topic.{topic.topic}", address=address)
        client.present("a-token")
        self.assertIn(b"Success", client.texts()[0])
        return client

    def publish(self, topic: TopicAddress = TOPIC, body: bytes = b"1", times: int = 1) -> None:
        for _ in range(times):
            self.broker.deliver(Message(topic, None, body))
        self.iterate()


class AccessTests(AdminTestCase):
    def test_without_inspect_there_are_no_pages(self) -> None:
        """Names of topics and subjects are personal data: the default is off."""
        for path in PAGES:
            client, body = self.request(path)
            self.assertEqual((client.status, body), (404, b"not found\n"), path)

    def test_without_inspect_nothing_is_recorded(self) -> None:
        self.subscribe().disconnect()
        self.assertIsNone(self.websocket_server.ended_sessions)
        self.assertIsNone(self.send_resource.senders)


class PageTests(InspectionTestCase):
    def test_the_pages_exist_with_inspect_and_only_for_reading(self) -> None:
        self.join()
        for path in PAGES:
            client, body = self.request(path)
            self.assertEqual(client.status, 200, path)
            client, nothing = self.request(path, "HEAD")
            self.assertEqual((client.status, nothing), (200, b""))
            self.assertEqual(client.headers["content-length"], [str(len(body))])
            client, _ = self.request(path, "POST")
            self.assertEqual((client.status, client.headers["allow"]), (405, ["GET, HEAD"]))

    def test_a_wrong_query_is_400_with_the_allowed_values(self) -> None:
        for path, error in (
            (
                "/topics?sort=age",
                'sort: "age" is not one of these; allowed: sessions, messages, bytes',
            ),
            ("/topics?topic=x", '"topic": there is no such key; allowed: sort, limit'),
            (
                "/sessions?limit=0",
                'limit: "0" is not valid; allowed: a whole number from 1 to 1000',
            ),
            ("/sessions/ended?topic=x", '"topic": there is no such key; allowed: limit'),
            ("/senders?sort=x", '"sort": there is no such key; allowed: limit'),
        ):
            self.assertEqual(self.get(path, 400), {"error": error})

    def test_a_reload_switches_the_pages_on_and_off_and_forgets(self) -> None:
        self.join().disconnect()
        self.client().request("POST", SEND_PATH, BEARER, b"1")
        self.assertEqual(self.get("/sessions/ended")["total"], 1)
        self.admin_tree.configure(OperatorSettings())
        for path in PAGES:
            self.assertEqual(self.request(path)[0].status, 404)
        self.admin_tree.configure(OperatorSettings(inspect=True))
        self.assertEqual(self.get("/sessions/ended")["total"], 0)
        self.assertEqual(self.get("/senders")["senders"], [])

    def test_a_reload_with_inspect_keeps_what_is_recorded(self) -> None:
        self.join().disconnect()
        self.client().request("POST", SEND_PATH, BEARER, b"1")
        self.admin_tree.configure(OperatorSettings(inspect=True, token="x"))
        self.assertEqual(self.get("/sessions/ended")["total"], 1)
        self.assertEqual(len(self.get("/senders")["senders"]), 1)


class ParentTests(InspectionTestCase):
    """What the parent of several workers gets to merge their lists, and others do not."""

    def ask(self, path: bytes, query: bytes, is_of_parent: bool) -> tuple[int, dict[str, Any]]:
        request = AdminRequest(b"GET", path, query, is_of_parent=is_of_parent)
        answer = self.successResultOf(self.admin_tree.respond(request))
        return answer.status, json.loads(answer.body)

    def test_it_may_ask_for_more_topics_than_others(self) -> None:
        for limit, is_of_parent, status in (
            (MAX_LIMIT, False, 200),
            (MAX_LIMIT + 1, False, 400),
            (MAX_TOPICS, True, 200),
            (MAX_TOPICS + 1, True, 400),
        ):
            found, _ = self.ask(b"/topics", b"limit=%d" % limit, is_of_parent)
            self.assertEqual(found, status, (limit, is_of_parent))

    def test_it_gets_the_time_of_the_end_of_each_connection(self) -> None:
        """The reactor's clock is the same for all processes of a machine."""
        self.join().disconnect()
        since = self.clock.seconds()
        self.advance(5)
        [for_parent] = self.ask(b"/sessions/ended", b"", True)[1]["sessions"]
        [for_others] = self.ask(b"/sessions/ended", b"", False)[1]["sessions"]
        self.assertEqual(for_parent, {**for_others, "ended_at": since})
        self.assertNotIn("ended_at", for_others)


class TopicsTests(InspectionTestCase):
    def test_a_topic_has_exactly_the_documented_members(self) -> None:
        self.join()
        self.join()
        self.publish(times=3)
        [topic] = self.get("/topics")["topics"]
        size = len(self.encoded(TOPIC))
        expected = {
            "topic": TOPIC.path,
            "sessions": 2,
            "messages_per_minute": 3,
            "bytes_per_minute": 3 * size,
            "queued_bytes": 0,
        }
        self.assertEqual(topic, expected)
        self.assertEqual(self.get(f"/topics{TOPIC.path}"), expected)
        self.assertEqual(self.get("/topics")["total"], 1)

    def encoded(self, topic: TopicAddress) -> bytes:
        return self.hub._encode(Message(topic, None, b"1"))

    def test_messages_are_counted_once_whatever_the_number_of_sessions(self) -> None:
        for _ in range(5):
            self.join()
        self.publish(times=7)
        self.assertEqual(self.get("/topics")["topics"][0]["messages_per_minute"], 7)

    def test_rates_are_those_of_the_last_minute(self) -> None:
        self.join()
        self.publish(times=10)
        self.advance(30)
        self.publish(times=2)
        self.assertEqual(self.get("/topics")["topics"][0]["messages_per_minute"], 12)
        self.advance(36)
        self.assertEqual(self.get("/topics")["topics"][0]["messages_per_minute"], 2)
        self.advance(60)
        self.assertEqual(self.get("/topics")["topics"][0]["messages_per_minute"], 0)

    def test_sort_selects_the_first_topics_and_their_order(self) -> None:
        topics = [TopicAddress("cell1", "box1", ("col",), name) for name in "abc"]
        for count, topic in zip((1, 3, 2), topics, strict=True):
            for _ in range(count):
                self.join(topic)
        self.publish(topics[0], b"1", times=5)
        self.publish(topics[2], b"1" * 1000, times=2)
        for sort, expected in (
            ("sessions", "bca"),
            ("messages", "acb"),
            ("bytes", "cab"),
        ):
            for limit in (1, 2, 3, 100):
                found = self.get(f"/topics?sort={sort}&limit={limit}")
                names = "".join(each["topic"][-1] for each in found["topics"])
                self.assertEqual((names, found["total"]), (expected[:limit], 3), sort)
        self.assertEqual(self.get("/topics"), self.get("/topics?sort=sessions&limit=100"))

    def test_queued_bytes_are_those_of_the_hub_and_of_slow_readers(self) -> None:
        slow, _ = self.join(), self.join()
        other = self.join(OTHER)
        slow.transport.is_congested = other.transport.is_congested = True
        self.publish(body=b"1" * 70_000)
        self.publish(body=b"1" * 9000)
        self.publish(OTHER, b"1" * 70_000)
        session = self.get(f"/sessions?topic={TOPIC.path}")["sessions"][0]
        self.assertGreater(session["queued_bytes"], 70_000)
        found = {each["topic"]: each["queued_bytes"] for each in self.get("/topics")["topics"]}
        self.assertEqual(found[TOPIC.path], session["queued_bytes"])
        self.assertGreater(found[OTHER.path], 60_000)
        slow.transport.drain()
        self.assertEqual(self.get(f"/topics{TOPIC.path}")["queued_bytes"], 0)
        self.broker.deliver(Message(TOPIC, None, b"1" * 100))  # not yet passed to the sessions
        self.assertGreater(self.get(f"/topics{TOPIC.path}")["queued_bytes"], 100)

    def test_a_topic_without_sessions_is_404_with_the_reason(self) -> None:
        error = self.get(f"/topics{OTHER.path}", 404)["error"]
        self.assertEqual(error, "no session is on this topic; /topics lists those with sessions")

    def test_a_path_that_is_not_a_topic_is_404_with_an_allowed_one(self) -> None:
        for path in ("/cell1", "/%FF", "/"):
            error = self.get(f"/topics{path}", 404)["error"]
            self.assertEqual(
                error, "not the path of a topic; allowed: /topics/cell1/box1/col/topic/name"
            )

    def test_a_topic_whose_sessions_have_left_is_not_listed(self) -> None:
        self.join().disconnect()
        self.assertEqual(self.get("/topics"), {"total": 0, "topics": []})

    def test_a_topic_in_another_script_is_found(self) -> None:
        topic = TopicAddress("cell1", "box1", ("col",), "имя")
        client = self.connect(path=quote("/__topic/box1/col.topic.имя"))
        client.present("a-token")
        self.assertEqual(self.get("/topics")["topics"][0]["topic"], topic.path)
        self.assertEqual(self.get(quote(f"/topics{topic.path}"))["sessions"], 1)


class SessionsTests(InspectionTestCase):
    settings = SessionSettings()

    def test_a_session_has_exactly_the_documented_members(self) -> None:
        self.join()
        self.publish(times=3)
        self.advance(10)
        found = self.get("/sessions")
        [session] = found["sessions"]
        self.assertEqual(found["total"], 1)
        self.assertRegex(session["token"], r"^\w{8}$")
        self.assertEqual(
            session,
            {
                "id": 1,
                "topic": TOPIC.path,
                "address": "192.0.2.7",
                "subject": self.subject,
                "token": session["token"],
                "age": 10.0,
                "expires_in": 3590.0,
                "messages": 3,
                "queued_bytes": 0,
            },
        )

    def test_a_session_counts_the_messages_since_it_joined(self) -> None:
        self.join()
        self.publish(times=2)
        self.join()
        self.publish(times=3)
        self.assertEqual([each["messages"] for each in self.get("/sessions")["sessions"]], [5, 3])

    def test_only_active_sessions_are_listed(self) -> None:
        self.connect()
        ended = self.join()
        ended.send_text("no token message")
        active = self.join()
        self.assertEqual([each["id"] for each in self.get("/sessions")["sessions"]], [3])
        active.disconnect()
        self.assertEqual(self.get("/sessions"), {"total": 0, "sessions": []})

    def test_the_filters_select_alone_and_together(self) -> None:
        self.subject = "one"
        self.join(TOPIC, "192.0.2.7")
        self.join(OTHER, "192.0.2.8")
        self.subject = "two # & ä"
        self.join(TOPIC, "2001:db8::1")
        self.join(TOPIC, "192.0.2.7")
        for query, expected in (
            ("", [1, 2, 3, 4]),
            (f"topic={TOPIC.path}", [1, 3, 4]),
            (f"topic={quote(OTHER.path)}", [2]),
            ("topic=/cell1/box1/col/topic/none", []),
            ("address=192.0.2.7", [1, 4]),
            ("address=192.0.2.0/24", [1, 2, 4]),
            ("address=2001:db8::/32", [3]),
            ("address=192.0.2.9", []),
            ("subject=one", [1, 2]),
            (f"subject={quote(self.subject)}", [3, 4]),
            ("subject=", []),
            (f"topic={TOPIC.path}&address=192.0.2.7&subject=one", [1]),
        ):
            found = self.get(f"/sessions?{query}")
            ids = [each["id"] for each in found["sessions"]]
            self.assertEqual((ids, found["total"]), (expected, len(expected)), query)

    def test_the_limit_bounds_the_list_and_not_the_total(self) -> None:
        for _ in range(5):
            self.join()
        found = self.get("/sessions?limit=2")
        self.assertEqual(([each["id"] for each in found["sessions"]], found["total"]), ([1, 2], 5))

    def test_a_client_behind_a_trusted_proxy_has_its_own_address(self) -> None:

        self.limits.settings = LimitSettings(trusted_proxies=(ip_network("192.0.2.7"),))
        client = self.client()
        headers = {"Host": "cell1.unit1.example", "X-Forwarded-For": "198.51.100.9", **HANDSHAKE}
        client.request("GET", "/__topic/box1/col.topic.name", headers)
        client.present("a-token")
        self.assertEqual(self.get("/sessions?address=198.51.100.9")["total"], 1)
        self.assertEqual(self.get("/sessions?address=192.0.2.7")["total"], 0)

    def test_a_long_subject_is_cut_and_can_be_searched(self) -> None:
        self.subject = "x" * 30_000
        self.join()
        [session] = self.get(f"/sessions?subject={self.subject[:MAX_SUBJECT]}")["sessions"]
        self.assertEqual(session["subject"], "x" * MAX_SUBJECT)

    def test_control_characters_are_escaped(self) -> None:
        self.subject = "\x1b[31m\r\n\u202e"
        self.join()
        _, body = self.request("/sessions")
        self.assertTrue(body.decode().strip().isprintable())
        self.assertEqual(json.loads(body)["sessions"][0]["subject"], self.subject)

    def test_no_token_is_shown(self) -> None:
        self.join()
        for path in PAGES:
            self.assertNotIn(b"a-token", self.request(path)[1])

    def test_a_session_without_a_subject(self) -> None:
        self.subject = None
        self.join()
        self.assertIsNone(self.get("/sessions")["sessions"][0]["subject"])


class EndedTests(InspectionTestCase):
    def test_an_ended_session_has_reason_and_detail(self) -> None:
        client = self.join()
        self.publish(times=2)
        self.advance(5)
        [listed] = self.get("/sessions")["sessions"]
        client.send_text("no token message")
        self.advance(5)
        found = self.get("/sessions/ended")
        self.assertEqual(found["total"], 1)
        self.assertEqual(found["sessions"], [{**listed, "reason": "Invalid message", "detail": ""}])

    def test_a_refused_token_has_its_reason(self) -> None:
        self.validator.at_once = None
        client = self.connect()
        client.present("a-token")
        self.validator.last.refuse()
        [ended] = self.get("/sessions/ended")["sessions"]
        self.assertEqual(ended["reason"], "Token inactive")
        self.assertIn("injected by the test", ended["detail"])
        self.assertEqual((ended["subject"], ended["expires_in"]), (None, None))

    def test_the_last_connection_is_first(self) -> None:
        for _ in range(3):
            self.join().disconnect()
        found = self.get("/sessions/ended?limit=2")
        self.assertEqual(([each["id"] for each in found["sessions"]], found["total"]), ([3, 2], 3))

    def test_the_last_1000_are_kept(self) -> None:
        for number in range(MAX_ENDED + 20):
            self.connect(address=f"198.51.100.{number % 200}").disconnect()
        found = self.get(f"/sessions/ended?limit={MAX_LIMIT}")
        ids = [each["id"] for each in found["sessions"]]
        self.assertEqual(ids, list(range(MAX_ENDED + 20, 20, -1)))
        self.assertEqual((found["total"], MAX_ENDED), (1000, 1000))

    def test_each_connection_is_kept_once(self) -> None:
        client = self.join()
        client.send_text("no token message")
        client.disconnect()
        self.assertEqual(self.get("/sessions/ended")["total"], 1)


class SendersTests(InspectionTestCase):
    def send(
        self,
        body: bytes = b"1",
        address: str = "192.0.2.7",
        media_type: str = "application/json",
    ) -> int:
        client = self.client(address)
        client.request("POST", SEND_PATH, {**BEARER, "Content-Type": media_type}, body)
        return client.status

    def test_a_sender_has_exactly_the_documented_members(self) -> None:
        self.assertEqual(self.send(), 200)
        self.send()
        expected = {"subject": self.subject, "address": "192.0.2.7", "sends_per_minute": 2}
        self.assertEqual(self.get("/senders"), {"senders": [expected]})

    def test_the_sender_of_the_most_messages_is_first(self) -> None:
        for subject, address, times in (("a", "192.0.2.1", 1), ("b", "192.0.2.1", 3)):
            self.subject = subject
            for _ in range(times):
                self.send(address=address)
        self.send(address="192.0.2.2")
        self.send(address="192.0.2.2")
        found = self.get("/senders")["senders"]
        self.assertEqual(
            [(each["subject"], each["address"], each["sends_per_minute"]) for each in found],
            [("b", "192.0.2.1", 3), ("b", "192.0.2.2", 2), ("a", "192.0.2.1", 1)],
        )
        self.assertEqual(len(self.get("/senders?limit=1")["senders"]), 1)

    def test_each_line_of_a_batch_counts(self) -> None:
        self.send(b"1\n2\n3\n", media_type=MEDIA_TYPE.decode())
        self.assertEqual(self.get("/senders")["senders"][0]["sends_per_minute"], 3)

    def test_rejected_messages_count_too(self) -> None:
        self.assertEqual(self.send(b"no json"), 400)
        self.assertEqual(self.get("/senders")["senders"][0]["sends_per_minute"], 1)

    def test_requests_without_a_valid_token_do_not_count(self) -> None:
        self.client().request("POST", SEND_PATH, body=b"1")
        self.validator.at_once = lambda *_: Grant("x", EPOCH - 1, True, True)
        self.send()
        self.assertEqual(self.get("/senders"), {"senders": []})

    def test_sends_leave_the_minute(self) -> None:
        self.send()
        self.advance(70)
        self.assertEqual(self.get("/senders"), {"senders": []})

    def test_the_subjects_that_are_kept_are_short(self) -> None:
        self.subject = "x" * 30_000
        self.send()
        self.assertEqual(len(self.get("/senders")["senders"][0]["subject"]), MAX_SUBJECT)
