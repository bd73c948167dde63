"""The admin site: health endpoints, paths and methods."""

from __future__ import annotations

import json

from tests.support.admin_case import AdminTestCase


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
        for path in ("/health/live", "/health/ready", "/metrics"):
            client, _ = self.request(path)
            self.assertNotIn("server", client.headers)
            self.assertEqual(client.headers["cache-control"], ["no-store"])

    def test_no_request_asks_the_broker_or_the_validator(self) -> None:
        for path in ("/health/live", "/health/ready", "/metrics"):
            self.request(path)
        self.assertEqual((self.broker.subscriptions, self.broker.published), ([], []))
        self.assertEqual(self.validator.checks, [])
