"""`limits.sends_per_minute` and `limits.sends_per_minute_per_cell`."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.support.harness import HOST, SEND_PATH, HttpTestCase
from topicsvc.interfaces import Grant
from topicsvc.settings import LimitSettings
from topicsvc.web import batch

TOO_MANY = {
    "code": "PR429-SV-0001",
    "message": {"lang": "en", "value": "Too many messages in a minute."},
}


class SendLimitTestCase(HttpTestCase):
    limits_settings = LimitSettings(sends_per_minute=6)

    def send(
        self,
        body: bytes = b"1",
        token: str = "a-token",
        cell: str = "cell1",
        method: str = "POST",
        **headers: str,
    ) -> tuple[int, str | None]:
        """Send with a valid token; return the status and ``Retry-After``."""
        client = self.client()
        authorization = {"Authorization": f"Bearer {token}", **headers}
        host = HOST.replace("cell1", cell)
        client.request(method, SEND_PATH, {"Host": host, **authorization}, body)
        self.validator.last.grant(self.now + 3600)
        answer = client.read_answer()
        if client.status == 429:
            self.assertEqual(json.loads(answer), TOO_MANY)
            self.assertEqual(client.headers["access-control-allow-origin"], ["*"])
            # A script of another origin can read the time to wait.
            self.assertEqual(client.headers["access-control-expose-headers"], ["Retry-After"])
        return client.status, client.headers.get("retry-after", [None])[0]

    def send_lines(self, count: int, token: str = "a-token") -> tuple[int, str | None]:
        headers = {"Content-Type": batch.MEDIA_TYPE.decode()}
        return self.send(b"1\n" * count, token, **headers)


class SendsPerMinuteTests(SendLimitTestCase):
    """Each token may send so many messages in a minute."""

    def test_more_messages_get_429_with_the_time_to_wait(self) -> None:
        self.assertEqual([self.send()[0] for _ in range(6)], [200] * 6)
        self.assertEqual(self.send(), (429, "10"))
        self.assertEqual(len(self.broker.published), 6)
        self.advance(9)
        self.assertEqual(self.send(), (429, "1"))
        self.advance(1)
        self.assertEqual(self.send(), (200, None))
        self.assertEqual(self.limits.refusals["sends_per_minute"], 2)

    def test_tokens_do_not_share_an_allowance(self) -> None:
        self.assertEqual([self.send()[0] for _ in range(7)], [200] * 6 + [429])
        self.assertEqual(self.send(token="another")[0], 200)
        self.assertEqual(self.send(cell="cell2")[0], 429)

    def test_each_line_of_a_batch_is_a_message(self) -> None:
        self.assertEqual(self.send_lines(4), (200, None))
        self.assertEqual(self.send_lines(3)[0], 429)
        self.assertEqual(len(self.broker.published), 4)

    def test_a_batch_that_is_never_allowed_gets_413_with_the_number(self) -> None:
        client = self.client()
        headers = {"Authorization": "Bearer x", "Content-Type": batch.MEDIA_TYPE.decode()}
        client.request("POST", SEND_PATH, headers, b"1\n" * 7)
        self.validator.last.grant(self.now + 60)
        self.assertIn(b"more than 6 lines", client.read_answer())
        self.assertEqual(client.status, 413)

    def test_a_refused_client_does_not_have_to_send_its_body(self) -> None:
        for _ in range(6):
            self.send()
        client = self.client()
        client.send_raw(
            f"POST {SEND_PATH} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer a-token\r\n"
            "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        self.validator.last.grant(self.now + 60)
        client.read_answer()
        self.assertEqual(client.status, 429)

    def test_refused_tokens_and_options_use_no_allowance(self) -> None:
        for _ in range(10):
            client = self.start_request()
            self.validator.last.grant(self.now + 60, may_send=False)
            client.read_answer()
            self.assertEqual(client.status, 403)
            self.assertEqual(self.send(b"", method="OPTIONS")[0], 200)
        self.assertEqual(self.send()[0], 200)

    def test_a_known_token_is_limited_too(self) -> None:
        known = Grant("me", self.now + 60, True, True)
        self.validator.known = lambda token, topic: known
        client = self.client()
        statuses = []
        for _ in range(7):
            client.request("POST", SEND_PATH, {"Authorization": "Bearer a-token"}, b"1")
            statuses.append(client.status)
        self.assertEqual(statuses, [200] * 6 + [429])

    def test_a_reload_changes_the_limit(self) -> None:
        for _ in range(6):
            self.send()
        self.limits.settings = replace(self.limits.settings, sends_per_minute=0)
        self.assertEqual([self.send()[0] for _ in range(20)], [200] * 20)


class SendsPerCellTests(SendLimitTestCase):
    """All tokens together may send so many messages to the topics of one cell."""

    limits_settings = LimitSettings(sends_per_minute_per_cell=6)

    def test_a_cell_does_not_use_up_the_sends_of_another(self) -> None:
        statuses = [self.send(token=f"token-{number}")[0] for number in range(7)]
        self.assertEqual(statuses, [200] * 6 + [429])
        self.assertEqual(self.send(token="token-0"), (429, "10"))
        self.assertEqual(self.send(cell="cell2")[0], 200)
        self.assertEqual(self.limits.refusals["sends_per_minute_per_cell"], 2)

    def test_a_refused_message_does_not_use_the_token_s_allowance(self) -> None:
        self.limits.settings = LimitSettings(sends_per_minute=7, sends_per_minute_per_cell=1)
        self.assertEqual([self.send()[0] for _ in range(7)], [200] + [429] * 6)
        self.assertEqual(
            [self.send(cell=f"cell{number}")[0] for number in range(2, 9)], [200] * 6 + [429]
        )

    def test_the_default_has_no_limit(self) -> None:
        self.limits.settings = LimitSettings()
        self.assertEqual({self.send()[0] for _ in range(100)}, {200})
        self.assertEqual(len(self.limits.sends_by_token) + len(self.limits.sends_by_cell), 0)
