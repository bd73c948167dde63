"""The service with TLS: both kinds of endpoint, certificate checks and close codes."""

from __future__ import annotations

import socket
import ssl

from websockets.exceptions import ConnectionClosed

from tests.support.certificates import Authority
from tests.support.twistd_case import WEBSOCKET_PATH, TwistdTestCase


class TlsTests(TwistdTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority(self.directory)

    def test_ssl_endpoint(self) -> None:
        key, cert = self.authority.issue("unit1.example", "*.unit1.example")
        endpoint = f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"
        [port] = self.start("--config", str(self.configure(endpoint))).ports
        context = self.authority.client_context()
        self.assert_delivers(port, "cell1.unit1.example", "", context)
        self.assert_delivers(port, "unit1.example", "/cell1", context)

    def test_tls_endpoint_selects_the_certificate_by_host_name(self) -> None:
        certificates = self.directory / "certificates"
        certificates.mkdir()
        for number, host in enumerate(("unit1.example", "cell1.unit1.example")):
            key, cert = self.authority.issue(host, name=f"host{number}")
            (certificates / f"{host}.pem").write_bytes(cert.read_bytes() + key.read_bytes())
        endpoint = f"tls:{certificates}:port=0:interface=127.0.0.1"
        [port] = self.start("--config", str(self.configure(endpoint))).ports
        context = self.authority.client_context()
        self.assert_delivers(port, "cell1.unit1.example", "", context)
        self.assert_delivers(port, "unit1.example", "/cell1", context)

    def test_a_session_is_not_resumed(self) -> None:
        """Each connection has its own key exchange, whatever session its client keeps."""
        key, cert = self.authority.issue("unit1.example")
        certificates = self.directory / "certificates"
        certificates.mkdir()
        (certificates / "unit1.example.pem").write_bytes(cert.read_bytes() + key.read_bytes())
        endpoints = (
            f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1",
            f"tls:{certificates}:port=0:interface=127.0.0.1",
        )
        for port in self.start("--config", str(self.configure(*endpoints))).ports:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                with self.subTest(port=port, version=version):
                    context = self.authority.client_context()
                    context.minimum_version = context.maximum_version = version
                    session = self.read_session(port, context, None)
                    self.assertIsNotNone(session)
                    self.read_session(port, context, session)

    def read_session(
        self, port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
    ) -> ssl.SSLSession | None:
        """Connect with `session`; return what the client knows after a response."""
        raw = socket.create_connection(("127.0.0.1", port), timeout=60)
        with context.wrap_socket(raw, server_hostname="unit1.example", session=session) as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: unit1.example\r\nConnection: close\r\n\r\n")
            while tls.recv(4096):
                pass
            self.assertFalse(tls.session_reused)
            return tls.session

    def test_a_client_rejects_a_wrong_host_name_and_an_unknown_authority(self) -> None:
        key, cert = self.authority.issue("unit1.example")
        endpoint = f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"
        [port] = self.start("--config", str(self.configure(endpoint))).ports
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.connect(
                port, "cell1.unit1.example", WEBSOCKET_PATH, self.authority.client_context()
            )
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.connect(port, "unit1.example", "/", ssl.create_default_context())

    def test_a_close_code_arrives_over_tls(self) -> None:
        key, cert = self.authority.issue("*.unit1.example")
        endpoint = f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"
        [port] = self.start("--config", str(self.configure(endpoint))).ports
        for message, code in (("x" * 100_000, 1009), ("hello", 1008), (b"\xff", 1003)):
            client = self.connect(
                port, "cell1.unit1.example", WEBSOCKET_PATH, self.authority.client_context()
            )
            client.send(message)
            closed = None
            while closed is None:
                try:
                    client.recv()
                except ConnectionClosed as error:
                    closed = error
            self.assertEqual(closed.rcvd.code, code)
