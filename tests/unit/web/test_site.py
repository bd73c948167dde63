"""The HTTP site: limits on bodies, deadlines, and the choice between its two sides."""

from __future__ import annotations

import json

from tests.support.harness import (
    BEARER,
    HANDSHAKE,
    HOST,
    SEND_PATH,
    WEBSOCKET_PATH,
    Client,
    HttpTestCase,
    ServiceTestCase,
)
from topicsvc.topics import Unit
from topicsvc.web import site


class BodyLimitTests(HttpTestCase):
    """The harness limits bodies to 1000 bytes."""

    def assert_too_big(self, client: Client) -> None:
        answer = client.read_answer()
        text = "The body is larger than 1000 bytes."
        self.assert_error_response(client, answer, 413, "PR413-SV-0001", text)
        self.assertEqual(client.headers["access-control-allow-origin"], ["*"])
        self.assertTrue(client.transport.has_ended)
        client.send_raw(b"x" * 100_000)
        self.assertEqual(bytes(client.transport.written), b"")
        self.advance(site.CLOSE_TIMEOUT)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assertEqual(self.validator.checks, [])

    def head(self, *lines: str) -> bytes:
        return "\r\n".join([f"POST {SEND_PATH} HTTP/1.1", f"Host: {HOST}", *lines, "", ""]).encode()

    def test_a_body_of_the_maximum_length_is_accepted(self) -> None:
        self.start_request(body=b'"%s"' % (b"x" * 998))
        self.validator.last.grant(self.now + 60)
        self.assertEqual(len(self.broker.published), 1)

    def test_a_content_length_over_the_limit_is_refused_at_once(self) -> None:
        client = self.client()
        client.send_raw(self.head("Content-Length: 1001", "Expect: 100-continue"))
        self.assert_too_big(client)

    def test_a_chunked_body_is_refused_when_it_exceeds_the_limit(self) -> None:
        client = self.client()
        client.send_raw(self.head("Transfer-Encoding: chunked", "Authorization: Bearer a-token"))
        self.validator.checks.pop().grant(self.now + 60)
        client.send_raw(b"1f4\r\n" + b"x" * 500 + b"\r\n")
        self.assertEqual(bytes(client.transport.written), b"")
        client.send_raw(b"1f5\r\n" + b"x" * 501 + b"\r\n0\r\n\r\n")
        self.assert_too_big(client)

    def test_a_chunked_body_below_the_limit_is_accepted(self) -> None:
        client = self.client()
        head = self.head("Transfer-Encoding: chunked", "Authorization: Bearer a-token")
        client.send_raw(head + b'3\r\n"ab\r\n2\r\nc"\r\n0\r\n\r\n')
        self.validator.last.grant(self.now + 60)
        self.assertEqual(self.broker.published[0].body, b'"abc"')


class ServerHeaderTests(HttpTestCase):
    def test_no_response_has_a_server_header(self) -> None:
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
    def assert_closed_after(self, client: Client, trickle: bytes, seconds: float) -> None:
        """Closed `seconds` from now, although `trickle` arrives once a second."""
        for _ in range(int(seconds) - 1):
            self.clock.advance(1)
            if trickle:
                client.send_raw(trickle)
        self.assertIsNone(client.transport.lost)
        self.clock.advance(1)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assertEqual(self.clock.getDelayedCalls()[1:], [])  # only the heartbeat is left

    def test_a_connection_that_sends_nothing(self) -> None:
        self.assert_closed_after(self.client(), b"", site.HEAD_TIMEOUT)

    def test_a_head_that_trickles_in(self) -> None:
        client = self.client()
        client.send_raw(b"GET / HTTP/1.1\r\nX: ")
        self.assert_closed_after(client, b"x", site.HEAD_TIMEOUT)

    def test_a_body_that_trickles_in(self) -> None:
        client = self.client()
        head = f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500\r\n\r\n"
        client.send_raw(head.encode())
        self.assert_closed_after(client, b"x", site.BODY_TIMEOUT)

    def test_chunks_that_trickle_in(self) -> None:
        client = self.client()
        head = f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send_raw(head.encode())
        self.assert_closed_after(client, b"1\r\nx\r\n", site.BODY_TIMEOUT)

    def test_an_idle_connection_between_requests(self) -> None:
        client = self.client()
        client.request("OPTIONS", SEND_PATH)
        self.assert_closed_after(client, b"", site.IDLE_TIMEOUT)

    def test_a_head_that_trickles_in_after_another_request(self) -> None:
        client = self.client()
        client.request("OPTIONS", SEND_PATH)
        self.advance(site.IDLE_TIMEOUT - 1)
        client.send_raw(b"GET / HTTP/1.1\r\nX: ")
        self.assert_closed_after(client, b"x", site.HEAD_TIMEOUT)

    def test_a_request_in_progress_has_no_deadline(self) -> None:
        client = self.start_request()
        self.advance(300)
        self.validator.last.grant(self.now + 60)
        client.read_answer()
        self.assertEqual(client.status, 200)

    def test_a_client_that_does_not_read_its_response_is_aborted(self) -> None:
        client = self.client()
        client.transport.is_congested = True
        client.request("OPTIONS", SEND_PATH)
        self.advance(site.IDLE_TIMEOUT + site.CLOSE_TIMEOUT)
        self.iterate()
        self.assertEqual(client.transport.lost.type.__name__, "ConnectionAborted")

    def test_a_websocket_has_no_idle_timeout(self) -> None:
        client = self.subscribe()
        self.advance(3 * site.IDLE_TIMEOUT)
        self.assertIsNone(client.transport.lost)


class DisabledSendTests(ServiceTestCase):
    def test_if_sending_is_disabled_only_websocket_urls_exist(self) -> None:
        tree = self.site.resource
        self.site.resource = site.TopicTree(Unit("https://unit1.example/"), tree._upgrade, None)
        client = self.client()
        answer = client.request("POST", SEND_PATH, BEARER, b"1")
        self.assertEqual(client.status, 404)
        self.assertEqual(json.loads(answer)["code"], "PR404-DV-0001")
        self.connect()
