"""The page of a demo: its files, its token, and who gets it."""

from __future__ import annotations

import json
import re

from tests.support.harness import Client, ServiceTestCase
from topicsvc.demo import TOPIC
from topicsvc.demo.files import page_files
from topicsvc.topics import Unit
from topicsvc.web.demo_page import DemoPage

LOCAL = "127.0.0.1"


class DemoPageTests(ServiceTestCase):
    unit = Unit("http://localhost/", ["localhost", "127.0.0.1"])

    def setUp(self) -> None:
        super().setUp()
        self.made = 0
        self.tree = self.site.resource
        self.site.resource = DemoPage(self.tree, self.unit, self.new_token)

    def new_token(self) -> str:
        self.made += 1
        return f"token-{self.made}"

    def get(
        self, path: str, host: str = "127.0.0.1:8080", method: str = "GET", address: str = LOCAL
    ) -> tuple[Client, bytes]:
        client = self.client(address)
        return client, client.request(method, path, {"Host": host})

    def test_the_files(self) -> None:
        for path, content_type in (
            ("/", "text/html; charset=utf-8"),
            ("/page.js", "text/javascript; charset=utf-8"),
            ("/page.css", "text/css; charset=utf-8"),
            ("/topicsvc-client.js", "text/javascript; charset=utf-8"),
        ):
            with self.subTest(path=path):
                client, body = self.get(path)
                self.assertEqual(client.status, 200)
                self.assertEqual(client.headers["content-type"], [content_type])
                self.assertEqual(body, page_files()[path.encode()].content)
                self.assertGreater(len(body), 500)

    def test_the_page_may_load_its_own_files_and_connect_to_its_own_server_only(self) -> None:
        client, body = self.get("/")
        self.assertEqual(
            client.headers["content-security-policy"],
            [
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
                "connect-src 'self' ws://127.0.0.1:8080; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'"
            ],
        )
        for name, value in (
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ):
            self.assertEqual(client.headers[name], [value])
        self.assertNotIn("access-control-allow-origin", client.headers)
        text = body.decode()
        self.assertEqual(
            re.findall(r"<script[^>]*>", text), ['<script type="module" src="page.js">']
        )
        self.assertEqual(re.findall(r"(?:style=|<style| on[a-z]+=|https?:)", text), [])

    def test_each_request_of_this_machine_gets_a_new_token(self) -> None:
        for number in (1, 2):
            client, body = self.get("/demo.json")
            self.assertEqual(client.headers["cache-control"], ["no-store"])
            self.assertNotIn("access-control-allow-origin", client.headers)
            document = json.loads(body)
            self.assertEqual(document["token"], f"token-{number}")
        self.assertEqual(document["url"], f"ws://127.0.0.1:8080{TOPIC.websocket_path}")
        self.assertEqual(document["sendUrl"], f"http://127.0.0.1:8080{TOPIC.send_path}")
        self.assertIn(document["sendUrl"], document["curl"])

    def test_a_client_of_another_machine_gets_no_token(self) -> None:
        _, body = self.get("/demo.json", address="192.0.2.7")
        self.assertEqual((json.loads(body)["token"], self.made), ("", 0))
        _, body = self.get("/demo.json", address="::1")
        self.assertEqual(json.loads(body)["token"], "token-1")

    def test_a_host_that_is_not_the_demo_s_gets_nothing(self) -> None:
        for path in ("/", "/demo.json"):
            client, body = self.get(path, host="rebound.example")
            self.assertEqual(client.status, 400)
            self.assertIn(b"PR400-CM-0005", body)
        self.assertEqual(self.made, 0)

    def test_methods(self) -> None:
        client, body = self.get("/", method="HEAD")
        self.assertEqual((client.status, bytes(client.transport.written)), (200, b""))
        for method in ("POST", "OPTIONS", "DELETE"):
            client, body = self.get("/demo.json", method=method)
            self.assertEqual((client.status, client.headers["allow"]), (405, ["GET, HEAD"]))
            self.assertIn(b"PR405-MC-0001", body)

    def test_other_paths_are_answered_as_without_the_page(self) -> None:
        page = self.site.resource
        for path in ("/index.html", "/page.js/", "/cell1/", "/favicon.ico", "//"):
            for method in ("GET", "POST"):
                with self.subTest(path=path, method=method):
                    answers = []
                    for resource in (page, self.tree):
                        self.site.resource = resource
                        client, body = self.get(path, method=method)
                        answers.append((client.status, client.headers, body))
                    self.assertEqual(answers[0], answers[1])

    def test_without_a_demo_there_is_no_page(self) -> None:
        self.site.resource = self.tree
        for path in ("/", "/page.js", "/demo.json"):
            client, body = self.get(path)
            self.assertNotEqual(client.status, 200)
            self.assertNotIn(b"<html", body)
