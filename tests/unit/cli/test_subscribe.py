"""``topicsvc subscribe`` in memory, in virtual time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import txaio
from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fake_server import CLOSE, PONG, TEXT, FakeEndpoint, FakeServer, frame
from topicsvc.cli import parser, subscribe
from topicsvc.cli.client import TIMEOUT, parse_url
from topicsvc.cli.parser import make_parser
from topicsvc.cli.subscribe import Subscription
from topicsvc.cli.terminal import CommandFailed
from topicsvc.client.connection import CLOSE_TIMEOUT
from topicsvc.client.rules.session import NO_POSITIONS

URL = "ws://localhost:8080/__topic/box1/col.topic.name"
GRANTED = {"Response": "AccessToken", "Result": "Success", "ExpiresIn": 3600, "Timestamp": 1}
PLACED = {**GRANTED, "Position": "a.1", "Missed": False, "Heartbeat": 60}


class SubscribeTestCase(SynchronousTestCase):
    """Fixture: a client that has begun its opening handshake."""

    arguments: tuple[str, ...] = ()
    url = URL

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(txaio.config, "loop", self.clock)
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.closed: list[Any] = []
        self.servers: list[FakeServer] = []
        self.patch(subscribe, "print_line", lambda line, is_raw: self.print_line(line))
        self.patch(subscribe, "print_error", self.errors.append)
        self.done = self.begin(FakeEndpoint(self.make_server))

    def begin(self, endpoint: Any) -> Deferred[None]:
        options = make_parser().parse(["subscribe", self.url, "--token", "t1", *self.arguments])
        self.change(options)
        url = parse_url(self.url, "ws")
        self.subscription = Subscription(self.clock, url, "t1", options, endpoint)
        return self.subscription.begin()

    def change(self, options: Any) -> None:
        """Change the options, if the test wants it."""

    def print_line(self, line: str) -> None:
        self.lines.append(line)

    def make_server(self) -> FakeServer:
        server = FakeServer(lambda text: self.sent.append(json.loads(text)), self.closed.append)
        self.servers.append(server)
        return server

    @property
    def server(self) -> FakeServer:
        """The server of the newest connection."""
        return self.servers[-1]

    def open(self, reply: dict[str, Any] = GRANTED) -> None:
        self.server.accept()
        self.send(reply)

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.server.send_text(json.dumps(message, separators=(",", ":")))

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.5] * int(2 * seconds))

    def assert_failed(self, line: str) -> None:
        error = self.failureResultOf(self.done, CommandFailed).value
        self.assertEqual(error.lines, (line,))  # type: ignore[attr-defined]


class RequestTests(SubscribeTestCase):
    url = "ws://[::1]:8080/x"

    def test_the_host_of_an_ipv6_url_is_in_brackets(self) -> None:
        self.assertIn(b"\r\nHost: [::1]:8080\r\n", self.server.request)


class OpeningTests(SubscribeTestCase):
    def test_a_server_that_is_no_http_server_is_left_at_once(self) -> None:
        self.server.receive(b"SSH-2.0-OpenSSH_9.2\r\n")
        self.assert_failed(
            f"{URL}: the answer is not HTTP; if the server has TLS at this port, write wss://"
        )

    def test_an_answer_in_pieces_is_http(self) -> None:
        for piece in (b"H", b"TT", b"P/1.1 404 Not Found\r\n\r\n"):
            self.assertNoResult(self.done)
            self.server.receive(piece)
        self.server.loseConnection()
        self.assert_failed(f"{URL}: 404 Not Found")

    def test_an_error_page_that_is_not_utf_8_is_one_line(self) -> None:
        self.server.receive(b"HTTP/1.1 502 Bad\r\nContent-Length: 9\r\n\r\n<p>\xff\r\nx\xe4")
        self.server.loseConnection()
        self.assert_failed(f"{URL}: 502 <p>\ufffd x\ufffd")

    def test_an_answer_without_websocket_is_named(self) -> None:
        self.server.receive(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")
        self.server.loseConnection()
        self.assert_failed(f"{URL}: the answer is not that of a WebSocket server")

    def test_a_silent_server_is_left_after_10_seconds(self) -> None:
        self.pass_time(9.5)
        self.assertNoResult(self.done)
        self.pass_time(1)
        self.assertEqual(TIMEOUT, 10)
        self.assert_failed(
            f"{URL}: no response within 10 s; if the server has TLS at this port, write wss://"
        )

    def test_a_connection_that_is_lost_at_once_has_its_error(self) -> None:
        self.server.loseConnection()
        self.assert_failed(
            f"{URL}: the connection was lost; if the server has TLS at this port, write wss://"
        )

    def test_a_refused_connection_has_its_error(self) -> None:
        endpoint = type(
            "Endpoint", (), {"connect": lambda *_: fail(error.ConnectionRefusedError())}
        )
        self.done = self.begin(endpoint())
        self.assert_failed(f"{URL}: the connection was refused")


class SessionTests(SubscribeTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.open()

    def test_without_options_the_protocol_is_the_plain_one(self) -> None:
        self.assertEqual(self.sent, [{"AccessToken": "t1"}])
        self.assertEqual(self.errors, ["subscribed for 3600 seconds"])

    def test_a_message_is_printed_on_one_line(self) -> None:
        self.server.send_text('{"From":"x","Body":{\r\n}}')
        self.assertEqual(self.lines, ['{"From":"x","Body":{  }}'])

    def test_a_body_is_printed_as_it_was_sent(self) -> None:
        for body in ("9" * 5000, "2.50", "1e400", '{"a":1,"a":2}', '"\\u00e9"'):
            self.server.send_text(f'{{"From":null,"Body":{body}}}')
            self.assertEqual(self.lines.pop(), f'{{"From":null,"Body":{body}}}')

    def test_a_refusal_has_its_reason_and_code(self) -> None:
        self.send({"Response": {}, "Result": "Error", "Reason": "Token inactive"})
        self.server.drop()
        self.assert_failed("closed: Token inactive (1008)")

    def test_an_unavailable_service_has_its_code(self) -> None:
        self.send({"Response": "AccessToken", "Result": "Error", "Reason": "Service unavailable"})
        self.server.drop()
        self.assert_failed("closed: Service unavailable (1013)")

    def test_a_close_frame_has_its_reason_and_code(self) -> None:
        self.server.cut(1001, "Going away")
        self.assert_failed("closed: Going away (1001)")

    def test_a_close_frame_without_a_reason(self) -> None:
        self.server.cut(1005, "")
        self.assert_failed("closed: the service closed the connection")

    def test_a_lost_connection_is_named_in_own_words(self) -> None:
        self.server.drop()
        self.assert_failed("closed: the connection was lost, without a close frame of the service")

    def test_data_that_breaks_the_protocol_is_named(self) -> None:
        self.server.receive(b"\xff\xff\xff")
        self.server.drop()
        self.assert_failed("closed: the server sent data that WebSocket does not allow")

    def test_a_message_of_another_protocol_is_named(self) -> None:
        for payload in ("hello", "[]", "1", '{"Result":"Success","ExpiresIn":null}',
                        '{"Result":"Success","ExpiresIn":1e999}'):  # fmt: skip
            self.setUp()
            self.server.send_text(payload)
            self.server.drop()
            self.assert_failed("closed: the server sent a message that is not of this protocol")

    def test_a_token_that_has_expired_is_named(self) -> None:
        """The client has no other token: it uses this one until it expires."""
        self.send({**GRANTED, "ExpiresIn": 100})
        self.pass_time(99.5)
        self.assertNoResult(self.done)
        self.assertEqual(self.sent, [{"AccessToken": "t1"}])
        self.pass_time(0.5)
        self.server.drop()
        self.assert_failed("closed: the token has expired")

    def test_output_that_fails_is_not_the_fault_of_the_service(self) -> None:
        def fail(_: str) -> None:
            raise CommandFailed("standard output: No space left on device")

        self.patch(self, "print_line", fail)
        self.send({"From": "x", "Body": 1}, {"From": "x", "Body": 1})
        self.assertEqual(self.closed, [1000])
        self.assertNoResult(self.done)
        self.server.drop()
        self.assert_failed("standard output: No space left on device")

    def test_an_interrupt_closes_the_connection(self) -> None:
        self.subscription.stop()
        self.assertEqual(self.closed, [1000])
        self.assertNoResult(self.done)
        self.server.receive(frame(CLOSE, b"\x03\xe8"))
        self.server.loseConnection()
        self.assertIsNone(self.successResultOf(self.done))

    def test_a_service_that_does_not_answer_the_close_frame_is_left(self) -> None:
        self.subscription.stop()
        self.clock.advance(CLOSE_TIMEOUT + 0.3)
        self.assertIsNone(self.successResultOf(self.done))


class CountTests(SubscribeTestCase):
    arguments = ("--count", "2")

    def test_the_connection_is_closed_after_enough_messages(self) -> None:
        self.open()
        self.server.receive(frame(TEXT, b'{"From":"x","Body":1}') * 3)
        self.assertEqual(len(self.lines), 2)
        self.assertEqual(self.closed, [1000])
        self.assertNoResult(self.done)
        self.server.drop()
        self.assertIsNone(self.successResultOf(self.done))


class DeadConnectionTests(SubscribeTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.open()

    def test_a_server_that_does_not_answer_a_ping_is_dead(self) -> None:
        self.server.answers_pings = False
        self.pass_time(74.5)
        self.assertEqual(self.server.pings, 1)
        self.assertNoResult(self.done)
        self.pass_time(0.5)
        self.server.drop()
        self.assert_failed("closed: nothing has arrived for 75 s: the connection is dead")

    def test_a_service_with_rare_pings_is_pinged_and_its_answers_count(self) -> None:
        self.pass_time(20 * 60)
        self.assertEqual(self.server.pings, 20)
        self.assertNoResult(self.done)

    def test_any_byte_ends_the_silence(self) -> None:
        """A message that takes long to arrive, and the service's own pings."""
        self.server.answers_pings = False
        for _ in range(3):
            self.pass_time(59.5)
            self.server.receive(frame(PONG))
            self.server.pings = 0
        self.server.receive(b"\x81\x7e\x01\x00")  # the head of a long message
        for _ in range(3):
            self.pass_time(59.5)
            self.server.receive(b"x")
        self.assertEqual(self.server.pings, 0)
        self.assertNoResult(self.done)


class PositionTests(SubscribeTestCase):
    arguments = ("--since", "a.1", "--json")

    def test_since_is_sent_and_positions_are_printed(self) -> None:
        self.open(PLACED)
        self.assertEqual(self.sent, [{"AccessToken": "t1", "Since": "a.1"}])
        self.send({"From": "x", "Body": 1, "Position": "a.2"}, {"Position": "a.2"})
        self.assertEqual(self.lines, ['{"From":"x","Body":1,"Position":"a.2"}'])

    def test_a_gap_is_told(self) -> None:
        self.open({**PLACED, "Position": "b.7", "Missed": True})
        self.assertIn("messages may have been missed after a.1; they go on after b.7", self.errors)

    def test_a_service_without_positions_is_told(self) -> None:
        self.open()
        self.assertEqual(
            self.errors,
            [
                "subscribed for 3600 seconds",
                NO_POSITIONS,
                "messages may have been missed after a.1",
            ],
        )

    def test_without_reconnect_a_loss_ends_the_command(self) -> None:
        self.open(PLACED)
        self.server.cut(1001, "Going away")
        self.assert_failed("closed: Going away (1001)")


class NowTests(SubscribeTestCase):
    arguments = ("--since", "now")

    def test_now_begins_with_positions_and_prints_none_without_json(self) -> None:
        self.open(PLACED)
        self.assertEqual(self.sent, [{"AccessToken": "t1", "Since": None}])
        self.send({"From": "x", "Body": 1, "Position": "a.2"})
        self.assertEqual(self.lines, ['{"From":"x","Body":1}'])

    def test_at_the_end_it_tells_the_last_position(self) -> None:
        self.open(PLACED)
        self.send({"From": "x", "Body": 1, "Position": "a.2"})
        self.subscription.stop()
        self.server.receive(frame(CLOSE, b"\x03\xe8"))
        self.server.loseConnection()
        self.successResultOf(self.done)
        self.assertEqual(self.errors[-1], "the last position is a.2; go on with --since a.2")

    def test_it_tells_no_position_if_it_knows_none(self) -> None:
        before = list(self.errors)
        self.subscription.stop()
        self.clock.advance(CLOSE_TIMEOUT + 0.3)
        self.successResultOf(self.done)
        self.assertEqual(self.errors, before)

    def test_a_wrong_position_is_refused(self) -> None:
        told: list[str] = []
        self.patch(parser, "print_error", told.append)
        for text in ("", "a b", "x" * 129, "\u00e9"):
            self.assertRaises(SystemExit, make_parser().parse, ["subscribe", URL, "--since", text])
            self.assertIn("is not a position: 1 to 128 visible ASCII", told.pop())


class ReconnectTests(SubscribeTestCase):
    arguments = ("--reconnect",)

    def test_it_comes_back_behind_the_last_message(self) -> None:
        self.open(PLACED)
        self.send({"From": "x", "Body": 1, "Position": "a.2"})
        self.server.cut(1001, "Going away")
        self.assertEqual(self.errors[-1], "closed: Going away (1001); connecting again")
        self.pass_time(1)
        self.open({**PLACED, "Position": "a.2"})
        self.assertEqual(self.sent[-1], {"AccessToken": "t1", "Since": "a.2"})
        self.send({"From": "x", "Body": 2, "Position": "a.3"})
        self.assertEqual(len(self.lines), 2)
        self.assertNoResult(self.done)

    def test_a_service_that_is_away_is_tried_again(self) -> None:
        self.server.drop()
        self.assertRegex(self.errors[-1], r"^ws://.*: the connection was lost; .*connecting again$")
        self.pass_time(1)
        self.assertEqual(len(self.servers), 2)

    def test_a_refused_token_ends_the_command(self) -> None:
        self.server.accept()
        self.send({"Response": "AccessToken", "Result": "Error", "Reason": "Token inactive"})
        self.server.drop()
        self.pass_time(1)
        self.assert_failed("closed: Token inactive (1008)")

    def test_an_expired_token_ends_the_command(self) -> None:
        self.open({**PLACED, "ExpiresIn": 30})
        self.pass_time(31)
        self.server.drop()
        self.assert_failed("closed: the token has expired")

    def test_an_interrupt_ends_a_pause(self) -> None:
        self.server.drop()
        self.subscription.stop()
        self.assertIsNone(self.successResultOf(self.done))
        self.pass_time(CLOSE_TIMEOUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class TokenFileTests(SubscribeTestCase):
    arguments = ("--reconnect",)

    def change(self, options: Any) -> None:
        self.file = Path(self.mktemp())
        self.file.write_text("t1\n")
        options.token_file = self.file

    def test_another_token_in_the_file_is_presented_before_the_old_one_expires(self) -> None:
        self.open({**PLACED, "ExpiresIn": 50})
        self.pass_time(40)
        self.assertEqual(len(self.sent), 1)
        self.file.write_text("t2\n")
        self.pass_time(1)
        self.assertEqual(self.sent[1:], [{"AccessToken": "t2"}])

    def test_after_a_refusal_it_waits_for_another_token(self) -> None:
        self.server.accept()
        self.send({"Response": "AccessToken", "Result": "Error", "Reason": "Token inactive"})
        self.server.drop()
        self.file.unlink()
        self.pass_time(3600)
        self.assertEqual(self.errors[-1], f"waiting for another token in {self.file}")
        self.assertEqual(len(self.errors), 2)
        self.file.write_text("t2")
        self.pass_time(1)
        self.server.accept()
        self.assertEqual(self.sent[-1], {"AccessToken": "t2", "Since": None})

    def test_what_is_not_a_token_in_the_file_is_not_sent(self) -> None:
        """Another program may be writing the file."""
        self.open({**PLACED, "ExpiresIn": 50})
        self.pass_time(40)
        self.file.write_text("t 2")
        self.pass_time(1)
        self.assertEqual(len(self.sent), 1)
        self.file.write_text("t2")
        self.pass_time(1)
        self.assertEqual(self.sent[1:], [{"AccessToken": "t2"}])

    def test_an_interrupt_ends_the_wait_for_a_token(self) -> None:
        self.open({**PLACED, "ExpiresIn": 50})
        self.pass_time(40)
        self.subscription.stop()
        self.server.drop()
        self.assertIsNone(self.successResultOf(self.done))
        self.pass_time(CLOSE_TIMEOUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])
