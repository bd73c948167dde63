"""Requests from bytes, for any division into pieces."""

from __future__ import annotations

import contextlib
import re
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.web import http_parser
from topicsvc.web.http_parser import BadRequest, BodyTooBig, Problem, RequestHead, RequestParser

HOST = b"Host: unit1.example\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
LIMIT = 10_000


def head_of(data: bytes) -> RequestHead:
    parser = RequestParser()
    parser.receive(data)
    head = parser.read_head()
    assert head is not None
    return head


def read_all(pieces: list[bytes]) -> list[tuple[bytes, bytes, bytes]]:
    """Method, path and body of all requests that arrive in these pieces."""
    parser, found = RequestParser(), []
    head: RequestHead | None = None
    for piece in pieces:
        parser.receive(piece)
        while True:
            if head is None:
                head = parser.read_head()
                if head is None:
                    break
            body = parser.read_body(LIMIT)
            if body is None:
                if parser.may_have_more:
                    continue
                break
            found.append((head.method, head.path, body))
            head = None
    return found


class HeadTests(SynchronousTestCase):
    def test_a_request_line_and_headers(self) -> None:
        head = head_of(b"GET /a/b?token=x HTTP/1.1\r\nHost:  h \t\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
        self.assertEqual((head.method, head.path, head.minor), (b"GET", b"/a/b", 1))
        self.assertEqual(head.headers, {b"host": [b"h"], b"x-a": [b"1", b"2"]})
        self.assertEqual((head.length, head.has_body), (0, False))

    def test_targets(self) -> None:
        for target, path, authority in (
            (b"/", b"/", None),
            (b"*", b"*", None),
            (b"http://h.example:1/a?b", b"/a", b"h.example:1"),
            (b"HTTPS://h.example", b"/", b"h.example"),
            (b"http://h.example?x=/y", b"/", b"h.example"),
            (b"//h/a", b"//h/a", None),
        ):
            head = head_of(b"GET %s HTTP/1.1\r\n%s\r\n" % (target, HOST))
            self.assertEqual((head.path, head.authority), (path, authority), target)

    def test_keep_alive(self) -> None:
        for version, lines, expected in (
            (1, b"", True),
            (0, b"", False),
            (0, b"Connection: keep-alive\r\n", False),
            (1, b"Connection: close\r\n", False),
            (1, b"Connection: keep-alive,close\r\n", False),
            (1, b"Connection: keep-alive\r\nConnection: Close\r\n", False),
            (1, b"Connection: upgrade\r\n", True),
        ):
            head = head_of(b"GET / HTTP/1.%d\r\n%s%s\r\n" % (version, HOST, lines))
            self.assertIs(head.keeps_alive, expected, lines)
        self.assertFalse(head_of(b"CONNECT h:1 HTTP/1.1\r\n" + HOST + b"\r\n").keeps_alive)

    def test_only_a_bearer_token_may_have_32_kib(self) -> None:
        first = b"POST /a HTTP/1.1\r\n" + HOST
        token = b"x" * 32768
        head = head_of(first + b"Authorization: Bearer " + token + b"\r\n\r\n")
        self.assertEqual(head.get_all(b"authorization"), [b"Bearer " + token])
        for lines in (
            b"Authorization: Bearer x" + token + b"y" * 100 + b"\r\nX: " + b"x" * 16300 + b"\r\n",
            b"X: " + token + b"\r\n",
            b"Authorization: x\r\n" + b"X: 1\r\n" * 3000,
        ):
            with self.assertRaises(BadRequest):
                head_of(first + lines + b"\r\n")

    def test_at_most_100_headers(self) -> None:
        first = b"GET / HTTP/1.1\r\n"
        self.assertEqual(len(head_of(first + b"X: 1\r\n" * 100 + b"\r\n").get_all(b"x")), 100)
        with self.assertRaises(BadRequest):
            head_of(first + b"X: 1\r\n" * 101 + b"\r\n")

    def test_empty_lines_before_a_request(self) -> None:
        self.assertEqual(head_of(b"\r\n" * 4 + b"GET / HTTP/1.1\r\n\r\n").method, b"GET")
        with self.assertRaises(BadRequest):
            head_of(b"\r\n" * 5 + b"GET / HTTP/1.1\r\n\r\n")

    def test_an_invalid_request_line_is_refused_before_the_head_ends(self) -> None:
        for data in (b"nonsense\r\n", b"x" * 16384, b"GET / HTTP/2.0\r\nX"):
            parser = RequestParser()
            parser.receive(data)
            self.assertRaises(BadRequest, parser.read_head)

    def test_a_request_line_is_read_twice_at_most(self) -> None:
        lines: list[bytes] = []
        pattern = http_parser._REQUEST_LINE

        class Pattern:
            def fullmatch(self, data: bytes, position: int, end: int) -> re.Match[bytes] | None:
                lines.append(bytes(data[position:end]))
                return pattern.fullmatch(data, position, end)

        self.patch(http_parser, "_REQUEST_LINE", Pattern())
        parser = RequestParser()
        data = b"\r\nGET /a HTTP/1.1\r\n" + HOST + b"\r\nGET /b HTTP/1.1\r\n" + HOST + b"\r\n"
        heads = []
        for at in range(len(data)):
            parser.receive(data[at : at + 1])
            heads.append(parser.read_head())
        self.assertEqual([head.path for head in heads if head is not None], [b"/a", b"/b"])
        self.assertEqual(lines, [b"GET /a HTTP/1.1"] * 2 + [b"GET /b HTTP/1.1"] * 2)

    def test_kinds_of_errors(self) -> None:
        for data, problem, method in (
            (b"FOO / HTTP/1.1\r\n\r\n", Problem.METHOD, b"FOO"),
            (b"GET /\xff HTTP/1.1\r\n\r\n", Problem.TARGET, b"GET"),
            (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 4301 + b"\r\n\r\n", Problem.SYNTAX,
             b"POST"),
        ):  # fmt: skip
            error = self.assertRaises(BadRequest, head_of, data)
            self.assertEqual((error.problem, error.method), (problem, method))


class BodyTests(SynchronousTestCase):
    def test_known_and_chunked_bodies_in_one_stream(self) -> None:
        data = (
            b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
            + CHUNKED
            + b"1;x=y\r\nd\r\n2\r\nef\r\n0\r\nTrailer: 1\r\n\r\n"
            + b"GET /b HTTP/1.1\r\n\r\n"
        )
        expected = [(b"POST", b"/a", b"abc"), (b"POST", b"/a", b"def"), (b"GET", b"/b", b"")]
        self.assertEqual(read_all([data]), expected)
        self.assertEqual(read_all([data[at : at + 1] for at in range(len(data))]), expected)

    def test_a_request_for_an_upgrade_may_have_a_chunked_body(self) -> None:
        head = b"POST /a HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"
        data = head + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
        self.assertEqual(read_all([data]), [(b"POST", b"/a", b"a")])

    def test_a_body_over_the_limit(self) -> None:
        for data in (
            b"POST /a HTTP/1.1\r\nContent-Length: 6\r\n\r\n",
            CHUNKED + b"3\r\nabc\r\n3\r\n",
            CHUNKED + b"ffffffffffffffff\r\n",
        ):
            parser = RequestParser()
            parser.receive(data)
            parser.read_head()
            self.assertRaises(BodyTooBig, parser.read_body, 5)

    def test_invalid_chunks(self) -> None:
        for body in (b"x\r\n", b"-1\r\n", b"+1\r\na\r\n", b"0x1\r\na\r\n", b"1\na\r\n",
                     b" 1\r\na\r\n",
                     b"1 \r\na\r\n", b"1\r\nab\r\n", b"1" * 17 + b"\r\n", b"1;" + b"x" * 300,
                     b"1;\x00\r\na\r\n", b"1;a\nb\r\na\r\n", b"0\r\nX: 1\nY: 2\r\n\r\n",
                     b"0\r\nno colon\r\n\r\n", b"0\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
                     b"0\r\nX: " + b"x" * 4100 + b"\r\n", b"\r\n"):  # fmt: skip
            with self.subTest(body=body[:30]), self.assertRaises(BadRequest):
                read_all([CHUNKED, body, b"GET / HTTP/1.1\r\n\r\n"])

    def test_many_chunks_are_read_in_several_calls(self) -> None:
        count = 3 * http_parser.CHUNKS_AT_ONCE
        parser = RequestParser()
        parser.receive(CHUNKED + b"1\r\nx\r\n" * count + b"0\r\n\r\n")
        parser.read_head()
        calls = 1
        while (body := parser.read_body(LIMIT)) is None:
            self.assertTrue(parser.may_have_more)
            calls += 1
        self.assertEqual((body, calls), (b"x" * count, 4))

    def test_a_skipped_body_is_counted_and_not_kept(self) -> None:
        for data, size in (
            (b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde", 5),
            (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", 3),
        ):
            parser = RequestParser()
            parser.receive(data + b"GET /b HTTP/1.1\r\n\r\n")
            parser.read_head()
            self.assertEqual(parser.skip_body(), (True, size))
            head = parser.read_head()
            assert head is not None
            self.assertEqual(head.path, b"/b")

    def test_a_body_in_small_pieces_takes_little_more_than_its_bytes(self) -> None:
        size = 50_000
        for start, piece in (
            (b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (2 * size + 1), b"%c="),
            (CHUNKED, b"2\r\n%c=\r\n"),
        ):
            parser = RequestParser()
            parser.receive(start)
            parser.read_head()
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)
            for number in range(size):
                parser.receive(piece % (number % 256))
                self.assertIsNone(parser.read_body(10**6))
            kept = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            self.assertLess(kept, 2 * 2 * size)
            parser.receive(b"!" if b"Length" in start else b"0\r\n\r\n")
            body = parser.read_body(10**6)
            assert body is not None
            self.assertEqual(body[: 2 * size], bytes(b"".join(b"%c=" % (number % 256)
                             for number in range(size))))  # fmt: skip

    def test_the_rest_is_returned_and_forgotten(self) -> None:
        parser = RequestParser()
        parser.receive(b"GET / HTTP/1.1\r\n\r\nrest")
        parser.read_head()
        self.assertEqual((parser.take_rest(), parser.buffered), (b"rest", 0))


class PieceTests(SynchronousTestCase):
    @settings(max_examples=200)
    @given(
        st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), min_size=1, max_size=4),
        st.lists(st.integers(1, 400), max_size=12),
    )
    def test_the_division_into_pieces_has_no_effect(
        self, requests: list[tuple[bool, bytes]], cuts: list[int]
    ) -> None:
        data, expected = b"", []
        for is_chunked, body in requests:
            expected.append((b"POST", b"/a", body))
            if is_chunked:
                half = len(body) // 2
                data += CHUNKED
                for piece in (body[:half], body[half:]):
                    data += b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b""
                data += b"0\r\n\r\n"
            else:
                data += b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        pieces, at = [], 0
        for cut in cuts:
            pieces.append(data[at : at + cut])
            at += cut
        self.assertEqual(read_all([each for each in (*pieces, data[at:]) if each]), expected)

    @settings(max_examples=300)
    @given(st.binary(max_size=300))
    def test_any_bytes_are_a_request_or_refused(self, data: bytes) -> None:
        for start in (b"", CHUNKED, b"GET / HTTP/1.1\r\n"):
            with contextlib.suppress(BadRequest, BodyTooBig):
                read_all([start + data])
