"""The client's address, with and without proxies."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.admission.limits import Limits
from topicsvc.listening.proxy_protocol import ProxiedFactory
from topicsvc.settings import LimitSettings
from topicsvc.web.client_address import initial_address, set_client_address
from topicsvc.web.http_parser import RequestHead

CLIENT = "192.0.2.7"
PROXY = "198.51.100.1"
TRUSTED = (ip_network("198.51.100.0/24"),)


def transport(host: str) -> StringTransport:
    return StringTransport(peerAddress=IPv4Address("TCP", host, 50001))


UNIX = StringTransport(peerAddress=UNIXAddress("/run/client"))


class InitialAddressTests(SynchronousTestCase):
    def test_a_client_is_counted_under_its_address(self) -> None:
        self.assertEqual(initial_address(transport(CLIENT), TRUSTED), CLIENT)

    def test_behind_a_trusted_proxy_the_address_is_not_known_yet(self) -> None:
        self.assertIsNone(initial_address(transport(PROXY), TRUSTED))

    def test_before_a_proxy_header_outside_tls_the_address_is_not_known_yet(self) -> None:
        """Behind ``haproxy:ssl:``, TLS is inside the wrapper of the PROXY protocol."""
        wrapper: Any = ProxiedFactory(Factory.forProtocol(Protocol)).buildProtocol(None)
        wrapper.makeConnection(transport(PROXY))
        tls: Any = TLSMemoryBIOProtocol(None, None, False)
        tls.transport = wrapper
        self.assertIsNone(initial_address(tls, ()))
        tls.transport = transport(CLIENT)
        self.assertEqual(initial_address(tls, ()), CLIENT)

    def test_before_a_proxy_header_the_address_is_not_known_yet(self) -> None:
        wrapper = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
        wrapper.makeConnection(transport(CLIENT))
        self.assertIsNone(initial_address(wrapper, ()))

    def test_a_unix_socket_has_no_address(self) -> None:
        self.assertIsNone(initial_address(UNIX, ()))


class SetClientAddressTests(SynchronousTestCase):
    def set_address(self, transport: Any, **headers: str) -> ClientQuota:
        clock = Clock()
        quota = ClientQuota.admit(Limits(clock, clock.seconds), None)
        head = RequestHead(b"GET", b"/", 1)
        for name, value in headers.items():
            head.headers[name.replace("_", "-").encode()] = [value.encode()]
        set_client_address(quota, transport, head, LimitSettings(trusted_proxies=TRUSTED))
        return quota

    def test_without_a_proxy_the_log_has_address_and_port(self) -> None:
        quota = self.set_address(transport(CLIENT))
        self.assertEqual((quota.address, quota.peer), (CLIENT, f"{CLIENT}:50001"))

    def test_a_trusted_proxy_s_header_gives_the_address(self) -> None:
        quota = self.set_address(transport(PROXY), x_forwarded_for=CLIENT)
        self.assertEqual((quota.address, quota.peer), (CLIENT, CLIENT))
        quota = self.set_address(transport(PROXY), forwarded=f"for={CLIENT}")
        self.assertEqual((quota.address, quota.peer), (CLIENT, CLIENT))

    def test_other_clients_headers_are_ignored(self) -> None:
        quota = self.set_address(transport(CLIENT), x_forwarded_for="203.0.113.9")
        self.assertEqual((quota.address, quota.peer), (CLIENT, f"{CLIENT}:50001"))

    def test_a_unix_socket_has_no_address(self) -> None:
        quota = self.set_address(UNIX, x_forwarded_for=CLIENT)
        self.assertIsNone(quota.address)
        self.assertIn("/run/client", quota.peer)
