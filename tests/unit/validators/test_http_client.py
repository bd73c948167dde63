"""What is told of a question over HTTP that got no answer."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.iweb import IAgent
from zope.interface import implementer

from topicsvc.errors import ValidatorUnavailable
from topicsvc.validators.http_client import HttpClient


@implementer(IAgent)
class FailingAgent:
    def __init__(self, fault: Exception) -> None:
        self.fault = fault

    def request(self, *_: Any, **__: Any) -> Deferred[Any]:
        return fail(self.fault)


class FaultTests(SynchronousTestCase):
    def test_it_is_told_in_words_and_without_what_was_sent(self) -> None:
        secret = "a-token"
        for fault, words in (
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
                fault,
                ResponseNeverReceived([Failure(fault)]),
                ResponseFailed([Failure(ResponseNeverReceived([Failure(fault)]))]),
            ):
                asked = HttpClient(FailingAgent(raised)).request("POST", "https://as.example/", {})
                told = self.failureResultOf(asked, ValidatorUnavailable).value
                self.assertEqual(str(told), f"POST: {words}")
