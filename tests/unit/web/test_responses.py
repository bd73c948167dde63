"""Error responses: codes, texts and bytes."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.web import responses
from topicsvc.web.responses import ApiError, error_response

DATE = b"Sat, 28 Nov 2026 12:00:00 GMT"


class ApiErrorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.errors = [each for each in vars(responses).values() if isinstance(each, ApiError)]

    def test_the_body_is_compact_json_in_the_form_of_personium(self) -> None:
        self.assertEqual(
            responses.NOT_FOUND.body("https://cell1.unit1.example/x"),
            b'{"code":"PR404-DV-0001","message":{"lang":"en",'
            b'"value":"Resource not found. [https://cell1.unit1.example/x]."}}',
        )

    def test_details_are_escaped(self) -> None:
        detail = 'a "quoted" \\ {0} \N{HIRAGANA LETTER A}\n'
        body = responses.NOT_FOUND.body(detail)
        self.assertTrue(body.isascii())
        self.assertEqual(json.loads(body)["message"]["value"], f"Resource not found. [{detail}].")

    def test_each_code_has_the_status_in_it_and_is_used_once(self) -> None:
        for error in self.errors:
            self.assertRegex(error.code, rf"^PR{error.status}-[A-Z]{{2}}-\d{{4}}$")
        self.assertEqual(len({error.code for error in self.errors}), len(self.errors))

    def test_the_last_response_of_a_connection_says_so(self) -> None:
        response = error_response(responses.TOO_MANY_REQUESTS, headers=(responses.ANY_ORIGIN,))
        head, _, body = response.encode(DATE, closes=True, is_head=False).partition(b"\r\n\r\n")
        self.assertEqual(body, responses.TOO_MANY_REQUESTS.body())
        self.assertEqual(
            head.split(b"\r\n"),
            [
                b"HTTP/1.1 503 Service Unavailable",
                b"Content-Type: application/json",
                b"Retry-After: 1",
                b"Access-Control-Allow-Origin: *",
                b"Date: " + DATE,
                b"Connection: close",
                b"Content-Length: %d" % len(body),
            ],
        )

    def test_a_connection_header_of_the_response_stays(self) -> None:
        response = error_response(
            responses.UPGRADE_REQUIRED, headers=((b"Connection", b"upgrade"),)
        )
        for closes, value in ((False, b"upgrade"), (True, b"upgrade, close")):
            data = response.encode(DATE, closes, is_head=False)
            self.assertEqual(data.count(b"Connection: "), 1)
            self.assertIn(b"\r\nConnection: %s\r\n" % value, data)

    def test_a_response_to_head_has_the_length_and_no_body(self) -> None:
        data = error_response(responses.NOT_FOUND).encode(DATE, closes=False, is_head=True)
        self.assertTrue(data.endswith(b"\r\n\r\n"))
        self.assertIn(b"Content-Length: %d\r\n" % len(responses.NOT_FOUND.body()), data)

    def test_retry_after_comes_with_503_alone_and_once(self) -> None:
        data = error_response(responses.BAD_REQUEST).encode(DATE, closes=False, is_head=False)
        self.assertNotIn(b"Retry-After", data)
        data = responses.too_many_failed_tokens(44.2).encode(DATE, closes=False, is_head=False)
        self.assertEqual((data.count(b"Retry-After"), data.count(b"Retry-After: 45\r\n")), (1, 1))
