"""What a client does with HTTP responses."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.client.rules.responses import code_in, pause_before_retry, reason_in, status_text


class ResponseTests(SynchronousTestCase):
    def test_a_response_of_another_server_is_one_line(self) -> None:
        self.assertEqual(reason_in("<html>\r\n<h1>\n 502\n"), "<html> <h1> 502")
        self.assertEqual(reason_in('{"message":{"value":"No."}}'), "No.")
        self.assertEqual(status_text(502, b""), "502 Bad Gateway")
        self.assertEqual(status_text(599, b""), "599")

    def test_the_code_of_an_error(self) -> None:
        self.assertEqual(code_in(b'{"code":"PR403-AU-0002","message":{}}'), "PR403-AU-0002")
        for body in (b"", b"[]", b"{}", b"\xff", b"[" * 100000):
            self.assertEqual(code_in(body), "")

    def test_only_429_is_sent_again_and_only_within_60_seconds(self) -> None:
        self.assertEqual(pause_before_retry(429, "7", 0.0), 7.0)
        self.assertEqual(pause_before_retry(429, "0", 0.0), 1.0)
        self.assertEqual(pause_before_retry(429, "10", 50.0), 10.0)
        self.assertIsNone(pause_before_retry(429, "11", 50.0))
        for status, retry_after in ((503, "1"), (200, "1"), (429, ""), (429, "x"), (429, "9" * 99)):
            self.assertIsNone(pause_before_retry(status, retry_after, 0.0))
