"""Endpoints: wrong endpoint strings, the certificates they show, and certificates read again."""

from __future__ import annotations

import socket
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
        """Write a file with a key and a certificate."""
        key, certificate = self.authority.issue(*(hosts or ("unit1.example",)), name=name)
        (self.pems / f"{name}.pem").write_bytes(key.read_bytes() + certificate.read_bytes())

    def renew(self) -> None:
        self.authority.issue("unit1.example")


class EndpointProblemTests(ListeningTestCase):
    def problem(self, text: str) -> str:
        return endpoint_problem(text, reactor, is_start=True) or ""

    def test_valid_endpoints_have_no_problem(self) -> None:
        for text in ("tcp:8080", "haproxy:tcp:8080:interface=127.0.0.1", self.ssl, self.tls):
            self.assertEqual(self.problem(text), "")

    def test_port_numbers_out_of_range(self) -> None:
        for text in ("tcp:65536", "tcp6:99999", "haproxy:tcp:99999", f"tls:{self.pems}:port=70000",
                     "haproxy:haproxy:tcp:99999", "tcp:-1"):  # fmt: skip
            self.assertIn("is not a port from 0 to 65535", self.problem(text))

    def test_parser_errors_are_explained(self) -> None:
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

    def test_the_key_of_another_certificate(self) -> None:
        other, _ = self.authority.issue("unit1.example", name="other")
        wrong = self.problem(f"ssl:443:privateKey={other}:certKey={self.certificate}")
        self.assertIn("do not match", wrong)

    def test_files_without_a_certificate(self) -> None:
        self.certificate.write_text("nonsense")
        self.assertIn("no start line", self.problem(self.ssl))
        self.certificate.unlink()
        self.assertIn(f"{self.certificate}: No such file", self.problem(self.ssl))
        (self.pems / "a.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense")
        self.assertIn("bad end line", self.problem(self.tls))

    def test_a_directory_without_a_certificate(self) -> None:
        (self.pems / "a.pem").write_bytes(self.key.read_bytes())
        self.assertIn("check the certificate and its key", self.problem(self.tls))
        (self.pems / "a.pem").unlink()
        self.assertIn("no .pem file", self.problem(self.tls))

    def test_a_certificate_in_a_directory_without_its_key(self) -> None:
        other_key, other = self.authority.issue("other.example", name="other")
        (self.pems / "b.pem").write_bytes(other.read_bytes() + self.key.read_bytes())
        self.assertIn("b.pem: no .pem file", self.problem(self.tls))
        (self.pems / "b.pem").write_bytes(other.read_bytes())
        self.assertIn("b.pem: no .pem file", self.problem(self.tls))
        (self.pems / "key.pem").write_bytes(other_key.read_bytes())
        self.assertIsNone(endpoint_problem(self.tls, reactor, is_start=True))

    def test_a_missing_systemd_socket_is_a_problem_only_at_the_start(self) -> None:
        text = "systemd:domain=INET:index=0"
        self.assertIsNone(endpoint_problem(text, reactor, is_start=False))
        self.assertIn("start the .socket unit", self.problem(text))


class ProxiedTests(ListeningTestCase):
    """The ``haproxy:`` prefix before each kind of endpoint."""

    def layers(self, factory: Any, site: Factory) -> list[str]:
        """The names of the factories around `site`, outermost first."""
        found = []
        while factory is not site:
            found.append(type(factory).__name__)
            factory = factory.wrappedFactory
        return found

    def test_the_header_is_parsed_by_topicsvc_and_outside_tls(self) -> None:
        site = Factory.forProtocol(Protocol)
        for text, layers in (
            ("haproxy:tcp:8080", ["ProxiedFactory"]),
            ("haproxy:haproxy:tcp:8080", ["ProxiedFactory", "ProxiedFactory"]),
            ("haproxy:" + self.ssl, ["TLSMemoryBIOFactory", "ProxiedFactory"]),
            ("haproxy:" + self.tls, ["TLSMemoryBIOFactory", "ProxiedFactory"]),
        ):
            self.assertEqual(self.layers(EndpointPreview(text).factory(site), site), layers)

    def test_a_listener_uses_the_same_factories_as_the_preview(self) -> None:
        site = Factory.forProtocol(Protocol)
        memory = MemoryReactor()
        Listener("listen", "haproxy:tcp:8080", site, memory).bind()
        self.assertEqual(self.layers(memory.tcpServers[0][1], site), ["ProxiedFactory"])


class AcceptedConnectionTests(ListeningTestCase):
    def test_small_responses_do_not_wait_for_acknowledgements(self) -> None:
        listening = socket.socket()
        self.addCleanup(listening.close)
        memory = MemoryReactor()
        listen = memory.listenTCP

        def listen_on_a_socket(*arguments: Any, **options: Any) -> Any:
            port = listen(*arguments, **options)
            port.socket = listening
            return port

        self.patch(memory, "listenTCP", listen_on_a_socket)
        Listener("listen", "tcp:8080", Factory.forProtocol(Protocol), memory).bind()
        self.assertTrue(listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            self.assertTrue(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


class EndpointPreviewTests(ListeningTestCase):
    def serial(self, text: str, host: str = "") -> int:
        return EndpointPreview(text).certificate(host).serial_number

    def test_it_returns_the_certificate_that_a_client_would_see(self) -> None:
        before = self.serial(self.ssl)
        self.assertEqual(self.serial(self.ssl), before)
        self.assertEqual(self.serial("haproxy:" + self.ssl), before)
        self.renew()
        self.assertNotEqual(self.serial(self.ssl), before)

    def test_it_selects_the_certificate_by_server_name(self) -> None:
        self.put("b", "unit2.example")
        preview = EndpointPreview(self.tls)
        shown = {
            preview.certificate(host).subject.rfc4514_string()
            for host in ("unit1.example", "unit2.example")
        }
        self.assertEqual(shown, {"CN=unit1.example", "CN=unit2.example"})


class ReadCertificatesTests(ListeningTestCase):
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

    def test_the_port_gets_a_new_factory(self) -> None:
        listener = self.listener(self.ssl)
        before = self.port.factory
        self.renew()
        replace = listener.read_certificates()
        self.assertIs(self.port.factory, before, "nothing is replaced yet")
        description = replace()
        self.assertIsNot(self.port.factory, before)
        self.assertIs(self.port.factory.wrappedFactory, self.factory)
        self.assertEqual(self.factory.numPorts, 1, "the site was not stopped")
        self.assertIn(f"{EndpointPreview(self.ssl).certificate().serial_number:x}", description)
        self.assertNotIn("BEGIN", description)

    def test_a_broken_file_replaces_nothing(self) -> None:
        listener = self.listener(self.ssl)
        before = self.port.factory
        self.certificate.write_text("nonsense")
        self.assertRaises(ValueError, listener.read_certificates)
        self.assertIs(self.port.factory, before)

    def test_an_endpoint_without_tls_has_no_certificates(self) -> None:
        self.assertIsNone(self.listener("tcp:0").read_certificates())
