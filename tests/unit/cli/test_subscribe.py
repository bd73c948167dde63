"""``topicsvc subscribe`` in memory, in virtual time."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha1
from typing import Any

import txaio
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.cli.client import TIMEOUT, parse_url
from topicsvc.cli.silence import MAX_SILENCE, OWN_PING_INTERVAL
from topicsvc.cli.subscribe import CLOSE_TIMEOUT, Subscriber, make_factory
from topicsvc.cli.terminal import CommandFailed

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """A frame of a server, with a payload of less than 126 bytes."""
    return bytes([0x80 | opcode, len(payload)]) + payload


def closing(code: int, reason: str) -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason.encode())


class Transport(StringTransport):
    """A transport that reports its end when it is closed or aborted."""

    protocol: Any = None
    ended = False

    def loseConnection(self) -> None:
        self.end()

    def abortConnection(self) -> None:
        self.end()

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def unregisterProducer(self) -> None:
        """Do nothing: a real transport allows this without a producer."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do nothing: there is no socket."""


class SubscriberTestCase(SynchronousTestCase):
    count: int | None = None

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(txaio.config, "loop", self.clock)
        self.done: Deferred[None] = Deferred()
        self.lines: list[str] = []
        self.subscribed: list[int] = []
        self.connect("ws://localhost:8080/__topic/box1/col.topic.name")

    def connect(self, url: str) -> None:
        factory = make_factory(
            parse_url(url, "ws"),
            lambda: Subscriber(
                "token",
                self.done,
                self.count,
                self.on_message,
                self.subscribed.append,
                self.clock,
            ),
        )
        self.subscriber = factory.buildProtocol(None)
        self.transport = Transport()
        self.transport.protocol = self.subscriber
        self.subscriber.makeConnection(self.transport)
        self.request = self.transport.value().decode()
        self.transport.clear()

    def on_message(self, line: str) -> bool:
        self.lines.append(line)
        return True

    def open(self) -> None:
        [key] = [
            line.split(": ")[1]
            for line in self.request.splitlines()
            if line.lower().startswith("sec-websocket-key")
        ]
        accept = b64encode(sha1(key.encode() + GUID).digest()).decode()
        self.receive(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        self.transport.clear()

    def receive(self, data: bytes) -> None:
        self.subscriber.dataReceived(data)

    def sent(self) -> list[tuple[int, bytes]]:
        """The frames that the client has sent since the last look: opcode and payload."""
        data = self.transport.value()
        self.transport.clear()
        found = []
        while data:
            length = data[1] & 0x7F
            mask, masked = data[2:6], data[6 : 6 + length]
            found.append(
                (data[0] & 0x0F, bytes(each ^ mask[n % 4] for n, each in enumerate(masked)))
            )
            data = data[6 + length :]
        return found

    def assert_failed(self, line: str) -> None:
        error = self.failureResultOf(self.done, CommandFailed).value
        self.assertEqual(error.lines, (line,))  # type: ignore[attr-defined]


class RequestTests(SubscriberTestCase):
    def test_the_host_of_an_ipv6_url_is_in_brackets(self) -> None:
        self.connect("ws://[::1]:8080/x")
        self.assertIn("\r\nHost: [::1]:8080\r\n", self.request)


class OpeningTests(SubscriberTestCase):
    def test_a_server_that_is_no_http_server_is_left_at_once(self) -> None:
        self.receive(b"SSH-2.0-OpenSSH_9.2\r\n")
        self.assert_failed("the answer is not HTTP")

    def test_an_answer_in_pieces_is_http(self) -> None:
        for piece in (b"H", b"TT", b"P/1.1 404 Not Found\r\n\r\n"):
            self.assertNoResult(self.done)
            self.receive(piece)
        self.assert_failed("404 Not Found")

    def test_an_error_page_that_is_not_utf_8_is_one_line(self) -> None:
        self.receive(b"HTTP/1.1 502 Bad\r\nContent-Length: 9\r\n\r\n<p>\xff\r\nx\xe4")
        self.assert_failed("502 <p>\ufffd x\ufffd")

    def test_an_answer_without_websocket_is_named(self) -> None:
        self.receive(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")
        self.assert_failed("the answer is not that of a WebSocket server")

    def test_a_silent_server_is_left_after_10_seconds(self) -> None:
        self.clock.pump([0.5] * 19)
        self.assertNoResult(self.done)
        self.clock.pump([0.5] * 3)
        self.assertEqual(TIMEOUT, 10)
        self.assert_failed("no response within 10 s")

    def test_a_connection_that_is_lost_at_once_has_its_error(self) -> None:
        self.transport.end()
        self.failureResultOf(self.done, ConnectionDone)


class SessionTests(SubscriberTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.open()

    def test_a_message_is_printed_on_one_line(self) -> None:
        self.receive(frame(TEXT, b'{"From":"x","Body":{\r\n}}'))
        self.assertEqual(self.lines, ['{"From":"x","Body":{  }}'])

    def test_a_refusal_has_its_reason_and_code(self) -> None:
        reply = {"Response": {}, "Result": "Error", "Reason": "Token inactive"}
        self.receive(frame(TEXT, json.dumps(reply).encode()) + closing(1008, "Token inactive"))
        self.transport.end()
        self.assert_failed("closed: Token inactive (1008)")

    def test_a_close_frame_has_its_reason_and_code(self) -> None:
        self.receive(closing(1001, "Going away"))
        self.transport.end()
        self.assert_failed("closed: Going away (1001)")

    def test_a_close_frame_without_a_reason(self) -> None:
        self.receive(frame(CLOSE))
        self.transport.end()
        self.assert_failed("closed: the service closed the connection")

    def test_a_lost_connection_is_named_in_own_words(self) -> None:
        self.transport.end()
        self.assert_failed("closed: the connection was lost, without a close frame of the service")

    def test_data_that_breaks_the_protocol_is_named(self) -> None:
        self.receive(b"\xff\xff\xff")
        self.transport.end()
        self.assert_failed("closed: the server sent data that WebSocket does not allow")

    def test_a_message_of_another_protocol_is_named(self) -> None:
        for payload in (b"hello", b"[]", b"1", b"{}", b'{"Result":"Success","ExpiresIn":null}',
                        b'{"Result":"Success","ExpiresIn":1e999}'):  # fmt: skip
            self.setUp()
            self.receive(frame(TEXT, payload))
            self.receive(closing(1000, ""))
            self.transport.end()
            self.assert_failed(
                "closed: the server sent a message that is not of this protocol (1000)"
            )

    def test_output_that_fails_is_not_the_fault_of_the_service(self) -> None:
        def fail(_: str) -> bool:
            raise CommandFailed("standard output: No space left on device")

        self.on_message = fail  # type: ignore[method-assign]
        self.setUp()
        self.receive(frame(TEXT, b'{"From":"x","Body":1}') * 2)
        self.assertEqual(self.sent(), [(CLOSE, b"\x03\xe8")])
        self.receive(closing(1000, ""))
        self.transport.end()
        self.assert_failed("standard output: No space left on device")

    def test_an_interrupt_closes_the_connection(self) -> None:
        self.subscriber.finish()
        self.assertEqual(self.sent(), [(CLOSE, b"\x03\xe8")])
        self.assertNoResult(self.done)
        self.receive(closing(1000, ""))
        self.transport.end()
        self.assertIsNone(self.successResultOf(self.done))

    def test_a_service_that_does_not_answer_the_close_frame_is_left(self) -> None:
        self.subscriber.finish()
        self.clock.advance(CLOSE_TIMEOUT + 0.3)
        self.assertIsNone(self.successResultOf(self.done))


class CountTests(SubscriberTestCase):
    count = 2

    def test_the_connection_is_closed_after_enough_messages(self) -> None:
        self.open()
        self.receive(frame(TEXT, b'{"From":"x","Body":1}') * 3)
        self.assertEqual(len(self.lines), 2)
        self.assertEqual(self.sent(), [(CLOSE, b"\x03\xe8")])
        self.assertNoResult(self.done)
        self.receive(closing(1000, ""))
        self.transport.end()
        self.assertIsNone(self.successResultOf(self.done))


class DeadConnectionTests(SubscriberTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.open()

    def pass_time(self, seconds: int) -> None:
        self.clock.pump([1.0] * seconds)

    def test_a_connection_without_bytes_for_three_ping_intervals_is_dead(self) -> None:
        self.pass_time(int(MAX_SILENCE) - 1)
        self.assertNoResult(self.done)
        self.pass_time(1)
        self.assert_failed(
            "closed: nothing has arrived for 180 s, not even a ping: the connection is dead"
        )

    def test_the_pings_of_the_service_determine_the_limit(self) -> None:
        for _ in range(4):
            self.receive(frame(PING))
            self.pass_time(20)
        self.pass_time(39)
        self.assertNoResult(self.done)
        self.pass_time(1)
        self.assert_failed(
            "closed: nothing has arrived for 60 s, not even a ping: the connection is dead"
        )

    def test_a_service_with_rare_pings_is_pinged_and_its_answers_count(self) -> None:
        for _ in range(20):
            self.pass_time(int(OWN_PING_INTERVAL))
            self.assertEqual(self.sent(), [(PING, b"")])
            self.receive(frame(PONG))
        self.assertNoResult(self.done)

    def test_a_ping_is_answered(self) -> None:
        self.receive(frame(PING, b"1"))
        self.assertEqual(self.sent(), [(PONG, b"1")])
