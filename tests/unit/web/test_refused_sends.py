"""Sends whose token is refused: their counts, and their lines in the log."""

from __future__ import annotations

from typing import Any

from twisted.logger import eventAsText, globalLogPublisher

from tests.support.harness import SEND_PATH, TOPIC, HttpTestCase
from topicsvc.errors import TokenInactive, TopicNotFound
from topicsvc.interfaces import Grant
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.validators.token_id import TokenIds
from topicsvc.web.refused_sends import MAX_SUBJECT

KEY = b"a key of the test"
ID = TokenIds(KEY)("a-token")
AUDIENCE = Refusal(RefusalReason.AUDIENCE, '"a" is required, the token has "b"')


class RefusedSendTests(HttpTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.refused_sends._token_ids = TokenIds(KEY)
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    @property
    def lines(self) -> list[str]:
        return [eventAsText(each).split("] ", 1)[-1] for each in self.events if "refusal" in each]

    def send(self, result: Grant | Exception, method: str = "POST") -> int:
        """Send with a token whose check has this result; return the status."""
        client = self.start_request(method)
        if isinstance(result, Exception):
            self.validator.last.result.errback(result)
        else:
            self.validator.last.result.callback(result)
        client.read_answer()
        return client.status

    def grant(self, **changes: Any) -> Grant:
        rights = {"subject": "me", "may_receive": True, "may_send": True, **changes}
        return Grant(expires_at=self.now + 60, **rights)

    def test_each_refused_send_is_counted_by_its_reason(self) -> None:
        not_listed = Refusal(RefusalReason.NOT_LISTED)
        no_rule = Refusal(RefusalReason.NO_RIGHT, "no rule")
        for result, status, reason in (
            (TokenInactive(AUDIENCE), 401, RefusalReason.AUDIENCE),
            (TopicNotFound(not_listed), 404, RefusalReason.NOT_LISTED),
            (self.grant(may_send=False), 403, RefusalReason.MAY_NOT_SEND),
            (self.grant(may_send=False, may_receive=False), 403, RefusalReason.NO_RIGHT),
            (
                self.grant(may_send=False, may_receive=False, refusal=no_rule),
                403,
                RefusalReason.NO_RIGHT,
            ),
            (Grant("me", self.now, True, True), 401, RefusalReason.EXPIRED),
        ):
            before = self.refused_sends.refusals[reason]
            with self.subTest(reason=reason):
                self.assertEqual(self.send(result), status)
                self.assertEqual(self.refused_sends.refusals[reason], before + 1)
        self.assertEqual(self.send(self.grant()), 200)
        self.assertEqual(self.refused_sends.refusals.total(), 6)

    def test_a_token_that_cannot_be_one_is_malformed(self) -> None:
        self.client().request("POST", SEND_PATH, {"Authorization": "Bearer a b"}, b"1")
        self.assertEqual(self.refused_sends.refusals, {RefusalReason.MALFORMED: 1})
        self.assertIn("32768 characters of visible ASCII", self.lines[0])
        self.assertNotIn("a b", repr(self.events[-1]))

    def test_a_token_that_expires_while_the_body_arrives(self) -> None:
        client = self.client()
        head = (
            f"POST {SEND_PATH} HTTP/1.1\r\nHost: cell1.unit1.example\r\n"
            "Authorization: Bearer a-token\r\nContent-Length: 1\r\n\r\n"
        )
        client.send_raw(head.encode())
        self.validator.last.result.callback(Grant("me", self.now + 5, True, True))
        self.advance(5)
        client.send_raw(b"1")
        client.read_answer()
        self.assertEqual(client.status, 401)
        self.assertEqual(self.refused_sends.refusals, {RefusalReason.EXPIRED: 1})

    def test_a_refused_token_of_options_is_counted_too(self) -> None:
        self.assertEqual(self.send(TokenInactive(AUDIENCE), "OPTIONS"), 200)
        self.assertEqual(self.send(self.grant(may_send=False), "OPTIONS"), 200)
        self.assertEqual(self.refused_sends.refusals, {RefusalReason.AUDIENCE: 1})

    def test_the_line_names_client_topic_token_reason_and_advice(self) -> None:
        self.send(TokenInactive(AUDIENCE))
        [line] = self.lines
        self.assertEqual(
            line,
            f"a send of 192.0.2.7:50001 to {TOPIC.path} (token {ID}) is refused: {AUDIENCE}; "
            f"{AUDIENCE.advice}; refused sends for this reason since the start: 1",
        )
        self.assertNotIn("a-token", repr(self.events))

    def test_the_line_names_the_subject_of_a_valid_token_unless_subjects_are_off(self) -> None:
        self.send(self.grant(may_send=False, subject="x" * 1000))
        self.assertIn(f"(token {ID} of '{'x' * MAX_SUBJECT}') is refused", self.lines[0])
        self.advance(60)
        self.events.clear()
        self.refused_sends.has_subjects = False
        self.send(self.grant(may_send=False, subject="x" * 1000))
        self.assertIn(f"(token {ID}) is refused", self.lines[0])
        self.assertNotIn("xxx", repr(self.events))

    def test_each_reason_has_at_most_one_line_a_minute(self) -> None:
        for _ in range(5):
            self.send(TokenInactive(AUDIENCE))
            self.send(TokenInactive(Refusal(RefusalReason.EXPIRED)))
        self.assertEqual(len(self.lines), 2)
        self.advance(60)
        self.send(TokenInactive(AUDIENCE))
        self.assertIn("; refused sends for this reason since the start: 6", self.lines[-1])
        self.assertEqual(len(self.lines), 3)

    def test_the_client_gets_no_reason(self) -> None:
        client = self.start_request()
        self.validator.last.result.errback(TokenInactive(AUDIENCE))
        self.assertEqual(
            client.read_answer(),
            b'{"code":"PR401-AU-0006","message":{"lang":"en","value":"Token parse error."}}',
        )
