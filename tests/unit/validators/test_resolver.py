"""CoalescingResolver of names: shared, and bounded even where the resolver never comes back."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from topicsvc.validators.resolver import SparingReactor


@implementer(IHostnameResolver)
class Resolver:
    """Keeps what is asked until the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def resolveHostName(self, receiver: Any, name: str, *_: Any, **__: Any) -> Any:
        self.asked.append((name, receiver))

    def answer(self, place: int, *addresses: str) -> None:
        _, receiver = self.asked[place]
        for address in addresses:
            receiver.addressResolved(IPv4Address("TCP", address, 80))
        receiver.resolutionComplete()


class LookupsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.inner = MemoryReactorClock()
        self.resolver = Resolver()
        self.reactor = SparingReactor(self.inner, most=3)
        self.inner.installNameResolver(self.resolver)  # later, and it counts all the same

    def connect(self, host: str) -> Any:
        endpoint = HostnameEndpoint(self.reactor, host, 80)
        return endpoint.connect(Factory.forProtocol(Protocol))

    @property
    def connecting(self) -> list[str]:
        return [host for host, *_ in self.inner.tcpClients]

    def test_all_who_ask_for_a_name_share_one_lookup(self) -> None:
        connecting = [self.connect("a.example") for _ in range(3)]
        self.assertEqual([name for name, _ in self.resolver.asked], ["a.example"])
        self.resolver.answer(0, "192.0.2.1")
        self.assertEqual(self.connecting, ["192.0.2.1"] * 3)
        for each in connecting:
            self.assertNoResult(each)
        self.connect("a.example")
        self.assertEqual(len(self.resolver.asked), 2)

    def test_who_gives_up_makes_no_room_and_nobody_else_suffers(self) -> None:
        for name in "abc":
            given_up = self.connect(f"{name}.example")
            given_up.cancel()
            self.failureResultOf(given_up)
        self.failureResultOf(self.connect("d.example"))
        self.assertEqual(len(self.resolver.asked), 3)
        self.connect("a.example")
        self.resolver.answer(0, "192.0.2.1")
        self.assertEqual(self.connecting, ["192.0.2.1"])
        self.assertNoResult(self.connect("d.example"))
        self.assertEqual(len(self.reactor.nameResolver), 3)

    def test_a_name_without_an_address(self) -> None:
        connecting = self.connect("a.example")
        self.resolver.answer(0)
        self.failureResultOf(connecting)
        self.assertEqual(len(self.reactor.nameResolver), 0)
