"""One connection from its opening to its close, in memory and in virtual time."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.logger import globalLogPublisher

from tests.support.flow_transport import flow_client
from tests.support.harness import SENDER, TOPIC, Client, MemoryTransport, ServiceTestCase
from topicsvc.interfaces import Grant, Message
from topicsvc.listening.proxy_protocol import ProxiedFactory
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.websocket import connection
from topicsvc.websocket.connection import TopicConnection


class SessionTableTests(ServiceTestCase):
    """The state table of docs/protocol.md, row by row."""

    # awaiting token

    def test_a_token_message_is_checked_without_a_reply_yet(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.assertEqual(self.validator.last.token, "a-token")
        self.assertEqual(self.validator.last.topic, TOPIC)
        client.assert_nothing()

    def test_any_other_message_is_invalid(self) -> None:
        client = self.connect()
        client.send_text('{"AccessTokens":"x"}')
        client.assert_refused("Unknown", "Invalid message", 1008)

    def test_after_60_s_without_a_token_the_connection_is_closed(self) -> None:
        client = self.connect()
        self.clock.advance(59.999)
        self.assertNotIn(8, [opcode for opcode, _ in client.frames()])
        self.clock.advance(0.001)
        client.assert_closed(1008, "Token timeout")

    # checking

    def test_success_after_the_grant_and_the_broker_s_confirmation(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 3600.9)
        client.assert_nothing()
        self.broker.confirm()
        client.assert_success(3600)

    def test_a_refused_token_is_inactive(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        self.assertEqual(self.broker.subscriptions, [])

    def test_a_token_that_may_not_receive_is_inactive(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 60, may_receive=False)
        client.assert_refused("AccessToken", "Token inactive", 1008)

    def test_an_expired_grant_is_inactive(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now)
        client.assert_refused("AccessToken", "Token inactive", 1008)

    def test_a_grant_that_expires_before_the_confirmation_is_inactive(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 1)
        self.advance(1)
        self.broker.confirm()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        self.assertEqual(self.broker.active, [])

    def test_an_unavailable_validator_is_service_unavailable(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.be_unavailable()
        client.assert_refused("AccessToken", "Service unavailable", 1013)

    def test_a_broker_that_cannot_confirm_is_service_unavailable(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 60)
        self.broker.reject()
        client.assert_refused("AccessToken", "Service unavailable", 1013)

    def test_the_token_timeout_does_not_cut_a_check_short(self) -> None:
        client = self.connect()
        self.clock.advance(59)
        client.present("a-token")
        self.clock.advance(5)
        self.assertNotIn(8, [opcode for opcode, _ in client.frames()])
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        client.assert_success(60)

    def test_a_token_that_is_known_at_once_needs_no_deferred(self) -> None:
        self.subscribe()  # so that the topic has a subscription
        grant = Grant(SENDER, self.now + 60, True, False)
        self.patch(self.validator, "remembered", lambda token, topic: grant)
        checks = len(self.validator.checks)
        self.patch(TopicConnection, "_wait_for", None)
        client = self.connect()
        client.present("a-token")
        client.assert_success(60)
        self.assertEqual(len(self.validator.checks), checks)
        client.present("another-token")
        client.assert_success(60)
        self.deliver()
        self.assertEqual(len(client.texts()), 1)

    def test_an_error_while_a_token_is_looked_up_closes_with_1011(self) -> None:
        def fails(token: str, topic: TopicAddress) -> Grant:
            raise ZeroDivisionError

        client = self.connect()
        self.patch(self.validator, "remembered", fails)
        client.present("a-token")
        client.assert_refused(
            "AccessToken", "Service unavailable", 1011, close_reason="Internal error"
        )
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_error_behind_a_token_that_is_known_at_once_closes_with_1011(self) -> None:
        def fails(connection: object) -> None:
            raise ZeroDivisionError

        client = self.connect()
        grant = Grant(SENDER, self.now + 60, True, False)
        self.patch(self.validator, "remembered", lambda token, topic: grant)
        self.patch(self.websocket_server, "check_done", fails)
        client.present("a-token")
        client.assert_closed(1011, "Internal error")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    # active

    def test_data_is_delivered(self) -> None:
        client = self.subscribe()
        self.deliver(b'{"hoge":"testmessage", "flag":true}')
        self.assertEqual(
            client.texts(),
            [b'{"From":"https://cell2.unit1.example/","Body":{"hoge":"testmessage", "flag":true}}'],
        )

    def test_data_continues_while_a_new_token_is_checked(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.assertEqual(self.validator.last.token, "second-token")
        self.deliver()
        self.assertEqual(len(client.texts()), 1)

    def test_a_new_token_extends_the_session(self) -> None:
        client = self.subscribe(lifetime=10)
        client.present("second-token")
        self.validator.last.grant(self.now + 20)
        client.assert_success(20)
        self.clock.advance(15)
        self.deliver()
        self.assertEqual(len(client.texts()), 1)

    def test_a_new_token_may_shorten_the_session(self) -> None:
        client = self.subscribe(lifetime=30)
        client.present("second-token")
        self.validator.last.grant(self.now + 10)
        client.assert_success(10)
        self.clock.advance(10)
        self.deliver()
        client.assert_nothing()

    def test_a_refused_new_token_closes_the_session(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.validator.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        self.assertEqual(self.broker.active, [])

    def test_without_a_result_for_a_new_token_the_old_grant_stays(self) -> None:
        client = self.subscribe(lifetime=30)
        client.present("second-token")
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.deliver()
        self.assertEqual(len(client.texts()), 1)
        self.clock.advance(30)
        self.deliver()
        client.assert_nothing()

    def test_any_other_message_closes_an_active_session(self) -> None:
        client = self.subscribe()
        client.send_text("hello")
        client.assert_refused("Unknown", "Invalid message", 1008)
        self.assertEqual(self.broker.active, [])

    # expired

    def test_nothing_is_delivered_from_the_millisecond_of_the_expiry_on(self) -> None:
        client = self.subscribe(lifetime=10)
        self.clock.advance(9.999)
        self.deliver(b'"in time"')
        self.assertEqual(len(client.texts()), 1)
        self.clock.advance(0.001)
        self.deliver(b'"too late"')
        client.assert_nothing()

    def test_a_text_message_after_the_expiry_is_session_expired(self) -> None:
        for text in ('{"AccessToken":"new"}', "hello"):
            client = self.subscribe(lifetime=10)
            self.clock.advance(10)
            client.send_text(text)
            client.assert_refused("Unknown", "Session expired", 1008)
        self.assertEqual({each.token for each in self.validator.checks}, {"first-token"})

    def test_a_binary_message_after_the_expiry_is_session_expired(self) -> None:
        client = self.subscribe(lifetime=10)
        self.clock.advance(10)
        client.send_frame(2, b"x")
        client.assert_refused("Unknown", "Session expired", 1008)

    def test_the_next_heartbeat_closes_an_expired_session(self) -> None:
        client = self.subscribe(lifetime=61)
        self.advance(119)
        self.assertEqual([opcode for opcode, _ in client.frames()], [9])
        self.advance(1)
        client.assert_closed(1008, "Session expired")

    def test_a_token_sent_in_time_is_answered_although_the_old_one_has_expired(self) -> None:
        client = self.subscribe(lifetime=59)
        self.clock.advance(58)
        client.present("second-token")
        self.advance(2)
        self.deliver()
        self.assertEqual([opcode for opcode, _ in client.frames()], [9])
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)
        self.deliver()
        self.assertEqual(len(client.texts()), 1)


class RequestTests(ServiceTestCase):
    def test_messages_that_wait_are_answered_in_order(self) -> None:
        client = self.connect()
        for number in range(9):
            client.present(f"token-{number}")
        self.assertEqual(len(self.validator.checks), 1)
        self.validator.last.grant(self.now + 10)
        self.broker.confirm()
        client.assert_success(10)
        for number in range(1, 9):
            self.assertEqual(self.validator.last.token, f"token-{number}")
            self.validator.last.grant(self.now + number)
            client.assert_success(number)
        self.assertEqual(len(self.validator.checks), 9)

    def test_the_ninth_waiting_message_is_invalid(self) -> None:
        client = self.connect()
        for number in range(9):
            client.present(f"token-{number}")
        client.assert_nothing()
        client.present("one-too-many")
        client.assert_refused("Unknown", "Invalid message", 1008)
        self.assertTrue(self.validator.last.was_cancelled)

    def test_a_waiting_message_that_came_in_time_is_answered_after_the_expiry(self) -> None:
        client = self.subscribe(lifetime=10)
        client.present("second-token")
        client.present("third-token")
        self.clock.advance(11)
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.assertEqual(self.validator.last.token, "third-token")
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)

    def test_a_waiting_message_that_came_too_late_is_session_expired(self) -> None:
        client = self.subscribe(lifetime=10)
        client.present("second-token")
        self.clock.advance(11)
        client.present("third-token")
        self.validator.last.be_unavailable()
        (_, unavailable), (_, expired), close = client.frames()
        self.assert_error_text(unavailable, "AccessToken", "Service unavailable")
        self.assert_error_text(expired, "Unknown", "Session expired")
        self.assert_close(close, 1008, "Session expired")

    def test_a_check_that_the_validator_cancels_is_service_unavailable(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.result.cancel()
        client.assert_refused("AccessToken", "Service unavailable", 1013)

    def test_an_invalid_message_waits_like_any_other(self) -> None:
        client = self.connect()
        client.present("a-token")
        client.send_text("nonsense")
        client.assert_nothing()
        self.validator.last.grant(self.now + 10)
        self.broker.confirm()
        (_, success), (_, error), close = client.frames()
        self.assert_success_text(success, 10)
        self.assert_error_text(error, "Unknown", "Invalid message")
        self.assert_close(close, 1008, "Invalid message")

    def test_a_binary_message_is_invalid_and_closed_with_1003(self) -> None:
        client = self.connect()
        client.send_frame(2, b'{"AccessToken":"x"}')
        client.assert_refused("Unknown", "Invalid message", 1003)

    def test_a_message_over_the_limit_is_too_big(self) -> None:
        client = self.connect()
        client.send_text("x" * 65536)
        client.assert_refused("Unknown", "Invalid message", 1008)
        client = self.connect()
        client.send_text("x" * 65537)
        [(opcode, payload)] = client.frames()
        self.assertEqual((opcode, payload[:2]), (8, (1009).to_bytes(2, "big")))

    def test_the_longest_token_is_valid(self) -> None:
        client = self.connect()
        client.present("x" * 32768)
        self.assertEqual(len(self.validator.last.token), 32768)
        client.assert_nothing()

    def test_an_exception_of_the_validator_is_an_internal_error(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.result.errback(ZeroDivisionError("injected by the test"))
        client.assert_refused("AccessToken", "Service unavailable", 1011, "Internal error")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_nothing_is_sent_after_a_close_frame(self) -> None:
        client = self.subscribe()
        client.send_text("nonsense")
        client.assert_refused("Unknown", "Invalid message", 1008)
        client.present("too-late")
        client.send_frame(9, b"ping")
        self.deliver()
        self.advance(4)
        client.assert_nothing()
        self.assertEqual(len(self.validator.checks), 1)

    def test_timestamps_in_milliseconds(self) -> None:
        self.websocket_server.context.settings = SessionSettings(timestamps="milliseconds")
        client = self.connect()
        self.clock.advance(0.25)
        client.send_text("x")
        [(_, text), _] = client.frames()
        self.assertTrue(text.endswith(b'"Timestamp":1518612600250}'), text)


class OrderTests(ServiceTestCase):
    def test_success_precedes_data_that_arrives_with_the_confirmation(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 60)
        # The broker gives the confirmation and the message in one reactor iteration.
        subscription = self.broker.subscriptions[-1]
        subscription.result.addCallback(lambda it: (self.broker.deliver(self.data(b"1")), it)[1])
        self.broker.confirm()
        self.broker.deliver(self.data(b"2"))
        self.iterate()
        success, *data = client.texts()
        self.assert_success_text(success, 60)
        self.assertEqual(
            data, [b'{"From":"%s","Body":%d}' % (SENDER.encode(), body) for body in (1, 2)]
        )

    def test_data_between_the_confirmation_and_success_is_delivered_after_it(self) -> None:
        published = []

        def publish_first(subscription: object) -> object:
            """Runs after the broker's confirmation, before the hub learns of it."""
            self.broker.deliver(self.data(b'"between"'))
            published.append(True)
            return subscription

        original = self.broker.subscribe
        self.patch(
            self.broker,
            "subscribe",
            lambda *arguments: original(*arguments).addCallback(publish_first),
        )
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        self.assertEqual(published, [True])
        self.iterate()
        success, data = client.texts()
        self.assert_success_text(success, 60)
        self.assertEqual(data, b'{"From":"%s","Body":"between"}' % SENDER.encode())

    def test_messages_are_delivered_in_the_broker_s_order(self) -> None:
        client = self.subscribe()
        for number in range(50):
            self.broker.deliver(self.data(b"%d" % number))
            if number % 7 == 0:
                self.iterate()
        self.iterate()
        self.assertEqual(
            client.texts(),
            [b'{"From":"%s","Body":%d}' % (SENDER.encode(), number) for number in range(50)],
        )

    def data(self, body: bytes) -> Message:
        return Message(TOPIC, SENDER, body)


class CloseTests(ServiceTestCase):
    def test_a_client_lost_during_the_check_leaves_nothing(self) -> None:
        client = self.connect()
        client.present("a-token")
        client.disconnect()
        self.assertTrue(self.validator.last.was_cancelled)
        self.assertEqual(self.broker.subscriptions, [])
        self.assert_nothing_left()

    def test_a_client_lost_during_the_subscription_leaves_nothing(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 60)
        client.disconnect()
        self.broker.confirm()
        self.assert_nothing_left()

    def test_a_client_lost_during_an_active_session_leaves_nothing(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        client.disconnect()
        self.assertTrue(self.validator.last.was_cancelled)
        self.deliver()
        self.assert_nothing_left()

    def test_a_client_s_close_is_answered(self) -> None:
        client = self.subscribe()
        client.send_frame(8, b"\x03\xe8bye")
        self.assertEqual(client.frames(), [(8, b"\x03\xe8")])
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assert_nothing_left()

    def test_a_close_without_a_code_is_answered_without_one(self) -> None:
        client = self.connect()
        client.send_frame(8, b"")
        self.assertEqual(client.frames(), [(8, b"")])

    def test_after_the_client_s_answer_to_a_close_the_connection_ends(self) -> None:
        client = self.connect()
        client.send_text("nonsense")
        client.assert_refused("Unknown", "Invalid message", 1008)
        self.assertIsNone(client.transport.lost)
        client.send_frame(8, b"\x03\xf0")
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assert_nothing_left()

    def test_a_close_without_an_answer_is_aborted_after_5_s(self) -> None:
        client = self.connect()
        client.send_text("nonsense")
        self.clock.advance(4.999)
        self.assertIsNone(client.transport.lost)
        self.clock.advance(0.001)
        self.iterate()
        self.assertEqual(client.transport.lost.type.__name__, "ConnectionAborted")
        self.assert_nothing_left()

    def test_a_peer_that_closes_but_never_reads_is_aborted(self) -> None:
        client = self.subscribe()
        client.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70000))
        client.send_frame(8, b"\x03\xe8")
        self.clock.advance(5)
        self.iterate()
        self.assertEqual(client.transport.lost.type.__name__, "ConnectionAborted")
        self.assert_nothing_left()

    def test_invalid_close_frames_get_1002_or_1007(self) -> None:
        table = [
            (b"\x03", 1002),
            (b"\x00\x00", 1002),
            (b"\x03\xe7", 1002),
            (b"\x03\xec", 1002),
            (b"\x03\xed", 1002),
            (b"\x03\xee", 1002),
            (b"\x03\xf7", 1002),
            (b"\x0b\xb7", 1002),
            (b"\x13\x88", 1002),
            (b"\xff\xff", 1002),
            (b"\x03\xe8\xff", 1007),
            (b"\x03\xe8\xed\xa0\x80", 1007),
        ]
        for payload, code in table:
            with self.subTest(payload=payload):
                client = self.connect()
                client.send_frame(8, payload)
                [(opcode, answer)] = client.frames()
                self.assertEqual((opcode, int.from_bytes(answer[:2], "big")), (8, code))

    def test_a_protocol_violation_gets_1002_and_nothing_more_is_read(self) -> None:
        client = self.subscribe()
        client.send_frame(1, b"x", rsv=4)
        [(opcode, payload)] = client.frames()
        self.assertEqual((opcode, payload[:2]), (8, (1002).to_bytes(2, "big")))
        self.assertTrue(client.transport.has_ended)
        self.assertEqual(self.broker.active, [])
        client.present("more")
        client.assert_nothing()
        self.advance(5)
        self.iterate()
        self.assert_nothing_left()

    def test_invalid_utf8_gets_1007(self) -> None:
        client = self.connect()
        client.send_frame(1, b"\xff")
        [(_, payload)] = client.frames()
        self.assertEqual(payload[:2], (1007).to_bytes(2, "big"))


class SlowReaderTests(ServiceTestCase):
    settings = SessionSettings(send_queue=100_000)

    def test_a_slow_reader_is_closed_without_an_effect_on_others(self) -> None:
        slow, quick = self.subscribe(), self.subscribe()
        events: list[dict[str, object]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        slow.transport.is_congested = True
        for _ in range(12):
            self.deliver(b'"%s"' % (b"x" * 20000))
        self.assertEqual(len(quick.texts()), 12)
        self.assertEqual(len(self.websocket_server), 2)
        slow.transport.drain()
        *data, close = slow.frames()
        self.assertLess(len(data), 12)
        self.assert_close(close, 1008, "Slow consumer")
        self.deliver()
        slow.assert_nothing()
        self.assertEqual(len(quick.texts()), 1)
        [event] = [event for event in events if event.get("reason") == "Slow consumer"]
        self.assertEqual((event["topic"], event["peer"]), (TOPIC.path, "192.0.2.7:50001"))
        self.assertGreater(int(event["detail"].removesuffix(" bytes waited")), 80_000)
        self.assertIn("session.send_queue", event["advice"])

    def test_a_slow_reader_that_never_reads_again_is_aborted(self) -> None:
        slow = self.subscribe()
        slow.transport.is_congested = True
        for _ in range(12):
            self.deliver(b'"%s"' % (b"x" * 20000))
        self.clock.advance(5)
        self.iterate()
        self.assertEqual(slow.transport.lost.type.__name__, "ConnectionAborted")
        self.assert_nothing_left()

    def test_a_reader_that_reads_nothing_for_10_s_is_slow(self) -> None:
        slow = self.subscribe()
        slow.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70000))
        self.advance(9)
        self.assertEqual(len(self.websocket_server), 1)
        self.advance(1)
        slow.transport.drain()
        [_, close] = slow.frames()
        self.assert_close(close, 1008, "Slow consumer")

    def test_a_reader_that_catches_up_gets_all_messages_in_order(self) -> None:
        client = self.subscribe()
        client.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70000))
        for number in range(10):
            self.deliver(b"%d" % number)
        self.advance(5)
        client.transport.drain()
        bodies = [text.rpartition(b":")[2] for text in client.texts()]
        self.assertEqual(bodies[1:], [b"%d}" % number for number in range(10)])

    def test_a_close_frame_is_queued_behind_data(self) -> None:
        client = self.subscribe()
        client.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70000))
        self.deliver(b"1")
        client.send_text("nonsense")
        client.transport.drain()
        _, second, (_, error), close = client.frames()
        self.assertTrue(second[1].endswith(b'"Body":1}'))
        self.assert_error_text(error, "Unknown", "Invalid message")
        self.assert_close(close, 1008, "Invalid message")

    def congest(self, client: Client) -> int:
        """Make the transport hold a message, and queue two behind it; return the first's size."""
        client.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70000))
        held = len(client.transport.buffered)
        self.deliver(b"1")
        self.deliver(b"2")
        return held

    def test_a_waiting_pong_does_not_follow_the_close_frame(self) -> None:
        """A ping of a client that reads slowly, and then a stop of the service."""
        client = self.subscribe()
        self.congest(client)
        client.send_frame(9, b"are you there")
        self.websocket_server.stopService()
        client.send_frame(9, b"and now")
        client.transport.drain()
        frames = client.frames()
        self.assertEqual([opcode for opcode, _ in frames], [1, 1, 1, 8])
        self.assert_close(frames[-1], 1001, "Going away")

    def test_data_that_waits_is_dropped_at_the_expiry(self) -> None:
        client = self.subscribe(lifetime=3)
        self.congest(client)
        self.advance(3)
        client.transport.drain()
        [(_, data)] = client.frames()
        self.assertGreater(len(data), 70000)  # it had left the queue before the expiry
        self.advance(60)
        client.assert_closed(1008, "Session expired")

    def test_data_that_waits_is_dropped_although_a_heartbeat_closes_the_session(self) -> None:
        client = self.subscribe(lifetime=55)
        self.advance(54)
        client.frames()
        self.congest(client)
        self.advance(6)
        client.transport.drain()
        (_, data), close = client.frames()
        self.assertGreater(len(data), 70000)
        self.assert_close(close, 1008, "Session expired")

    def test_data_that_waits_is_sent_after_a_stop_until_the_expiry(self) -> None:
        for seconds, bodies in ((1, 3), (3, 1)):
            with self.subTest(seconds=seconds):
                client = self.subscribe(lifetime=3)
                self.congest(client)
                client.transport.protocol.going_away()
                self.advance(seconds)
                client.transport.drain()
                *data, close = client.frames()
                self.assertEqual(len(data), bodies)
                self.assert_close(close, 1001, "Going away")
                client.disconnect()

    def test_data_that_waits_is_not_sent_to_a_client_that_closes(self) -> None:
        client = self.subscribe()
        self.congest(client)
        client.transport.protocol.going_away()
        client.send_frame(8, b"\x03\xe8")
        client.transport.drain()
        self.assertEqual([opcode for opcode, _ in client.frames()], [1, 8])

    def test_pings_of_a_client_that_never_reads_use_limited_memory(self) -> None:
        client = self.subscribe()
        client.transport.is_congested = True
        for _ in range(3000):
            client.send_frame(9, b"x" * 125)
        self.assertLess(len(client.transport.buffered), 200_000)
        self.clock.advance(5)
        self.iterate()
        self.assert_nothing_left()


class WorkTests(ServiceTestCase):
    """Received bytes are processed within the budget of a reactor iteration."""

    def spend_all(self) -> None:
        self.site.budget.charge(1.0)

    def test_bytes_beyond_the_budget_wait_and_nothing_more_is_read(self) -> None:
        client = self.connect()
        self.spend_all()
        client.send_frame(9, b"a")
        client.send_frame(9, b"b")
        client.assert_nothing()
        self.assertFalse(client.transport.is_reading)
        self.iterate()
        self.assertTrue(client.transport.is_reading)
        self.iterate()
        self.assertEqual(client.frames(), [(10, b"a"), (10, b"b")])

    def test_bytes_that_arrive_in_spite_of_the_pause_keep_their_order(self) -> None:
        client = self.connect()
        self.spend_all()
        client.send_frame(9, b"a")
        client.transport.is_reading = True
        client.send_frame(9, b"b")
        self.iterate()
        self.assertEqual(client.frames(), [(10, b"a"), (10, b"b")])

    def test_the_frames_of_many_clients_are_spread_over_iterations(self) -> None:
        seconds = self.clock.seconds
        self.patch(self.clock, "seconds", lambda: self.spent + seconds())
        self.spent = 0.0
        clients = [self.connect() for _ in range(20)]
        on_ping = TopicConnection.onPing

        def slow(connection: TopicConnection, payload: bytes) -> None:
            self.spent += 0.0011
            on_ping(connection, payload)

        self.patch(TopicConnection, "onPing", slow)
        for client in clients:
            client.send_frame(9, b"a")
        answered = []
        for _ in range(5):
            answered.append(sum(bool(client.frames()) for client in clients))
            self.site.budget._next_iteration()
        self.assertEqual(answered, [4, 4, 4, 4, 4])

    def test_the_tokens_of_many_clients_are_spread_over_iterations(self) -> None:
        seconds = self.clock.seconds
        self.patch(self.clock, "seconds", lambda: self.spent + seconds())
        self.spent = 0.0
        clients = [self.connect() for _ in range(12)]
        validate = self.validator.validate

        def slow(token: str, topic: TopicAddress) -> Deferred[Grant]:
            self.spent += 0.0011
            return validate(token, topic)

        self.patch(self.validator, "validate", slow)
        for client in clients:
            client.present("a-token")
        checks = []
        for _ in range(3):
            checks.append(len(self.validator.checks))
            self.site.budget._next_iteration()
        self.assertEqual(checks, [4, 8, 12])

    def test_a_session_does_not_wait_for_clients_without_a_token(self) -> None:
        client = self.subscribe()
        self.spend_all()
        client.send_frame(9, b"a")
        self.assertEqual(client.frames(), [(10, b"a")])

    def test_sessions_wait_for_one_another(self) -> None:
        client = self.subscribe()
        self.websocket_server.context.session_budget.charge(1.0)
        client.send_frame(9, b"a")
        client.assert_nothing()
        self.iterate()
        self.assertEqual(client.frames(), [(10, b"a")])

    def test_over_tls_a_session_does_not_wait_for_clients_without_a_token(self) -> None:
        budgets: list[WorkBudget] = []
        self.patch(connection, "set_tls_budget", lambda _, budget: budgets.append(budget))
        client = flow_client(self, "tls")
        client.upgrade()
        client.transport.flush()
        client.read_answer()
        self.spend_all()
        client.send_frame(9, b"a")  # TLS has spread the work already
        client.transport.flush()
        self.assertEqual(client.frames(), [(10, b"a")])
        client.present("a-token")
        self.validator.last.grant(self.now + 60)
        self.assertEqual(budgets, [])
        self.broker.confirm()
        self.assertEqual(budgets, [self.websocket_server.context.session_budget])

    def test_a_token_that_is_refused_starts_no_session(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now - 1)
        self.assertIs(client.transport.protocol._budget, self.site.budget)

    def test_a_connection_that_is_lost_meanwhile_is_left_alone(self) -> None:
        client = self.connect()
        self.spend_all()
        client.present("a-token")
        client.disconnect()
        self.iterate()
        self.assertEqual(self.validator.checks, [])
        self.assert_nothing_left()

    def test_reading_stays_paused_if_the_session_wants_that(self) -> None:
        """Bytes behind a token that is being checked are not read without limit."""
        client = self.connect()
        self.spend_all()
        client.present("a-token")
        client.transport.is_reading = True
        client.send_frame(1, b"x" * 5000, fin=False)
        self.iterate()
        self.assertFalse(client.transport.is_reading)
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        self.assertTrue(client.transport.is_reading)

    def test_a_session_that_resumes_reading_does_not_overtake_bytes_that_wait(self) -> None:
        client = self.connect()
        client.present("a-token")
        client.send_frame(1, b"x" * 5000, fin=False)
        self.assertFalse(client.transport.is_reading)
        client.transport.is_reading = True
        self.spend_all()
        client.send_frame(9, b"a")
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        self.assertFalse(client.transport.is_reading)
        self.iterate()
        self.assertTrue(client.transport.is_reading)

    def test_a_close_frame_that_waited_is_answered(self) -> None:
        client = self.connect()
        self.spend_all()
        client.send_frame(8, b"\x03\xe8")
        self.iterate()
        self.assertEqual(client.frames(), [(8, b"\x03\xe8")])
        self.iterate()
        self.assert_nothing_left()

    def test_a_read_has_2_kib(self) -> None:
        """Of the shortest frames these are 341, which take 1.5 ms."""
        self.assertEqual(self.connect().transport.bufferSize, 2048)

    def test_a_read_behind_a_proxy_header_has_2_kib(self) -> None:
        transport = MemoryTransport(self.clock, self.next_port())
        proxied = ProxiedFactory(self.site).buildProtocol(transport.getPeer())
        transport.protocol = proxied
        proxied.makeConnection(transport)
        client = Client.__new__(Client)
        client.test, client.transport, client.status = self, transport, 0
        client.send_raw(b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n")
        self.assertEqual(client.upgrade(), 101)
        self.assertEqual(transport.bufferSize, 2048)

    def test_long_input_is_processed_in_pieces_of_2_kib(self) -> None:
        """Behind a handshake, or from one TLS record: 2,700 frames."""
        for kind in ("tcp", "tls"):
            with self.subTest(kind=kind):
                pieces: list[int] = []
                process = TopicConnection._dataReceived

                def slow(
                    connection: TopicConnection,
                    data: bytes,
                    process: Any = process,
                    pieces: list[int] = pieces,
                ) -> None:
                    pieces.append(len(data))
                    self.spend_all()
                    process(connection, data)

                client = flow_client(self, kind)
                client.upgrade()
                client.transport.flush()
                client.read_answer()
                patched = self.patch(TopicConnection, "_dataReceived", slow)
                client.send_raw(b"\x8a\x80abcd" * 1000)
                self.assertEqual((pieces, client.transport.is_reading), ([2048], False))
                self.site.budget._next_iteration()
                self.assertEqual((pieces, client.transport.is_reading), ([2048] * 2, False))
                self.site.budget._next_iteration()
                self.assertEqual((sum(pieces), client.transport.is_reading), (6000, True))
                patched.restore()
                self.iterate()

    def pass_deadline(self, almost: float) -> None:
        """A deadline is over, and is looked at before the bytes that wait for the budget."""
        self.advance(almost)
        self.clock.rightNow += 0.002
        self.spend_all()

    def test_over_tls_the_token_waits_below(self) -> None:
        self.patch(connection, "budget_of_waiting_input", lambda _: self.site.budget)
        client = self.connect()
        self.pass_deadline(59.999)
        self.site.budget.defer(lambda: client.present("a-token"))
        self.iterate()
        self.assertEqual(len(self.validator.checks), 1)

    def test_a_token_that_waits_arrived_in_time(self) -> None:
        client = self.connect()
        self.pass_deadline(59.999)
        client.present("a-token")
        self.iterate()
        self.assertEqual(len(self.validator.checks), 1)
        self.assertNotIn(8, [opcode for opcode, _ in client.frames()])

    def test_bytes_that_wait_and_are_no_token_do_not_extend_the_time(self) -> None:
        client = self.connect()
        self.pass_deadline(59.999)
        client.send_frame(9, b"a")
        self.iterate()
        *_, pong, close = client.frames()
        self.assertEqual(pong, (10, b"a"))
        self.assert_close(close, 1008, "Token timeout")

    def test_a_pong_that_waits_arrived_in_time(self) -> None:
        client = self.subscribe(lifetime=3600)
        for _ in range(10):
            self.advance(60)
        ping = client.frames()[-1]
        self.assertEqual(ping[0], 9)
        self.advance(59.9)
        self.websocket_server.context.session_budget.charge(1.0)
        client.send_frame(10, ping[1])
        for connection_ in self.websocket_server.active_sessions():
            connection_.heartbeat(self.now)
        client.assert_nothing()
        self.iterate()
        self.assertEqual([opcode for opcode, _ in client.frames()], [9])

    def test_a_close_frame_that_waits_arrived_in_time(self) -> None:
        client = self.connect()
        client.transport.protocol.going_away()
        self.pass_deadline(4.999)
        client.send_frame(8, b"\x03\xe9")
        self.iterate()
        self.iterate()
        assert client.transport.lost is not None
        self.assertIs(client.transport.lost.type, ConnectionDone)

    def test_reading_stays_paused_if_bytes_wait_for_the_other_budget(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.spend_all()
        client.send_frame(9, b"a")
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        self.websocket_server.context.session_budget.charge(1.0)
        self.site.budget._next_iteration()
        self.assertFalse(client.transport.is_reading)
        self.iterate()
        self.assertTrue(client.transport.is_reading)
        self.assertEqual(client.frames()[-1], (10, b"a"))

    def test_an_error_in_bytes_that_waited_closes_the_connection(self) -> None:
        client = self.connect()
        self.patch(TopicConnection, "onPing", lambda *_: 1 / 0)
        self.spend_all()
        client.send_frame(9, b"a")
        self.iterate()
        self.iterate()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assert_nothing_left()


class MemoryTests(ServiceTestCase):
    """Lost connections are freed without the garbage collector, which runs rarely."""

    def assert_freed(self, client: Client) -> None:
        transport, client.transport = client.transport, None
        protocol = ref(transport.protocol)
        transport.lose(ConnectionDone())
        transport.protocol = transport.producer = None
        self.iterate()
        self.assertIsNone(protocol())

    def setUp(self) -> None:
        super().setUp()
        gc.disable()
        self.addCleanup(gc.enable)

    def test_a_session(self) -> None:
        self.assert_freed(self.subscribe())

    def test_a_session_with_positions(self) -> None:
        client = self.connect()
        client.present("first-token", Since=None)
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        self.assert_freed(client)

    def test_a_connection_without_a_token(self) -> None:
        self.assert_freed(self.connect())

    def test_a_request_with_an_incomplete_body(self) -> None:
        client = self.client()
        client.send_raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
        self.assert_freed(client)
