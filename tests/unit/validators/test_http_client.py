"""The HTTP client of the validators: errors and credentials."""

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


class CredentialTests(SynchronousTestCase):
    def test_both_parts_are_form_urlencoded_first(self) -> None:
        # RFC 6749, section 2.3.1, by way of its appendix B
        self.assertEqual(basic("a:b", "c d+%\xe9"), "Basic YSUzQWI6YytkJTJCJTI1JUMzJUE5")
