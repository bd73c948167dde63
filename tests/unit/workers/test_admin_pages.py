"""The admin pages of several workers, which the parent makes of their answers."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.logger import eventAsText, globalLogPublisher

from tests.support.control import READY, ControlSocket, FakeControl
from tests.support.harness import BEARER, SEND_PATH, TOPIC, Client
from tests.unit.admin.test_inspection import PAGES, InspectionTestCase
from topicsvc.admin.answers import Answer
from topicsvc.admin.query import DEFAULT_LIMIT, MAX_LIMIT
from topicsvc.admin.site import MAX_IN_PROGRESS, AdminSite
from topicsvc.settings import OperatorSettings
from topicsvc.workers.admin_pages import (
    END_TIMEOUT,
    LIST_TIMEOUT,
    TIMEOUT,
    AskedWorker,
    WorkersTree,
)
from topicsvc.workers.control import Members, read_request, write_response
from topicsvc.workers.merged_lists import topics_of_each

TOKEN = "an-operator-token"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class WorkersTestCase(InspectionTestCase):
    """A parent with two workers."""

    operator = OperatorSettings(inspect=True, token=TOKEN)

    def setUp(self) -> None:
        super().setUp()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.one, self.two = FakeControl(self.clock), FakeControl(self.clock)
        self.workers = [AskedWorker(1, 1, True, self.one), AskedWorker(2, 2, True, self.two)]
        self.restarts: dict[int, int] = {}
        self.tree = WorkersTree(
            lambda: self.workers,
            2,
            lambda: self.restarts,
            lambda: self.certificate_expiry,
            self.clock,
            self.operator,
        )
        self.admin = AdminSite(self.tree, self.clock)

    def set_answers(self, path: str, one: object, two: object, status: int = 200) -> None:
        self.one.answers[path] = status, one
        self.two.answers[path] = status, two

    def ask(
        self, path: str, after: float | None = None, method: str = "GET", **request: Any
    ) -> tuple[int, Any]:
        """Request a page. With `after`, the response comes after so many seconds, not before.

        Returns:
            The status, and the JSON or the text.
        """
        client = Client(self, site=self.admin)
        body = client.request(method, path, **request)
        if after is not None:
            self.advance(after - 0.01)
            self.assertEqual(client.read_answer(), b"")
            self.assertEqual(client.status, 0)
            self.advance(0.01)
            body = client.read_answer()
        self.headers = client.headers
        client.disconnect()
        is_json = client.headers["content-type"] == ["application/json"]
        return client.status, json.loads(body) if is_json else body.decode()

    def end(self, members: object, after: float | None = None, **headers: str) -> tuple[int, Any]:
        body = json.dumps(members).encode()
        headers = headers or AUTHORIZED
        return self.ask("/sessions/end", after, "POST", headers=headers, body=body)

    def samples(self, after: float | None = None) -> dict[str, float]:
        """Scrape; return samples by name and labels."""
        status, text = self.ask("/metrics", after)
        self.assertEqual(status, 200)
        return {
            " ".join([each.name, *(f"{key}={value}" for key, value in each.labels.items())]):
            each.value
            for family in text_string_to_metric_families(text)
            for each in family.samples
        }  # fmt: skip

    def lines(self, word: str) -> list[str]:
        return [text for text in map(eventAsText, self.events) if text and word in text]


class HealthTests(WorkersTestCase):
    def test_live_is_200_while_all_workers_answer(self) -> None:
        self.assertEqual(self.ask("/health/live"), (200, "alive\n"))

    def test_live_is_503_if_a_worker_does_not_answer_in_time(self) -> None:
        self.two.is_frozen = True
        self.assertEqual(self.ask("/health/live", TIMEOUT), (503, "no answer of worker 2\n"))

    def test_live_is_200_while_a_worker_is_started_again(self) -> None:
        """The parent starts it again: nobody else has to."""
        for workers in (self.workers[:1], []):
            self.workers = workers
            self.assertEqual(self.ask("/health/live"), (200, "alive\n"))

    def test_ready_lists_each_worker(self) -> None:
        expected = {
            "ready": True,
            "parts": {**READY, "workers": True},
            "workers": [
                {"worker": 1, "ready": True, "parts": READY},
                {"worker": 2, "ready": True, "parts": READY},
            ],
        }
        self.assertEqual(self.ask("/health/ready"), (200, expected))

    def test_a_part_is_ready_if_it_is_so_in_all_workers(self) -> None:
        for part in READY:
            parts = {**READY, part: False}
            self.two.answers["/health/ready"] = 503, {"ready": False, "parts": parts}
            status, found = self.ask("/health/ready")
            self.assertEqual((status, found["ready"]), (503, False))
            self.assertEqual(found["parts"], {**parts, "workers": True})
            self.assertEqual([each["ready"] for each in found["workers"]], [True, False])

    def test_a_worker_that_does_not_answer_is_not_ready(self) -> None:
        self.two.is_frozen = True
        status, found = self.ask("/health/ready", TIMEOUT)
        self.assertEqual((status, found["parts"]), (503, {**READY, "workers": False}))
        self.assertEqual(
            found["workers"][1], {"worker": 2, "ready": False, "parts": {"answering": False}}
        )

    def test_a_place_without_a_worker_is_not_ready(self) -> None:
        del self.workers[0]
        status, found = self.ask("/health/ready")
        self.assertEqual((status, found["parts"]), (503, {**READY, "workers": False}))
        self.assertEqual(
            found["workers"][0], {"worker": 1, "ready": False, "parts": {"running": False}}
        )

    def test_a_worker_that_is_replaced_is_not_asked(self) -> None:
        """It drains, and the worker that has its place is ready."""
        old = FakeControl(self.clock)
        old.is_frozen = True
        self.workers.append(AskedWorker(3, 1, False, old))
        self.assertEqual(self.ask("/health/ready")[0], 200)
        self.assertEqual(self.ask("/health/live")[0], 200)
        self.assertEqual(old.requests, [])


class MetricsTests(WorkersTestCase):
    def set_metrics(self, one: int, two: int) -> None:
        text = (
            "# TYPE x_total counter\nx_total {0}\n"
            "# TYPE topicsvc_sessions gauge\ntopicsvc_sessions {0}\n"
            "# TYPE process_open_fds gauge\nprocess_open_fds {0}\n"
        )
        self.set_answers("/metrics", text.format(one), text.format(two))

    def test_the_metrics_of_all_workers_are_merged(self) -> None:
        self.set_metrics(1, 2)
        found = self.samples()
        self.assertEqual((found["x_total"], found["topicsvc_sessions"]), (3, 3))
        self.assertEqual(found["process_open_fds worker=1"], 1)
        self.assertEqual(found["process_open_fds worker=2"], 2)
        self.assertGreater(found["process_open_fds worker=parent"], 0)

    def test_openmetrics_on_demand(self) -> None:
        self.set_metrics(1, 2)
        accept = "application/openmetrics-text; version=1.0.0"
        _, text = self.ask("/metrics", headers={"Accept": accept})
        self.assertIn("application/openmetrics-text", self.headers["content-type"][0])
        names = [family.name for family in read_openmetrics(text)]
        self.assertEqual((names.count("x"), names.count("topicsvc_workers")), (1, 1))

    def test_the_workers_are_counted(self) -> None:
        self.restarts = {2: 7}
        found = self.samples()
        self.assertEqual(
            {name: value for name, value in found.items() if name.startswith("topicsvc_worker")},
            {
                "topicsvc_workers": 2,
                "topicsvc_workers_ready": 2,
                "topicsvc_worker_restarts_total worker=1": 0,
                "topicsvc_worker_restarts_total worker=2": 7,
                "topicsvc_workers_unanswered_total worker=1": 0,
                "topicsvc_workers_unanswered_total worker=2": 0,
            },
        )

    def test_a_worker_that_does_not_answer_is_left_out_and_counted(self) -> None:
        self.set_metrics(1, 2)
        self.samples()
        self.two.is_frozen = True
        found = self.samples(TIMEOUT)
        self.assertEqual((found["topicsvc_sessions"], found["topicsvc_workers_ready"]), (1, 1))
        self.assertEqual(found["topicsvc_workers_unanswered_total worker=2"], 1)
        self.assertNotIn("process_open_fds worker=2", found)
        self.assertEqual(found["x_total"], 3)  # a counter must not fall
        self.assertEqual(self.samples(TIMEOUT)["topicsvc_workers_unanswered_total worker=2"], 2)

    def test_a_worker_that_is_left_out_is_logged_once_a_minute(self) -> None:
        self.two.is_frozen = True
        for _ in range(3):
            self.samples(TIMEOUT)
        [line] = self.lines("is left out")
        self.assertTrue(
            line.endswith(
                " worker 2 is left out of a response of the admin endpoint: no answer within 2 s; "
                "left out since the start: 1"
            ),
            line,
        )
        self.advance(60)
        self.samples(TIMEOUT)
        self.assertEqual(len(self.lines("is left out")), 2)

    def test_a_worker_that_has_ended_stays_in_counters(self) -> None:
        self.set_metrics(1, 2)
        self.samples()
        del self.workers[1]
        found = self.samples()
        self.assertEqual((found["x_total"], found["topicsvc_sessions"]), (3, 1))

    def test_a_worker_that_is_replaced_counts_until_it_ends(self) -> None:
        self.set_metrics(1, 2)
        self.workers[1] = AskedWorker(2, 2, False, self.two)
        new = FakeControl(self.clock)
        new.answers["/metrics"] = self.one.answers["/metrics"]
        self.workers.append(AskedWorker(3, 2, True, new))
        found = self.samples()
        self.assertEqual((found["x_total"], found["topicsvc_sessions"]), (4, 4))
        self.assertEqual(found["topicsvc_workers_ready"], 2)
        self.assertEqual(found["process_open_fds worker=2"], 1)

    def test_a_certificate_of_the_parent_may_be_the_first_that_expires(self) -> None:
        name = "topicsvc_certificate_expiry_timestamp_seconds"
        text = f"# TYPE {name} gauge\n{name} {{}}\n"
        self.set_answers("/metrics", text.format(200), text.format("NaN"))
        self.assertEqual(self.samples()[name], 200)
        self.certificate_expiry = 100.0
        self.assertEqual(self.samples()[name], 100)

    def test_there_are_metrics_without_any_worker(self) -> None:
        self.workers.clear()
        self.assertEqual(self.samples()["topicsvc_workers_ready"], 0)

    def test_an_answer_that_is_no_metrics_is_an_internal_error(self) -> None:
        self.set_answers("/metrics", "x{", "")
        self.assertEqual(self.ask("/metrics")[0], 500)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class ListTests(WorkersTestCase):
    """tests.unit.workers.test_merged_lists has the rules of merging."""

    def setUp(self) -> None:
        super().setUp()
        self.topic = {
            "topic": TOPIC.path,
            "sessions": 1,
            "messages_per_minute": 2,
            "bytes_per_minute": 3,
            "queued_bytes": 4,
        }
        self.both = {**self.topic, "sessions": 2, "queued_bytes": 8}
        lists: dict[str, dict[str, Any]] = {
            "/topics": {"total": 1, "topics": [self.topic]},
            f"/topics{TOPIC.path}": self.topic,
            "/sessions": {"total": 1, "sessions": [{"id": 1, "age": 1.0}]},
            "/sessions/ended": {"total": 1, "sessions": [{"id": 1, "ended_at": 1.0}]},
            "/senders": {"senders": [{"subject": "a", "address": "b", "sends_per_minute": 1}]},
        }
        for path, members in lists.items():
            self.set_answers(path, members, members)

    def test_each_list_is_merged(self) -> None:
        for path, expected in (
            ("/topics", {"total": 1, "topics": [self.both]}),
            (f"/topics{TOPIC.path}", self.both),
            ("/sessions", {"total": 2, "sessions": [{"id": 1, "age": 1.0}] * 2}),
            ("/sessions/ended", {"total": 2, "sessions": [{"id": 1}] * 2}),
            (
                "/senders",
                {"senders": [{"subject": "a", "address": "b", "sends_per_minute": 2}]},
            ),
        ):
            self.assertEqual(self.ask(path), (200, expected), path)

    def test_each_worker_is_asked_for_enough(self) -> None:
        for path, expected in (
            ("/topics", f"/topics?sort=sessions&limit={topics_of_each(2)}"),
            ("/topics?sort=bytes&limit=1", f"/topics?sort=bytes&limit={topics_of_each(2)}"),
            (f"/topics{TOPIC.path}", f"/topics{TOPIC.path}"),
            ("/sessions", "/sessions"),
            ("/sessions?subject=a%20b&limit=7", "/sessions?subject=a%20b&limit=7"),
            ("/sessions/ended?limit=7", "/sessions/ended?limit=7"),
            ("/senders?limit=7", f"/senders?limit={MAX_LIMIT}"),
        ):
            self.ask(path)
            for control in (self.one, self.two):
                self.assertEqual(control.requests[-1], ("GET", expected, b"", {}, ""))

    def test_the_limit_applies_to_the_merged_list(self) -> None:
        many = [{"id": number, "age": 1.0} for number in range(MAX_LIMIT)]
        self.set_answers("/sessions", *[{"total": 5000, "sessions": many}] * 2)
        for query, expected in (("", DEFAULT_LIMIT), ("?limit=7", 7), ("?limit=1000", 1000)):
            _, found = self.ask(f"/sessions{query}")
            self.assertEqual((len(found["sessions"]), found["total"]), (expected, 10000))

    def test_a_wrong_query_gets_the_answer_of_a_single_process_and_asks_no_worker(self) -> None:
        single = AdminSite(self.admin_tree, self.clock)
        for path in (
            "/topics?sort=age",
            "/topics?topic=x",
            f"/topics?limit={MAX_LIMIT + 1}",
            "/sessions?limit=0",
            "/sessions?address=x",
            "/sessions?topic=x",
            "/sessions?a=%FF",
            "/sessions/ended?topic=x",
            "/senders?sort=x",
            "/topics/cell1",
            "/topics/%FF",
        ):
            client = Client(self, site=single)
            expected = json.loads(client.request("GET", path))
            self.assertEqual(self.ask(path), (client.status, expected), path)
            self.assertIn("; allowed: ", expected["error"])
        self.assertEqual(self.one.requests, [])

    def test_a_worker_that_does_not_answer_is_left_out_and_named(self) -> None:
        self.two.is_frozen = True
        for path in PAGES:
            status, found = self.ask(path, LIST_TIMEOUT)
            self.assertEqual((status, found["unanswered"]), (200, [2]), path)
        self.assertEqual(
            self.ask(f"/topics{TOPIC.path}", LIST_TIMEOUT)[1], {**self.topic, "unanswered": [2]}
        )

    def test_an_answer_with_another_status_is_left_out(self) -> None:
        """For example 503: too many requests are in progress."""
        for path in PAGES:
            self.two.answers[path] = 503, {"error": "x"}
            status, found = self.ask(path)
            self.assertEqual((status, found["unanswered"]), (200, [2]), path)
        [line] = self.lines("is left out")
        self.assertIn(": status 503; ", line)

    def test_without_any_answer_a_list_is_503(self) -> None:
        self.one.is_frozen = self.two.is_frozen = True
        for path in PAGES:
            status, found = self.ask(path, LIST_TIMEOUT)
            self.assertEqual((status, self.headers["retry-after"]), (503, ["1"]))
            self.assertIn("no worker answers", found["error"])
        self.workers.clear()
        self.assertEqual(self.ask("/topics")[0], 503)

    def test_a_topic_is_found_if_one_worker_has_it(self) -> None:
        self.two.answers[f"/topics{TOPIC.path}"] = 404, {"error": "x"}
        self.assertEqual(self.ask(f"/topics{TOPIC.path}"), (200, self.topic))

    def test_a_topic_that_no_worker_has_is_404_with_the_reason(self) -> None:
        self.set_answers(f"/topics{TOPIC.path}", {"error": "x"}, {"error": "x"}, 404)
        error = "no session is on this topic; /topics lists those with sessions"
        self.assertEqual(self.ask(f"/topics{TOPIC.path}"), (404, {"error": error}))

    def test_a_topic_that_may_be_at_a_silent_worker_is_503(self) -> None:
        self.two.answers[f"/topics{TOPIC.path}"] = 404, {"error": "x"}
        self.one.is_frozen = True
        status, found = self.ask(f"/topics{TOPIC.path}", LIST_TIMEOUT)
        expected = {"error": "no answer of worker 1; try again", "unanswered": [1]}
        self.assertEqual((status, found), (503, expected))

    def test_without_inspect_there_are_no_lists(self) -> None:
        self.tree.configure(OperatorSettings())
        for path in PAGES:
            self.assertEqual(self.ask(path), (404, "not found\n"))

    def test_a_worker_that_is_replaced_is_asked_too(self) -> None:
        """Its sessions have not ended."""
        self.workers[1] = AskedWorker(2, 1, False, self.two)
        self.assertEqual(self.ask("/sessions")[1]["total"], 2)

    def test_a_client_that_disconnects_frees_its_place(self) -> None:
        self.one.is_frozen = True
        for _ in range(2 * MAX_IN_PROGRESS):
            client = Client(self, site=self.admin)
            client.request("GET", "/topics")
            client.disconnect()
        self.one.is_frozen = False
        self.assertEqual(self.ask("/topics")[0], 200)

    def test_requests_in_progress_are_limited(self) -> None:
        self.one.is_frozen = True
        clients = [Client(self, site=self.admin) for _ in range(MAX_IN_PROGRESS)]
        for client in clients:
            client.request("GET", "/topics")
        self.assertEqual(self.ask("/health/live")[0], 503)
        self.advance(LIST_TIMEOUT)
        for client in clients:
            client.read_answer()
            self.assertEqual(client.status, 200)


class EndTests(WorkersTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.set_answers("/sessions/end", {"ended": 2}, {"ended": 3})
        self.members = {"topic": TOPIC.path, "reason": "abuse"}

    def test_all_workers_end_sessions_and_the_numbers_are_summed(self) -> None:
        self.assertEqual(self.end(self.members), (200, {"ended": 5}))
        body = json.dumps(self.members).encode()
        for control in (self.one, self.two):
            expected = ("POST", "/sessions/end", body, {}, "192.0.2.7")  # without the token
            self.assertEqual(control.requests, [expected])

    def test_the_parent_checks_the_token_and_asks_no_worker_without_it(self) -> None:
        status, found = self.end(self.members, Authorization="Bearer wrong")
        self.assertEqual((status, found["error"][:12]), (401, "wrong token;"))
        self.assertEqual(self.end(self.members, Accept="*/*")[0], 401)
        self.assertEqual((self.one.requests, self.two.requests), ([], []))
        [line] = self.lines("wrong token")
        self.assertIn("a request of 192.0.2.7 to end sessions has a wrong token", line)

    def test_a_body_that_cannot_be_used_is_400_and_asks_no_worker(self) -> None:
        for members in ([], {"reason": "x"}, {"id": "x", "reason": "x"}, {"id": 1}):
            status, found = self.end(members)
            self.assertEqual(status, 400, members)
            self.assertIn("; allowed: ", found["error"])
        self.assertEqual(self.one.requests, [])

    def test_without_a_token_file_there_is_no_page(self) -> None:
        self.tree.configure(OperatorSettings(inspect=True))
        self.assertEqual(self.end(self.members), (404, "not found\n"))

    def test_a_worker_that_does_not_answer_makes_it_503_with_what_the_others_ended(self) -> None:
        self.two.is_frozen = True
        expected = {
            "ended": 2,
            "error": "no answer of worker 2; send the request again",
            "unanswered": [2],
        }
        self.assertEqual(self.end(self.members, END_TIMEOUT), (503, expected))

    def test_without_any_worker_it_is_503(self) -> None:
        self.workers.clear()
        status, found = self.end(self.members)
        self.assertEqual((status, found["ended"]), (503, 0))

    def test_another_method_is_405(self) -> None:
        self.assertEqual(self.ask("/sessions/end")[0], 405)


class RealAnswersTests(WorkersTestCase):
    """Both workers are the same real service, over control sockets: all numbers are doubled."""

    def setUp(self) -> None:
        super().setUp()
        self.sockets = [ControlSocket(self.clock, {"get": self.respond}) for _ in range(2)]
        self.workers = [
            AskedWorker(number, number, True, socket.parent)
            for number, socket in enumerate(self.sockets, 1)
        ]
        self.client_of_topic = self.join()
        self.join(address="192.0.2.8").disconnect()
        self.client().request("POST", SEND_PATH, BEARER, b"1")
        self.publish()
        self.client_of_topic.texts()

    def respond(self, members: Members) -> Deferred[Members]:
        answer: Deferred[Answer] = self.admin_tree.respond(read_request(members))
        return answer.addCallback(write_response)

    def ask_really(self, path: str, method: str = "GET", **request: Any) -> tuple[int, Any]:
        client = Client(self, site=self.admin)
        client.request(method, path, **request)
        for socket in self.sockets:
            socket.pump()
        body = client.read_answer()
        is_json = client.headers["content-type"] == ["application/json"]
        return client.status, json.loads(body) if is_json else body.decode()

    def single(self, path: str) -> Any:
        return json.loads(
            Client(self, site=AdminSite(self.admin_tree, self.clock)).request("GET", path)
        )

    def test_each_list_has_the_members_of_a_single_process(self) -> None:
        for path in PAGES:
            status, found = self.ask_really(path)
            one = self.single(path)
            self.assertEqual((status, list(found)), (200, list(one)), path)
            if path.startswith("/sessions"):
                self.assertEqual(found["sessions"], 2 * one["sessions"])
                self.assertEqual((found["total"], one["total"]), (2, 1))
        self.assertEqual(self.ask_really("/topics")[1]["topics"][0]["sessions"], 2)
        self.assertEqual(self.ask_really("/senders")[1]["senders"][0]["sends_per_minute"], 2)

    def test_health_and_metrics(self) -> None:
        self.assertEqual(self.ask_really("/health/live"), (200, "alive\n"))
        status, found = self.ask_really("/health/ready")
        self.assertEqual((status, found["parts"]), (200, {**self.parts, "workers": True}))
        status, text = self.ask_really("/metrics")
        self.assertEqual(status, 200)
        self.assertIn("topicsvc_websockets_opened_total 4.0\n", text)
        self.assertIn('topicsvc_sessions{state="active"} 2.0\n', text)
        self.assertIn('topicsvc_reactor_lag_seconds_count{worker="1"}', text)

    def test_the_settings_of_the_parent_count(self) -> None:
        """A worker that has started later may have others, until the next reload."""
        self.admin_tree.configure(OperatorSettings(token="another"))
        for path in PAGES:
            self.assertEqual(self.ask_really(path)[0], 200, path)
        body = json.dumps({"id": 1, "reason": "x"}).encode()
        for settings in (OperatorSettings(), OperatorSettings(token="another")):
            self.admin_tree.configure(settings)
            status, _ = self.ask_really("/sessions/end", "POST", headers=AUTHORIZED, body=body)
            self.assertEqual(status, 200)
        self.tree.configure(OperatorSettings())
        for path in (*PAGES, "/sessions/end"):
            self.assertEqual(self.ask_really(path)[0], 404, path)

    def test_ending_reaches_the_sessions(self) -> None:
        body = json.dumps({"address": "192.0.2.7", "reason": "abuse"}).encode()
        status, found = self.ask_really("/sessions/end", "POST", headers=AUTHORIZED, body=body)
        self.assertEqual((status, found), (200, {"ended": 1}))  # the second found it ended
        self.client_of_topic.assert_closed(1008, "Ended by operator")
        self.assertTrue(self.lines("1 session of address 192.0.2.7/32 ended by the operator at"))
