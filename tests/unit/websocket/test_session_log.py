"""The session log: its lines, their fields, and its counters."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.logger import eventAsText, globalLogPublisher

from tests.support.harness import SENDER, TOPIC, Client, ServiceTestCase
from topicsvc.errors import BrokerUnavailable, TokenInactive, TopicNotFound, ValidatorUnavailable
from topicsvc.interfaces import Grant, Message
from topicsvc.logs import as_json
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.settings import LimitSettings, SessionSettings
from topicsvc.validators.token_id import TokenIds
from topicsvc.websocket import close_reasons
from topicsvc.websocket.session_log import (
    LOSSES_FOR_ADVICE,
    MAX_SUBJECT,
    UNKNOWN_INTERVAL,
    UNKNOWN_PER_SECOND,
    WORKER_NUMBERS,
    SessionLog,
)

KEY = b"a key of the test"
ID = TokenIds(KEY)("first-token")
SUBJECT = "https://cell2.unit1.example/#me"
WHO = f"(token {ID} of {SUBJECT!r})"


class SessionLogTestCase(ServiceTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.websocket_server.context.token_ids = TokenIds(KEY)
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.session_log = self.websocket_server.context.session_log

    @property
    def ended(self) -> list[dict[str, Any]]:
        """The second lines of all sessions."""
        return [each for each in self.events if "reason" in each]

    @property
    def lines(self) -> list[str]:
        return [eventAsText(each).split("] ", 1)[-1] for each in self.events if "session" in each]


class SessionLogTests(SessionLogTestCase):
    settings = SessionSettings(send_queue=100_000)

    def test_a_session_has_one_line_at_its_start_and_one_at_its_end(self) -> None:
        client = self.subscribe()
        self.assertIn(
            "session 1 of 192.0.2.7:50001 on " + TOPIC.path + f" {WHO} begins", self.lines[0]
        )
        self.deliver(b'"abc"')
        self.deliver(b'"de"')
        [first, second] = client.frames()
        self.advance(7.5)
        client.frames()
        client.disconnect()
        self.assertEqual(len(self.lines), 2)
        size = len(first[1]) + len(second[1]) + 2 * 2
        self.assertIn(
            f"session 1 of 192.0.2.7:50001 on {TOPIC.path} {WHO} ends after 7.5 s, 2 messages, "
            f"{size} bytes: Connection lost",
            self.lines[1],
        )

    def test_the_fields_of_the_second_line(self) -> None:
        self.subscribe().disconnect()
        ended = self.events[-1]
        expected = {
            "session": 1, "peer": "192.0.2.7:50001", "topic": TOPIC.path, "seconds": 0.0,
            "messages": 0, "size": 0, "reason": "Connection lost", "refusal": "", "detail": "",
            "advice": "", "has_begun": True, "subject": SUBJECT, "token": ID,
        }  # fmt: skip
        self.assertEqual({key: ended[key] for key in expected}, expected)

    def test_a_client_without_a_token_has_only_the_second_line(self) -> None:
        client = self.connect()
        self.advance(60)
        client.disconnect()
        [line] = self.lines
        self.assertIn("ends after 60.0 s, 0 messages, 0 bytes: Token timeout; ", line)
        [event] = [each for each in self.events if "session" in each]
        self.assertFalse(event["has_begun"])

    def test_reasons_and_details_of_errors_and_closes_by_the_client(self) -> None:
        for reason, act in (
            ("Protocol error", lambda client: client.send_frame(3, b"")),
            ("Invalid UTF-8", lambda client: client.send_frame(1, b"\xff\xff")),
            ("Message too big", lambda client: client.send_frame(1, b"x" * 70000)),
            ("Client closed", lambda client: client.send_frame(8, b"\x03\xe8")),
            ("Invalid message", lambda client: client.send_text("hello")),
        ):
            client = self.connect()
            act(client)
            [event] = [each for each in self.events if "session" in each]
            self.assertEqual(event["reason"], reason)
            has_detail = reason != "Invalid message"
            self.assertEqual(bool(event["detail"]), has_detail, reason)
            if reason == "Client closed":
                self.assertEqual(event["detail"], "code 1000")
            client.disconnect()
            self.assertEqual(len([each for each in self.events if "session" in each]), 1)
            self.events.clear()

    def test_a_session_that_starts_and_ends_in_one_reactor_iteration_has_both_lines(self) -> None:
        client = self.connect()
        client.present("a-token")
        client.send_text("hello")
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        self.assertEqual(
            [line.split(f"of {SUBJECT!r}) ")[1].split()[0] for line in self.lines],
            ["begins", "ends"],
        )

    def test_of_clients_without_a_valid_token_ten_a_second_are_logged_and_the_rest_counted(
        self,
    ) -> None:
        """A client that only connects cannot fill a disk; sessions keep both lines."""
        session = self.subscribe()
        for _ in range(25):
            self.connect().disconnect()
        for _ in range(5):
            self.connect().send_frame(8, b"\x03\xe8")
        self.assertEqual(len(self.lines), 1 + UNKNOWN_PER_SECOND)
        self.assertEqual(self.session_log.ended, {"connection_lost": 25, "client_closed": 5})
        self.clock.advance(1)
        for _ in range(12):
            self.connect().disconnect()
        self.assertEqual(len(self.lines), 1 + 2 * UNKNOWN_PER_SECOND)
        session.disconnect()
        self.assertIn("session 1 of", self.lines[-1])
        self.assertEqual([event for event in self.events if "reasons" in event], [])
        self.clock.advance(UNKNOWN_INTERVAL - 1)
        [summary] = [event for event in self.events if "reasons" in event]
        text = (
            "22 more connections ended within 60 s without a valid token: Connection lost 17, "
            "Client closed 5 (docs/security.md)"
        )
        self.assertIn(text, eventAsText(summary))
        record = json.loads(as_json(summary))
        self.assertEqual(
            (record["message"], record["count"], record["seconds"], record["reasons"]),
            (text, 22, 60.0, "Connection lost 17, Client closed 5"),
        )
        self.clock.advance(600)
        self.assertEqual(len([event for event in self.events if "reasons" in event]), 1)
        self.connect().disconnect()
        self.assertIn("Connection lost", self.lines[-1])

    def test_a_valid_token_that_does_not_start_a_session_is_always_logged(self) -> None:
        for _ in range(3 * UNKNOWN_PER_SECOND):
            client = self.connect()
            client.present("a-token")
            self.validator.last.grant(self.now + 60, may_receive=False)
        self.assertEqual(len(self.lines), 3 * UNKNOWN_PER_SECOND)

    def test_a_stop_logs_what_was_only_counted(self) -> None:
        for _ in range(UNKNOWN_PER_SECOND + 3):
            self.connect().disconnect()
        self.websocket_server.stopService()
        [summary] = [event for event in self.events if "reasons" in event]
        self.assertEqual(summary["count"], 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_delivered_messages_of_closed_connections_stay_counted(self) -> None:
        clients = [self.subscribe() for _ in range(3)]
        self.deliver(b"1")
        size = len(clients[0].frames()[0][1]) + 2
        self.assertEqual(self.websocket_server.delivered, (3, 3 * size))
        clients[0].send_frame(8, b"\x03\xe8")
        self.assertEqual(self.session_log.states, {"waiting": 0, "active": 2, "closing": 1})
        self.assertEqual(self.websocket_server.delivered, (3, 3 * size))
        clients[0].disconnect()
        self.assertEqual(self.websocket_server.delivered, (3, 3 * size))
        self.deliver(b"2")
        self.assertEqual(self.websocket_server.delivered, (5, 5 * size))

    def test_messages_delivered_together_are_counted_singly(self) -> None:
        client = self.subscribe()
        for body in (b"1", b"22", b"333"):
            self.broker.deliver(Message(TOPIC, SENDER, body))
        self.iterate()
        frames = client.frames()
        size = sum(len(payload) + 2 for _, payload in frames)
        self.assertEqual(self.websocket_server.delivered, (3, size))
        client.disconnect()
        self.assertIn(f" 3 messages, {size} bytes: ", self.lines[-1])

    def test_a_connection_that_is_lost_during_a_batch_is_not_counted(self) -> None:
        clients = [self.subscribe() for _ in range(3)]
        last = clients[-1].transport
        deliver = self.websocket_server.context.hub._deliver_batch

        def lose_one_meanwhile(channel: Any, share: int) -> int:
            delivered = deliver(channel, 1)
            last.lose(ConnectionDone())
            return delivered + deliver(channel, share - 1)

        self.websocket_server.context.hub._deliver_batch = lose_one_meanwhile
        self.deliver(b"1")
        self.assertEqual(self.websocket_server.delivered[0], 2)
        self.assertEqual([len(each.frames()) for each in clients[:2]], [1, 1])
        self.assertIn(" 0 messages, 0 bytes: Connection lost", self.lines[-1])

    def test_messages_after_the_expiry_are_not_counted(self) -> None:
        self.subscribe(lifetime=5)
        self.advance(5)
        self.deliver()
        self.assertEqual(self.websocket_server.delivered, (0, 0))

    def test_states_add_up(self) -> None:
        def check(waiting: int, active: int, closing: int) -> None:
            self.assertEqual(
                self.session_log.states,
                {"waiting": waiting, "active": active, "closing": closing},
            )
            self.assertEqual(waiting + active + closing, len(self.websocket_server))

        check(0, 0, 0)
        first: Client = self.connect()
        check(1, 0, 0)
        second = self.subscribe()
        check(1, 1, 0)
        first.send_text("hello")
        check(0, 1, 1)
        first.disconnect()
        second.disconnect()
        check(0, 0, 0)
        self.assertEqual((self.session_log.opened, self.session_log.began), (2, 1))
        self.assertEqual(self.session_log.ended, {"invalid_message": 1, "connection_lost": 1})

    def test_no_line_contains_a_token(self) -> None:
        client = self.connect()
        client.present("a-secret-token")
        self.validator.last.refuse()
        client.disconnect()
        for event in self.events:
            self.assertNotIn("a-secret-token", repr(event))


AUDIENCE = Refusal(RefusalReason.AUDIENCE, '"a" is required, the token has "b"')


class WorkerTests(SessionLogTestCase):
    """The log of one of several workers."""

    def numbers(self, worker: int) -> list[int]:
        """The numbers of the first sessions of a worker."""
        session_log = SessionLog(self.clock, lambda: self.now)
        session_log.set_worker(worker, 4)
        return [session_log.open("", "").number for _ in range(100)]

    def test_the_numbers_of_sessions_differ_from_those_of_other_workers(self) -> None:
        self.assertEqual(self.numbers(3)[:2], [1003, 2003])
        all_numbers = [number for worker in range(1, 100) for number in self.numbers(worker)]
        self.assertEqual(len(set(all_numbers)), len(all_numbers))

    def test_a_worker_that_is_started_again_has_other_numbers(self) -> None:
        self.assertEqual(set(self.numbers(1)) & set(self.numbers(WORKER_NUMBERS - 1)), set())
        self.assertEqual(self.numbers(WORKER_NUMBERS)[0], WORKER_NUMBERS)

    def test_each_worker_writes_its_share_of_the_lines_about_unknown_clients(self) -> None:
        self.session_log.set_worker(1, 4)
        for _ in range(25):
            self.connect().disconnect()
        self.assertEqual(len(self.lines), 3)
        self.assertIn("session 1001 of", self.lines[0])


class CauseTests(SessionLogTestCase):
    """Why a token was refused, and why a service was unavailable."""

    def present(self, token: str = "a-token") -> Client:
        client = self.connect()
        client.present(token)
        return client

    def assert_last(self, reason: str, refusal: RefusalReason | None, detail: str) -> str:
        """Check the fields of the last line; return its advice."""
        event = self.ended[-1]
        label = "" if refusal is None else refusal.label
        self.assertEqual(
            (event["reason"], event["refusal"], event["detail"]), (reason, label, detail)
        )
        return str(event["advice"])

    def test_a_refused_token_has_its_reason_in_the_line_and_the_client_gets_none(self) -> None:
        client = self.present()
        self.validator.last.result.errback(TokenInactive(AUDIENCE))
        client.assert_refused("AccessToken", "Token inactive", 1008)
        advice = self.assert_last("Token inactive", RefusalReason.AUDIENCE, str(AUDIENCE))
        self.assertEqual(advice, RefusalReason.AUDIENCE.advice)
        [line] = self.lines
        self.assertTrue(line.endswith(f"bytes: Token inactive ({AUDIENCE}); {advice}"), line)
        self.assertNotIn("clock", line)

    def test_a_topic_that_does_not_exist(self) -> None:
        self.present()
        refusal = Refusal(RefusalReason.NOT_LISTED)
        self.validator.last.result.errback(TopicNotFound(refusal))
        self.assert_last("Token inactive", RefusalReason.NOT_LISTED, str(refusal))

    def test_a_topic_whose_name_the_broker_refuses(self) -> None:
        self.present()
        self.validator.last.grant(self.now + 60)
        refusal = Refusal(RefusalReason.TOPIC_NAME, "Kafka does not allow it")
        self.broker.reject(TopicNotFound(refusal))
        self.assert_last("Token inactive", RefusalReason.TOPIC_NAME, str(refusal))

    def test_a_valid_token_without_the_right_to_receive(self) -> None:
        for grant, expected in (
            (Grant("me", self.now + 60, False, True), Refusal(RefusalReason.MAY_NOT_RECEIVE)),
            (Grant("me", self.now + 60, False, False), Refusal(RefusalReason.NO_RIGHT)),
            (
                Grant("me", self.now + 60, False, False, Refusal(RefusalReason.NO_RIGHT, "why")),
                Refusal(RefusalReason.NO_RIGHT, "why"),
            ),
            (Grant("me", self.now, True, True), Refusal(RefusalReason.EXPIRED)),
        ):
            self.present()
            self.validator.last.result.callback(grant)
            with self.subTest(expected=expected):
                self.assert_last("Token inactive", expected.reason, str(expected))

    def test_a_token_that_expires_while_the_broker_confirms(self) -> None:
        self.present()
        self.validator.last.grant(self.now + 5)
        self.advance(5)
        self.broker.confirm()
        self.assert_last(
            "Token inactive",
            RefusalReason.EXPIRED,
            "it has expired: before the broker had confirmed",
        )

    def test_an_unavailable_validator_or_broker_is_told_apart(self) -> None:
        self.present()
        self.validator.last.result.errback(ValidatorUnavailable("introspection: status 500"))
        advice = self.assert_last("Service unavailable", None, "introspection: status 500")
        self.assertEqual(advice, ValidatorUnavailable.advice)
        self.present()
        self.validator.last.grant(self.now + 60)
        self.broker.reject(BrokerUnavailable("a text\nwith " + 300 * "x"))
        advice = self.assert_last("Service unavailable", None, "a text with " + 188 * "x")
        self.assertEqual(advice, BrokerUnavailable.advice)

    def test_a_lost_broker(self) -> None:
        self.subscribe()
        self.broker.lose_subscriptions()
        self.iterate()
        self.assert_last("Service unavailable", None, "the broker was lost")

    def test_refusals_are_counted_by_reason(self) -> None:
        for refusal in (AUDIENCE, AUDIENCE, Refusal(RefusalReason.EXPIRED)):
            self.present()
            self.validator.last.result.errback(TokenInactive(refusal))
        self.assertEqual(
            self.session_log.refusals, {RefusalReason.AUDIENCE: 2, RefusalReason.EXPIRED: 1}
        )


class RecheckCauseTests(SessionLogTestCase):
    recheck = 10.0

    def test_a_token_that_is_refused_at_a_recheck_is_told_apart(self) -> None:
        client = self.subscribe()
        self.advance(11)
        self.rechecker.last.result.errback(
            TokenInactive(Refusal(RefusalReason.NOT_ACTIVE, "revoked"))
        )
        client.assert_refused("AccessToken", "Token inactive", 1008)
        [event] = self.ended
        self.assertEqual(
            event["detail"], "at a recheck: its server says that it is not active: revoked"
        )
        self.assertEqual(event["refusal"], "not_active")


class TooManyFailedTokensTests(SessionLogTestCase):
    limits_settings = LimitSettings(failed_tokens_per_minute=1)

    def test_a_token_that_is_not_checked_says_so(self) -> None:
        clients = [self.connect() for _ in range(2)]
        clients[0].present("a")
        self.validator.last.refuse()
        clients[1].present("b")
        event = self.ended[-1]
        self.assertEqual(event["reason"], "Service unavailable")
        self.assertEqual(event["detail"], "too many tokens from this address were not valid")
        self.assertIn("docs/security.md", event["advice"])


class TooManySessionsTests(SessionLogTestCase):
    """`limits.connections_per_cell` through whole connections."""

    limits_settings = LimitSettings(connections_per_cell=1)

    def test_a_session_of_a_full_cell_is_unavailable_and_says_so_in_the_log(self) -> None:
        first = self.subscribe()
        second = self.connect()
        second.present("a-token")
        self.validator.last.grant(self.now + 60)
        second.assert_refused("AccessToken", "Service unavailable", 1013)
        event = self.ended[-1]
        self.assertEqual(
            event["detail"], "the cell has as many sessions as limits.connections_per_cell allows"
        )
        self.assertIn("limits.connections_per_cell", event["advice"])
        first.disconnect()
        second.disconnect()
        self.subscribe()

    def test_clients_without_a_valid_token_do_not_use_up_the_sessions_of_a_cell(self) -> None:
        for _ in range(5):
            client = self.connect()
            client.present("a-token")
            self.validator.last.refuse()
        self.connect()
        self.subscribe()

    def test_a_renewed_token_is_no_further_session(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)


class AdviceTests(SessionLogTestCase):
    """The same advice is written at most once a minute."""

    def refuse(self, refusal: Refusal) -> str:
        """Refuse a client; return the advice in its line."""
        client = self.connect()
        client.present("a-token")
        self.validator.last.result.errback(TokenInactive(refusal))
        client.disconnect()
        return str(self.ended[-1]["advice"])

    def test_each_reason_has_its_advice_at_most_once_a_minute(self) -> None:
        expired = Refusal(RefusalReason.EXPIRED)
        self.assertEqual(self.refuse(AUDIENCE), AUDIENCE.advice)
        self.assertEqual(self.refuse(AUDIENCE), "")
        self.assertTrue(self.lines[-1].endswith(f"Token inactive ({AUDIENCE})"), self.lines[-1])
        self.assertEqual(self.refuse(expired), expired.advice)
        self.advance(59)
        self.assertEqual(self.refuse(AUDIENCE), "")
        self.advance(1)
        self.assertEqual(self.refuse(AUDIENCE), AUDIENCE.advice)

    def test_lost_connections_have_advice_only_if_many_are_lost_within_a_minute(self) -> None:
        advice = close_reasons.CLOSE_REASONS["Connection lost"]

        def lose(count: int, seconds: float) -> list[str]:
            for _ in range(count):
                self.subscribe().disconnect()
                self.advance(seconds)
            return [each["advice"] for each in self.ended[-count:]]

        self.assertEqual(lose(3 * LOSSES_FOR_ADVICE, 7), [""] * 3 * LOSSES_FOR_ADVICE)
        self.advance(60)
        self.assertEqual(
            lose(LOSSES_FOR_ADVICE + 5, 1), [""] * (LOSSES_FOR_ADVICE - 1) + [advice] + [""] * 5
        )

    def test_connections_without_a_session_do_not_count_as_lost_sessions(self) -> None:
        for _ in range(LOSSES_FOR_ADVICE - 1):
            self.subscribe().disconnect()
        for _ in range(5):
            self.connect().disconnect()
        self.assertEqual({each["advice"] for each in self.ended}, {""})


class SubjectTests(SessionLogTestCase):
    """The token and the subject of a session."""

    def test_both_lines_of_a_session_have_the_identifier_of_its_token(self) -> None:
        self.subscribe().disconnect()
        self.subscribe().disconnect()
        self.assertEqual([each["token"] for each in self.events if "token" in each], [ID] * 4)
        self.assertRegex(ID, r"\A[0-9a-f]{8}\Z")

    def test_a_client_that_presents_no_token_has_no_identifier(self) -> None:
        self.connect().disconnect()
        self.assertEqual((self.ended[0]["token"], self.ended[0]["subject"]), ("", None))
        self.assertIn(f" on {TOPIC.path} ends after", self.lines[0])

    def test_a_renewed_token_replaces_identifier_and_subject(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.validator.last.grant(self.now + 60, subject="another")
        client.disconnect()
        second = TokenIds(KEY)("second-token")
        self.assertIn(f"(token {second} of 'another') ends", self.lines[1])

    def test_without_subjects_the_lines_have_only_the_identifier(self) -> None:
        self.session_log.has_subjects = False
        self.subscribe().disconnect()
        for line in self.lines:
            self.assertIn(f"(token {ID}) ", line)
        for event in self.events:
            self.assertNotIn(SUBJECT, repr(event))

    def test_a_subject_is_on_one_line_and_not_too_long(self) -> None:
        client = self.connect()
        client.present("first-token")
        self.validator.last.grant(self.now + 60, subject="a\nb\x1b[2J\u202e" + "x" * 1000)
        self.broker.confirm()
        [line] = self.lines
        shown = "a\\nb\\x1b[2J\\u202e" + "x" * (MAX_SUBJECT - 8)
        self.assertIn(f"(token {ID} of '{shown}') begins", line)
