"""Error responses: codes, texts and bytes."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.web import responses
from topicsvc.web.responses import ApiError


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

    def test_a_raw_response_closes_the_connection(self) -> None:
        head, _, body = responses.raw_response(responses.TOO_MANY_REQUESTS).partition(b"\r\n\r\n")
        self.assertEqual(body, responses.TOO_MANY_REQUESTS.body())
        self.assertEqual(
            head.split(b"\r\n"),
            [
                b"HTTP/1.1 503 Service Unavailable",
                b"Content-Type: application/json",
                b"Access-Control-Allow-Origin: *",
                b"Connection: close",
                b"Content-Length: %d" % len(body),
                b"Retry-After: 1",
            ],
        )

    def test_a_raw_response_has_retry_after_only_with_503(self) -> None:
        self.assertNotIn(b"Retry-After", responses.raw_response(responses.BAD_REQUEST))
