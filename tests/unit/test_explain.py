"""Explanations of other libraries' exceptions."""

from __future__ import annotations

import errno
import os

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from topicsvc.explain import (
    NO_ADDRESS,
    explain,
    explain_endpoint_error,
    explain_http_error,
    explain_listen_error,
)

VERIFY_FAILED = SSL.Error([("SSL routines", "", "certificate verify failed"), ("", "", "more")])


def wrapped(fault: Exception) -> Exception:
    """The exception as Twisted's HTTP client raises it."""
    return ResponseFailed([Failure(ResponseNeverReceived([Failure(fault)]))])


class ExplainTests(SynchronousTestCase):
    def test_the_operating_system_s_words_and_the_file_are_used(self) -> None:
        cases = (
            (OSError(errno.EACCES, "Permission denied", "/etc/key"), "/etc/key: Permission denied"),
            (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
            (error.CannotListenError("", 80, OSError(errno.EACCES, "Permission denied")),
             "Permission denied"),
        )  # fmt: skip
        for fault, words in cases:
            self.assertEqual(explain(fault), words)

    def test_tls_errors(self) -> None:
        self.assertEqual(explain(VERIFY_FAILED), "certificate verify failed; more")
        self.assertEqual(explain(SSL.Error([])), "OpenSSL gives no reason")
        self.assertEqual(
            explain(VerificationError(errors=["x"])), "its certificate is for another name"
        )

    def test_another_exception_has_its_text_or_its_name(self) -> None:
        self.assertEqual(explain(ValueError("a reason")), "a reason")
        self.assertEqual(explain(ValueError()), "ValueError")

    def test_the_reason_within_an_http_client_s_exception_is_explained(self) -> None:
        self.assertEqual(explain(wrapped(ValueError("a reason"))), "a reason")


class ExplainHttpErrorTests(SynchronousTestCase):
    def test_the_explanation_does_not_quote_the_exception(self) -> None:
        secret = "a-token"
        for fault, words in (
            (error.DNSLookupError(secret), NO_ADDRESS),
            (error.UnknownHostError(secret), NO_ADDRESS),
            (error.NoRouteError(secret), "there is no route to its host"),
            (error.ConnectionDone(secret), "the connection was lost"),
            (error.ConnectError(errno.EINVAL, secret), "Invalid argument"),
            (TimedOut(secret), "no connection could be made in time"),
            (type("ParseError", (Exception,), {})(secret), "the answer is not HTTP"),
            (VERIFY_FAILED, "TLS: certificate verify failed; more"),
            (SSL.Error([]), "TLS: OpenSSL gives no reason"),
            (SSL.Error(secret), "Error"),
            (OSError(errno.EACCES, secret), "PermissionError"),
            (ValueError(secret), "ValueError"),
        ):
            self.assertEqual(explain_http_error(fault), words)
            self.assertEqual(explain_http_error(wrapped(fault)), words)


class ExplainListenErrorTests(SynchronousTestCase):
    def explain(self, number: int, port: object = 8080) -> str:
        cause = OSError(number, os.strerror(number), "a-file")
        return explain_listen_error(error.CannotListenError("", port, cause))  # type: ignore[arg-type]

    def test_a_port_in_use(self) -> None:
        self.assertEqual(
            self.explain(errno.EADDRINUSE),
            "Address already in use; to find the process: ss -ltnp 'sport = :8080'; "
            "to listen elsewhere: --listen tcp:PORT",
        )

    def test_an_endpoint_that_cannot_be_had_says_what_to_type(self) -> None:
        for number, port, words in (
            (errno.EACCES, 443, "CAP_NET_BIND_SERVICE"),
            (errno.EACCES, b"/run/x", "chown USER DIRECTORY"),
            (errno.EROFS, b"/run/x", "chown USER DIRECTORY"),
            (errno.ENOENT, b"/run/x", "mkdir -p DIRECTORY"),
            (errno.EADDRINUSE, b"/run/x", "another process has this UNIX socket"),
            (errno.EADDRNOTAVAIL, 80, "this host has no such address"),
        ):
            reason = self.explain(number, port)
            self.assertTrue(reason.startswith(f"{os.strerror(number)}; "), reason)
            self.assertIn(words, reason)
        locked = error.CannotListenError("", "/run/x", OSError("Cannot acquire lock"))  # type: ignore[arg-type]
        self.assertIn("another process has this UNIX socket", explain_listen_error(locked))

    def test_another_error_has_its_own_words(self) -> None:
        self.assertEqual(self.explain(errno.EMFILE), "Too many open files")
        self.assertEqual(explain_listen_error(ValueError("a reason")), "a reason")


class ExplainEndpointErrorTests(SynchronousTestCase):
    def test_a_parser_s_message_is_explained(self) -> None:
        def parse(port: int, backlog: int = 50) -> None:
            """Stands for a parser."""

        for arguments, named, words in (
            ((), {}, "port= is missing"),
            ((1,), {"port": 2}, r"port= is given twice; a colon that belongs to a value is "
                                r"written \:"),
            ((1,), {"x": 2}, "it does not take x="),
            ((1, 2, 3), {}, r"too many parts; a colon that belongs to a value is written \:"),
        ):  # fmt: skip
            raised = self.assertRaises(TypeError, parse, *arguments, **named)
            self.assertEqual(explain_endpoint_error(raised), words)
        raised = self.assertRaises(ValueError, int, "x")
        self.assertEqual(explain_endpoint_error(raised), "'x' is not a number")

    def test_any_other_error_keeps_its_own_explanation(self) -> None:
        self.assertEqual(explain_endpoint_error(ValueError("a reason")), "a reason")
