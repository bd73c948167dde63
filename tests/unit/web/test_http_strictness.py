"""Ambiguous and invalid HTTP requests."""

from __future__ import annotations

import json

from tests.support.harness import (
    HANDSHAKE,
    HOST,
    SEND_PATH,
    WEBSOCKET_PATH,
    Client,
    ServiceTestCase,
)
from topicsvc.interfaces import Grant
from topicsvc.web import site

SECOND = f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer smuggled\r\n\r\n"
HEADERS = [f"{name}: {value}" for name, value in HANDSHAKE.items()]


def request(first: str, *headers: str, body: str = "", end: str = "\r\n") -> bytes:
    return end.join([first, *headers, "", body]).encode("latin-1")


def upgrade(*headers: str, body: str = "") -> bytes:
    return request(f"GET {WEBSOCKET_PATH} HTTP/1.1", f"Host: {HOST}", *HEADERS, *headers, body=body)


def send(*headers: str, body: str = "") -> bytes:
    return request(
        f"POST {SEND_PATH} HTTP/1.1",
        f"Host: {HOST}",
        "Authorization: Bearer a-token",
        *headers,
        body=body,
    )


class StrictnessTests(ServiceTestCase):
    def responses_to(self, data: bytes) -> tuple[Client, list[int]]:
        """Send `data`; return the client and the statuses of all responses."""
        client = self.client()
        client.send_raw(data)
        statuses = []
        while (body := client.read_answer()) or client.status:
            self.code = json.loads(body)["code"] if body else ""
            statuses.append(client.status)
            client.status = 0
        return client, statuses

    def assert_refused(self, data: bytes, code: str = "PR400-SV-0001") -> None:
        """The response is 400, and the bytes after it are not parsed as another request."""
        with self.subTest(data=data):
            client, statuses = self.responses_to(data + SECOND.encode())
            self.assertEqual((statuses, self.code), ([400], code))
            self.assertEqual(client.headers["access-control-allow-origin"], ["*"])
            self.assertEqual(self.validator.checks, [])
            self.assertEqual((client.headers["connection"], client.transport.has_ended),
                             (["close"], True))  # fmt: skip
            client.send_raw(SECOND.encode())
            self.assertEqual((bytes(client.transport.written), self.validator.checks), (b"", []))

    def test_ambiguous_lengths(self) -> None:
        for make in (send, upgrade):
            for headers in (
                ["Content-Length: 1", "Content-Length: 1"],
                ["Content-Length: 1", "Content-Length: 2"],
                ["Content-Length: 5", "Transfer-Encoding: chunked"],
                ["Transfer-Encoding: chunked", "Content-Length: 5"],
                ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
                ["Content-Length: 1, 1"],
                ["Content-Length: +1"],
                ["Content-Length: -1"],
                ["Content-Length: 0x1"],
                ["Content-Length: 1 1"],
                ["Content-Length:"],
            ):
                self.assert_refused(make(*headers, body="0\r\n\r\n"))

    def test_other_transfer_codings(self) -> None:
        for coding in ("identity", "gzip", "gzip, chunked", "chunked, identity", "xchunked",
                       "chunked;x=1", "\x0bchunked"):  # fmt: skip
            self.assert_refused(send(f"Transfer-Encoding: {coding}", body="0\r\n\r\n"))
            self.assert_refused(send("Content-Length: 1", f"Transfer-Encoding: {coding}", body="1"))

    def test_a_transfer_coding_in_http_1_0(self) -> None:
        first = f"POST {SEND_PATH} HTTP/1.0"
        headers = [f"Host: {HOST}", "Transfer-Encoding: chunked"]
        self.assert_refused(request(first, *headers, body="0\r\n\r\n"))

    def test_invalid_chunks(self) -> None:
        self.validator.at_once = lambda *_: Grant(None, self.now + 60, True, True)
        for body in ("x\r\n", "-1\r\n", "0x1\r\n1\r\n", "1\n1\r\n", "1\r\n12\r\n", " 1\r\n1\r\n"):
            self.assert_refused(send("Transfer-Encoding: chunked", body=body + "0\r\n\r\n"))

    def test_invalid_headers(self) -> None:
        for header in (
            "Content-Length : 0", "Content-Length\t: 0", " Content-Length: 0", "X: 1\r\n folded",
            "X: 1\r\n\tfolded", "no colon", ": no name", "X\x00: 1", "X: 1\x00", "X: 1\n2: 2",
            "X: 1\rY: 2", "X Y: 1", "\xdc: 1",
        ):  # fmt: skip
            self.assert_refused(upgrade(header))
            self.assert_refused(send(header))

    def test_whitespace_before_the_first_header(self) -> None:
        first = f"GET {WEBSOCKET_PATH} HTTP/1.1"
        self.assert_refused(request(first, f" Host: {HOST}", f"Host: {HOST}", *HEADERS))

    def test_invalid_request_lines(self) -> None:
        for first in (
            "GET", f"GET {WEBSOCKET_PATH}", f"GET {WEBSOCKET_PATH} HTTP/2.0",
            f"GET {WEBSOCKET_PATH} HTTP/1.1 ", f"GET  {WEBSOCKET_PATH} HTTP/1.1",
            f" GET {WEBSOCKET_PATH} HTTP/1.1", f"GET {WEBSOCKET_PATH} http/1.1",
            f"G\x00T {WEBSOCKET_PATH} HTTP/1.1", f"GET\t{WEBSOCKET_PATH}\tHTTP/1.1",
            f"GET {WEBSOCKET_PATH} HTTP/1.1\rX", "PRI * HTTP/2.0",
        ):  # fmt: skip
            self.assert_refused(request(first, f"Host: {HOST}", *HEADERS))

    def test_paths_with_unescaped_characters_get_404(self) -> None:
        for character in ("\x7f", "|", "\\", "{"):
            _, statuses = self.responses_to(
                request(f"GET /__topic{character} HTTP/1.1", f"Host: {HOST}")
            )
            self.assertEqual(statuses, [404], character)

    def test_a_bare_line_feed_does_not_end_a_line(self) -> None:
        first, host = f"GET {WEBSOCKET_PATH} HTTP/1.1", f"Host: {HOST}"
        client, statuses = self.responses_to(request(first, host, *HEADERS, end="\n"))
        self.assertEqual(statuses, [])
        self.advance(site.HEAD_TIMEOUT)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assert_refused(request(f"{first}\nX: 1", host, *HEADERS))

    def test_heads_that_are_too_long(self) -> None:
        self.assert_refused(upgrade("X: " + "x" * 17000))
        self.assert_refused(upgrade(*["X: " + "x" * 1000] * 17))
        self.assert_refused(upgrade(*["X: 1"] * 501))
        self.assert_refused(f"GET /{'x' * 17000} HTTP/1.1\r\n".encode())
        self.assert_refused(b"x" * 17000)

    def test_several_host_headers_or_none(self) -> None:
        for first, headers in (
            (f"GET {WEBSOCKET_PATH}", HEADERS),
            (f"POST {SEND_PATH}", ["Authorization: Bearer a-token"]),
            (f"OPTIONS {SEND_PATH}", []),
            ("OPTIONS *", []),
            ("GET /nowhere", []),
            ("GET http://cell1.unit1.example/", []),
        ):
            for hosts in ([], [HOST, HOST], [HOST, "evil.example"], ["evil.example"] * 3, ["", ""]):
                lines = [f"Host: {host}" for host in hosts]
                data = request(f"{first} HTTP/1.1", *lines, *headers)
                self.assert_refused(data, "PR400-CM-0005")
                if hosts:
                    data = request(f"{first} HTTP/1.0", *lines, *headers)
                    self.assert_refused(data, "PR400-CM-0005")
        self.assertEqual(self.site.sends[400], 9)

    def test_http_1_0_without_a_host_header(self) -> None:
        for first, status in ((f"POST {SEND_PATH}", 400), ("OPTIONS *", 200)):
            client, statuses = self.responses_to(request(f"{first} HTTP/1.0") + SECOND.encode())
            self.assertEqual(statuses, [status])
            self.iterate()
            self.assertIsNotNone(client.transport.lost)

    def test_a_handshake_has_no_body(self) -> None:
        for header, body in (
            ("Content-Length: 1", "1"),
            ("Transfer-Encoding: chunked", "1\r\n1\r\n0\r\n\r\n"),
        ):
            _, statuses = self.responses_to(upgrade(header, body=body))
            self.assertEqual((statuses, self.code), ([400], "PR400-WS-0001"), header)
        _, statuses = self.responses_to(upgrade("Content-Length: 0"))
        self.assertEqual(statuses, [101])

    def test_an_invalid_request_after_a_valid_one_gets_400(self) -> None:
        client = self.client()
        client.request("OPTIONS", SEND_PATH)
        client.send_raw(send("X : 1"))
        body = client.read_answer()
        self.assertEqual((client.status, json.loads(body)["code"]), (400, "PR400-SV-0001"))
        self.advance(site.CLOSE_TIMEOUT)
        self.iterate()
        self.assert_nothing_left()

    def test_no_response_has_a_server_header_or_a_page(self) -> None:
        for data in (
            upgrade(),
            upgrade("X : 1"),
            b"nonsense\r\n",
            request("OPTIONS * HTTP/1.1", f"Host: {HOST}"),
            request("TRACE / HTTP/1.1", f"Host: {HOST}"),
            request("HEAD / HTTP/1.1", f"Host: {HOST}"),
            request("GET /server-status HTTP/1.1", f"Host: {HOST}"),
            request("CONNECT evil.example:443 HTTP/1.1", f"Host: {HOST}"),
            send("Content-Length: 100000"),
        ):
            with self.subTest(data=data):
                client = self.client()
                client.send_raw(data)
                written = bytes(client.transport.written).lower()
                self.assertTrue(written.startswith(b"http/1.1 "))
                for word in (b"server:", b"twisted", b"autobahn", b"python", b"<html"):
                    self.assertNotIn(word, written)

    def test_invalid_requests_leave_nothing_behind(self) -> None:
        for data in (upgrade("X : 1"), b"x" * 17000, send("Content-Length: 1, 1")):
            self.responses_to(data)
        self.advance(site.CLOSE_TIMEOUT)
        self.iterate()
        self.assert_nothing_left()
