"""The page's table of HTTP requests agrees with llhttp, h11 and the service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httptools

from tests.fuzz.framing import read_h11
from tests.support.harness import HOST, ServiceTestCase

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

GET = b"GET /a HTTP/1.1\r\nHost: %s\r\n" % HOST.encode()
POST = b"POST /a HTTP/1.1\r\nHost: %s\r\n" % HOST.encode()
ONE = b"Content-Length: 1\r\n"
CODING = b"Transfer-Encoding: chunked\r\n"
CHUNKED = POST + CODING + b"\r\n"
END = b"0\r\n\r\n"

REQUESTS = {
    "two equal lengths, or `Content-Length: 1, 1`": [
        POST + ONE + ONE + b"\r\n1", POST + b"Content-Length: 1, 1\r\n\r\n1",
    ],
    "`Content-Length` and `Transfer-Encoding: chunked`": [
        POST + ONE + CODING + b"\r\n" + END, POST + CODING + ONE + b"\r\n" + END,
    ],
    "`Transfer-Encoding: gzip, chunked`": [
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + END,
    ],
    "`Transfer-Encoding: chunked` in HTTP/1.0": [CHUNKED.replace(b"1.1", b"1.0", 1) + END],
    "`Host` missing in HTTP/1.1, or repeated": [
        b"GET /a HTTP/1.1\r\n\r\n", GET + b"Host: %s\r\n\r\n" % HOST.encode(),
    ],
    "a folded header line": [GET + b"X: 1\r\n 2\r\n\r\n", GET + b"X:\r\n\t1\r\n\r\n"],
    "a bare line feed as line end": [GET.replace(b"\r", b"") + b"\n", GET + b"X: 1\nY: 2\r\n\r\n"],
    "a bare carriage return before a line end": [GET + b"X: 1\r\r\n\r\n"],
    "control characters in a header value": [GET + b"X: \x01\r\n\r\n", GET + b"X: \x0b\r\n\r\n"],
    "a header name that is not a token, for example `X(`": [
        GET + b"X(: 1\r\n\r\n", GET + b"X\xff: 1\r\n\r\n",
    ],
    "a tab around a header value": [
        GET + b"X:\t1\t\r\n\r\n", POST + b"Content-Length:\t1\r\n\r\n1",
    ],
    "two blanks in the request line": [
        GET.replace(b" /", b"  /") + b"\r\n", GET.replace(b" HTTP", b"  HTTP") + b"\r\n",
    ],
    "HTTP/1.2": [GET.replace(b"1.1", b"1.2", 1) + b"\r\n"],
    "bytes above 0x7f in the target": [GET.replace(b"/a", b"/\xc3\xa9") + b"\r\n"],
    "a method in lower case": [GET.replace(b"GET", b"get") + b"\r\n"],
    "another unknown method": [GET.replace(b"GET", b"FOO") + b"\r\n"],
    "an empty line before a request": [b"\r\n" + GET + b"\r\n", b"\r\n" * 5 + GET + b"\r\n"],
    "a bare line feed before a request": [b"\n" + GET + b"\r\n"],
    "blanks behind a chunk size": [CHUNKED + b"1 \r\n1\r\n" + END],
    "a bare line feed behind a chunk size": [CHUNKED + b"1\n1\r\n" + END],
    "a chunk size of 17 digits that begins with zeros": [CHUNKED + b"%017d\r\n1\r\n" % 1 + END],
    "a line of 255 bytes or more before a chunk": [
        CHUNKED + b"1;" + b"x" * 253 + b"\r\n1\r\n" + END,
    ],
    "a trailer without a colon": [CHUNKED + b"0\r\nX\r\n\r\n"],
    "`Content-Length` as a trailer": [CHUNKED + b"0\r\nContent-Length: 1\r\n\r\n"],
    "another `Expect` than `100-continue`": [GET + b"Expect: x\r\n\r\n"],
}  # fmt: skip
"""Requests of each row."""


def rows() -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the page's table."""
    table = PAGE.read_text("utf-8").partition("| request | llhttp | h11 | nginx | here |\n")[2]
    return re.findall(r"^\| (.+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", table, re.MULTILINE)


def answer(accepted: list[bool]) -> str:
    """Return the word of a cell, from whether each request of the row is accepted."""
    return {(True,): "yes", (False,): "no"}.get(tuple(sorted(set(accepted))), "some")


class _Messages:
    """Counts what llhttp finds."""

    count = 0

    def on_message_complete(self) -> None:
        self.count += 1


def llhttp_accepts(data: bytes) -> bool:
    messages = _Messages()
    parser: Any = httptools.HttpRequestParser(messages)
    try:
        parser.feed_data(data)
    except httptools.HttpParserError:
        return False
    return messages.count == 1


class TableTests(ServiceTestCase):
    def is_accepted(self, data: bytes) -> bool:
        """Whether the service reads it as a request of a path that does not exist."""
        client = self.client()
        client.send_raw(data + GET)
        client.read_answer()
        return client.status == 404 and not client.transport.has_ended

    def test_each_row(self) -> None:
        self.assertEqual([row[0] for row in rows()], list(REQUESTS))
        for request, llhttp, h11, _, here in rows():  # nginx: see `tests.integration`
            datas = REQUESTS[request]
            for implementation, expected, accepts in (
                ("llhttp", llhttp, llhttp_accepts),
                ("h11", h11, lambda data: len(read_h11(data).messages) == 1),
                ("here", here, self.is_accepted),
            ):
                found = [accepts(data) for data in datas]
                if expected == "at most 4":
                    self.assertEqual(found, [True, False])
                    continue
                self.assertEqual(
                    (request, implementation, answer(found)), (request, implementation, expected)
                )
