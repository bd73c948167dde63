"""One HTTP connection in memory: responses, reading, and closing."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.logger import globalLogPublisher

from tests.support.fakes import INJECTED
from tests.support.harness import (
    HANDSHAKE,
    HOST,
    SEND_PATH,
    TOPIC,
    WEBSOCKET_PATH,
    Client,
    ServiceTestCase,
)
from topicsvc.errors import BrokerUnavailable, TokenInactive, TopicNotFound, ValidatorUnavailable
from topicsvc.interfaces import Grant, Message
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import LimitSettings
from topicsvc.topics import TopicAddress
from topicsvc.web import http_connection, site

BEARER = "Authorization: Bearer a-token"


def head(first: str, *lines: str) -> bytes:
    return "\r\n".join([first, f"Host: {HOST}", *lines, "", ""]).encode("latin-1")


def post(*lines: str, body: bytes = b"1") -> bytes:
    length = f"Content-Length: {len(body)}"
    return head(f"POST {SEND_PATH} HTTP/1.1", BEARER, length, *lines) + body


class ConnectionTestCase(ServiceTestCase):
    limits_settings = LimitSettings(failed_tokens_per_minute=0)

    def grant_all(self) -> None:
        """Every token has a cached grant, and the broker accepts messages at once."""
        self.validator.known = lambda *_: Grant(None, self.now + 60, True, True)
        self.broker.accepts_at_once = True

    def statuses(self, client: Client) -> list[int]:
        """The statuses of all responses that have arrived."""
        found = []
        client.status = 0
        while True:
            client.read_answer()
            if not client.status:
                return found
            found.append(client.status)
            client.status = 0

    def send(self, data: bytes) -> tuple[Client, list[int]]:
        client = self.client()
        client.send_raw(data)
        return client, self.statuses(client)

    def assert_closed(self, client: Client) -> None:
        self.iterate()
        self.assertTrue(client.transport.lost is not None or client.transport.has_ended)


class ResponseTests(ConnectionTestCase):
    def test_head_has_no_body(self) -> None:
        for path in ("/nowhere", SEND_PATH, WEBSOCKET_PATH, "/nowhere?access_token=secret"):
            client = self.client()
            client.send_raw(head(f"HEAD {path} HTTP/1.1") + head("OPTIONS * HTTP/1.1"))
            written = bytes(client.transport.written)
            first, _, rest = written.partition(b"\r\n\r\n")
            self.assertIn(b"Content-Length: ", first)
            self.assertTrue(rest.startswith(b"HTTP/1.1 200 "), written)

    def test_an_unknown_method(self) -> None:
        client, statuses = self.send(head(f"FOO {SEND_PATH} HTTP/1.1"))
        self.assertEqual((statuses, client.headers["allow"]), ([405], ["OPTIONS, POST, PUT"]))
        self.assert_closed(client)

    def test_an_invalid_content_length(self) -> None:
        for length in ("9" * 4301, "18446744073709551616"):
            client, statuses = self.send(
                head(f"POST {SEND_PATH} HTTP/1.1", f"Content-Length: {length}")
            )
            self.assertEqual(statuses, [400])
            self.assert_closed(client)

    def test_targets_in_absolute_form(self) -> None:
        self.grant_all()
        client = self.client()
        elsewhere = {"Host": "elsewhere.example", "Authorization": "Bearer x"}
        client.request("POST", f"https://cell1.unit1.example:443{SEND_PATH}", elsewhere, b"1")
        self.assertEqual((client.status, self.broker.published[0].topic), (200, TOPIC))
        here = {"Host": HOST, "Authorization": "Bearer x"}
        client.request("POST", f"https://elsewhere.example{SEND_PATH}", here, b"1")
        self.assertEqual(client.status, 400)
        self.assertEqual(client.upgrade(f"http://cell1.unit1.example{WEBSOCKET_PATH}"), 101)

    def test_the_longest_token_is_accepted(self) -> None:
        for size, status in ((20_000, 200), (32_768, 200), (32_769, 401)):
            self.grant_all()
            client = self.client()
            client.request("POST", SEND_PATH, {"Authorization": "Bearer " + "x" * size}, b"1")
            self.assertEqual(client.status, status, size)

    def test_close_among_other_options(self) -> None:
        for lines in (["Connection: keep-alive,close"],
                      ["Connection: keep-alive", "Connection: close"]):  # fmt: skip
            client, statuses = self.send(head("OPTIONS * HTTP/1.1", *lines) * 2)
            self.assertEqual((statuses, client.headers["connection"]), ([200], ["close"]))
            self.assert_closed(client)

    def test_an_internal_error_closes_the_connection(self) -> None:
        self.patch(self.site.resource, "respond", lambda _: 1 / 0)
        client, statuses = self.send(head("OPTIONS * HTTP/1.1") * 2)
        self.assertEqual(statuses, [500])
        self.assert_closed(client)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_requests_write_nothing_to_the_log(self) -> None:
        lines: list[Any] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        for data in (
            head("HEAD /x?access_token=secret HTTP/1.1"),
            b"\xff\xfe\r\n\r\n",
            head("GET / HTTP/1.1", "X : 1"),
            head("FOO / HTTP/1.1"),
            post(),
            head(f"POST {SEND_PATH} HTTP/1.1", "Content-Length: " + "9" * 5000),
            head("GET /\xff HTTP/1.1"),
            head(f"GET {WEBSOCKET_PATH} HTTP/1.1"),
        ):
            self.send(data)[0].disconnect()
        self.assertEqual(lines, [])


class PipelineTests(ConnectionTestCase):
    def test_pipelined_requests_are_answered_in_order_with_one_write(self) -> None:
        self.grant_all()
        client = self.client()
        writes: list[bytes] = []
        write = client.transport.write
        self.patch(client.transport, "write", lambda data: (writes.append(data), write(data)))
        client.send_raw(b"".join(post(body=b"%d" % number) for number in range(16)))
        self.assertEqual(self.statuses(client), [200] * 16)
        self.assertEqual([each.body for each in self.broker.published],
                         [b"%d" % number for number in range(16)])  # fmt: skip
        self.assertEqual(len(writes), 1)

    def test_requests_behind_one_in_progress_wait(self) -> None:
        client = self.client()
        client.send_raw(post(body=b"1") + post(body=b"2") + head("OPTIONS * HTTP/1.1"))
        self.assertEqual((self.statuses(client), len(self.validator.checks)), ([], 1))
        self.validator.last.grant(self.now + 60)
        self.assertEqual((self.statuses(client), len(self.validator.checks)), ([200], 2))
        self.validator.last.refuse()
        self.assertEqual(self.statuses(client), [401, 200])
        self.assertEqual([each.body for each in self.broker.published], [b"1"])

    def test_bytes_after_a_handshake_are_frames(self) -> None:
        client = self.client()
        client.send_raw(
            head("OPTIONS * HTTP/1.1")
            + head(f"GET {WEBSOCKET_PATH} HTTP/1.1", *(f"{n}: {v}" for n, v in HANDSHAKE.items()))
            + b"\x89\x80\0\0\0\0"
        )
        client.read_answer()
        self.assertEqual(client.status, 200)
        client.read_answer()
        self.assertEqual((client.status, client.frames()), (101, [(10, b"")]))

    def test_the_work_of_one_iteration_is_limited_and_shared(self) -> None:
        self.site.budget._seconds = 0.004
        seconds = self.clock.seconds
        self.patch(self.clock, "seconds", lambda: self.spent + seconds())
        self.spent = 0.0
        respond = self.site.resource.respond

        def slow(exchange: Any) -> Any:
            self.spent += 0.0011
            return respond(exchange)

        self.patch(self.site.resource, "respond", slow)
        first, second = self.client(), self.client()
        first.send_raw(head("OPTIONS * HTTP/1.1") * 20)
        second.send_raw(head("OPTIONS * HTTP/1.1") * 20)
        self.assertEqual((len(self.statuses(first)), len(self.statuses(second))), (4, 0))
        # A client that sends more meanwhile is not read further.
        self.assertEqual((first.transport.is_reading, second.transport.is_reading), (True, True))
        first.send_raw(head("OPTIONS * HTTP/1.1"))
        self.assertEqual((first.transport.is_reading, second.transport.is_reading), (False, True))
        answered = [4, 0]
        for _ in range(20):
            if not len(self.site.budget):
                break
            self.site.budget._next_iteration()
            step = [len(self.statuses(first)), len(self.statuses(second))]
            self.assertLessEqual(sum(step), 5)
            answered = [answered[0] + step[0], answered[1] + step[1]]
        self.assertEqual(answered, [21, 20])
        self.assertTrue(first.transport.is_reading)

    def test_clients_take_short_turns(self) -> None:
        """A client with one request does not wait until others have used whole iterations."""
        self.site.budget._seconds = 0.004
        seconds = self.clock.seconds
        self.patch(self.clock, "seconds", lambda: self.spent + seconds())
        self.spent = 0.0
        respond = self.site.resource.respond

        def slow(exchange: Any) -> Any:
            self.spent += 0.0002
            return respond(exchange)

        self.patch(self.site.resource, "respond", slow)
        flooding = [self.client() for _ in range(20)]
        for client in flooding:
            client.send_raw(head("OPTIONS * HTTP/1.1") * 200)
        other = self.client()
        other.send_raw(head("OPTIONS * HTTP/1.1"))
        iterations = 0
        while not self.statuses(other):
            iterations += 1
            self.site.budget._next_iteration()
        self.assertLessEqual(iterations, 4, "20 turns of 0.6 ms, 4 ms in an iteration")

    def test_few_bytes_wait_while_a_connection_is_deferred(self) -> None:
        self.site.budget._seconds = 0.0
        client = self.client()
        data = head("OPTIONS * HTTP/1.1") * 5000
        client.transport.unread += data
        client.transport.read()
        for _ in range(40):
            self.clock.advance(0)
            client.transport.written.clear()
            waiting = client.transport.protocol._parser.buffered
            self.assertLess(waiting, http_connection.SHORT_REQUEST + http_connection.READ_SIZE)
        self.assertLess(len(client.transport.unread), len(data))

    def test_nothing_is_read_from_a_client_that_does_not_read(self) -> None:
        client = self.client()
        client.transport.is_congested = True
        for _ in range(100):
            client.send_raw(head("GET /nowhere HTTP/1.1") * 100)
        self.assertLess(len(client.transport.buffered), 200_000)
        self.assertFalse(client.transport.is_reading)
        client.transport.drain()
        self.advance(1)
        self.assertGreater(len(self.statuses(client)), 0)


class CloseTests(ConnectionTestCase):
    def test_after_an_error_input_is_discarded_with_pauses(self) -> None:
        client = self.client()
        client.send_raw(b"no request\r\n\r\n")
        self.assertEqual(self.statuses(client), [400])
        client.send_raw(b"x" * 1000)
        self.assertFalse(client.transport.is_reading)
        client.send_raw(b"x" * 100_000)
        sizes = []
        for _ in range(3):
            self.clock.advance(http_connection.DISCARD_INTERVAL)
            self.clock.advance(0)
            sizes.append(len(client.transport.unread))
        self.assertEqual(sizes, sorted(sizes, reverse=True))
        self.assertLess(sizes[0], 100_000)
        client.disconnect()
        self.assertEqual(len(self.site.discard_pauses), 0)

    def test_requests_before_a_half_close_are_answered(self) -> None:
        client = self.client()
        client.send_raw(post())
        client.transport.protocol.readConnectionLost()
        self.assertIsNone(client.transport.lost)
        self.validator.last.grant(self.now + 60)
        self.assertEqual((self.statuses(client), len(self.broker.published)), ([200], 1))
        self.assert_closed(client)

    def test_an_incomplete_request_before_a_half_close_is_not_answered(self) -> None:
        for data in (b"", b"GET / HT", post(body=b"12")[:-1]):
            self.grant_all()
            client = self.client()
            client.send_raw(data)
            client.transport.protocol.readConnectionLost()
            self.assertEqual(self.statuses(client), [])
            self.iterate()
            self.assertIsNotNone(client.transport.lost)

    def test_a_client_that_reads_no_response_is_aborted(self) -> None:
        client = self.client()
        client.transport.is_congested = True
        for _ in range(10):
            client.send_raw(head("GET /nowhere HTTP/1.1") * 100)
        self.advance(site.IDLE_TIMEOUT + site.CLOSE_TIMEOUT)
        self.iterate()
        self.assertTrue(client.transport.lost.check(ConnectionAborted))
        self.assert_nothing_left()


class BodyTests(ConnectionTestCase):
    def test_an_unused_body_is_not_kept(self) -> None:
        for first in ("POST /nowhere HTTP/1.1", f"POST {SEND_PATH} HTTP/1.1",
                      f"PUT {WEBSOCKET_PATH} HTTP/1.1"):  # fmt: skip
            client = self.client()
            client.send_raw(head(first, "Content-Length: 900"))
            [status] = self.statuses(client)
            self.assertIn(status, (401, 404, 405))
            client.send_raw(b"x" * 900 + head("OPTIONS * HTTP/1.1"))
            self.assertEqual(self.statuses(client), [200])

    def test_a_long_unused_body_closes_the_connection(self) -> None:
        self.site.max_body = 10**6
        client, statuses = self.send(head("POST /nowhere HTTP/1.1", "Content-Length: 70000"))
        self.assertEqual((statuses, client.headers["connection"]), ([404], ["close"]))
        self.assertTrue(client.transport.has_ended)
        chunked = head("POST /nowhere HTTP/1.1", "Transfer-Encoding: chunked")
        client, statuses = self.send(chunked)
        self.assertEqual((statuses, client.headers.get("connection")), ([404], None))
        for _ in range(9):
            client.send_raw(b"2000\r\n" + b"x" * 8192 + b"\r\n")
        self.assertTrue(client.transport.has_ended)

    def test_bad_chunks_behind_a_refusal_are_not_answered(self) -> None:
        chunked = "Transfer-Encoding: chunked"
        at_once = head("POST /nowhere HTTP/1.1", chunked) + b"x\r\n"
        client, statuses = self.send(at_once)
        self.assertEqual((statuses, client.headers["connection"]), ([404], ["close"]))
        self.assertTrue(client.transport.has_ended)
        client, statuses = self.send(head("POST /nowhere HTTP/1.1", chunked))
        self.assertEqual(statuses, [404])
        client.send_raw(b"x\r\n" + head("OPTIONS * HTTP/1.1"))
        self.assertEqual(self.statuses(client), [])
        self.assertTrue(client.transport.has_ended)

    def test_bad_chunks_that_have_arrived_before_a_refusal(self) -> None:
        client = self.client()
        client.send_raw(
            head(f"POST {SEND_PATH} HTTP/1.1", BEARER, "Transfer-Encoding: chunked") + b"x\r\n"
        )
        self.validator.last.refuse()
        self.assertEqual(self.statuses(client), [401])
        self.assertTrue(client.transport.has_ended)

    def test_little_of_a_body_is_read_before_the_token_is_validated(self) -> None:
        self.site.max_body = 10**6
        client = self.client()
        client.send_raw(head(f"POST {SEND_PATH} HTTP/1.1", BEARER, "Content-Length: 500002"))
        for piece in (b'"', *[b"x" * 10_000] * 50, b'"'):
            client.send_raw(piece)
        self.assertFalse(client.transport.is_reading)
        buffered = client.transport.protocol._parser.buffered
        self.assertLess(buffered, 2 * http_connection.READ_SIZE)
        self.validator.last.grant(self.now + 60)
        self.iterate()
        self.assertEqual(self.statuses(client), [200])
        self.assertEqual(len(self.broker.published[0].body), 500_002)

    def test_100_continue_is_sent_once_the_token_is_valid(self) -> None:
        client = self.client()
        client.send_raw(
            head(f"POST {SEND_PATH} HTTP/1.1", BEARER, "Content-Length: 1", "Expect: 100-continue")
        )
        self.assertEqual(bytes(client.transport.written), b"")
        self.validator.last.grant(self.now + 60)
        self.assertEqual(bytes(client.transport.written), b"HTTP/1.1 100 Continue\r\n\r\n")
        client.transport.written.clear()
        client.send_raw(b"1")
        self.assertEqual(self.statuses(client), [200])

    def test_100_continue_is_not_sent_otherwise(self) -> None:
        for first, line, status in (
            ("POST /nowhere HTTP/1.1", BEARER, 404),
            (f"POST {SEND_PATH} HTTP/1.1", "X: 1", 401),
        ):
            client, statuses = self.send(
                head(first, line, "Content-Length: 1", "Expect: 100-continue")
            )
            self.assertEqual((statuses, client.headers["connection"]), ([status], ["close"]))
        # What is behind the head may be the body or, without it, the next request.
        client, statuses = self.send(
            head("POST /nowhere HTTP/1.1", "Content-Length: 1", "Expect: 100-continue") + b"1"
        )
        self.assertEqual((statuses, client.headers["connection"]), ([404], ["close"]))
        self.grant_all()
        client, statuses = self.send(post("Expect: 100-Continue"))
        self.assertEqual(statuses, [200], "the body is there")
        client, statuses = self.send(post("Expect: a-miracle"))
        self.assertEqual(statuses, [417])
        self.assert_closed(client)

    def test_a_token_that_expires_while_the_body_arrives(self) -> None:
        self.validator.known = lambda *_: Grant(None, self.now + 5, True, True)
        client = self.client()
        client.send_raw(post(body=b"12")[:-1])
        self.advance(5)
        client.send_raw(b"2")
        self.assertEqual((self.statuses(client), self.broker.published), ([401], []))

    def test_a_connection_without_a_token_costs_less_than_100_kib(self) -> None:
        self.site.max_body = 10**6
        token = "x" * 32_768
        floods = (
            head(f"POST {SEND_PATH} HTTP/1.1", f"Authorization: Bearer {token}",
                 "Content-Length: 500000") + b"x" * 400_000,
            head("GET / HTTP/1.1", f"Authorization: Bearer {token}")[:-2],
            head("GET /nowhere HTTP/1.1") * 2000,
            head("POST /nowhere HTTP/1.1", "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 15_000,
        )  # fmt: skip
        for flood in floods:
            clients = [self.client(f"192.0.2.{number}") for number in range(4)]
            for client in clients:
                client.transport.is_congested = True
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)
            for client in clients:
                for at in range(0, len(flood), http_connection.READ_SIZE):
                    if client.transport.is_reading and client.transport.lost is None:
                        piece = flood[at : at + http_connection.READ_SIZE]
                        client.transport.protocol.dataReceived(piece)
            self.advance(1)
            size = tracemalloc.get_traced_memory()[0] / len(clients)
            tracemalloc.stop()
            self.assertLess(size, 100 * 1024, flood[:60])
            for client in clients:
                client.disconnect()


class FastPathTests(ConnectionTestCase):
    """Results that are known at once and later results give the same responses."""

    def send_rows(self) -> list[tuple[Any, bytes, str]]:
        def raises(error: Exception) -> Any:
            def verdict(*_: object) -> Grant:
                raise error

            return verdict

        def grants(lifetime: float = 60, may_send: bool = True, subject: str | None = None) -> Any:
            return lambda *_: Grant(subject, self.now + lifetime, True, may_send)

        return [
            (grants(), b"1", "accepts"),
            (grants(subject="https://cell2.unit1.example/#me"), b' {"a": 2.50}\n', "accepts"),
            (grants(), b"nonsense", "accepts"),
            (grants(), b"", "accepts"),
            (grants(may_send=False), b"1", "accepts"),
            (grants(lifetime=0), b"1", "accepts"),
            (grants(), b"1", "is down"),
            (grants(), b"1", "is full"),
            (raises(TokenInactive(INJECTED)), b"1", "accepts"),
            (raises(TopicNotFound(INJECTED)), b"1", "accepts"),
            (raises(ValidatorUnavailable("no")), b"1", "accepts"),
        ]

    def outcome(self, way: str, verdict: Any, method: str, body: bytes, broker: str) -> Any:
        """Status, headers, body and published messages, with results in one of the ways."""
        self.broker.published.clear()
        self.broker.is_down = broker == "is down"
        self.hub.is_full = broker == "is full"
        self.broker.accepts_at_once = way == "known"
        self.validator.known = self.validator.at_once = None

        def known(token: str, topic: TopicAddress) -> Grant | None:
            try:
                grant: Grant = verdict(token, topic)
            except Exception:
                return None
            return None if grant.is_expired(self.now) else grant

        if way == "known":
            self.validator.known, self.validator.at_once = known, verdict
        elif way == "at once":
            self.validator.at_once = verdict
        client = self.client()
        answer = client.request(method, SEND_PATH, {"Authorization": "Bearer t"}, body)
        if way == "later":
            self.assertEqual(client.status, 0)
            try:
                self.validator.last.result.callback(verdict())
            except Exception as error:
                self.validator.last.result.errback(error)
            answer = client.read_answer()
        client.disconnect()
        return client.status, client.headers, answer, list(self.broker.published)

    def test_every_row_has_the_same_outcome_in_each_way(self) -> None:
        for verdict, body, broker in self.send_rows():
            for method in ("POST", "PUT", "OPTIONS"):
                expected = self.outcome("later", verdict, method, body, broker)
                self.assertGreater(expected[0], 0)
                for way in ("at once", "known"):
                    with self.subTest(body=body, broker=broker, method=method, way=way):
                        found = self.outcome(way, verdict, method, body, broker)
                        self.assertEqual(found, expected)

    def test_the_rows_cover_many_statuses(self) -> None:
        found = {self.outcome("known", *row[:1], "POST", *row[1:])[0] for row in self.send_rows()}
        self.assertEqual(found, {200, 400, 401, 403, 404, 503})

    def test_a_broker_that_refuses_later(self) -> None:
        published: list[Deferred[None]] = []

        def publish(message: Message) -> Deferred[None]:
            published.append(Deferred())
            return published[-1]

        self.patch(self.broker, "publish", publish)
        self.validator.known = lambda *_: Grant(None, self.now + 60, True, True)
        client = self.client()
        client.send_raw(post() + head("OPTIONS * HTTP/1.1"))
        self.assertEqual(self.statuses(client), [])
        published[0].errback(BrokerUnavailable("no"))
        self.assertEqual(self.statuses(client), [503, 200])

    def test_a_cached_grant_authenticates_unless_the_address_is_blocked(self) -> None:
        self.limits.settings = LimitSettings(failed_tokens_per_minute=1)
        self.grant_all()
        client, statuses = self.send(post())
        self.assertEqual((statuses, self.limits.unauthenticated.total), ([200], 0))
        self.validator.known = None
        bad = self.client()
        bad.send_raw(post())
        self.validator.last.refuse()
        self.assertEqual(self.statuses(bad), [401])
        self.grant_all()
        client = self.client()
        client.send_raw(post())
        self.assertEqual(self.statuses(client), [503])

    def test_error_texts(self) -> None:
        client = self.client()
        answer = client.request("POST", "/nowhere", {"Authorization": "Bearer t"}, b"1")
        text = f"Resource not found. [https://{HOST}/nowhere]."
        self.assertEqual(json.loads(answer)["message"]["value"], text)


class LateServiceTests(ServiceTestCase):
    """The work of earlier iterations delays this connection; that is not the client's fault."""

    def test_a_complete_head_that_is_not_read_yet_is_answered_after_its_deadline(self) -> None:
        client = self.client()
        deferred: list[Callable[[], None]] = []
        self.patch(self.site, "budget", WorkBudget(self.clock, 0.0))
        self.patch(WorkBudget, "defer", lambda _, work: deferred.append(work))
        self.site.budget.is_spent = True
        client.send_raw(head(f"OPTIONS {SEND_PATH} HTTP/1.1"))
        self.advance(site.HEAD_TIMEOUT + 1)
        self.assertIsNone(client.transport.lost)
        self.assertFalse(client.transport.disconnecting)
        self.patch(self.site, "budget", WorkBudget(self.clock, 1.0))
        for work in deferred:
            work()
        client.read_answer()
        self.assertEqual(client.status, 200)
