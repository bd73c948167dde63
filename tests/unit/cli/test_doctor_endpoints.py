"""The doors of ``topicsvc doctor``: who is behind them, and how good their certificates are."""

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
from topicsvc.validators.local import make_key, write_key

DAY = 86400


class Answering(Protocol):
    """Speaks no HTTP but for one line, in as many pieces as it is told."""

    pieces: ClassVar = [b"HTTP/1.1 200 OK\r\n\r\n"]
    closes = False

    def __init__(self) -> None:
        self.later: list[Any] = []
        self.gone: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.later = [
            reactor.callLater(number * 0.05, self.transport.write, piece)
            for number, piece in enumerate(self.pieces)
        ]
        if self.closes:
            self.transport.write(b"".join(self.pieces))
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        for call in self.later:
            if call.active():
                call.cancel()
        self.gone.callback(None)


class Half(Answering):
    pieces: ClassVar = [b"HT", b"TP/1.1 200 OK\r", b"\n"]


class Greeting(Answering):
    pieces: ClassVar = [b"SSH-2.0-", b"x\r\n"]


class Ending(Answering):
    pieces: ClassVar = [b"HT"]
    closes = True


class Silent(Answering):
    pieces: ClassVar = []


class Endless(Answering):
    pieces: ClassVar = [b"x" * 10000]


class KnockTests(TestCase):
    """Who is taken for one that answers."""

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
        there = behaviour()
        factory = Factory.forProtocol(lambda: there)
        port = yield serverFromString(reactor, text).listen(factory)
        error = CannotListenError("127.0.0.1", port.getHost().port, OSError())
        try:
            return (yield deferToThread(probe.probe, error, text))
        except OSError as no:
            return str(no)
        finally:
            yield there.gone
            yield port.stopListening()

    @inlineCallbacks
    def test_an_answer_in_pieces_is_one(self) -> Any:
        self.assertIsNone((yield self.probe(Half)))

    @inlineCallbacks
    def test_those_who_speak_something_else(self) -> Any:
        for behaviour in (Greeting, Ending, Endless):
            self.assertEqual((yield self.probe(behaviour)), "it does not speak HTTP")

    @inlineCallbacks
    def test_one_that_says_nothing(self) -> Any:
        self.assertEqual((yield self.probe(Silent)), "timed out")

    @inlineCallbacks
    def test_inside_tls_the_same_is_asked(self) -> Any:
        number = x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number
        self.assertEqual((yield self.probe(Half, self.ssl)), number)
        self.assertEqual((yield self.probe(Greeting, self.ssl)), "it does not speak HTTP")

    @inlineCallbacks
    def test_one_that_shows_no_certificate(self) -> Any:
        self.patch(ssl.SSLSocket, "getpeercert", lambda *_, **__: None)
        shown = yield self.probe(Answering, self.ssl)
        self.assertEqual(shown, "it shows no certificate that can be read")


class RightsTests(TestCase):
    """A port that we may not listen on ourselves."""

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
        self.findings: list[CheckResult] = []
        self.trials = EndpointChecks(settings, reactor, self.findings.append)

        self.error = errno.EACCES

        def may_not(listener: Listener) -> None:
            why = OSError(self.error, os.strerror(self.error))
            raise CannotListenError("127.0.0.1", number, why)

        self.patch(Listener, "bind", may_not)

    @inlineCallbacks
    def test_somebody_is_there_or_nobody(self) -> Any:
        text = "tcp:443:interface=127.0.0.1"
        yield Deferred.fromCoroutine(self.trials.endpoint("listen", text))
        yield self.port.stopListening()
        yield Deferred.fromCoroutine(self.trials.endpoint("listen", text))
        there, not_there = self.findings
        self.assertEqual((there.level, there.text), ("ok", "in use, and answered"))
        self.assertEqual(not_there.level, "FAIL")
        self.assertIn("CAP_NET_BIND_SERVICE", not_there.text)

    @inlineCallbacks
    def test_rights_are_not_spoken_of_when_something_else_is_wrong(self) -> Any:
        self.error = errno.EADDRNOTAVAIL
        text = "tcp:443:interface=127.0.0.1"
        yield Deferred.fromCoroutine(self.trials.endpoint("listen", text))
        [finding] = self.findings
        self.assertEqual((finding.level, finding.text), ("FAIL", os.strerror(self.error)))


class CertificateTests(SynchronousTestCase):
    suppress: ClassVar = [
        util.suppress(category=DeprecationWarning, message=".*(pyOpenSSL|X509).*"),  # Twisted's own
    ]

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.authority = Authority(self.directory)
        write_key(self.directory / "key", make_key())

    def finding(self, host: str, names: Iterable[str], days_from_now: float = 0) -> CheckResult:
        """What is found in a certificate for `names`, issued two days ago for 102 days."""
        key, certificate = self.authority.issue(*names, life=timedelta(days=100))
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
        findings: list[CheckResult] = []
        then = time.time() + days_from_now * DAY
        EndpointChecks(settings, Clock(), findings.append, lambda: then).certificates(endpoint)
        [finding] = findings
        self.assertEqual(finding.what, f"certificate for {host}")
        return finding

    def assert_found(self, finding: CheckResult, level: str, words: str) -> None:
        self.assertEqual(finding.level, level, finding)
        self.assertIn(words, finding.text)

    def test_it_is_good_from_its_first_day_to_its_last(self) -> None:
        names = ("unit1.example", "*.unit1.example")
        for days, level, words in (
            (-2.5, "FAIL", "not valid before"),
            (-1.5, "ok", "101 days left"),
            (78.5, "ok", "21 days left"),
            (79.5, "warn", "20 days left: renew it"),
            (100.5, "FAIL", "it ended on"),
        ):
            self.assert_found(self.finding("unit1.example", names, days), level, words)

    def test_it_is_good_for_its_names_alone(self) -> None:
        for host, names, level, words in (
            ("unit1.example", ("unit1.example",), "warn", "not for *.unit1.example"),
            ("unit1.example", ("unit2.example",), "FAIL", "it is for unit2.example only"),
            ("unit1.example", ("*.example", "*.unit1.example"), "ok", "days left"),
            ("unit1.example", ("192.0.2.1",), "FAIL", "it is for 192.0.2.1 only"),
            ("192.0.2.1", ("192.0.2.1",), "ok", "days left"),
            ("192.0.2.1", ("unit1.example", "192.0.2.2"), "FAIL", "192.0.2.2, unit1.example only"),
            ("[2001:db8::1]", ("2001:db8::1",), "ok", "days left"),
            ("[2001:db8:0::1]", ("2001:db8::1",), "ok", "days left"),
            ("[2001:db8::1]", ("2001:db8::2",), "FAIL", "it is for 2001:db8::2 only"),
        ):
            self.assert_found(self.finding(host, names), level, words)
