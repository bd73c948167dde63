"""The admin site: health endpoints, paths and methods."""

from __future__ import annotations

import json

from tests.support.admin_case import AdminTestCase
from tests.support.harness import Client
from topicsvc.admin.answers import Answer
from topicsvc.admin.site import MAX_IN_PROGRESS
from topicsvc.scheduling.pieces import Pieces
from topicsvc.settings import OperatorSettings


class AdminSiteTests(AdminTestCase):
    def test_live_is_200(self) -> None:
        client, body = self.request("/health/live")
        self.assertEqual((client.status, body), (200, b"alive\n"))

    def test_ready_gives_the_part_that_is_not_ready(self) -> None:
        client, body = self.request("/health/ready")
        self.assertEqual(client.status, 200)
        self.assertEqual(json.loads(body), {"ready": True, "parts": self.parts})
        for part in self.parts:
            self.parts[part] = False
            client, body = self.request("/health/ready")
            self.assertEqual(client.status, 503)
            self.assertEqual(client.headers["content-type"], ["application/json"])
            self.assertEqual(json.loads(body), {"ready": False, "parts": self.parts})
            self.parts[part] = True

    def test_head_has_status_and_length(self) -> None:
        self.parts["broker"] = False
        for path, status in (("/health/live", 200), ("/health/ready", 503), ("/metrics", 200)):
            _, body = self.request(path)
            client, nothing = self.request(path, "HEAD")
            self.assertEqual((client.status, nothing), (status, b""))
            if path != "/metrics":  # process metrics change between two scrapes
                self.assertEqual(client.headers["content-length"], [str(len(body))])

    def test_other_paths_and_methods_are_refused_without_a_server_header(self) -> None:
        for path in ("/", "/health", "/health/live/", "/health/live/x", "/metrics/", "/x?y"):
            client, body = self.request(path)
            self.assertEqual((client.status, body), (404, b"not found\n"), path)
            self.assertNotIn("server", client.headers)
        client, body = self.request("/metrics", "POST")
        self.assertEqual((client.status, client.headers["allow"]), (405, ["GET, HEAD"]))
        error = "this page has another method; allowed: GET, HEAD"
        self.assertEqual(json.loads(body), {"error": error})
        for path in ("/health/live", "/health/ready", "/metrics"):
            client, _ = self.request(path)
            self.assertNotIn("server", client.headers)
            self.assertEqual(client.headers["cache-control"], ["no-store"])

    def test_no_request_asks_the_broker_or_the_validator(self) -> None:
        for path in ("/health/live", "/health/ready", "/metrics"):
            self.request(path)
        self.assertEqual((self.broker.subscriptions, self.broker.published), ([], []))
        self.assertEqual(self.validator.checks, [])


class WorkTests(AdminTestCase):
    """All requests share a budget in each reactor iteration."""

    operator = OperatorSettings(inspect=True)

    def slow_page(self) -> Pieces[Answer]:
        for _ in range(10):
            self.clock.rightNow += 0.001
            self.pieces += 1
            yield
        return Answer(200, "text/plain", b"done")

    def setUp(self) -> None:
        super().setUp()
        self.pieces = 0
        self.admin_tree.pages[b"/slow"] = self.admin_tree.in_pieces_page(lambda _: self.slow_page())

    def start(self, method: str = "GET", path: str = "/slow") -> Client:
        client = Client(self, site=self.admin)
        client.request(method, path)
        return client

    def run_iterations(self, count: int) -> list[int]:
        """Return the pieces that each iteration has done."""
        done = []
        for _ in range(count):
            before = self.pieces
            for call in tuple(self.clock.getDelayedCalls()):
                if call.getTime() <= self.clock.seconds():
                    self.clock.calls.remove(call)
                    call.called = True
                    call.func(*call.args, **call.kw)
            done.append(self.pieces - before)
        return done

    def test_long_work_is_spread_and_answered_in_the_end(self) -> None:
        for method, expected in (("GET", b"done"), ("HEAD", b"")):
            client = self.start(method)
            self.assertEqual(client.status, 0)
            self.assertLessEqual(max(self.run_iterations(10)), 4)
            body = client.read_answer()
            self.assertEqual((client.status, client.headers["content-length"]), (200, ["4"]))
            self.assertEqual(body + bytes(client.transport.written), expected)

    def test_pipelined_requests_share_the_budget(self) -> None:
        client = Client(self, site=self.admin)
        client.send_raw(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        self.assertLessEqual(self.pieces, 4)
        self.assertLessEqual(max(self.run_iterations(100)), 4)
        self.assertEqual((self.pieces, client.transport.written.count(b" 200 ")), (200, 20))

    def test_a_request_that_finds_the_budget_spent_waits_for_the_next_iteration(self) -> None:
        self.start()
        client = self.start(path="/health/ready")
        self.assertEqual(client.status, 0)
        self.run_iterations(2)
        client.read_answer()
        self.assertEqual(client.status, 200)

    def test_a_client_that_disconnects_stops_its_work(self) -> None:
        client = self.start()
        client.disconnect()
        done = self.pieces
        self.run_iterations(10)
        self.assertEqual(self.pieces, done)
        self.assertEqual(self.admin_tree._in_progress, 0)

    def test_requests_in_progress_are_limited(self) -> None:
        clients = [self.start() for _ in range(MAX_IN_PROGRESS)]
        client, body = self.request("/health/live")
        self.assertEqual((client.status, client.headers["retry-after"]), (503, ["1"]))
        self.assertIn(f"{MAX_IN_PROGRESS} requests are in progress", json.loads(body)["error"])
        self.run_iterations(200)
        for each in clients:
            each.read_answer()
            self.assertEqual(each.status, 200)
        self.assertEqual(self.request("/health/ready")[0].status, 200)

    def test_an_internal_error_is_500_and_logged(self) -> None:
        def fails(_: object) -> Pieces[Answer]:
            yield
            raise RuntimeError("injected by the test")

        self.admin_tree.pages[b"/fails"] = self.admin_tree.in_pieces_page(fails)
        client, body = self.request("/fails")
        self.assertEqual(client.status, 500)
        self.assertEqual(json.loads(body), {"error": "internal error: see the log"})
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
