"""The send queue of a session, in the real service: the fast path is in use.

If the internals of a library change, the service is slower and works otherwise, so no other test
notices. The service listens on each kind of endpoint that docs/configuration.md allows, and a
real client starts a session there.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import endpoints, reactor, ssl
from twisted.internet.defer import inlineCallbacks
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.systemd import ListenFDs
from twisted.trial import util
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from tests.support.certificates import Authority
from tests.support.processes import until
from tests.support.subscriber import Subscriber
from topicsvc import config
from topicsvc.delivery.tls_records import DirectRecords
from topicsvc.delivery.transports import SocketSendQueue, TlsSendQueue
from topicsvc.interfaces import Message
from topicsvc.listening.tls import TlsTransport
from topicsvc.service import TopicService
from topicsvc.settings import Config
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import RIGHTS, make_key, sign_token, write_key
from topicsvc.websocket.server import CLOSE_TIMEOUT

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
PROXY_HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n"
LOOPBACK = "interface=127.0.0.1"


class HeaderFirst(ProtocolWrapper):
    """A connection that begins with a PROXY header, before TLS."""

    def makeConnection(self, transport: Any) -> None:
        transport.write(PROXY_HEADER)
        super().makeConnection(transport)


@implementer(IStreamClientEndpoint)
class ProxiedClient:
    """A client endpoint whose connections are `HeaderFirst`."""

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    def connect(self, factory: Any) -> Any:
        wrapping: Any = WrappingFactory(factory)
        wrapping.protocol = HeaderFirst
        return self.endpoint.connect(wrapping).addCallback(lambda made: made.wrappedProtocol)


class FastPathTests(TestCase):
    # Twisted makes these calls, not the service.
    suppress = (
        util.suppress(message="Passing pyOpenSSL", category=DeprecationWarning),
        util.suppress(message="X509.* is deprecated", category=DeprecationWarning),
    )

    def setUp(self) -> None:
        # A UNIX socket's path has room for 107 bytes.
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.key = make_key()
        write_key(self.directory / "key", self.key)
        authority = Authority(self.directory)
        key, certificate = authority.issue("localhost")
        self.trusted = ssl.Certificate.loadPEM(authority.ca_file.read_bytes())
        self.ssl = f"ssl:0:privateKey={key}:certKey={certificate}:{LOOPBACK}"
        pems = self.directory / "pems"
        pems.mkdir()
        (pems / "localhost.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
        self.tls = f"tls:{pems}:port=0:{LOOPBACK}"
        self.unix = self.directory / "socket"

    def settings(self, endpoint: str) -> Config:
        return config.load(
            f"""
            listen = ["{endpoint}"]
            unit_url = "http://localhost/"
            hosts = ["127.0.0.1"]
            [validator]
            kind = "local"
            key_file = "{self.directory / "key"}"
            [stop]
            drain = 0
            """
        )

    def serve(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.service = TopicService(self.settings(endpoint), reactor)
        self.service.read_settings = lambda: self.settings(endpoint)
        self.service.privilegedStartService()
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def client(self) -> Any:
        if "unix:" in self.endpoint:
            client: Any = UNIXClientEndpoint(reactor, str(self.unix))
        else:
            [port] = self.service.ports
            client = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        if self.endpoint.startswith("haproxy:"):
            client = ProxiedClient(client)
        if "ssl:" in self.endpoint or "tls:" in self.endpoint:
            options = ssl.optionsForClientTLS("localhost", trustRoot=self.trusted)
            return wrapClientTLS(options, client)
        return client

    @inlineCallbacks
    def join(self) -> Any:
        """A session from the upgrade to Success; fires with its client and its protocol."""
        subscriber = Subscriber()
        subscriber.path = TOPIC.websocket_path
        life = int(reactor.seconds()) + 600
        subscriber.token = sign_token(self.key, "x", [TOPIC.path], RIGHTS, life)
        known = set(self.service.websocket_server._wheel)
        yield connectProtocol(self.client(), subscriber)
        is_subscribed = yield subscriber.subscribed
        self.assertTrue(is_subscribed, subscriber.replies)
        [session] = set(self.service.websocket_server._wheel) - known
        self.addCleanup(subscriber.leave)
        return subscriber, session

    @inlineCallbacks
    def assert_delivered_at_once(self, subscriber: Subscriber, session: Any) -> Any:
        """A published message arrives without use of the transport's buffer."""
        send_queue = session._send_queue
        buffered: list[bytes] = []
        for layer in {send_queue._lower, getattr(send_queue, "_tls", send_queue._lower)}:
            self.patch(layer, "write", buffered.append)
        self.service.broker.publish(Message(TOPIC, None, b'"for all"'))
        yield until(lambda: subscriber.messages, "the message has arrived", 10)
        self.assertEqual(subscriber.messages, [b'{"From":null,"Body":"for all"}'])
        self.assertEqual((buffered, send_queue.waiting), ([], 0))

    @inlineCallbacks
    def assert_fast_path(self, endpoint: str, kind: type) -> Any:
        self.serve(endpoint)
        subscriber, session = yield self.join()
        self.assertIs(type(session._send_queue), kind)
        yield self.assert_delivered_at_once(subscriber, session)
        return subscriber, session

    @inlineCallbacks
    def assert_fast_path_over_tls(self, endpoint: str) -> Any:
        first, before = yield self.assert_fast_path(endpoint, TlsSendQueue)
        # After a reload, the port has other TLS contexts.
        self.service.reload()
        subscriber, session = yield self.join()
        self.assertIs(type(session._send_queue), TlsSendQueue)
        yield self.assert_delivered_at_once(subscriber, session)
        for each in (before, session):
            self.assertIs(type(each._send_queue._tls), TlsTransport)
            self.assertIs(type(each._send_queue._records), DirectRecords)
        contexts = {each._send_queue._tls.getHandle().get_context() for each in (before, session)}
        self.assertEqual(len(contexts), 2)
        # Clients that close TLS without a WebSocket close frame: no deadline is needed.
        first.leave()
        subscriber.leave()
        yield until(
            lambda: not len(self.service.websocket_server),
            "both connections are closed",
            CLOSE_TIMEOUT - 1,
        )

    def test_tcp(self) -> Any:
        return self.assert_fast_path(f"tcp:0:{LOOPBACK}", SocketSendQueue)

    def test_tcp_behind_a_proxy(self) -> Any:
        return self.assert_fast_path(f"haproxy:tcp:0:{LOOPBACK}", SocketSendQueue)

    def test_a_certificate(self) -> Any:
        return self.assert_fast_path_over_tls(self.ssl)

    def test_a_certificate_behind_a_proxy(self) -> Any:
        return self.assert_fast_path_over_tls(f"haproxy:{self.ssl}")

    def test_a_directory_of_certificates(self) -> Any:
        return self.assert_fast_path_over_tls(self.tls)

    def test_a_directory_of_certificates_behind_a_proxy(self) -> Any:
        return self.assert_fast_path_over_tls(f"haproxy:{self.tls}")

    def test_a_unix_socket(self) -> Any:
        return self.assert_fast_path(f"unix:{self.unix}", SocketSendQueue)

    def test_a_unix_socket_behind_a_proxy(self) -> Any:
        return self.assert_fast_path(f"haproxy:unix:{self.unix}", SocketSendQueue)

    def test_a_socket_that_systemd_has_opened(self) -> Any:
        # The port closes the descriptor that it adopts.
        opened = socket.create_server(("127.0.0.1", 0)).detach()
        self.patch(endpoints._SystemdParser, "_sddaemon", ListenFDs([opened]))
        return self.assert_fast_path("systemd:domain=INET:index=0", SocketSendQueue)
