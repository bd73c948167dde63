"""One connection from its opening to its end, in memory and in virtual time."""

from __future__ import annotations

import gc
from weakref import ref

from twisted.internet.error import ConnectionDone
from twisted.logger import globalLogPublisher

from tests.support.harness import SENDER, TOPIC, Client, ServiceTestCase
from topicsvc.interfaces import Message
from topicsvc.settings import SessionSettings


class SessionTableTests(ServiceTestCase):
    """docs/protocol.md, the table of a session, row by row."""

    # awaiting token

    def test_a_token_message_is_checked_in_silence(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.assertEqual(self.validator.last.token, "a-token")
        self.assertEqual(self.validator.last.topic, TOPIC)
        client.assert_nothing()

    def test_any_other_message_is_invalid(self) -> None:
        client = self.connect()
        client.send_text('{"AccessTokens":"x"}')
        client.assert_refused("Unknown", "Invalid message", 1008)

    def test_a_minute_without_a_token_is_the_end(self) -> None:
        client = self.connect()
        self.clock.advance(59.999)
        self.assertNotIn(8, [opcode for opcode, _ in client.frames()])
        self.clock.advance(0.001)
        client.assert_closed(1008, "Token timeout")

    # checking

    def test_granted_and_confirmed_is_success(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 3600.9)
        client.assert_nothing()
        self.broker.confirm()
        client.assert_success(3600)

    def test_refused_is_token_inactive(self) -> None:
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

    def test_a_grant_that_has_run_out_is_inactive(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now)
        client.assert_refused("AccessToken", "Token inactive", 1008)

    def test_a_grant_that_runs_out_before_the_confirmation_is_inactive(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 1)
        self.advance(1)
        self.broker.confirm()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        self.assertEqual(self.broker.live, [])

    def test_a_validator_that_cannot_tell_is_service_unavailable(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.be_unavailable()
        client.assert_refused("AccessToken", "Service unavailable", 1013)

    def test_a_broker_that_cannot_confirm_is_service_unavailable(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 60)
        self.broker.deny()
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

    # active

    def test_data_is_delivered(self) -> None:
        client = self.subscribe()
        self.deliver(b'{"hoge":"testmessage", "flag":true}')
        self.assertEqual(
            client.texts(),
            [b'{"From":"https://cell2.unit1.example/","Body":{"hoge":"testmessage", "flag":true}}'],
        )

    def test_a_new_token_is_checked_while_data_goes_on(self) -> None:
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

    def test_a_refused_new_token_is_the_end(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.validator.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        self.assertEqual(self.broker.live, [])

    def test_an_undecided_new_token_leaves_the_old_grant(self) -> None:
        client = self.subscribe(lifetime=30)
        client.present("second-token")
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.deliver()
        self.assertEqual(len(client.texts()), 1)
        self.clock.advance(30)
        self.deliver()
        client.assert_nothing()

    def test_any_other_message_ends_an_active_session(self) -> None:
        client = self.subscribe()
        client.send_text("hello")
        client.assert_refused("Unknown", "Invalid message", 1008)
        self.assertEqual(self.broker.live, [])

    # expired

    def test_nothing_is_delivered_after_expiry_to_the_millisecond(self) -> None:
        client = self.subscribe(lifetime=10)
        self.clock.advance(9.999)
        self.deliver(b'"in time"')
        self.assertEqual(len(client.texts()), 1)
        self.clock.advance(0.001)
        self.deliver(b'"too late"')
        client.assert_nothing()

    def test_a_message_after_expiry_is_told_so_even_a_token(self) -> None:
        for text in ('{"AccessToken":"new"}', "hello"):
            client = self.subscribe(lifetime=10)
            self.clock.advance(10)
            client.send_text(text)
            client.assert_refused("Unknown", "Session expired", 1008)
        self.assertEqual({asked.token for asked in self.validator.questions}, {"first-token"})

    def test_a_binary_message_after_expiry_is_told_so_too(self) -> None:
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

    def test_a_token_sent_in_time_is_answered_even_if_the_old_one_ran_out_meanwhile(self) -> None:
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
    def test_messages_wait_their_turn_and_are_answered_in_order(self) -> None:
        client = self.connect()
        for number in range(9):
            client.present(f"token-{number}")
        self.assertEqual(len(self.validator.questions), 1)
        self.validator.last.grant(self.now + 10)
        self.broker.confirm()
        client.assert_success(10)
        for number in range(1, 9):
            self.assertEqual(self.validator.last.token, f"token-{number}")
            self.validator.last.grant(self.now + number)
            client.assert_success(number)
        self.assertEqual(len(self.validator.questions), 9)

    def test_the_ninth_that_waits_is_an_invalid_message(self) -> None:
        client = self.connect()
        for number in range(9):
            client.present(f"token-{number}")
        client.assert_nothing()
        client.present("one-too-many")
        client.assert_refused("Unknown", "Invalid message", 1008)
        self.assertTrue(self.validator.last.was_cancelled)

    def test_what_came_in_time_is_answered_in_its_turn_though_time_runs_out(self) -> None:
        client = self.subscribe(lifetime=10)
        client.present("second-token")
        client.present("third-token")
        self.clock.advance(11)
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.assertEqual(self.validator.last.token, "third-token")
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)

    def test_what_came_too_late_is_not(self) -> None:
        client = self.subscribe(lifetime=10)
        client.present("second-token")
        self.clock.advance(11)
        client.present("third-token")
        self.validator.last.be_unavailable()
        (_, unavailable), (_, expired), close = client.frames()
        self.assert_error_text(unavailable, "AccessToken", "Service unavailable")
        self.assert_error_text(expired, "Unknown", "Session expired")
        self.assert_close(close, 1008, "Session expired")

    def test_a_check_that_is_cancelled_by_somebody_else_is_undecided(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.answer.cancel()
        client.assert_refused("AccessToken", "Service unavailable", 1013)

    def test_an_invalid_message_waits_its_turn_too(self) -> None:
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

    def test_a_binary_message_is_invalid_and_closed_with_its_own_code(self) -> None:
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

    def test_a_long_token_passes(self) -> None:
        client = self.connect()
        client.present("x" * 32768)
        self.assertEqual(len(self.validator.last.token), 32768)
        client.assert_nothing()

    def test_a_fault_of_ours_is_an_internal_error(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.answer.errback(ZeroDivisionError("said the test"))
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
        self.assertEqual(len(self.validator.questions), 1)

    def test_milliseconds_for_clients_of_the_reference(self) -> None:
        self.websocket_server.context.settings = SessionSettings(timestamps="milliseconds")
        client = self.connect()
        self.clock.advance(0.25)
        client.send_text("x")
        [(_, text), _] = client.frames()
        self.assertTrue(text.endswith(b'"Timestamp":1518612600250}'), text)


class OrderTests(ServiceTestCase):
    def test_success_precedes_the_data_that_came_with_the_confirmation(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 60)
        # Between the confirmation and Success: the broker hands over both in one turn.
        subscription = self.broker.subscriptions[-1]
        subscription.answer.addCallback(lambda it: (self.broker.bring(self.data(b"1")), it)[1])
        self.broker.confirm()
        self.broker.bring(self.data(b"2"))
        self.iterate()
        success, *data = client.texts()
        self.assert_success_text(success, 60)
        self.assertEqual(
            data, [b'{"From":"%s","Body":%d}' % (SENDER.encode(), body) for body in (1, 2)]
        )

    def test_data_between_the_confirmation_and_success_is_delivered_after_it(self) -> None:
        published = []

        def publish_first(subscription: object) -> object:
            """Runs when the broker has confirmed, before anybody of ours knows."""
            self.broker.bring(self.data(b'"between"'))
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

    def test_messages_come_in_the_order_of_the_broker(self) -> None:
        client = self.subscribe()
        for number in range(50):
            self.broker.bring(self.data(b"%d" % number))
            if number % 7 == 0:
                self.iterate()
        self.iterate()
        self.assertEqual(
            client.texts(),
            [b'{"From":"%s","Body":%d}' % (SENDER.encode(), number) for number in range(50)],
        )

    def data(self, body: bytes) -> Message:
        return Message(TOPIC, SENDER, body)


class FarewellTests(ServiceTestCase):
    def test_a_client_that_vanishes_during_the_check_leaves_nothing(self) -> None:
        client = self.connect()
        client.present("a-token")
        client.disconnect()
        self.assertTrue(self.validator.last.was_cancelled)
        self.assertEqual(self.broker.subscriptions, [])
        self.assert_nothing_left()

    def test_a_client_that_vanishes_during_the_subscription_leaves_nothing(self) -> None:
        client = self.connect()
        client.present("a-token")
        self.validator.last.grant(self.now + 60)
        client.disconnect()
        self.broker.confirm()
        self.assert_nothing_left()

    def test_a_client_that_vanishes_from_an_active_session_leaves_nothing(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        client.disconnect()
        self.assertTrue(self.validator.last.was_cancelled)
        self.deliver()
        self.assert_nothing_left()

    def test_a_client_that_closes_is_answered(self) -> None:
        client = self.subscribe()
        client.send_frame(8, b"\x03\xe8bye")
        self.assertEqual(client.frames(), [(8, b"\x03\xe8")])
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assert_nothing_left()

    def test_a_client_that_closes_without_a_code_is_answered_without_one(self) -> None:
        client = self.connect()
        client.send_frame(8, b"")
        self.assertEqual(client.frames(), [(8, b"")])

    def test_a_client_that_answers_our_close_is_let_go(self) -> None:
        client = self.connect()
        client.send_text("nonsense")
        client.assert_refused("Unknown", "Invalid message", 1008)
        self.assertIsNone(client.transport.lost)
        client.send_frame(8, b"\x03\xf0")
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assert_nothing_left()

    def test_a_close_that_is_not_answered_is_aborted_after_five_seconds(self) -> None:
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

    def test_bad_close_frames_get_their_code(self) -> None:
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

    def test_protocol_violations_get_their_code_and_nothing_more_is_read(self) -> None:
        client = self.subscribe()
        client.send_frame(1, b"x", rsv=4)
        [(opcode, payload)] = client.frames()
        self.assertEqual((opcode, payload[:2]), (8, (1002).to_bytes(2, "big")))
        self.assertTrue(client.transport.has_ended)
        self.assertEqual(self.broker.live, [])
        client.present("more")
        client.assert_nothing()
        self.advance(5)
        self.iterate()
        self.assert_nothing_left()

    def test_bad_utf8_is_1007(self) -> None:
        client = self.connect()
        client.send_frame(1, b"\xff")
        [(_, payload)] = client.frames()
        self.assertEqual(payload[:2], (1007).to_bytes(2, "big"))


class SlowReaderTests(ServiceTestCase):
    settings = SessionSettings(send_queue=100_000)

    def test_a_slow_reader_loses_its_session_and_nobody_else_notices(self) -> None:
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

    def test_a_reader_that_stalls_for_ten_seconds_is_slow(self) -> None:
        slow = self.subscribe()
        slow.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70000))
        self.advance(9)
        self.assertEqual(len(self.websocket_server), 1)
        self.advance(1)
        slow.transport.drain()
        [_, close] = slow.frames()
        self.assert_close(close, 1008, "Slow consumer")

    def test_a_reader_that_catches_up_gets_all_in_order(self) -> None:
        client = self.subscribe()
        client.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70000))
        for number in range(10):
            self.deliver(b"%d" % number)
        self.advance(5)
        client.transport.drain()
        bodies = [text.rpartition(b":")[2] for text in client.texts()]
        self.assertEqual(bodies[1:], [b"%d}" % number for number in range(10)])

    def test_a_close_waits_behind_the_data(self) -> None:
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

    def test_a_ping_flood_from_a_peer_that_never_reads_is_bounded(self) -> None:
        client = self.subscribe()
        client.transport.is_congested = True
        for _ in range(3000):
            client.send_frame(9, b"x" * 125)
        self.assertLess(len(client.transport.buffered), 200_000)
        self.clock.advance(5)
        self.iterate()
        self.assert_nothing_left()


class FreedTests(ServiceTestCase):
    """The garbage collector, which is kept rare, has nothing to do with lost connections."""

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

    def test_a_connection_without_a_token(self) -> None:
        self.assert_freed(self.connect())

    def test_a_request_whose_body_does_not_come_to_its_end(self) -> None:
        client = self.client()
        client.send_raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
        self.assert_freed(client)
