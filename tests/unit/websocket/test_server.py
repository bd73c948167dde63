"""The heartbeat of all connections, and their close when the service stops."""

from __future__ import annotations

from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol

from tests.support.harness import ServiceTestCase
from topicsvc.settings import SessionSettings
from topicsvc.websocket.connection import TopicConnection
from topicsvc.websocket.server import _websocket_factory


class HeartbeatTests(ServiceTestCase):
    def test_pings_are_sent_every_minute_from_the_opening(self) -> None:
        client = self.subscribe()
        for _ in range(5):
            self.advance(59)
            client.assert_nothing()
            self.advance(1)
            [(opcode, payload)] = client.frames()
            self.assertEqual(opcode, 9)
            client.send_frame(10, payload)

    def test_ten_unanswered_pings_close_the_connection(self) -> None:
        client = self.subscribe(lifetime=36000)
        self.advance(600)
        self.assertEqual([opcode for opcode, _ in client.frames()], [9] * 10)
        self.advance(59)
        client.assert_nothing()
        self.advance(1)
        client.assert_closed(1008, "No pong")
        self.advance(5)
        self.assertIsNotNone(client.transport.lost)
        self.assert_nothing_left()

    def test_one_pong_resets_the_count(self) -> None:
        client = self.subscribe(lifetime=36000)
        self.advance(600)
        pings = client.frames()
        client.send_frame(10, pings[3][1])
        self.advance(600)
        self.assertEqual([opcode for opcode, _ in client.frames()], [9] * 10)
        self.advance(60)
        client.assert_closed(1008, "No pong")

    def test_unsolicited_pongs_do_not_count(self) -> None:
        client = self.subscribe(lifetime=36000)
        for payload in (
            b"",
            b"\0\0\0\0",
            b"\0\0\0\1",
            b"\0\0\0\x0b",
            b"\xff\xff\xff\xff",
            b"x" * 125,
        ):
            client.send_frame(10, payload)
        self.advance(600)
        client.frames()
        client.send_frame(10, b"\0\0\0\x0b")
        client.send_frame(10, b"else")
        self.advance(60)
        client.assert_closed(1008, "No pong")

    def test_connections_without_a_token_are_pinged(self) -> None:
        client = self.connect()
        self.clock.advance(30)
        client.present("a-token")
        self.advance(30)
        self.assertEqual([opcode for opcode, _ in client.frames()], [9])

    def test_a_client_s_ping_gets_a_pong(self) -> None:
        client = self.connect()
        client.send_frame(9, b"abc")
        self.assertEqual(client.frames(), [(10, b"abc")])

    def test_after_a_pause_of_the_process_one_ping_is_sent(self) -> None:
        client = self.subscribe(lifetime=10**6)
        self.clock.advance(86400)
        self.assertEqual([opcode for opcode, _ in client.frames()], [9])


class StopTests(ServiceTestCase):
    drain = 5.0

    def test_stopping_spreads_going_away_over_the_drain_time(self) -> None:
        clients = [self.subscribe() for _ in range(10)]
        stopping = self.websocket_server.stopService()
        closed = []
        for _ in range(50):
            closed.append(sum(bool(client.transport.written) for client in clients))
            self.clock.advance(0.1)
        self.assertEqual(closed[0], 0)
        self.assertTrue(3 <= closed[25] <= 7, closed)
        for client in clients:
            client.assert_closed(1001, "Going away")
            client.send_frame(8, b"\x03\xe9")
        self.iterate()
        self.successResultOf(stopping)
        self.assertEqual([call.func for call in self.clock.getDelayedCalls()], [])

    def test_clients_that_do_not_answer_the_close_are_aborted(self) -> None:
        self.subscribe()
        stopping = self.websocket_server.stopService()
        self.advance(10)
        self.iterate()
        self.successResultOf(stopping)

    def test_no_connection_is_accepted_during_the_stop(self) -> None:
        early = self.client()
        for is_empty in (True, False):
            if not is_empty:
                self.websocket_server._is_stopping = False
                self.subscribe()
            stopping = self.websocket_server.stopService()
            self.assertEqual(early.upgrade(), 503)
            self.assertEqual(early.headers["retry-after"], ["1"])
            self.assertEqual(stopping is None, is_empty)
        self.advance(10)
        self.iterate()
        self.successResultOf(stopping)

    def test_stopping_without_connections_is_immediate(self) -> None:
        self.assertIsNone(self.websocket_server.stopService())


class InitialStateTests(ServiceTestCase):
    """The attributes that Autobahn sets on each connection are those of the class."""

    def connection_class(self) -> type[TopicConnection]:
        kind: type[TopicConnection] = _websocket_factory(SessionSettings()).protocol
        return kind

    def test_the_fast_way_is_in_use(self) -> None:
        self.assertTrue(self.connection_class().has_initial_state)

    def test_a_new_connection_has_the_attributes_that_autobahn_would_set(self) -> None:
        client = self.connect()
        connection = client.transport.protocol
        usual = WebSocketServerProtocol()
        usual.factory = connection.factory
        WebSocketProtocol._connectionMade(usual)
        for name, value in vars(usual).items():
            if isinstance(value, (bool, int, bytes, type(None))) and name != "state":
                self.assertEqual(getattr(connection, name), value, name)

    def test_a_connection_does_not_change_the_attributes_of_the_class(self) -> None:
        client = self.subscribe()
        kind = type(client.transport.protocol)
        before = dict(vars(kind))
        client.send_frame(1, b"half of ", fin=False)
        client.send_raw(b"\x80\x90")
        self.assertEqual(vars(kind), before)
        other = self.subscribe()
        client.transport.protocol.going_away()
        client.disconnect()
        self.assertEqual(vars(kind), before)
        other.frames()
        self.deliver()
        self.assertEqual(len(other.texts()), 1)

    def test_with_an_attribute_of_another_kind_autobahn_sets_them_on_each_connection(self) -> None:
        usual = WebSocketProtocol._connectionMade

        def updated(protocol: Any) -> None:
            usual(protocol)
            protocol.observers = []

        self.patch(WebSocketProtocol, "_connectionMade", updated)
        self.assertFalse(self.connection_class().has_initial_state)
        self.websocket_server.configure(self.validator, self.settings, 0, None)
        client = self.subscribe()
        self.assertEqual(client.transport.protocol.observers, [])
        self.deliver()
        self.assertEqual(len(client.texts()), 1)
        client.send_frame(8, b"\x03\xe8")
        self.assertEqual(client.frames(), [(8, b"\x03\xe8")])
        self.advance(1)
        self.assert_nothing_left()
