"""The HTTP client of the validators: errors and credentials."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent
from zope.interface import implementer

from topicsvc.errors import ValidatorUnavailable
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.validators.http_client import HttpClient, basic


@implementer(IAgent)
class FailingAgent:
    """Fails every request with one exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def request(self, *_: Any, **__: Any) -> Deferred[Any]:
        return fail(self.error)


class RequestErrorTests(SynchronousTestCase):
    def test_an_error_is_explained_without_quoting_the_request(self) -> None:
        secret = "a-token"
        for cause, words in (
            (error.ConnectionRefusedError(secret), "the connection was refused"),
            (error.DNSLookupError(secret), "no address is known for its host"),
            (error.NoRouteError(secret), "there is no route to its host"),
            (error.TimeoutError(secret), "no connection could be made in time"),
            (error.TCPTimedOutError(secret), "no connection could be made in time"),
            (error.ConnectionLost(secret), "the connection was lost"),
            (VerificationError(errors=[secret]), "TLS: its certificate is for another name"),
            (SSL.Error([("SSL routines", "", "certificate verify failed")]),
             "TLS: certificate verify failed"),
            (ValueError(secret), "ValueError"),
        ):  # fmt: skip
            for raised in (
                cause,
                ResponseNeverReceived([Failure(cause)]),
                ResponseFailed([Failure(ResponseNeverReceived([Failure(cause)]))]),
            ):
                response = HttpClient(FailingAgent(raised)).request(
                    "POST", "https://as.example/", {}
                )
                error_raised = self.failureResultOf(response, ValidatorUnavailable).value
                self.assertEqual(str(error_raised), f"POST: {words}")


class LongResponse:
    """A response whose body arrives as the test sends it."""

    code = 207
    length = UNKNOWN_LENGTH

    def __init__(self) -> None:
        self.headers = Headers()
        self.log: list[str] = []
        self.protocol: Any = None

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self)

    def pauseProducing(self) -> None:
        self.log.append("pause")

    def resumeProducing(self) -> None:
        self.log.append("resume")

    def loseConnection(self) -> None:
        self.log.append("lose")


@implementer(IAgent)
class AnsweringAgent:
    """Answers every request with one response."""

    def __init__(self, response: LongResponse) -> None:
        self.response = response

    def request(self, *_: Any, **__: Any) -> Deferred[Any]:
        return succeed(self.response)


class LongBodyTests(SynchronousTestCase):
    """A long body is read while it arrives, within a budget of time."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.budget = WorkBudget(self.clock, 0.004)
        self.response = LongResponse()
        self.pieces: list[int] = []
        self.error: Exception | None = None
        client = HttpClient(AnsweringAgent(self.response), self.budget)
        self.request = client.request(
            "PROPFIND", "http://unit1.example/", {}, read_body=lambda _: self
        )

    def feed(self, data: bytes) -> None:
        """Take 1 ms for each piece."""
        self.pieces.append(len(data))
        self.clock.rightNow += 0.001
        if self.error is not None:
            raise self.error

    def end(self, reason: Exception | None = None) -> None:
        self.response.protocol.connectionLost(Failure(reason or ResponseDone()))

    def test_the_reader_gets_small_pieces_and_the_response_has_no_body(self) -> None:
        self.response.protocol.dataReceived(b"x" * 20000)
        self.response.protocol.dataReceived(b"y")
        self.assertEqual(self.pieces, [16384, 3616, 1])
        self.end()
        self.assertEqual(self.successResultOf(self.request).body, b"")

    def test_the_work_of_one_iteration_is_limited_and_the_connection_is_paused(self) -> None:
        self.response.protocol.dataReceived(b"x" * 65536 * 2)
        self.assertEqual(len(self.pieces), 4)
        self.assertEqual(self.response.log, ["pause"])
        self.response.protocol.dataReceived(b"x" * 65536)
        self.end()
        self.assertNoResult(self.request)
        for count in (8, 12):
            [work] = self.clock.getDelayedCalls()
            self.clock.calls.clear()
            work.func()
            self.assertEqual(len(self.pieces), count)
        self.assertEqual(self.successResultOf(self.request).body, b"")
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reading_goes_on_when_all_is_read(self) -> None:
        self.response.protocol.dataReceived(b"x" * 65536 * 2)
        self.clock.advance(1)
        self.assertEqual(self.response.log, ["pause", "resume"])
        self.response.protocol.dataReceived(b"x")
        self.assertEqual(len(self.pieces), 9)

    def test_an_error_of_the_reader_ends_the_request_and_the_connection(self) -> None:
        self.error = ValidatorUnavailable("not this")
        self.response.protocol.dataReceived(b"x" * 65536)
        failure = self.failureResultOf(self.request, ValidatorUnavailable)
        self.assertEqual(str(failure.value), "not this")
        self.assertEqual((self.response.log, len(self.pieces)), (["lose"], 1))
        self.end(ConnectionAborted())

    def test_cancelling_ends_the_connection_and_the_work(self) -> None:
        self.response.protocol.dataReceived(b"x" * 65536 * 2)
        self.request.cancel()
        self.failureResultOf(self.request, CancelledError)
        self.clock.advance(0)
        self.assertEqual((self.response.log, len(self.pieces)), (["pause", "lose"], 4))

    def test_a_lost_connection(self) -> None:
        self.response.protocol.dataReceived(b"x" * 65536 * 2)
        self.end(error.ConnectionLost())
        self.clock.advance(0)
        self.failureResultOf(self.request, ValidatorUnavailable)


class CredentialTests(SynchronousTestCase):
    def test_both_parts_are_form_urlencoded_first(self) -> None:
        # RFC 6749, section 2.3.1, by way of its appendix B
        self.assertEqual(basic("a:b", "c d+%\xe9"), "Basic YSUzQWI6YytkJTJCJTI1JUMzJUE5")
