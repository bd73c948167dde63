"""Endpoints: wrong endpoint strings, the certificates they show, and certificates read again."""

from __future__ import annotations

import datetime
import socket
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import Authority
from topicsvc.listening.endpoints import read_contexts
from topicsvc.listening.listener import MAX_ACCEPTS, Listener, endpoint_problem


class ListeningTestCase(SynchronousTestCase):
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
        self.assertIn("no line begins with -----BEGIN", self.problem(self.ssl))
        self.certificate.unlink()
        self.assertIn(f"{self.certificate}: No such file", self.problem(self.ssl))
        (self.pems / "a.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense")
        self.assertIn("the PEM block in line 1 has no end", self.problem(self.tls))

    def test_a_directory_without_a_certificate(self) -> None:
        (self.pems / "a.pem").write_bytes(self.key.read_bytes())
        self.assertIn("whose key is there too", self.problem(self.tls))
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

    def test_kinds_of_endpoints_that_have_no_clients(self) -> None:
        for text, words in (
            ("stdio:", "it has no clients: serve on tcp:"),
            ("stdio", "it has no clients"),
            ("haproxy:stdio:", "it has no clients"),
            ("autobahn:tcp\\:8080", "write only the endpoint in it"),
        ):
            self.assertIn(words, self.problem(text))

    def test_arguments_of_tls_endpoints(self) -> None:
        for text, words in (
            ("ssl:443", "privateKey= is missing"),
            ("ssl", "port= is missing"),
            ("tls", "path= is missing"),
            (f"{self.ssl}:nonsense=1", "it does not take nonsense="),
            (f"{self.ssl}:sslmethod=TLSv1_METHOD", "leave out sslmethod="),
            (f"{self.ssl}:backlog=many", "'many' is not a number"),
            (f"tls:{self.pems}:port=https", "'https' is not a number"),
        ):
            self.assertIn(words, self.problem(text))

    def test_a_problem_is_one_line_at_the_check_and_at_the_start(self) -> None:
        (self.pems / "b.pem").symlink_to("nowhere")
        for is_start in (False, True):
            problem = endpoint_problem(self.tls, reactor, is_start) or ""
            self.assertIn(f"{self.pems}/b.pem: No such file", problem)
            self.assertNotIn("\n", problem)


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
        """A proxy sends the header first, whether or not it encrypts what follows."""
        site = Factory.forProtocol(Protocol)
        for text, layers in (
            ("haproxy:tcp:8080", ["ProxiedFactory"]),
            ("haproxy:haproxy:tcp:8080", ["ProxiedFactory", "ProxiedFactory"]),
            ("haproxy:" + self.ssl, ["ProxiedFactory", "_TlsFactory"]),
            ("haproxy:" + self.tls, ["ProxiedFactory", "_TlsFactory"]),
            (self.tls, ["_TlsFactory"]),
        ):
            memory = MemoryReactorClock()
            Listener("listen", text, site, memory).bind()
            self.assertEqual(self.layers(memory.tcpServers[0][1], site), layers)

    def test_the_log_names_the_site_and_its_layers(self) -> None:
        memory = MemoryReactorClock()
        for text, name in (
            ("haproxy:tcp:1", "Factory (PROXY)"),
            ("haproxy:" + self.ssl, "Factory (TLS) (PROXY)"),
        ):
            Listener("listen", text, Factory.forProtocol(Protocol), memory).bind()
            self.assertEqual(memory.tcpServers[-1][1].logPrefix(), name)


class AcceptedConnectionTests(ListeningTestCase):
    def test_small_responses_do_not_wait_for_acknowledgements(self) -> None:
        listening = socket.socket()
        self.addCleanup(listening.close)
        memory = MemoryReactorClock()
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


class AcceptTests(ListeningTestCase):
    def test_few_connections_are_accepted_in_one_iteration(self) -> None:
        """Twisted's port accepts 100, and changes the number with each call."""
        port: Any = Port(0, Factory.forProtocol(Protocol))
        port.numberAccepts = 100
        accepted: list[int] = []
        self.patch(Port, "doRead", lambda port: accepted.append(port.numberAccepts))
        memory = MemoryReactorClock()
        self.patch(memory, "listenTCP", lambda *arguments, **options: port)
        Listener("listen", "tcp:8080", Factory.forProtocol(Protocol), memory).bind()
        for before in (100, 0, 120):
            port.numberAccepts = before
            port.doRead()
        self.assertEqual(accepted, [MAX_ACCEPTS] * 3)


class ReadCertificatesTests(ListeningTestCase):
    def listener(self, text: str) -> Listener:
        self.factory = Factory.forProtocol(Protocol)
        self.factory.noisy = False
        listener = Listener("listen", text, self.factory, MemoryReactorClock())
        listener.bind()
        return listener

    def serial(self, listener: Listener) -> int:
        """The serial number of the certificate that new connections get."""
        contexts: Any = listener._contexts
        return int(contexts._current.default.certificate.serial_number)

    def test_new_connections_get_the_new_certificate(self) -> None:
        for text in (self.ssl, self.tls, "haproxy:" + self.ssl, "haproxy:" + self.tls):
            listener = self.listener(text)
            before = self.serial(listener)
            self.renew()
            self.put("a")
            replace: Any = listener.read_certificates()
            self.assertEqual(self.serial(listener), before, "nothing is replaced yet")
            description = replace()
            after = read_contexts(text).default.certificate.serial_number
            self.assertNotEqual(after, before)
            self.assertEqual(self.serial(listener), after)
            self.assertIn(f"(serial {after:x}, until 20", description)
            self.assertNotIn("BEGIN", description)

    def test_a_broken_file_replaces_nothing(self) -> None:
        listener = self.listener(self.ssl)
        before = self.serial(listener)
        self.certificate.write_text("nonsense")
        self.assertRaises(ValueError, listener.read_certificates)
        self.assertEqual(self.serial(listener), before)

    def test_an_endpoint_without_tls_has_no_certificates(self) -> None:
        self.assertIsNone(self.listener("tcp:0").read_certificates())


class ExpiryTests(ListeningTestCase):
    """When the first certificate of an endpoint expires."""

    def listener(self, text: str) -> Listener:
        return Listener("listen", text, Factory.forProtocol(Protocol), reactor)

    def days(self, expiry: float | None) -> int:
        assert expiry is not None
        return round((expiry - time.time()) / 86400)

    def issue(self, name: str, days: int, *hosts: str) -> None:
        lifetime = datetime.timedelta(days=days)
        key, certificate = self.authority.issue(*hosts, name=name, lifetime=lifetime)
        (self.pems / f"{name}.pem").write_bytes(key.read_bytes() + certificate.read_bytes())

    def test_an_endpoint_without_tls_has_no_certificate(self) -> None:
        self.assertIsNone(self.listener("tcp:8080").certificate_expiry)

    def test_an_endpoint_with_one_certificate(self) -> None:
        self.assertEqual(self.days(self.listener(self.ssl).certificate_expiry), 80)

    def test_the_first_certificate_of_a_directory_that_clients_see(self) -> None:
        self.issue("a", 50, "unit1.example")
        self.issue("cells", 20, "*.unit1.example")
        self.assertEqual(self.days(self.listener(self.tls).certificate_expiry), 20)

    def test_a_reload_sets_it_when_it_puts_the_certificates_in_place(self) -> None:
        listener = self.listener(self.tls)
        self.assertEqual(self.days(listener.certificate_expiry), 80)
        self.issue("a", 9, "unit1.example")
        replace = listener.read_certificates()
        assert replace is not None
        self.assertEqual(self.days(listener.certificate_expiry), 80)
        replace()
        self.assertEqual(self.days(listener.certificate_expiry), 9)
