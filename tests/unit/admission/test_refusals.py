"""What untrusted clients over a limit get, over HTTP and WebSocket, in virtual time."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from tests.support.harness import (
    HANDSHAKE,
    HOST,
    SEND_PATH,
    TRANSPORT_BUFFER,
    WEBSOCKET_PATH,
    Client,
    MemoryTransport,
    ServiceTestCase,
)
from tests.support.raw_client import TEXT, close, frame
from topicsvc.admission.addresses import parse_network
from topicsvc.admission.limits import MAX_POLITE_REFUSALS, TOKEN_DEADLINE
from topicsvc.listening.proxy_protocol import ProxiedFactory
from topicsvc.settings import LimitSettings, SessionSettings
from topicsvc.web import site
from topicsvc.websocket.session import MAX_WAITING_BYTES

ANN, BOB = "192.0.2.1", "192.0.2.2"
PROXY = "10.0.0.1"
BEARER = {"Authorization": "Bearer a-token"}
NOT_PROXY_HEADERS = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PROXY TCP4 \xff 1 1 1\r\n",
    b"PROXY TCP4 1 1 x 1\r\n",
    b"PROXY TCP9 1 1 1 1\r\n",
    b"PROXY " + b"x" * 101,
    b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\0",
    b"\x16\x03\x01",
)
"""First bytes that are no PROXY header."""


class RefusalTestCase(ServiceTestCase):
    def set_limits(self, **settings: Any) -> None:
        """Replace the limits, as a reload does."""
        self.limits.settings = LimitSettings(**settings)

    def assert_refused(
        self, client: Client, code: str = "PR503-SV-0001", retry_after: str = "1"
    ) -> None:
        body = client.request("GET", WEBSOCKET_PATH, HANDSHAKE)
        self.assertEqual((client.status, json.loads(body)["code"]), (503, code))
        self.assertEqual(client.headers["retry-after"], [retry_after])

    def present_failing_token(self, client: Client, token: str = "bad") -> None:
        """Present a token that fails, as `client`."""
        client.present(token)
        self.validator.last.refuse()
        client.frames()
        client.disconnect()


class ConnectionLimitTests(RefusalTestCase):
    def test_a_connection_over_the_limit_gets_503_and_is_closed(self) -> None:
        self.set_limits(connections=1)
        first = self.connect()
        second = self.client()
        self.assert_refused(second)
        self.assertEqual(second.headers["connection"], ["close"])
        self.assertTrue(second.transport.has_ended)
        self.advance(site.CLOSE_TIMEOUT)
        self.iterate()
        self.assertTrue(second.transport.lost.check(ConnectionAborted))
        self.assertEqual(self.limits.polite_refusals, 0)
        first.disconnect()
        self.connect().disconnect()
        self.assert_nothing_left()

    def test_every_request_over_the_limit_gets_503(self) -> None:
        self.set_limits(connections=1)
        self.connect()
        for method, path, headers, body in (
            ("POST", SEND_PATH, BEARER, b"1"),
            ("OPTIONS", "*", {}, b""),
            ("GET", "/nowhere", {"Host": "elsewhere.example"}, b""),
        ):
            client = self.client()
            client.request(method, path, headers, body)
            self.assertEqual(client.status, 503)
        self.assertEqual(self.validator.checks, [])

    def test_a_refused_silent_connection_has_the_same_deadline(self) -> None:
        self.set_limits(connections=1)
        self.connect()
        silent = self.client()
        self.advance(site.HEAD_TIMEOUT)
        self.iterate()
        self.assertIsNotNone(silent.transport.lost)
        self.assertEqual(self.limits.polite_refusals, 0)

    def test_too_many_refused_connections_are_closed_unanswered(self) -> None:
        self.set_limits(connections=1)
        self.connect()
        for _ in range(MAX_POLITE_REFUSALS):
            self.client()
        dropped = self.client()
        self.iterate()
        self.assertTrue(dropped.transport.lost.check(ConnectionAborted))
        self.assertEqual(bytes(dropped.transport.written), b"")
        self.assertEqual(self.limits.refusals["connections"], MAX_POLITE_REFUSALS + 1)

    def test_accepts_per_second(self) -> None:
        self.set_limits(accepts_per_second=3)
        for _ in range(3):
            self.connect()
        self.assert_refused(self.client())
        self.clock.advance(1)
        self.connect()
        self.assertEqual(self.limits.refusals["accepts_per_second"], 1)

    def test_connections_per_address(self) -> None:
        self.set_limits(per_address=1)
        self.connect(address=ANN)
        self.assert_refused(self.client(ANN))
        self.connect(address=BOB)
        self.assertEqual(self.limits.refusals["per_address"], 1)


class UnauthenticatedTests(RefusalTestCase):
    def test_a_valid_token_frees_a_place(self) -> None:
        self.set_limits(unauthenticated=2)
        first, second = self.connect(), self.client()
        self.assert_refused(self.client())
        first.present("a-token")
        self.assert_refused(self.client())
        self.validator.last.grant(self.now + 60)
        self.connect()
        self.assert_refused(self.client())
        second.disconnect()
        self.connect()
        self.assertEqual(self.limits.refusals["unauthenticated"], 3)

    def test_a_send_with_a_valid_token_frees_a_place(self) -> None:
        self.set_limits(unauthenticated_per_address=1)
        sender = self.client()
        sender.request("POST", SEND_PATH, BEARER, b"1")
        self.assert_refused(self.client())
        self.validator.last.grant(self.now + 60)
        self.assertEqual(self.client().upgrade(), 101)
        self.assertEqual(self.limits.refusals["unauthenticated_per_address"], 1)

    def test_without_a_valid_token_the_connection_is_closed_in_time(self) -> None:
        self.set_limits(unauthenticated=2)
        self.connect()
        self.client()
        self.advance(10)
        self.iterate()
        self.connect()
        self.advance(60)
        self.advance(5)
        self.iterate()
        self.assert_nothing_left()


class TokenDeadlineTests(RefusalTestCase):
    """HTTP connections on which no valid token is presented within a minute."""

    def request(self, client: Client, method: str = "OPTIONS", path: str = "*", **more: Any) -> int:
        """Send a complete request; return the status of its answer, 0 if there is none."""
        client.status, client.headers = 0, {}
        client.request(method, path, **more)
        return client.status

    def answer_status(self, client: Client) -> int:
        """The status of an answer that arrived later, 0 if there is none."""
        client.status, client.headers = 0, {}
        client.read_answer()
        return client.status

    def assert_closes(self, client: Client) -> None:
        """The answer was the last one on this connection."""
        self.assertEqual(client.headers.get("connection", [""])[-1].split(", ")[-1], "close")
        self.iterate()
        self.assertIsNotNone(client.transport.lost)

    def test_complete_requests_do_not_prolong_the_deadline(self) -> None:
        for method, path, headers, status in (
            ("OPTIONS", "*", {}, 200),
            ("OPTIONS", SEND_PATH, {}, 200),
            ("POST", SEND_PATH, {}, 401),
            ("POST", SEND_PATH, {"Authorization": "Bearer \xfc"}, 401),
            ("GET", "/nowhere", {}, 404),
            ("GET", WEBSOCKET_PATH, {}, 426),
            ("GET", WEBSOCKET_PATH, {**HANDSHAKE, "Connection": "keep-alive"}, 400),
        ):
            with self.subTest(method=method, path=path, headers=headers):
                client = self.client()
                for _ in range(2):
                    self.assertEqual(self.request(client, method, path, headers=headers), status)
                    self.assertNotIn("close", client.headers.get("connection", []))
                    self.advance(TOKEN_DEADLINE / 2)
                self.iterate()
                self.assertIsNotNone(client.transport.lost)
                self.assertEqual(self.limits.unauthenticated.total, 0)
        self.assert_nothing_left()

    def test_a_request_in_progress_at_the_deadline_is_answered(self) -> None:
        client = self.client()
        self.request(client)
        self.advance(TOKEN_DEADLINE - 1)
        client.send_raw(b"OPTIONS ")
        self.advance(2)
        client.send_raw(f"* HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * 2)
        self.assertEqual(self.answer_status(client), 200)
        self.assert_closes(client)
        self.assertEqual(self.answer_status(client), 0)
        self.assert_nothing_left()

    def test_a_preflight_and_a_valid_token_on_one_connection(self) -> None:
        client = self.client()
        self.request(client, path=SEND_PATH)
        self.advance(TOKEN_DEADLINE - 1)
        self.request(client, "POST", SEND_PATH, headers=BEARER, body=b"1")
        self.advance(30)
        self.validator.last.grant(self.now + 3600)
        self.assertEqual(self.answer_status(client), 200)
        for _ in range(5):
            self.assertNotIn("connection", client.headers)
            self.advance(site.IDLE_TIMEOUT - 1)
            self.assertEqual(self.request(client), 200)
        client.disconnect()
        self.assert_nothing_left()

    def test_a_token_that_fails_after_the_deadline(self) -> None:
        client = self.client()
        self.request(client, "POST", SEND_PATH, headers=BEARER, body=b"1")
        self.advance(TOKEN_DEADLINE + 1)
        self.validator.last.refuse()
        self.assertEqual(self.answer_status(client), 401)
        self.assert_closes(client)
        self.assert_nothing_left()

    def test_a_websocket_has_the_full_token_timeout(self) -> None:
        client = self.client()
        self.request(client)
        self.advance(TOKEN_DEADLINE - 1)
        self.assertEqual(client.upgrade(), 101)
        self.advance(self.settings.token_timeout - 1)
        client.assert_nothing()
        self.advance(1)
        client.assert_closed(1008, "Token timeout")
        self.advance(5)
        self.iterate()
        self.assert_nothing_left()

    def test_the_connection_header_keeps_upgrade_and_adds_close(self) -> None:
        client = self.client()
        self.request(client)
        self.advance(TOKEN_DEADLINE - 1)
        client.send_raw(b"GET ")
        self.advance(1)
        client.send_raw(f"{WEBSOCKET_PATH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        self.assertEqual(self.answer_status(client), 426)
        self.assertEqual(client.headers["connection"], ["upgrade, close"])
        self.assert_closes(client)

    def test_valid_tokens_keep_a_proxy_s_connection_open(self) -> None:
        self.set_limits(trusted_proxies=(parse_network("10.0.0.0/8"),))
        client = self.client(PROXY)
        for address in (ANN, BOB) * 5:
            headers = {**BEARER, "X-Forwarded-For": address}
            self.request(client, "POST", SEND_PATH, headers=headers, body=b"1")
            self.validator.last.grant(self.now + 60)
            self.assertEqual(self.answer_status(client), 200)
            self.advance(TOKEN_DEADLINE / 2)
        for address in (ANN, BOB):
            self.assertEqual(self.request(client, headers={"X-Forwarded-For": address}), 200)
            self.assertNotIn("connection", client.headers)
            self.advance(TOKEN_DEADLINE / 2)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)
        self.assert_nothing_left()


class FailedTokenTests(RefusalTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.set_limits(failed_tokens_per_minute=2)

    def test_upgrades_of_the_address_are_refused_until_the_minute_ends(self) -> None:
        self.present_failing_token(self.connect(address=ANN))
        self.clock.advance(15)
        self.present_failing_token(self.connect(address=ANN))
        kept = self.client(ANN)
        self.assert_refused(kept, "PR503-SV-0003", "45")
        self.connect(address=BOB)
        self.clock.advance(45)
        self.connect(address=ANN)
        self.assertEqual(kept.upgrade(), 101)
        self.assertEqual(self.limits.refusals["failed_tokens_per_minute"], 1)

    def test_open_connections_get_no_token_checked(self) -> None:
        active, new = self.subscribe(), self.connect()
        self.present_failing_token(self.connect())
        self.present_failing_token(self.connect())
        checks = len(self.validator.checks)
        new.present("another")
        new.assert_refused("AccessToken", "Service unavailable", 1013)
        active.present("another")
        active.assert_error("AccessToken", "Service unavailable")
        self.deliver()
        self.assertEqual(len(active.texts()), 1)
        self.assertEqual(len(self.validator.checks), checks)
        self.assertEqual(self.limits.refusals["failed_tokens_per_minute"], 2)

    def test_sends_and_sessions_count_together(self) -> None:
        client = self.client()
        client.request("POST", SEND_PATH, BEARER, b"1")
        self.validator.last.refuse()
        client.read_answer()
        self.assertEqual(client.status, 401)
        self.present_failing_token(self.connect())
        for method in ("POST", "OPTIONS"):
            body = client.request(method, SEND_PATH, BEARER)
            self.assertEqual((client.status, json.loads(body)["code"]), (503, "PR503-SV-0003"))
            self.assertEqual(client.headers["retry-after"], ["60"])
        self.assertEqual(len(self.validator.checks), 2)

    def test_as_many_tokens_as_may_fail_are_checked_at_once(self) -> None:
        first, second, third = self.connect(), self.connect(), self.connect()
        sender = self.client()
        for client in (first, second, third):
            client.present("a-token")
        sender.request("POST", SEND_PATH, BEARER, b"1")
        self.assertEqual(len(self.validator.checks), 2)
        self.validator.checks[0].grant(self.now + 60)
        self.broker.confirm()
        first.assert_success(60)
        self.validator.checks[1].be_unavailable()
        second.assert_refused("AccessToken", "Service unavailable", 1013)
        self.assertEqual(len(self.validator.checks), 4)
        for check in self.validator.checks[2:]:
            check.grant(self.now + 60)
        third.assert_success(60)
        sender.read_answer()
        self.assertEqual(sender.status, 200)
        self.assertEqual(self.limits.refusals["failed_tokens_per_minute"], 0)

    def test_waiting_tokens_are_refused_when_too_many_have_failed(self) -> None:
        clients = [self.connect() for _ in range(4)]
        for client in clients:
            client.present("a-token")
        for check in self.validator.checks[:]:
            check.refuse()
        for client in clients[:2]:
            client.assert_refused("AccessToken", "Token inactive", 1008)
        for client in clients[2:]:
            client.assert_refused("AccessToken", "Service unavailable", 1013)
        self.assertEqual(len(self.validator.checks), 2)
        self.assertEqual(self.limits.refusals["failed_tokens_per_minute"], 2)

    def test_disconnecting_while_waiting_leaves_nothing(self) -> None:
        clients = [self.connect() for _ in range(4)]
        for client in clients:
            client.present("a-token")
        for client in reversed(clients):
            client.disconnect()
        self.assertEqual(len(self.validator.checks), 2)
        self.assertTrue(all(each.was_cancelled for each in self.validator.checks))
        self.assert_nothing_left()

    def test_requests_without_a_token_do_not_count(self) -> None:
        client = self.client()
        for _ in range(5):
            client.request("POST", SEND_PATH, body=b"1")
            self.assertEqual(client.status, 401)
        self.connect()


class MessageLimitTests(RefusalTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.set_limits(messages_per_minute=3, frames_per_message=4)

    def assert_failed(self, client: Client, reason: str) -> None:
        client.assert_closed(1008, reason)
        client.send_text("it goes on")
        client.assert_nothing()
        self.advance(5)
        self.iterate()
        self.assert_nothing_left()

    def test_messages(self) -> None:
        client = self.subscribe()
        for _ in range(2):
            client.present("another")
            self.validator.last.grant(self.now + 60)
            client.assert_success(60)
        client.present("another")
        self.assert_failed(client, "Too many messages")
        self.assertEqual(self.limits.refusals["messages_per_minute"], 1)

    def test_messages_below_the_rate(self) -> None:
        client = self.subscribe()
        for _ in range(10):
            self.advance(20)
            client.present("another")
            self.validator.last.grant(self.now + 600)
            client.frames()
        self.assertEqual(len(self.websocket_server), 1)

    def test_pings(self) -> None:
        client = self.subscribe()
        for number in range(3):
            client.send_frame(9, b"%d" % number)
            self.assertEqual(client.frames(), [(10, b"%d" % number)])
        client.send_frame(9, b"")
        self.assert_failed(client, "Too many messages")

    def test_unsolicited_pongs(self) -> None:
        client = self.subscribe()
        for _ in range(4):
            client.send_frame(10, b"unsolicited")
        self.assert_failed(client, "Too many messages")

    def test_pongs_that_answer_a_ping_do_not_count(self) -> None:
        self.set_limits(messages_per_minute=1)
        client = self.subscribe(3600)
        for _ in range(20):
            self.advance(60)
            [(opcode, payload)] = client.frames()
            client.send_frame(10, payload)
            self.assertEqual(opcode, 9)
        self.assertEqual(len(self.websocket_server), 1)

    def test_a_flood_in_one_piece_is_not_processed_to_its_end(self) -> None:
        client = self.subscribe()
        processed = []
        protocol = client.transport.protocol
        process = protocol.processData
        protocol.processData = lambda: processed.append(1) or process()
        client.send_raw(b"\x89\x80\0\0\0\0" * 10000)
        self.assertLess(len(processed), 20)
        client.frames()

    def test_too_many_frames_of_a_message(self) -> None:
        client = self.subscribe()
        client.send_frame(1, b"", fin=False)
        for _ in range(3):
            client.send_frame(0, b"", fin=False)
            client.assert_nothing()
        client.send_frame(0, b"", fin=False)
        self.assert_failed(client, "Too many frames")
        self.assertEqual(self.limits.refusals["frames_per_message"], 1)

    def test_the_largest_number_of_frames(self) -> None:
        client = self.connect()
        text = json.dumps({"AccessToken": "in-pieces"}).encode()
        for at, part in enumerate((text[:5], text[5:9], text[9:9], text[9:])):
            client.send_frame(0 if at else 1, part, fin=at == 3)
        self.assertEqual(self.validator.last.token, "in-pieces")
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        client.assert_success(60)
        for at in range(4):  # each message anew
            client.send_frame(0 if at else 1, b"", fin=False)
        client.assert_nothing()

    def test_empty_fragments_in_one_piece(self) -> None:
        client = self.subscribe()
        client.send_raw(b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 10000)
        self.assert_failed(client, "Too many frames")

    def test_a_flood_after_the_service_s_close_frame_is_not_read_for_long(self) -> None:
        client = self.subscribe()
        client.send_text("nonsense")
        client.frames()
        for _ in range(10):
            client.send_frame(9, b"")
        self.assertTrue(client.transport.protocol.failedByMe)
        client.assert_nothing()


class ReadPauseTests(RefusalTestCase):
    """Clients that send more messages while a token is checked."""

    def waiting(self, client: Client) -> int:
        """Bytes of the messages that wait for the check to end."""
        waiting = client.transport.protocol._session._waiting or ()
        return sum(len(payload) for payload, _, _ in waiting)

    def long_token(self, number: int) -> str:
        return str(number) * 30_000

    def test_past_the_limit_reading_is_paused(self) -> None:
        client = self.connect()
        for number in range(7):
            client.present(self.long_token(number))
        self.assertFalse(client.transport.is_reading)
        self.assertLess(self.waiting(client), 2 * 32768)
        self.validator.last.grant(self.now + 60)
        self.assertFalse(client.transport.is_reading, "the subscription is not confirmed")
        self.broker.confirm()
        client.assert_success(60)
        for number in range(1, 7):
            self.iterate()
            self.assertEqual(self.validator.last.token, self.long_token(number))
            self.validator.last.grant(self.now + number)
            client.assert_success(number)
        self.assertTrue(client.transport.is_reading)
        self.assertEqual(len(self.validator.checks), 7)
        client.disconnect()
        self.assert_nothing_left()

    def test_one_long_token_does_not_pause_reading(self) -> None:
        client = self.subscribe()
        client.present("another")
        client.present("x" * (MAX_WAITING_BYTES - 20))
        self.assertTrue(client.transport.is_reading)
        client.send_frame(9, b"still there?")
        self.assertEqual(client.frames(), [(10, b"still there?")])

    def test_the_kept_bytes_are_limited_for_every_segmentation(self) -> None:
        size = self.settings.max_message
        for first in (1, size // 2, size):
            client = self.connect()
            client.present("a-token")
            pieces = [frame(TEXT, b"x" * each) for each in (first, *[size] * 20)]
            client.send_raw(b"".join(pieces))
            self.assertFalse(client.transport.is_reading)
            self.assertLessEqual(self.waiting(client), MAX_WAITING_BYTES + size + TRANSPORT_BUFFER)
            client.disconnect()
        self.assert_nothing_left()

    def test_a_websocket_without_a_token_costs_less_than_100_kib(self) -> None:
        size = self.settings.max_message
        token = json.dumps({"AccessToken": "x" * MAX_WAITING_BYTES}).encode()
        check = frame(TEXT, token)
        floods = {
            "messages behind a token": check + frame(TEXT, b"y" * 5_000) * 50,
            "long messages behind a token": check + frame(TEXT, b"y" * size) * 9,
            "a message that is not complete": frame(TEXT, b"y" * size)[:-1],
            "the same, behind a token": check + frame(TEXT, b"y" * size)[:-1],
            "fragments": frame(TEXT, b"y" * 500, fin=False) + frame(0, b"y" * 500, fin=False) * 126,
            "fragments behind a token": check
            + frame(TEXT, b"y" * 500, fin=False)
            + frame(0, b"y" * 500, fin=False) * 126,
        }
        for name, flood in floods.items():
            for step in (8, 16384):
                if step == 8 and "not complete" not in name:
                    continue
                with self.subTest(name=name, step=step):
                    self.assertLess(self.memory_of_a_client(flood, step), 100 * 1024)

    def memory_of_a_client(self, flood: bytes, step: int) -> float:
        """Bytes that the service keeps for a client that has sent `flood` in pieces of `step`."""
        clients = []
        tracemalloc.start()
        try:
            for number in range(2):
                clients.append(Client(self, f"192.0.2.{number}"))
                self.assertEqual(clients[-1].upgrade(), 101)
            for client in clients:
                for at in range(0, len(flood), step):
                    if client.transport.is_reading and client.transport.lost is None:
                        client.transport.protocol.dataReceived(flood[at : at + step])
            for client in clients:
                self.assertIsNone(client.transport.lost)
            return tracemalloc.get_traced_memory()[0] / len(clients)
        finally:
            tracemalloc.stop()
            for client in clients:
                client.disconnect()

    def test_reading_resumes_when_the_session_ends(self) -> None:
        client = self.connect()
        for number in range(3):
            client.present(self.long_token(number))
        client.send_raw(close(1000))
        self.validator.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        self.iterate()
        self.iterate()
        self.assertTrue(client.transport.lost.check(ConnectionDone), "its close frame was read")
        self.assert_nothing_left()

    def test_behind_the_proxy_protocol(self) -> None:
        client = Client(self, PROXY, ProxiedFactory(self.site))
        client.send_raw(f"PROXY TCP4 {ANN} 192.0.2.9 5000 443\r\n".encode())
        self.assertEqual(client.upgrade(), 101)
        for number in range(3):
            client.present(self.long_token(number))
        self.assertFalse(client.transport.is_reading)


class QueuedBytesTests(RefusalTestCase):
    settings = SessionSettings(send_queue=1_000_000)

    def test_past_the_limit_the_slowest_client_is_closed_first(self) -> None:
        self.set_limits(queued_bytes=400_000)
        slowest, slow, quick = self.subscribe(), self.subscribe(), self.subscribe()
        slowest.transport.is_congested = True
        for _ in range(5):
            self.deliver(b'"%s"' % (b"x" * 40_000))
        slow.transport.is_congested = True
        while not self.limits.refusals["queued_bytes"]:
            self.deliver(b'"%s"' % (b"x" * 40_000))
        self.assertEqual(self.limits.refusals["queued_bytes"], 1)
        self.assertLessEqual(self.websocket_server.context.slow_consumers.total, 400_000)
        slowest.transport.drain()
        self.assert_close(slowest.frames()[-1], 1008, "Slow consumer")
        received = len(quick.texts())
        self.deliver()
        slow.transport.drain()
        self.assertEqual(len(slow.texts()), received + 1)
        self.assertEqual(self.websocket_server.context.slow_consumers.total, 0)
        for client in (slowest, slow, quick):
            client.disconnect()
        self.assert_nothing_left()

    def test_only_the_newest_ping_waits(self) -> None:
        self.set_limits(messages_per_minute=0)
        client = self.subscribe()
        client.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70_000))
        for number in range(2000):
            client.send_frame(9, b"%d" % number)
        self.deliver(b"1")
        client.transport.drain()
        _, (_, second), pong = client.frames()
        self.assertTrue(second.endswith(b'"Body":1}'), second)
        self.assertEqual(pong, (10, b"1999"))
        client.send_frame(9, b"at once")
        self.assertEqual(client.frames(), [(10, b"at once")])


class ForwardedAddressTests(RefusalTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.trust()

    def trust(self, **settings: Any) -> None:
        self.set_limits(trusted_proxies=(parse_network("10.0.0.0/8"),), **settings)

    def upgrade(self, client: Client, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request("GET", WEBSOCKET_PATH, {"Host": HOST, **HANDSHAKE, **named})
        return client.status

    def test_clients_of_a_trusted_proxy_are_counted_separately(self) -> None:
        self.trust(per_address=1)
        for address, status in ((ANN, 101), (BOB, 101), (ANN, 503)):
            client = self.client(PROXY)
            self.assertEqual(self.upgrade(client, X_Forwarded_For=f"1.2.3.4, {address}"), status)
        for _ in range(3):
            self.client(PROXY)
        self.assertEqual(self.upgrade(self.client(ANN)), 503)

    def test_headers_of_an_untrusted_client_are_ignored(self) -> None:
        self.trust(per_address=1)
        self.assertEqual(self.upgrade(self.client(ANN), X_Forwarded_For="9.9.9.9"), 101)
        self.assertEqual(self.upgrade(self.client(ANN), X_Forwarded_For="8.8.8.8"), 503)
        self.assertEqual(self.upgrade(self.client(BOB), Forwarded=f"for={ANN}"), 101)

    def test_the_log_has_the_forwarded_address(self) -> None:
        client = self.client(PROXY)
        self.upgrade(client, Forwarded="for=203.0.113.9")
        self.assertEqual(client.transport.protocol.peer, "203.0.113.9")
        client = self.client(ANN)
        self.upgrade(client, X_Forwarded_For="203.0.113.9")
        self.assertEqual(client.transport.protocol.peer, f"{ANN}:50002")

    def test_failed_tokens_count_for_the_forwarded_address(self) -> None:
        self.trust(failed_tokens_per_minute=1)
        client = self.client(PROXY)
        self.upgrade(client, X_Forwarded_For=ANN)
        self.present_failing_token(client)
        self.assertEqual(self.upgrade(self.client(PROXY), X_Forwarded_For=BOB), 101)
        self.assertEqual(self.upgrade(self.client(PROXY), X_Forwarded_For=ANN), 503)

    def test_several_clients_on_one_connection(self) -> None:
        self.trust(per_address=1)
        kept = self.connect(address=BOB)
        client = self.client(PROXY)
        client.request("OPTIONS", SEND_PATH, {"X-Forwarded-For": ANN})
        self.assertEqual(client.status, 200)
        client.request("OPTIONS", SEND_PATH, {"X-Forwarded-For": BOB})
        self.assertEqual(client.status, 503)
        client.disconnect()
        kept.disconnect()
        self.assert_nothing_left()


class UnixSocketTests(RefusalTestCase):
    """Clients on a UNIX socket have no address."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(MemoryTransport, "getPeer", lambda _: UNIXAddress(None))

    def test_limits_per_address_do_not_apply(self) -> None:
        self.set_limits(per_address=1, unauthenticated_per_address=1, failed_tokens_per_minute=1)
        for _ in range(3):
            self.present_failing_token(self.connect())
        self.connect()
        self.connect().disconnect()

    def test_the_total_limit_applies(self) -> None:
        self.set_limits(connections=1)
        self.connect()
        self.assert_refused(self.client())


class ProxyProtocolTests(RefusalTestCase):
    """Endpoints behind the PROXY protocol, whose header names the client."""

    def setUp(self) -> None:
        super().setUp()
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def proxied(self, header: str = "") -> Client:
        client = Client(self, PROXY, ProxiedFactory(self.site))
        if header:
            client.send_raw(header.encode() + b"\r\n")
        return client

    def test_the_address_in_the_header_counts(self) -> None:
        self.set_limits(per_address=1, failed_tokens_per_minute=1)
        statuses = []
        for source in (ANN, BOB, ANN):
            client = self.proxied(f"PROXY TCP4 {source} 192.0.2.9 5000 443")
            statuses.append(client.upgrade())
        self.assertEqual(statuses, [101, 101, 503])
        self.assertEqual(self.limits.refusals["per_address"], 1)

    def test_a_client_that_closes_its_half_behind_a_request_gets_the_response(self) -> None:
        client = self.proxied(f"PROXY TCP4 {ANN} 192.0.2.9 5000 443")
        client.request("POST", SEND_PATH, BEARER, b"1")
        client.transport.protocol.readConnectionLost()
        self.validator.last.grant(self.now + 60)
        client.read_answer()
        self.assertEqual(client.status, 200)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)

    def test_a_websocket_client_that_closes_its_half_is_gone(self) -> None:
        client = self.proxied(f"PROXY TCP4 {ANN} 192.0.2.9 5000 443")
        self.assertEqual(client.upgrade(), 101)
        client.transport.protocol.readConnectionLost()
        self.iterate()
        self.assertIsNotNone(client.transport.lost)

    def test_the_log_has_the_address_in_the_header(self) -> None:
        client = self.proxied(f"PROXY TCP4 {ANN} 192.0.2.9 5000 443")
        client.upgrade()
        wrapper = client.transport.protocol
        self.assertEqual(wrapper.wrappedProtocol.peer, f"{ANN}:5000")

    def test_a_connection_counts_for_its_client_as_soon_as_the_header_names_it(self) -> None:
        """Without a request, one address holds no more places than its own."""
        self.set_limits(unauthenticated=1000, unauthenticated_per_address=100)
        clients = [
            self.proxied(f"PROXY TCP4 {ANN} 192.0.2.9 {port} 443") for port in range(1, 1001)
        ]
        self.iterate()
        self.assertEqual(self.limits.unauthenticated.total, 100)
        self.assertEqual(self.limits.connections.total, 100)
        self.assertEqual(self.limits.refusals["unauthenticated_per_address"], 900)
        aborted = [each for each in clients if each.transport.lost is not None]
        self.assertEqual(len(aborted), 900 - MAX_POLITE_REFUSALS)
        self.assertEqual(self.proxied(f"PROXY TCP4 {BOB} 192.0.2.9 1 443").upgrade(), 101)
        self.assert_refused(clients[100])
        for each in clients:
            each.disconnect()
        self.assertEqual(self.limits.connections.total, 1)
        self.assertEqual(self.limits.polite_refusals, 0)

    def test_a_refused_connection_gives_its_place_to_another_client(self) -> None:
        self.set_limits(connections=2, per_address=1)
        self.proxied(f"PROXY TCP4 {ANN} 192.0.2.9 5000 443")
        refused = self.proxied(f"PROXY TCP4 {ANN} 192.0.2.9 5001 443")
        self.assertEqual(self.proxied(f"PROXY TCP4 {BOB} 192.0.2.9 1 443").upgrade(), 101)
        self.assert_refused(refused)

    def test_a_trusted_proxy_in_the_header_does_not_count(self) -> None:
        """Its client is known only with the first request."""
        self.set_limits(per_address=1, trusted_proxies=(parse_network(PROXY),))
        clients = [self.proxied(f"PROXY TCP4 {PROXY} 192.0.2.9 {port} 443") for port in range(1, 9)]
        self.assertEqual(self.limits.connections.total, 8)
        self.assertEqual(self.upgrade(clients[0], X_Forwarded_For=ANN), 101)
        self.assertEqual(self.upgrade(clients[1], X_Forwarded_For=ANN), 503)

    def upgrade(self, client: Client, **headers: str) -> int:
        """Send an opening handshake with further headers; return the status."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request("GET", WEBSOCKET_PATH, HANDSHAKE | more)
        return client.status

    def test_ipv6(self) -> None:
        self.set_limits(per_address=1)
        for source, status in (("2001:db8::1", 101), ("2001:db8::2", 503)):
            client = self.proxied(f"PROXY TCP6 {source} 2001:db8::9 5000 443")
            self.assertEqual(client.upgrade(), status)

    def test_unknown_with_addresses_is_the_proxy_itself(self) -> None:
        client = self.proxied("PROXY UNKNOWN ::1 ::1 1 1")
        self.assertEqual(client.upgrade(), 101)
        self.assertEqual(client.transport.protocol.wrappedProtocol.peer, f"{PROXY}:50001")

    def test_version_2_local_is_the_proxy_itself(self) -> None:
        client = self.proxied()
        client.send_raw(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")
        self.assertEqual(client.upgrade(), 101)
        self.assertEqual(client.transport.protocol.wrappedProtocol.peer, f"{PROXY}:50001")

    def test_version_1_unknown_is_the_proxy_itself(self) -> None:
        client = self.proxied("PROXY UNKNOWN")
        self.assertEqual(client.upgrade(), 101)
        self.assertEqual(client.transport.protocol.wrappedProtocol.peer, f"{PROXY}:50001")

    def test_version_2(self) -> None:
        self.set_limits(per_address=1)
        addresses = bytes([198, 51, 100, 1, 192, 0, 2, 9, 0, 80, 1, 187])
        for status in (101, 503):
            client = self.proxied()
            client.send_raw(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + addresses)
            self.assertEqual(client.upgrade(), status)

    def test_a_header_in_single_bytes_and_a_request_behind_it(self) -> None:
        client = self.proxied()
        header = f"PROXY TCP4 {ANN} 192.0.2.9 5000 443\r\n"
        head = f"GET {WEBSOCKET_PATH} HTTP/1.1\r\nHost: {HOST}\r\n"
        for byte in header[:-1]:
            client.send_raw(byte.encode())
        client.send_raw(f"\n{head}".encode())
        for name, value in HANDSHAKE.items():
            client.send_raw(f"{name}: {value}\r\n".encode())
        client.send_raw(b"\r\n")
        client.read_answer()
        self.assertEqual(client.status, 101)
        self.assertEqual(client.transport.protocol.wrappedProtocol.peer, f"{ANN}:5000")

    def test_without_a_header_the_connection_is_closed_with_few_log_lines(self) -> None:
        factory = ProxiedFactory(self.site)
        for number in range(1000):
            client = Client(self, PROXY, factory)
            client.send_raw(NOT_PROXY_HEADERS[number % len(NOT_PROXY_HEADERS)])
            client.send_raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            self.iterate()
            self.assertTrue(client.transport.lost.check(ConnectionAborted))
            self.assertEqual(bytes(client.transport.written), b"")
        self.assert_nothing_left()
        lines = [formatEvent(event) for event in self.events]
        self.assertEqual(len(lines), 4)
        for line, count in zip(lines, (1, 10, 100, 1000), strict=True):
            self.assertIn(PROXY, line)
            self.assertTrue(line.endswith(f"needs; {count} so far"), line)

    def test_a_missing_or_dripping_header_has_a_deadline(self) -> None:
        for drip in (b"", b"x"):
            client = self.proxied()
            client.send_raw(b"PROXY TCP4 ")
            for _ in range(int(site.HEAD_TIMEOUT)):
                self.assertIsNone(client.transport.lost)
                self.clock.advance(1)
                client.send_raw(drip)
            self.iterate()
            self.assertIsNotNone(client.transport.lost)

    def test_the_header_and_the_request_head_share_a_deadline(self) -> None:
        client = self.proxied()
        self.advance(9)
        client.send_raw(f"PROXY TCP4 {ANN} 192.0.2.9 5000 443\r\nGET / HTTP".encode())
        self.assertIsNone(client.transport.lost)
        self.advance(1)
        self.iterate()
        self.assertIsNotNone(client.transport.lost)


class OriginTests(RefusalTestCase):
    def status(self, *origins: str) -> int:
        client = self.client()
        headers = [("Host", HOST), *HANDSHAKE.items(), *(("Origin", each) for each in origins)]
        self.body = client.request("GET", WEBSOCKET_PATH, headers)
        return client.status

    def test_any_origin_by_default(self) -> None:
        for origins in (["https://any.example"], ["null"], ["x"], []):
            self.assertEqual(self.status(*origins), 101)

    def test_only_listed_origins(self) -> None:
        self.set_limits(allowed_origins=frozenset({"https://app.example"}))
        self.assertEqual(self.status("https://app.example"), 101)
        self.assertEqual(self.status(), 101)
        for origins in (["https://evil.example"], ["null"], ["https://app.example"] * 2):
            self.assertEqual(self.status(*origins), 403)
            self.assertEqual(json.loads(self.body)["code"], "PR403-WS-0001")
        self.assertEqual(self.limits.refusals["allowed_origins"], 3)

    def test_sends_are_allowed_from_every_origin(self) -> None:
        self.set_limits(allowed_origins=frozenset({"https://app.example"}))
        client = self.client()
        client.request("OPTIONS", SEND_PATH, {"Origin": "https://evil.example"})
        self.assertEqual(client.status, 200)
