"""The control socket between the parent and one worker."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.support.control import ControlSocket
from topicsvc.admin.answers import Answer
from topicsvc.admin.request import AdminRequest
from topicsvc.errors import WorkerFailed, WorkerUnavailable
from topicsvc.workers.control import (
    MAX_MESSAGE,
    MAX_OTHERS,
    MAX_READS,
    TIMEOUT,
    Members,
    Response,
    read_request,
    write_response,
)


class ControlTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.requests: list[AdminRequest] = []
        self.answer = Answer(200, "text/plain", b"alive\n", ((b"Retry-After", b"1"),))
        self.silent: list[Deferred[Members]] = []
        self.socket = ControlSocket(
            self.clock,
            {
                "get": self.get,
                "add": lambda members: {"sum": members["one"] + members["two"]},
                "keep": self.keep,
                "fail": self.fail_to,
            },
        )
        self.control = self.socket.parent

    def get(self, members: Members) -> Members:
        self.requests.append(read_request(members))
        return write_response(self.answer)

    def keep(self, members: Members) -> Deferred[Members]:
        self.silent.append(Deferred())
        return self.silent[-1]

    def fail_to(self, members: Members) -> Members:
        if members["known"]:
            raise WorkerUnavailable("the broker is down")
        raise ZeroDivisionError("a secret")

    def result_of(self, answer: Deferred[Any]) -> Any:
        self.socket.pump()
        return self.successResultOf(answer)

    def error_of(self, answer: Deferred[Any]) -> str:
        self.socket.pump()
        return str(self.failureResultOf(answer, WorkerUnavailable).value)


class RequestTests(ControlTestCase):
    def test_a_request_reaches_the_admin_pages_and_returns_their_response(self) -> None:
        response = self.result_of(
            self.control.request(
                "POST",
                "/sessions/end?a=%20",
                b'{"id":1}\xff',
                {"accept": "text/plain", "authorization": "Bearer x"},
                "127.0.0.1",
            )
        )
        headers = {"content-type": "text/plain", "retry-after": "1"}
        self.assertEqual(response, Response(200, headers, b"alive\n"))
        expected = AdminRequest(
            b"POST",
            b"/sessions/end",
            b"a=%20",
            "text/plain",
            (b"Bearer x",),
            b'{"id":1}\xff',
            "127.0.0.1",
            is_of_parent=True,
        )
        self.assertEqual(self.requests, [expected])

    def test_any_bytes_of_a_body_arrive_as_they_are(self) -> None:
        for body in (b"", bytes(range(256)), "é€\u2028".encode()):
            self.answer = Answer(200, "text/plain", body)
            self.assertEqual(self.result_of(self.control.request("GET", "/")).body, body)

    def test_requests_are_answered_in_any_order(self) -> None:
        slow = self.control.call("keep")
        fast = self.control.call("add", one=1, two=2)
        self.assertEqual(self.result_of(fast), {"sum": 3})
        self.assertNoResult(slow)
        self.silent[0].callback({"late": True})
        self.assertEqual(self.result_of(slow), {"late": True})

    def test_messages_may_arrive_byte_by_byte(self) -> None:
        answer = self.control.call("add", one=1, two=2)
        data = self.socket.parent_transport.value()
        self.socket.parent_transport.clear()
        for place in range(len(data)):
            self.socket.worker.dataReceived(data[place : place + 1])  # type: ignore[no-untyped-call]
        self.assertEqual(self.result_of(answer), {"sum": 3})


class FailureTests(ControlTestCase):
    def test_an_answer_that_is_late_is_an_error_and_changes_nothing_later(self) -> None:
        answer = self.control.request("GET", "/health/live", timeout=2)
        self.clock.advance(2)
        self.assertEqual(self.error_of(answer), "no answer within 2 s")
        self.assertEqual(self.result_of(self.control.call("add", one=1, two=1)), {"sum": 2})

    def test_the_default_timeout_ends_a_request_to_a_worker_that_is_stopped(self) -> None:
        answer = self.control.call("keep")
        self.clock.advance(TIMEOUT - 0.001)
        self.assertNoResult(answer)
        self.clock.advance(0.001)
        self.failureResultOf(answer, WorkerUnavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_worker_that_reads_nothing_gets_a_bounded_number_of_requests(self) -> None:
        answers = [self.control.call("keep") for _ in range(MAX_OTHERS)]
        self.clock.advance(TIMEOUT)
        for each in answers:
            self.failureResultOf(each, WorkerUnavailable)
        written = len(self.socket.parent_transport.value())
        refused = self.control.call("keep")
        self.assertIn(f"{MAX_OTHERS} requests", str(self.failureResultOf(refused).value))
        self.assertEqual(len(self.socket.parent_transport.value()), written)
        self.socket.pump()
        self.silent[0].callback({})
        self.socket.pump()
        self.assertNoResult(self.control.call("keep"))

    def test_reads_that_have_no_answer_leave_room_for_the_life_cycle(self) -> None:
        """A worker that was frozen during many scrapes can still be drained, asked and ended."""
        for _ in range(MAX_READS):
            self.control.request("GET", "/metrics").addErrback(lambda _: None)
        self.clock.advance(TIMEOUT)
        refused = self.failureResultOf(self.control.request("GET", "/metrics"), WorkerUnavailable)
        self.assertEqual(str(refused.value), f"{MAX_READS} requests have no answer yet")
        for do in ("ping", "check", "apply", "drop", "drain", "stop_at_once"):
            self.control.call("ping").addErrback(lambda _: None)
            before = len(self.socket.parent_transport.value())
            self.assertNoResult(self.control.call(do).addErrback(lambda _: None))
            self.assertGreater(len(self.socket.parent_transport.value()), before)
        self.socket.pump()
        self.assertEqual(self.result_of(self.control.request("GET", "/metrics")).status, 200)

    def test_one_kind_of_requests_leaves_room_for_the_others(self) -> None:
        for _ in range(MAX_OTHERS + 1):
            self.control.call("ping").addErrback(lambda _: None)
        self.assertNoResult(self.control.call("drain").addErrback(lambda _: None))

    def test_a_response_over_the_limit_is_an_error(self) -> None:
        self.answer = Answer(200, "text/plain", bytes(MAX_MESSAGE))
        self.assertIn(f"allowed: {MAX_MESSAGE}", self.error_of(self.control.request("GET", "/")))

    def test_a_request_over_the_limit_is_not_sent(self) -> None:
        error = self.error_of(self.control.request("GET", "/", bytes(MAX_MESSAGE)))
        self.assertIn(f"allowed: {MAX_MESSAGE}", error)
        self.assertEqual(self.requests, [])

    def test_a_longer_message_than_allowed_closes_the_socket(self) -> None:
        self.control.dataReceived(b"%d:" % (MAX_MESSAGE + 1))  # type: ignore[no-untyped-call]
        self.assertTrue(self.socket.parent_transport.disconnecting)

    def test_an_error_of_the_worker_is_passed_on_and_an_internal_one_stays_there(self) -> None:
        self.assertEqual(self.error_of(self.control.call("fail", known=True)), "the broker is down")
        self.socket.pump()
        failed = self.control.call("fail", known=True)
        self.socket.pump()
        self.failureResultOf(failed, WorkerFailed)
        error = self.error_of(self.control.call("fail", known=False))
        self.assertEqual(error, "internal error: see the log")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_an_unknown_request_is_an_error(self) -> None:
        self.assertEqual(self.error_of(self.control.call("dance")), "there is no dance")

    def test_a_closed_socket_ends_all_requests_and_refuses_further_ones(self) -> None:
        answer = self.control.call("keep")
        self.control.connectionLost(Failure(ConnectionLost()))
        for each in (answer, self.control.call("keep")):
            self.assertEqual(self.error_of(each), "its control socket is closed")
        self.assertEqual(self.socket.lost, ["parent"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_request_before_the_worker_has_connected_is_refused(self) -> None:
        self.control.connected = 0
        self.failureResultOf(self.control.request("GET", "/"), WorkerUnavailable)

    def test_a_message_without_sense_is_logged_and_the_socket_stays_open(self) -> None:
        self.control.dataReceived(b"2:{},")  # type: ignore[no-untyped-call]
        self.control.dataReceived(b"1:x,")  # type: ignore[no-untyped-call]
        self.assertEqual(len(self.flushLoggedErrors()), 2)
        self.assertEqual(self.result_of(self.control.call("add", one=1, two=2)), {"sum": 3})


class EventTests(ControlTestCase):
    def test_events_arrive_in_their_order_with_their_members(self) -> None:
        self.socket.worker.tell("ready", pid=7)
        self.socket.worker.tell("draining")
        self.socket.pump()
        self.assertEqual(self.socket.events, [("ready", {"pid": 7}), ("draining", {})])

    def test_the_worker_learns_that_the_parent_has_closed_the_socket(self) -> None:
        self.socket.worker.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.socket.lost, ["worker"])
        self.socket.worker.tell("ready")

    def test_closing_closes_the_transport_once_it_is_open(self) -> None:
        self.control.close()
        self.assertTrue(self.socket.parent_transport.disconnecting)
        self.control.connectionLost(Failure(ConnectionLost()))
        self.control.close()
