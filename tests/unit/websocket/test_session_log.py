"""The session log: its lines, their fields, and its counters."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.logger import eventAsText, globalLogPublisher

from tests.support.harness import SENDER, TOPIC, Client, ServiceTestCase
from topicsvc.interfaces import Message
from topicsvc.settings import SessionSettings
from topicsvc.websocket import close_reasons


class SessionLogTests(ServiceTestCase):
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

    def test_a_session_has_one_line_at_its_start_and_one_at_its_end(self) -> None:
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

    def test_the_fields_of_the_second_line(self) -> None:
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
            is_from_autobahn = reason in ("Protocol error", "Invalid UTF-8", "Message too big")
            self.assertEqual(bool(event["detail"]), is_from_autobahn, reason)
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
            [line.split(TOPIC.path)[1].split()[0] for line in self.lines], ["begins", "ends"]
        )

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
