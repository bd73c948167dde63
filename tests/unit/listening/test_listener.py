"""Endpoints: what is wrong with one, which certificate it shows, and certificates read anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase
from twisted.trial.util import suppress

from tests.support.certificates import Authority
from topicsvc.listening.certificates import EndpointPreview
from topicsvc.listening.listener import Listener, endpoint_problem


class ListeningTestCase(SynchronousTestCase):
    suppress: ClassVar = [
        suppress(category=DeprecationWarning, message=".*(pyOpenSSL|X509).*"),  # Twisted's own
    ]

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.authority = Authority(self.directory)
        self.key, self.certificate = self.authority.issue("unit1.example", "*.unit1.example")
        self.ssl = f"ssl:443:privateKey={self.key}:certKey={self.certificate}"
        self.pems = self.directory / "pems"
        self.pems.mkdir()
        self.tls = f"tls:{self.pems}:port=443"
        self.put("a")

    def put(self, name: str, *hosts: str) -> None:
        """A file with a key and a certificate."""
        key, certificate = self.authority.issue(*(hosts or ("unit1.example",)), name=name)
        (self.pems / f"{name}.pem").write_bytes(key.read_bytes() + certificate.read_bytes())

    def renew(self) -> None:
        self.authority.issue("unit1.example")


class ProblemTests(ListeningTestCase):
    def problem(self, text: str) -> str:
        return endpoint_problem(text, reactor, is_start=True) or ""

    def test_good_ones(self) -> None:
        for text in ("tcp:8080", "haproxy:tcp:8080:interface=127.0.0.1", self.ssl, self.tls):
            self.assertEqual(self.problem(text), "")

    def test_ports_that_are_none(self) -> None:
        for text in ("tcp:65536", "tcp6:99999", "haproxy:tcp:99999", f"tls:{self.pems}:port=70000",
                     "haproxy:haproxy:tcp:99999", "tcp:-1"):  # fmt: skip
            self.assertIn("is no port", self.problem(text))

    def test_what_is_wrong_is_not_said_in_python(self) -> None:
        for text, words in (
            ("tcp:", "'' is not a number"),
            ("tcp:8080:backlog=many", "'many' is not a number"),
            ("unix:/x:mode=zz", "'zz' is not a number"),
            ("tcp", "port= is missing"),
            ("systemd", "domain= is missing"),
            ("tcp:8080:nonsense=1", "it does not take nonsense="),
            ("tcp:8080:interface=::1", "interface= is given twice"),
            ("tcp:1:2:3:4:5", "too many parts"),
        ):
            problem = self.problem(text)
            self.assertTrue(problem.startswith(words), problem)

    def test_a_key_of_another_certificate(self) -> None:
        other, _ = self.authority.issue("unit1.example", name="other")
        wrong = self.problem(f"ssl:443:privateKey={other}:certKey={self.certificate}")
        self.assertIn("do not match", wrong)

    def test_files_that_are_no_certificates(self) -> None:
        self.certificate.write_text("nonsense")
        self.assertIn("no start line", self.problem(self.ssl))
        self.certificate.unlink()
        self.assertIn(f"{self.certificate}: No such file", self.problem(self.ssl))
        (self.pems / "a.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense")
        self.assertIn("bad end line", self.problem(self.tls))

    def test_a_directory_without_a_pair(self) -> None:
        (self.pems / "a.pem").write_bytes(self.key.read_bytes())
        self.assertIn("is there a certificate, with its own key?", self.problem(self.tls))
        (self.pems / "a.pem").unlink()
        self.assertIn("no .pem file", self.problem(self.tls))

    def test_a_certificate_of_a_directory_without_its_key(self) -> None:
        other_key, other = self.authority.issue("other.example", name="other")
        (self.pems / "b.pem").write_bytes(other.read_bytes() + self.key.read_bytes())
        self.assertIn("b.pem: its key is in no .pem file", self.problem(self.tls))
        (self.pems / "b.pem").write_bytes(other.read_bytes())
        self.assertIn("b.pem: its key is in no .pem file", self.problem(self.tls))
        (self.pems / "key.pem").write_bytes(other_key.read_bytes())
        self.assertIsNone(endpoint_problem(self.tls, reactor, is_start=True))

    def test_a_socket_of_systemd_is_missed_only_where_systemd_starts_us(self) -> None:
        text = "systemd:domain=INET:index=0"
        self.assertIsNone(endpoint_problem(text, reactor, is_start=False))
        self.assertIn("start the .socket unit", self.problem(text))


class ProxiedTests(ListeningTestCase):
    """``haproxy:`` before whatever endpoint."""

    def layers(self, made: Any, site: Factory) -> list[str]:
        """What is around `site`, from the outside in."""
        found = []
        while made is not site:
            found.append(type(made).__name__)
            made = made.wrappedFactory
        return found

    def test_the_header_is_read_by_us(self) -> None:
        site = Factory.forProtocol(Protocol)
        for text, layers in (
            ("haproxy:tcp:8080", ["ProxiedFactory"]),
            ("haproxy:haproxy:tcp:8080", ["ProxiedFactory", "ProxiedFactory"]),
            ("haproxy:" + self.ssl, ["TLSMemoryBIOFactory", "ProxiedFactory"]),
            ("haproxy:" + self.tls, ["TLSMemoryBIOFactory", "ProxiedFactory"]),
        ):
            self.assertEqual(self.layers(EndpointPreview(text).factory(site), site), layers)

    def test_a_listener_does_as_rehearsed(self) -> None:
        site = Factory.forProtocol(Protocol)
        memory = MemoryReactor()
        Listener("listen", "haproxy:tcp:8080", site, memory).bind()
        self.assertEqual(self.layers(memory.tcpServers[0][1], site), ["ProxiedFactory"])


class RehearsalTests(ListeningTestCase):
    def serial(self, text: str, host: str = "") -> int:
        return EndpointPreview(text).certificate(host).serial_number

    def test_it_shows_what_a_client_would_see(self) -> None:
        before = self.serial(self.ssl)
        self.assertEqual(self.serial(self.ssl), before)
        self.assertEqual(self.serial("haproxy:" + self.ssl), before)
        self.renew()
        self.assertNotEqual(self.serial(self.ssl), before)

    def test_it_chooses_by_name_as_the_endpoint_does(self) -> None:
        self.put("b", "unit2.example")
        rehearsal = EndpointPreview(self.tls)
        shown = {
            rehearsal.certificate(host).subject.rfc4514_string()
            for host in ("unit1.example", "unit2.example")
        }
        self.assertEqual(shown, {"CN=unit1.example", "CN=unit2.example"})


class RereadTests(ListeningTestCase):
    def listener(self, text: str) -> Listener:
        port = type("Port", (), {"stopListening": lambda _: None})()
        self.factory = Factory.forProtocol(Protocol)
        self.factory.noisy = False
        listener = Listener("listen", text, self.factory, reactor)
        listener.port = port
        port.factory = EndpointPreview(text).factory(self.factory) if text.startswith("s") else None
        if port.factory is not None:
            port.factory.doStart()
        self.port: Any = port
        return listener

    def test_the_port_goes_on_with_a_new_factory(self) -> None:
        listener = self.listener(self.ssl)
        before = self.port.factory
        self.renew()
        replace = listener.reread()
        self.assertIs(self.port.factory, before, "nothing is replaced yet")
        told = replace()
        self.assertIsNot(self.port.factory, before)
        self.assertIs(self.port.factory.wrappedFactory, self.factory)
        self.assertEqual(self.factory.numPorts, 1, "the site never took itself for stopped")
        self.assertIn(f"{EndpointPreview(self.ssl).certificate().serial_number:x}", told)
        self.assertNotIn("BEGIN", told)

    def test_a_broken_file_is_found_before_anything_is_replaced(self) -> None:
        listener = self.listener(self.ssl)
        before = self.port.factory
        self.certificate.write_text("nonsense")
        self.assertRaises(ValueError, listener.reread)
        self.assertIs(self.port.factory, before)

    def test_an_endpoint_without_a_certificate_has_nothing_to_read(self) -> None:
        self.assertIsNone(self.listener("tcp:0").reread())
