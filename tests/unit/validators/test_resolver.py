"""The resolver of the validators: shared lookups, and a limit even if no lookup ever ends."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from topicsvc.validators.resolver import CoalescingResolver, ReactorWithResolver


@implementer(IHostnameResolver)
class FakeResolver:
    """A resolver whose lookups end when the test says so."""

    def __init__(self) -> None:
        self.lookups: list[tuple[str, Any]] = []

    def resolveHostName(self, receiver: Any, name: str, *_: Any, **__: Any) -> Any:
        self.lookups.append((name, receiver))

    def complete(self, number: int, *addresses: str) -> None:
        _, receiver = self.lookups[number]
        for address in addresses:
            receiver.addressResolved(IPv4Address("TCP", address, 80))
        receiver.resolutionComplete()


class ResolverTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.inner = MemoryReactorClock()
        self.resolver = FakeResolver()
        self.coalescing = CoalescingResolver(self.inner, max_lookups=3)
        self.reactor = ReactorWithResolver(self.inner, self.coalescing)
        # The reactor's resolver may be replaced after the other was made.
        self.inner.installNameResolver(self.resolver)

    def connect(self, host: str, reactor: Any = None) -> Any:
        endpoint = HostnameEndpoint(reactor or self.reactor, host, 80)
        return endpoint.connect(Factory.forProtocol(Protocol))

    @property
    def connecting(self) -> list[str]:
        return [host for host, *_ in self.inner.tcpClients]


class CoalescingResolverTests(ResolverTestCase):
    def test_connections_to_the_same_host_share_one_lookup(self) -> None:
        connecting = [self.connect("a.example") for _ in range(3)]
        self.assertEqual([name for name, _ in self.resolver.lookups], ["a.example"])
        self.resolver.complete(0, "192.0.2.1")
        self.assertEqual(self.connecting, ["192.0.2.1"] * 3)
        for each in connecting:
            self.assertNoResult(each)
        self.connect("a.example")
        self.assertEqual(len(self.resolver.lookups), 2)

    def test_an_abandoned_lookup_counts_and_its_result_is_used(self) -> None:
        for name in "abc":
            abandoned = self.connect(f"{name}.example")
            abandoned.cancel()
            self.failureResultOf(abandoned)
        self.failureResultOf(self.connect("d.example"))
        self.assertEqual(len(self.resolver.lookups), 3)
        self.connect("a.example")
        self.resolver.complete(0, "192.0.2.1")
        self.assertEqual(self.connecting, ["192.0.2.1"])
        self.assertNoResult(self.connect("d.example"))
        self.assertEqual(len(self.coalescing), 3)

    def test_a_name_without_an_address(self) -> None:
        connecting = self.connect("a.example")
        self.resolver.complete(0)
        self.failureResultOf(connecting)
        self.assertEqual(len(self.coalescing), 0)


class ReactorWithResolverTests(ResolverTestCase):
    def test_lookups_of_other_owners_are_not_limited(self) -> None:
        for name in "abc":
            self.connect(f"{name}.example")
        self.failureResultOf(self.connect("d.example"))
        broker = self.connect("broker.example", self.inner)
        self.assertNoResult(broker)
        self.assertEqual(self.resolver.lookups[-1][0], "broker.example")

    def test_a_resolver_that_is_installed_replaces_its_own_only(self) -> None:
        other = FakeResolver()
        self.assertIs(self.reactor.installNameResolver(other), self.coalescing)
        self.connect("a.example")
        self.assertEqual([name for name, _ in other.lookups], ["a.example"])
        self.assertIs(self.inner.nameResolver, self.resolver)
