"""The doctor's checks of endpoints in use, and of their certificates."""

from __future__ import annotations

import errno
import os
import ssl
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial import util  # a name "suppress" here would be read by trial
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.support.certificates import Authority
from topicsvc import config
from topicsvc.cli.doctor import probe
from topicsvc.cli.doctor.endpoints import EndpointChecks
from topicsvc.cli.doctor.report import CheckResult
from topicsvc.listening.listener import Listener
from topicsvc.settings import Config, LocalSettings, OperatorSettings
from topicsvc.topics import Unit
from topicsvc.validators.local import make_key, write_key

DAY = 86400


class Answering(Protocol):
    """Answers any request with fixed bytes, in one or more pieces."""

    pieces: ClassVar = [b"HTTP/1.1 200 OK\r\n\r\n"]
    closes = False

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.calls = [
            reactor.callLater(number * 0.05, self.transport.write, piece)
            for number, piece in enumerate(self.pieces)
        ]
        if self.closes:
            self.transport.write(b"".join(self.pieces))
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        for call in self.calls:
            if call.active():
                call.cancel()
        self.lost.callback(None)


class InPieces(Answering):
    pieces: ClassVar = [b"HT", b"TP/1.1 200 OK\r", b"\n"]


class SshServer(Answering):
    pieces: ClassVar = [b"SSH-2.0-", b"x\r\n"]


class Closing(Answering):
    pieces: ClassVar = [b"HT"]
    closes = True


class Silent(Answering):
    pieces: ClassVar = []


class Endless(Answering):
    pieces: ClassVar = [b"x" * 10000]


class ProbeTests(TestCase):
    """Which servers are recognized as answering."""

    suppress: ClassVar = [
        util.suppress(category=DeprecationWarning, message=".*(pyOpenSSL|X509).*"),  # Twisted's own
    ]

    def setUp(self) -> None:
        self.patch(probe, "_TIMEOUT", 1.0)
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        key, self.certificate = Authority(self.directory).issue("unit1.example")
        self.ssl = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={self.certificate}"

    @inlineCallbacks
    def probe(self, behaviour: type[Answering], text: str = "tcp:0:interface=127.0.0.1") -> Any:
        server = behaviour()
        factory = Factory.forProtocol(lambda: server)
        port = yield serverFromString(reactor, text).listen(factory)
        error = CannotListenError("127.0.0.1", port.getHost().port, OSError())
        try:
            return (yield deferToThread(probe.probe, error, text))
        except OSError as failed:
            return str(failed)
        finally:
            yield server.lost
            yield port.stopListening()

    @inlineCallbacks
    def test_a_response_in_pieces(self) -> Any:
        self.assertIsNone((yield self.probe(InPieces)))

    @inlineCallbacks
    def test_servers_that_do_not_answer_http(self) -> Any:
        for behaviour in (SshServer, Closing, Endless):
            self.assertEqual((yield self.probe(behaviour)), "it does not answer HTTP")

    @inlineCallbacks
    def test_a_server_that_sends_nothing(self) -> Any:
        self.assertEqual((yield self.probe(Silent)), "timed out")

    @inlineCallbacks
    def test_the_request_is_sent_inside_tls_too(self) -> Any:
        number = x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number
        self.assertEqual((yield self.probe(InPieces, self.ssl)), number)
        self.assertEqual((yield self.probe(SshServer, self.ssl)), "it does not answer HTTP")

    @inlineCallbacks
    def test_a_server_without_a_readable_certificate(self) -> Any:
        self.patch(ssl.SSLSocket, "getpeercert", lambda *_, **__: None)
        shown = yield self.probe(Answering, self.ssl)
        self.assertEqual(shown, "it sends no readable certificate")


class PermissionTests(TestCase):
    """A port that this user may not listen on."""

    @inlineCallbacks
    def setUp(self) -> Any:
        key = Path(self.mktemp())
        write_key(key, make_key())
        settings = config.load(
            f"""
            listen = ["tcp:443:interface=127.0.0.1"]
            unit_url = "https://unit1.example/"
            [validator]
            kind = "local"
            key_file = "{key}"
            """
        )
        factory = Factory.forProtocol(Answering)
        self.port = yield serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(self.port.stopListening)
        number = self.port.getHost().port
        self.results: list[CheckResult] = []
        self.checks = EndpointChecks(settings, reactor, self.results.append)

        self.error = errno.EACCES

        def fail_to_bind(listener: Listener) -> None:
            reason = OSError(self.error, os.strerror(self.error))
            raise CannotListenError("127.0.0.1", number, reason)

        self.patch(Listener, "bind", fail_to_bind)

    @inlineCallbacks
    def test_a_port_in_use_and_a_free_one(self) -> Any:
        text = "tcp:443:interface=127.0.0.1"
        yield Deferred.fromCoroutine(self.checks.endpoint("listen", text))
        yield self.port.stopListening()
        yield Deferred.fromCoroutine(self.checks.endpoint("listen", text))
        used, free = self.results
        self.assertEqual((used.level, used.text), ("ok", "in use; a service answers there"))
        self.assertEqual(free.level, "FAIL")
        self.assertIn("CAP_NET_BIND_SERVICE", free.text)

    @inlineCallbacks
    def test_another_error_has_no_advice_about_permissions(self) -> Any:
        self.error = errno.EADDRNOTAVAIL
        text = "tcp:443:interface=127.0.0.1"
        yield Deferred.fromCoroutine(self.checks.endpoint("listen", text))
        [result] = self.results
        self.assertEqual((result.level, result.text), ("FAIL", os.strerror(self.error)))


class CertificateTests(SynchronousTestCase):
    suppress: ClassVar = [
        util.suppress(category=DeprecationWarning, message=".*(pyOpenSSL|X509).*"),  # Twisted's own
    ]

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.authority = Authority(self.directory)
        write_key(self.directory / "key", make_key())

    def check(self, host: str, names: Iterable[str], days_from_now: float = 0) -> CheckResult:
        """Check a certificate for `names`, issued two days ago for 102 days."""
        key, certificate = self.authority.issue(*names, lifetime=timedelta(days=100))
        endpoint = f"ssl:443:privateKey={key}:certKey={certificate}"
        settings = config.load(
            f"""
            listen = ["{endpoint}"]
            unit_url = "https://{host}/"
            [validator]
            kind = "local"
            key_file = "{self.directory / "key"}"
            """
        )
        results: list[CheckResult] = []
        now = time.time() + days_from_now * DAY
        EndpointChecks(settings, Clock(), results.append, lambda: now).certificates(endpoint)
        [result] = results
        self.assertEqual(result.subject, f"certificate for {host}")
        return result

    def assert_result(self, result: CheckResult, level: str, words: str) -> None:
        self.assertEqual(result.level, level, result)
        self.assertIn(words, result.text)

    def test_it_is_valid_from_its_first_day_to_its_last(self) -> None:
        names = ("unit1.example", "*.unit1.example")
        for days, level, words in (
            (-2.5, "FAIL", "not valid before"),
            (-1.5, "ok", "101 days left"),
            (78.5, "ok", "21 days left"),
            (79.5, "warn", "20 days left: renew it"),
            (100.5, "FAIL", "expired on"),
        ):
            self.assert_result(self.check("unit1.example", names, days), level, words)

    def test_it_is_valid_only_for_its_names(self) -> None:
        for host, names, level, words in (
            ("unit1.example", ("unit1.example",), "warn", "not valid for *.unit1.example"),
            ("unit1.example", ("unit2.example",), "FAIL", "valid only for unit2.example"),
            ("unit1.example", ("*.example", "*.unit1.example"), "ok", "days left"),
            ("unit1.example", ("192.0.2.1",), "FAIL", "valid only for 192.0.2.1:"),
            ("192.0.2.1", ("192.0.2.1",), "ok", "days left"),
            (
                "192.0.2.1",
                ("unit1.example", "192.0.2.2"),
                "FAIL",
                "valid only for 192.0.2.2, unit1.example:",
            ),
            ("[2001:db8::1]", ("2001:db8::1",), "ok", "days left"),
            ("[2001:db8:0::1]", ("2001:db8::1",), "ok", "days left"),
            ("[2001:db8::1]", ("2001:db8::2",), "FAIL", "valid only for 2001:db8::2:"),
        ):
            self.assert_result(self.check(host, names), level, words)


class OperatorTests(SynchronousTestCase):
    """The pages for operators on the admin endpoint."""

    LOCAL = "tcp:9090:interface=127.0.0.1"

    def check(self, admin: str | None, operator: OperatorSettings) -> list[CheckResult]:
        settings = Config(
            ("tcp:0",), Unit("https://unit1.example/"), LocalSettings(b""), admin, operator
        )
        results: list[CheckResult] = []
        EndpointChecks(settings, reactor, results.append).operator()
        return results

    def test_without_these_pages_there_is_no_line(self) -> None:
        self.assertEqual(self.check("tcp:9090", OperatorSettings()), [])

    def test_what_can_be_done_there(self) -> None:
        for operator, text in (
            (OperatorSettings(inspect=True), "are listed; sessions cannot be ended"),
            (OperatorSettings(token="x" * 16), "are not listed; sessions can be ended"),
            (OperatorSettings(True, "x" * 16), "are listed; sessions can be ended"),
        ):
            [result] = self.check(self.LOCAL, operator)
            self.assertEqual((result.level, result.text), ("ok", f"topics and sessions {text}"))

    def test_settings_without_an_endpoint(self) -> None:
        [result] = self.check(None, OperatorSettings(inspect=True))
        self.assertEqual(result.level, "warn")
        self.assertIn("set admin.listen, or use --admin", result.text)

    def test_lists_on_an_endpoint_that_others_reach(self) -> None:
        for admin in ("tcp:9090", "tcp:9090:interface=0.0.0.0", "ssl:9090:privateKey=k"):
            [result] = self.check(admin, OperatorSettings(inspect=True))
            self.assertEqual(result.level, "warn", admin)
            self.assertIn("add interface=127.0.0.1", result.text)
        for admin in (self.LOCAL, r"tcp6:9090:interface=\:\:1", "unix:/run/x", "systemd:index=1"):
            [result] = self.check(admin, OperatorSettings(inspect=True))
            self.assertEqual(result.level, "ok", admin)

    def test_a_short_token(self) -> None:
        [result] = self.check(self.LOCAL, OperatorSettings(token="short-t"))
        self.assertEqual(result.level, "warn")
        self.assertIn("only 7 characters: write a random token of at least 16", result.text)
        self.assertNotIn("short-t", result.text)
