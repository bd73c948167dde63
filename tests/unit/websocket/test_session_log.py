"""The log of sessions: a line when one begins, one when it ends, and what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.logger import eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.harness import SENDER, TOPIC, Client, ServiceTestCase
from topicsvc.interfaces import Message
from topicsvc.settings import SessionSettings
from topicsvc.websocket import close_reasons

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"


class EndingTests(SynchronousTestCase):
    def test_every_reason_of_a_close_frame_is_known(self) -> None:
        text = PROTOCOL.read_text("utf-8")
        rows = re.findall(r"^\| 1\d{3} \|([^|]*)\|", text, re.MULTILINE)
        reasons = {each.strip() for row in rows for each in row.split(",")}
        self.assertGreaterEqual(len(reasons), 9)
        self.assertLessEqual(reasons, set(close_reasons.CLOSE_REASONS))

    def test_labels_are_few_and_plain(self) -> None:
        labels = {close_reasons.metric_label(reason) for reason in close_reasons.CLOSE_REASONS}
        self.assertEqual(len(labels), len(close_reasons.CLOSE_REASONS))
        for label in labels:
            self.assertRegex(label, r"^[a-z][a-z0-9_]*$")

    def test_a_reason_that_nobody_knows_makes_no_label_of_its_own(self) -> None:
        self.assertEqual(close_reasons.metric_label("said a stranger"), "other")
        self.assertEqual(close_reasons.advice("said a stranger"), "")


class JournalTests(ServiceTestCase):
    settings = SessionSettings(send_queue=100_000)

    def setUp(self) -> None:
        super().setUp()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.session_log = self.websocket_server.context.session_log

    @property
    def lines(self) -> list[str]:
        return [eventAsText(each).split("] ", 1)[-1] for each in self.events if "session" in each]

    def test_one_line_when_it_begins_and_one_when_it_ends(self) -> None:
        client = self.subscribe()
        self.assertIn("session 1 of 192.0.2.7:50001 on " + TOPIC.path + " begins", self.lines[0])
        self.deliver(b'"abc"')
        self.deliver(b'"de"')
        [first, second] = client.frames()
        self.advance(7.5)
        client.frames()
        client.disconnect()
        self.assertEqual(len(self.lines), 2)
        size = len(first[1]) + len(second[1]) + 2 * 2
        self.assertIn(
            f"session 1 of 192.0.2.7:50001 on {TOPIC.path} ends after 7.5 s, 2 messages, "
            f"{size} bytes: Connection lost; if many are lost",
            self.lines[1],
        )

    def test_its_fields_are_there_for_machines(self) -> None:
        self.subscribe().disconnect()
        ended = self.events[-1]
        fields = {key: ended[key] for key in ("session", "peer", "topic", "seconds", "messages",
                  "size", "reason", "detail", "has_begun")}  # fmt: skip
        self.assertEqual(
            fields,
            {"session": 1, "peer": "192.0.2.7:50001", "topic": TOPIC.path, "seconds": 0.0,
             "messages": 0, "size": 0, "reason": "Connection lost", "detail": "",
             "has_begun": True},
        )  # fmt: skip
        self.assertEqual(ended["advice"], close_reasons.CLOSE_REASONS["Connection lost"])

    def test_who_shows_no_token_has_only_the_line_of_the_end(self) -> None:
        client = self.connect()
        self.advance(60)
        client.disconnect()
        [line] = self.lines
        self.assertIn("ends after 60.0 s, 0 messages, 0 bytes: Token timeout; ", line)
        [event] = [each for each in self.events if "session" in each]
        self.assertFalse(event["has_begun"])

    def test_what_the_other_end_breaks_is_named_and_told_in_detail(self) -> None:
        for name, do in (
            ("Protocol error", lambda client: client.send_frame(3, b"")),
            ("Invalid UTF-8", lambda client: client.send_frame(1, b"\xff\xff")),
            ("Message too big", lambda client: client.send_frame(1, b"x" * 70000)),
            ("Client closed", lambda client: client.send_frame(8, b"\x03\xe8")),
            ("Invalid message", lambda client: client.send_text("hello")),
        ):
            client = self.connect()
            do(client)
            [event] = [each for each in self.events if "session" in each]
            self.assertEqual(event["reason"], name)
            is_autobahn_s = name in ("Protocol error", "Invalid UTF-8", "Message too big")
            self.assertEqual(bool(event["detail"]), is_autobahn_s, name)
            client.disconnect()
            self.assertEqual(len([each for each in self.events if "session" in each]), 1)
            self.events.clear()

    def test_a_session_that_begins_and_ends_in_one_turn_has_both_lines(self) -> None:
        client = self.connect()
        client.present("a-token")
        client.send_text("hello")
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        self.assertEqual(
            [line.split(TOPIC.path)[1].split()[0] for line in self.lines], ["begins", "ends"]
        )

    def test_the_sums_are_those_of_all_sessions_alive_and_gone(self) -> None:
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

    def test_messages_that_go_out_together_count_each(self) -> None:
        client = self.subscribe()
        for body in (b"1", b"22", b"333"):
            self.broker.bring(Message(TOPIC, SENDER, body))
        self.iterate()
        frames = client.frames()
        size = sum(len(payload) + 2 for _, payload in frames)
        self.assertEqual(self.websocket_server.delivered, (3, size))
        client.disconnect()
        self.assertIn(f" 3 messages, {size} bytes: ", self.lines[-1])

    def test_who_leaves_during_a_walk_and_is_not_reached_is_not_counted(self) -> None:
        clients = [self.subscribe() for _ in range(3)]
        last = clients[-1].transport
        deliver = self.websocket_server.context.hub._advance

        def leaves_meanwhile(channel: Any, share: int) -> int:
            taken = deliver(channel, 1)
            last.lose(ConnectionDone())
            return taken + deliver(channel, share - 1)

        self.websocket_server.context.hub._advance = leaves_meanwhile
        self.deliver(b"1")
        self.assertEqual(self.websocket_server.delivered[0], 2)
        self.assertEqual([len(each.frames()) for each in clients[:2]], [1, 1])
        self.assertIn(" 0 messages, 0 bytes: Connection lost", self.lines[-1])

    def test_what_is_not_delivered_after_expiry_is_not_counted(self) -> None:
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

    def test_no_line_holds_a_token(self) -> None:
        client = self.connect()
        client.present("a-secret-token")
        self.validator.last.refuse()
        client.disconnect()
        for event in self.events:
            self.assertNotIn("a-secret-token", repr(event))
