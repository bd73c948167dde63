"""The doors of ``topicsvc doctor``: who is behind them, and how good their certificates are."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial import util  # a name "suppress" here would be read by trial
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.integration.certificates import Authority
from topicsvc import config
from topicsvc.cli.doors import EndpointTrials
from topicsvc.cli.journey import Finding
from topicsvc.listening.listener import Listener
from topicsvc.validators.local import make_key, write_key

DAY = 86400


class Answering(Protocol):
    """Speaks no HTTP but for one line."""

    def connectionMade(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")


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
        number = self.port.getHost().port
        self.findings: list[Finding] = []
        self.trials = EndpointTrials(settings, reactor, self.findings.append)

        def may_not(listener: Listener) -> None:
            why = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
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


class CertificateTests(SynchronousTestCase):
    suppress: ClassVar = [
        util.suppress(category=DeprecationWarning, message=".*(pyOpenSSL|X509).*"),  # Twisted's own
    ]

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.authority = Authority(self.directory)
        write_key(self.directory / "key", make_key())

    def finding(self, host: str, names: Iterable[str], days_from_now: float = 0) -> Finding:
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
        findings: list[Finding] = []
        then = time.time() + days_from_now * DAY
        EndpointTrials(settings, Clock(), findings.append, lambda: then).certificates(endpoint)
        [finding] = findings
        self.assertEqual(finding.what, f"certificate for {host}")
        return finding

    def assert_found(self, finding: Finding, level: str, words: str) -> None:
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
