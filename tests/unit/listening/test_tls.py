"""TLS in memory: which certificate a client sees, and what a wrong client gets."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.tls_files import Party, certificate_pem, key_pem, self_signed
from topicsvc.listening import tls_contexts
from topicsvc.listening.certificates import read_directory
from topicsvc.listening.proxy_protocol import ProxiedEndpoint
from topicsvc.listening.tls import TlsEndpoint
from topicsvc.listening.tls_contexts import ContextSet

NO_APPLICATION_PROTOCOL = 120
"""The alert of RFC 7301, section 3.2."""


class MemoryEndpoint:
    """Keeps the factory that would listen."""

    factory: Any

    def listen(self, factory: Any) -> Any:
        self.factory = factory


class Transport:
    """Keeps what TLS writes."""

    def __init__(self) -> None:
        self.written = b""
        self.is_lost = False

    def write(self, data: bytes) -> None:
        self.written += data

    def loseConnection(self) -> None:
        self.is_lost = True

    abortConnection = loseConnection

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.8", 443)


class TlsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.put("a", "unit1.example", "*.unit1.example")
        self.put("b", "unit2.example")

    def put(self, name: str, *hosts: str, **options: Any) -> None:
        (self.directory / f"{name}.pem").write_bytes(self_signed(*hosts, name=name, **options))

    def contexts(self) -> ContextSet:
        return ContextSet(read_directory(self.directory))

    def serve(self) -> TlsEndpoint:
        memory: Any = MemoryEndpoint()
        endpoint = TlsEndpoint(memory, self.contexts(), Clock())
        endpoint.listen(Factory.forProtocol(Protocol))
        self.factory = memory.factory
        return endpoint

    def accept(self) -> Any:
        transport = Transport()
        server: Any = self.factory.buildProtocol(None)
        server.makeConnection(transport)
        return server

    def shake_hands(
        self, name: bytes | None = None, alpn: list[bytes] | None = None, server: Any = None
    ) -> SSL.Connection:
        """Make a handshake with the server; raises `SSL.Error` if the server sends an alert."""
        server = server or self.accept()
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self.alerts: list[int] = []

        def note_alert(_: SSL.Connection, where: int, value: int) -> None:
            if where & SSL.SSL_CB_ALERT and where & SSL.SSL_CB_READ:
                self.alerts.append(value & 0xFF)

        context.set_info_callback(note_alert)
        if alpn is not None:
            context.set_alpn_protos(alpn)
        client = SSL.Connection(context)
        if name is not None:
            client.set_tlsext_host_name(name)
        client.set_connect_state()
        for _ in range(5):
            try:
                client.do_handshake()
            except SSL.WantReadError:
                server.dataReceived(client.bio_read(65536))
                client.bio_write(server.transport.written)
                server.transport.written = b""
            else:
                break
        return client

    def shown(self, name: bytes | None, server: Any = None) -> str:
        """The common name of the certificate that a client sees."""
        shown = self.shake_hands(name, server=server).get_peer_certificate(as_cryptography=True)
        assert shown is not None
        return shown.subject.rfc4514_string().removeprefix("CN=")


class ServerNameTests(TlsTestCase):
    def test_names_have_no_case(self) -> None:
        self.put("c", "Push.Example", "*.PUSH.example")
        self.serve()
        for name, shown in (
            (b"unit1.example", "a"),
            (b"unit2.example", "b"),
            (b"UNIT2.Example", "b"),
            (b"cell1.UNIT1.example", "a"),
            (b"push.example", "c"),
            (b"PUSH.EXAMPLE", "c"),
            (b"x.push.example", "c"),
            (b"push.example.", "c"),
        ):
            self.assertEqual(self.shown(name), shown, name)

    def test_untrusted_names_get_the_default_certificate_and_no_log_line(self) -> None:
        self.serve()
        for name in (
            *(None, b"nowhere.example", b"\xff\xfe", b"\xc3\xa4.example", b"x" * 255),
            *(b"*.unit2.example", b".", b"..", b"a\nb", b"two.cells.unit1.example", b"192.0.2.1"),
        ):
            self.assertEqual(self.shown(name), "a", name)
        self.assertEqual(self.events, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_the_default_is_the_first_certificate_for_addresses(self) -> None:
        self.put("c", "192.0.2.1")
        self.put("d", "192.0.2.2")
        self.serve()
        self.assertEqual(self.shown(None), "c")
        self.assertEqual(self.shown(b"unit1.example"), "a")

    def test_the_certificate_that_was_issued_last(self) -> None:
        self.put("0", "unit2.example", days_ago=30)
        self.put("c", "unit2.example", days_ago=2)
        self.serve()
        self.assertEqual(self.shown(b"unit2.example"), "b")
        self.put("c", "unit2.example", days_ago=0.5)
        self.serve()
        self.assertEqual(self.shown(b"unit2.example"), "c")


class AlpnTests(TlsTestCase):
    def test_http_1_1_is_selected(self) -> None:
        self.serve()
        for name in (None, b"unit2.example", b"nowhere.example"):
            for offered in ([b"http/1.1"], [b"h2", b"http/1.1"], [b"x" * 255, b"http/1.1"]):
                client = self.shake_hands(name, offered)
                self.assertEqual(client.get_alpn_proto_negotiated(), b"http/1.1")
            self.assertEqual(self.shake_hands(name).get_alpn_proto_negotiated(), b"")

    def assert_alert(self, *offered: bytes) -> None:
        for name in (None, b"unit2.example"):
            server = self.accept()
            self.assertRaises(SSL.Error, self.shake_hands, name, list(offered), server)
            self.assertEqual(self.alerts, [NO_APPLICATION_PROTOCOL], offered)
            self.assertTrue(server.transport.is_lost)

    def test_a_list_without_it_gets_alert_120_and_no_log_line(self) -> None:
        self.serve()
        for offered in ([b"h2"], [b"http/1.0", b"h3"], [b"HTTP/1.1"], [b"http/1.1 "], [b"\xff"]):
            self.assert_alert(*offered)
        self.assertEqual(self.events, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_later_connection_is_not_affected(self) -> None:
        self.serve()
        self.assert_alert(b"h2")
        self.assertEqual(self.shown(b"unit2.example"), "b")

    def test_the_same_without_pyopenssls_internals(self) -> None:
        self.patch(tls_contexts, "_ffi", None)
        self.test_http_1_1_is_selected()
        self.test_a_list_without_it_gets_alert_120_and_no_log_line()
        self.test_a_later_connection_is_not_affected()

    def test_pyopenssls_internals_are_as_expected(self) -> None:
        context: Any = SSL.Context(SSL.TLS_METHOD)
        self.assertTrue(tls_contexts._has_known_internals(context))
        context._context = None
        self.assertFalse(tls_contexts._has_known_internals(context))


class ContextTests(TlsTestCase):
    def test_a_key_that_openssl_cannot_use(self) -> None:
        """Its numbers are those of the certificate's key, except the secret one."""
        keys = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
        numbers = keys[0].private_numbers()
        wrong = rsa.RSAPrivateNumbers(
            *(numbers.p, numbers.q, keys[1].private_numbers().d % numbers.public_numbers.n),
            *(numbers.dmp1 ^ 2, numbers.dmq1 ^ 2, numbers.iqmp, numbers.public_numbers),
        ).private_key(unsafe_skip_rsa_key_validation=True)
        certificate = Party("x", keys[0]).certify(Party("x", keys[0]), ["unit3.example"])
        path = self.directory / "c.pem"
        path.write_bytes(key_pem(wrong) + certificate_pem(certificate))
        text = str(self.assertRaises(ValueError, self.contexts))
        self.assertTrue(text.startswith(f"{path}: "), text)
        self.assertIn("check the certificate and its key", text)

    def test_a_key_that_is_too_small(self) -> None:
        party = Party("x", rsa.generate_private_key(65537, 1024))
        path = self.directory / "c.pem"
        path.write_bytes(
            key_pem(party.key) + certificate_pem(party.certify(party, ["unit3.example"]))
        )
        text = str(self.assertRaises(ValueError, self.contexts))
        refusal = "OpenSSL refuses it (ee key too small): issue another certificate"
        self.assertEqual(text, f"{path}: {refusal}")

    def test_diffie_hellman_parameters(self) -> None:
        served = read_directory(self.directory)
        path = self.directory / "dh"
        for content, words in ((b"", "no start line"), (b"nonsense", "no start line")):
            path.write_bytes(content)
            text = str(self.assertRaises(ValueError, ContextSet, served, path))
            self.assertIn(f"{path}: ", text)
            self.assertIn(words, text)
        path.unlink()
        self.assertIn("No such file", str(self.assertRaises(ValueError, ContextSet, served, path)))

    def test_only_tls_1_2_and_1_3_are_served(self) -> None:
        self.serve()
        for version in (SSL.TLS1_VERSION, SSL.TLS1_1_VERSION):
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_cipher_list(b"ALL:@SECLEVEL=0")
            context.set_max_proto_version(version)
            client = SSL.Connection(context)
            client.set_connect_state()
            self.assertRaises(SSL.WantReadError, client.do_handshake)
            server = self.accept()
            server.dataReceived(client.bio_read(65536))
            client.bio_write(server.transport.written)
            self.assertRaises(SSL.Error, client.do_handshake)


def count_contexts() -> int:
    """The number of TLS contexts in the process."""
    return sum(isinstance(each, SSL.Context) for each in gc.get_objects())


class ProxiedTlsTests(TlsTestCase):
    def test_the_header_names_the_client_before_the_handshake(self) -> None:
        """A connection over a limit is closed before TLS, which is the expensive part."""
        known: list[str] = []

        class Learning(Protocol):
            def peer_known(self) -> None:
                transport: Any = self.transport
                known.append(transport.getPeer().host)

        memory: Any = MemoryEndpoint()
        endpoint = TlsEndpoint(ProxiedEndpoint(memory), self.contexts(), Clock())
        endpoint.listen(Factory.forProtocol(Learning))
        self.factory = memory.factory
        server = self.accept()
        server.dataReceived(b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 ")
        self.assertEqual(known, [])
        server.dataReceived(b"443\r\n")
        self.assertEqual((known, server.transport.written), (["192.0.2.7"], b""))
        self.assertEqual(self.shown(b"unit2.example", server), "b")

    def test_a_client_that_closes_its_half_is_closed(self) -> None:
        """TLS takes over the interfaces of its transport, but it cannot be half closed."""
        memory: Any = MemoryEndpoint()
        endpoint = TlsEndpoint(ProxiedEndpoint(memory), self.contexts(), Clock())
        endpoint.listen(Factory.forProtocol(Protocol))
        server = memory.factory.buildProtocol(None)
        server.makeConnection(Transport())
        server.dataReceived(b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n")
        server.readConnectionLost()
        self.assertTrue(server.transport.is_lost)

    def test_a_header_inside_tls_is_refused(self) -> None:
        memory: Any = MemoryEndpoint()
        TlsEndpoint(ProxiedEndpoint(memory), self.contexts(), Clock()).listen(
            Factory.forProtocol(Protocol)
        )
        server = memory.factory.buildProtocol(None)
        server.makeConnection(Transport())
        server.dataReceived(b"\x16\x03\x01\x02\x00\x01")
        self.assertTrue(server.transport.is_lost)
        [event] = self.events
        self.assertIn("closed 192.0.2.8:443: no valid PROXY protocol header", formatEvent(event))


class ReplaceTests(TlsTestCase):
    def test_new_connections_get_the_new_certificates(self) -> None:
        endpoint = self.serve()
        self.put("b", "unit3.example")
        endpoint.contexts.replace(self.contexts())
        self.assertEqual(self.shown(b"unit3.example"), "b")
        self.assertEqual(self.shown(b"unit2.example"), "a", "the default")

    def test_a_connection_that_has_not_sent_its_name_gets_a_new_one(self) -> None:
        endpoint = self.serve()
        server = self.accept()
        self.put("b", "unit3.example")
        endpoint.contexts.replace(self.contexts())
        self.assertEqual(self.shown(b"unit3.example", server), "b")

    def test_a_connection_that_has_seen_two_replacements_still_has_a_certificate(self) -> None:
        endpoint = self.serve()
        server = self.accept()
        for _ in range(2):
            endpoint.contexts.replace(self.contexts())
        self.assertEqual(self.shown(b"unit2.example", server), "a")

    def test_replaced_contexts_are_freed_without_the_garbage_collector(self) -> None:
        """200 reloads, and handshakes between them, leave nothing for the collector."""
        endpoint = self.serve()
        self.shown(b"unit2.example")
        gc.collect()
        before = count_contexts()
        gc.disable()
        self.addCleanup(gc.enable)
        freed: list[Any] = []
        for _ in range(200):
            contexts = self.contexts()
            weakref.finalize(contexts, freed.append, None)
            endpoint.contexts.replace(contexts)
            del contexts
        self.assertEqual(len(freed), 199, "all but the last")
        self.assertLess(count_contexts() - before, 5)
        self.assertLess(gc.collect(), 50)
