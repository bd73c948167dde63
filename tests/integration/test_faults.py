"""Faults of a unit over real sockets, plain and TLS, and the reply to the client for each.

After each fault: the trap has received no token, this process (with the faulty unit) has not
grown by 5 MB, and no check has exceeded its deadline by 0.5 seconds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from twisted.internet import reactor
from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.trial import util
from zope.interface import implementer

from tests.integration.support.run_delay import run_delay
from tests.integration.support.validated_service import (
    HOST,
    MAX_DELAY,
    REPLY_TIMEOUT,
    SERVICE_UNAVAILABLE,
    SUCCESS,
    TIMEOUT,
    TOKEN_INACTIVE,
    Outcome,
    ValidatedServiceTestCase,
    sleep,
)
from tests.support import fake_unit
from tests.support.certificates import Authority
from tests.support.fake_unit import (
    ENTITY_BOMB,
    EXTERNAL_ENTITY,
    NAMESPACE_BOMB,
    PREFIX_BOMB,
    Fault,
    adds_header,
    answers,
    answers_after,
    claims,
    describes_collection,
    floods,
    multistatus,
    redirects_to,
    sends_slowly,
)
from tests.support.harness import Client
from tests.support.processes import until
from topicsvc.settings import (
    Config,
)
from topicsvc.topics import Unit
from topicsvc.validators import http_agent

METHODS = ("PROPFIND", "OPTIONS", "POST", "*")

Test = Generator[Deferred[Any], Any, None]


class FaultTests(ValidatedServiceTestCase):
    @inlineCallbacks
    def setUp(self) -> Test:
        yield super().setUp()
        self.start(self.settings())
        # The first check fills caches, which does not count as growth.
        outcome = yield self.present()
        self.assert_outcome("no fault", outcome, SUCCESS)

    @inlineCallbacks
    def assert_reply(
        self, reply: tuple[str, int | None], fault: Fault, *methods: str
    ) -> Generator[Deferred[Any], Any, Outcome]:
        """Check the reply with `fault` in the responses to each of `methods` in turn."""
        for method in methods or METHODS:
            self.unit.recover()
            self.unit.inject(fault, method)
            outcome = yield self.present()
            self.assert_outcome(f"{self.id().rpartition('.')[2]} ({method})", outcome, reply)
            # The faults of requests that are not cancelled last longer.
            yield until(lambda: self.unit.in_flight == 0, "no request is in flight", 10)
        return outcome

    @inlineCallbacks
    def test_refuses_the_connection(self) -> Test:
        yield self.unit_port.stopListening()
        yield self.service._validators.stop()
        outcome = yield self.present()
        self.assert_outcome("refuses the connection", outcome, SERVICE_UNAVAILABLE)

    @inlineCallbacks
    def test_answers_in_time(self) -> Test:
        yield self.assert_reply(SUCCESS, answers_after(reactor, TIMEOUT / 2), "*")

    @inlineCallbacks
    def test_answers_too_late(self) -> Test:
        yield self.assert_reply(SERVICE_UNAVAILABLE, answers_after(reactor, TIMEOUT * 60))

    @inlineCallbacks
    def test_never_answers(self) -> Test:
        yield self.assert_reply(SERVICE_UNAVAILABLE, fake_unit.never_answers)

    @inlineCallbacks
    def test_sends_one_byte_per_second(self) -> Test:
        yield self.assert_reply(SERVICE_UNAVAILABLE, sends_slowly(reactor, 1))

    @inlineCallbacks
    def test_sends_one_byte_per_10_ms(self) -> Test:
        yield self.assert_reply(SERVICE_UNAVAILABLE, sends_slowly(reactor, 0.01))

    @inlineCallbacks
    def test_closes_persistent_connections(self) -> Test:
        self.unit.inject(fake_unit.closes_kept_connections)
        for _ in range(3):
            outcome = yield self.present()
            self.assert_outcome("closes persistent connections", outcome, SUCCESS)

    @inlineCallbacks
    def test_resets_idle_connections(self) -> Test:
        channels: set[Any] = set()

        def records_channel(request: Any, reply: fake_unit.Reply) -> Any:
            channels.add(request.channel)
            return fake_unit.answers_at_once(request, reply)

        pool = self.service._validators._agents[0]._pool
        pool.cachedConnectionTimeout = 0.2
        self.unit.inject(records_channel)
        outcome = yield self.present()
        self.assert_outcome("resets idle connections", outcome, SUCCESS)
        for channel in channels:
            channel.transport.abortConnection()
        yield until(lambda: not any(pool._connections.values()), "the pool drops them")
        outcome = yield self.present()
        self.assert_outcome("resets idle connections", outcome, SUCCESS)

    @inlineCallbacks
    def test_drops_every_connection(self) -> Test:
        yield self.assert_reply(SERVICE_UNAVAILABLE, fake_unit.drops_every_connection)

    @inlineCallbacks
    def test_5xx_and_429(self) -> Test:
        for status in (429, 500, 502, 503, 504):
            yield self.assert_reply(SERVICE_UNAVAILABLE, answers(status))

    @inlineCallbacks
    def test_401_403_404(self) -> Test:
        for status in (401, 403, 404):
            yield self.assert_reply(TOKEN_INACTIVE, answers(status), "PROPFIND", "OPTIONS", "*")
        yield self.assert_reply(TOKEN_INACTIVE, answers(404), "POST")
        for status in (401, 403):  # credentials of topicsvc: see PersoniumValidator
            yield self.assert_reply(SERVICE_UNAVAILABLE, answers(status), "POST")

    @inlineCallbacks
    def test_207_with_a_403_inside(self) -> Test:
        body = multistatus(["name"]).replace(b"200 OK", b"403 Forbidden")
        yield self.assert_reply(TOKEN_INACTIVE, describes_collection(body), "PROPFIND")

    @inlineCallbacks
    def test_wrong_namespace(self) -> Test:
        body = multistatus(["name"]).replace(b"urn:x-personium:xmlns", b"urn:x-other:xmlns")
        yield self.assert_reply(TOKEN_INACTIVE, describes_collection(body), "PROPFIND")

    @inlineCallbacks
    def test_prefixed_namespaces(self) -> Test:
        body = multistatus(["name"]).replace(b"<multistatus xmlns=", b"<D:multistatus xmlns:D=")
        for name in (b"multistatus", b"response", b"propstat", b"prop", b"resourcetype",
                     b"status", b"href", b"creationdate", b"collection"):  # fmt: skip
            body = body.replace(b"<%s>" % name, b"<D:%s>" % name)
            body = body.replace(b"</%s>" % name, b"</D:%s>" % name)
            body = body.replace(b"<%s/>" % name, b"<D:%s/>" % name)
        self.assertNotIn(b"<response", body)
        yield self.assert_reply(SUCCESS, describes_collection(body), "PROPFIND")

    @inlineCallbacks
    def test_a_collection_with_many_topics_or_odd_properties(self) -> Test:
        topics = [f"a-topic-with-a-name-{number:07}" for number in range(20000)]
        self.assertGreater(len(multistatus(topics)), 1_100_000)
        for body, reply in (
            (multistatus([*topics, "name"]), SUCCESS),
            (multistatus(topics), TOKEN_INACTIVE),
            (multistatus(["name"], more=f"<x a='{'y' * 300}'/>"), SUCCESS),
            (multistatus(["name"], more="<x>" * 40 + "</x>" * 40), SUCCESS),
            (multistatus(["name"], more="<x/>" * 300_000), SERVICE_UNAVAILABLE),
            (multistatus(["name"], more="<x a=''>" * 100_000), SERVICE_UNAVAILABLE),
            (multistatus(["name"], more="y" * 5_000_000), SERVICE_UNAVAILABLE),
        ):
            self.unit.inject(describes_collection(body), "PROPFIND")
            outcome = yield self.present()
            self.assertIn(reply[0], outcome.text, body[-600:])
            self.assertEqual(outcome.code, reply[1])
            self.assertLess(outcome.seconds, TIMEOUT + MAX_DELAY)

    @inlineCallbacks
    def test_other_clients_do_not_wait_while_a_large_response_is_read(self) -> Test:
        body = multistatus([*(f"a-topic-with-a-name-{number:07}" for number in range(20000)),
                            "name"])  # fmt: skip
        self.unit.inject(describes_collection(body), "PROPFIND")
        longest, last = 0.0, reactor.seconds() - run_delay()

        def measure() -> None:
            nonlocal longest, last
            now = reactor.seconds() - run_delay()
            longest, last = max(longest, now - last), now

        clients = [self.connect() for _ in range(4)]
        measuring = LoopingCall(measure)
        measuring.start(0)
        for number, client in enumerate(clients):
            self.unit.tokens[f"token-{number}"] = self.unit.tokens["valid-token"]
            client.present(f"token-{number}")
        for client in clients:
            text, _ = yield self.reply(client)
            self.assertIn(SUCCESS[0], text)
        measuring.stop()
        if os.environ.get("TOPICSVC_FIGURES"):
            print(f"\n    longest iteration with 4 large responses: {longest:.4f} s")
        # The unit is in this process too, and writes 1.1 MB at once.
        self.assertLess(longest, 0.2)

    @inlineCallbacks
    def test_sends_need_the_right_to_send_alone(self) -> Test:
        facts = self.unit.tokens["valid-token"]
        facts.reads_properties, facts.may = False, "OPTIONS, POST, PUT"
        for token, path, status, allow in (
            ("valid-token", "/box1/col/topic/name", 200, "OPTIONS, POST, PUT"),
            ("valid-token", "/box1/col/topic/name/", 200, "OPTIONS, POST, PUT"),
            ("valid-token", "/box1/col/topic/name('key')", 200, None),
            ("valid-token", "/box1/col/topic/other", 404, None),
            ("valid-token", "/box1/missing/topic/name", 403, "OPTIONS"),
            ("unknown", "/box1/col/topic/name", 401, "OPTIONS"),
            ("unknown", "/box1/missing/topic/name", 401, "OPTIONS"),
        ):
            method = "PUT" if "(" in path else "POST"
            client = yield self.answered(method, path, token, b"1")
            self.assertEqual(client.status, status, path)
            if allow is not None:
                client = yield self.answered("OPTIONS", path, token, b"")
                self.assertEqual(client.headers["allow"], [allow], path)
        facts.may = "OPTIONS"
        client = yield self.answered("POST", "/box1/col/topic/name", "valid-token", b"1")
        self.assertEqual(client.status, 403)
        # Receiving needs read-properties too, so GET is not listed.
        facts.may = "OPTIONS, POST, PUT, GET"
        client = yield self.answered("OPTIONS", "/box1/col/topic/name", "valid-token", b"")
        self.assertEqual(client.headers["allow"], ["OPTIONS, POST, PUT"])
        outcome = yield self.present()
        self.assert_outcome("a token that may not read", outcome, TOKEN_INACTIVE)

    @inlineCallbacks
    def answered(
        self, method: str, path: str, token: str, body: bytes
    ) -> Generator[Deferred[Any], Any, Client]:
        """Send a request; fires with the client when it has the response."""
        client = self.connect_http()
        headers = {"Host": HOST, "Authorization": f"Bearer {token}"}
        client.request(method, path, headers, body)
        end = reactor.seconds() + REPLY_TIMEOUT
        while not client.status:
            self.assertLess(reactor.seconds(), end, "no response")
            yield sleep(0.002)
            client.read_answer()
        client.disconnect()
        return client

    @inlineCallbacks
    def test_document_types_and_entity_bombs(self) -> Test:
        for body in (ENTITY_BOMB, EXTERNAL_ENTITY, b"<!DOCTYPE x>" + multistatus(["name"])):
            yield self.assert_reply(SERVICE_UNAVAILABLE, describes_collection(body), "PROPFIND")

    @inlineCallbacks
    def test_namespace_bombs(self) -> Test:
        for body in (NAMESPACE_BOMB, PREFIX_BOMB):
            yield self.assert_reply(SERVICE_UNAVAILABLE, describes_collection(body), "PROPFIND")

    @inlineCallbacks
    def test_headers_that_are_not_text(self) -> Test:
        for header in ("Allow", "Content-Encoding"):
            fault = adds_header(header, b"\xff\xfe\x80")
            yield self.assert_reply(SERVICE_UNAVAILABLE, fault, "OPTIONS")

    @inlineCallbacks
    def test_a_body_of_a_tebibyte(self) -> Test:
        yield self.assert_reply(SERVICE_UNAVAILABLE, floods())
        yield self.assert_reply(SERVICE_UNAVAILABLE, floods(chunked=True))

    @inlineCallbacks
    def test_endless_headers(self) -> Test:
        yield self.assert_reply(SERVICE_UNAVAILABLE, fake_unit.floods_with_headers)

    @inlineCallbacks
    def test_a_gzip_bomb(self) -> Test:
        yield self.assert_reply(SERVICE_UNAVAILABLE, fake_unit.sends_gzip_bomb)

    @inlineCallbacks
    def test_a_redirect_to_a_trap(self) -> Test:
        url = f"{self.scheme}://localhost:{self.trap_port.getHost().port}/"
        for status in (301, 302, 303, 307, 308):
            yield self.assert_reply(SERVICE_UNAVAILABLE, redirects_to(url, status))

    @inlineCallbacks
    def test_active_is_not_a_boolean(self) -> Test:
        now = int(reactor.seconds())
        fault = claims(active="true", exp=now + 60)
        yield self.assert_reply(SERVICE_UNAVAILABLE, fault, "POST")

    @inlineCallbacks
    def test_expiry_missing_huge_or_a_string(self) -> Test:
        now = int(reactor.seconds())
        for members in ({}, {"exp": 10**400}, {"exp": now * 1000}, {"exp": str(now + 60)}):
            fault = claims(active=True, **members)
            yield self.assert_reply(SERVICE_UNAVAILABLE, fault, "POST")

    @inlineCallbacks
    def test_expiry_past(self) -> Test:
        fault = claims(active=True, exp=int(reactor.seconds()) - 1)
        yield self.assert_reply(TOKEN_INACTIVE, fault, "POST")

    @inlineCallbacks
    def test_a_rejection_cancels_the_other_requests(self) -> Test:
        self.unit.inject(fake_unit.never_answers)
        self.unit.inject(answers(401), "PROPFIND")
        outcome = yield self.present()
        self.assert_outcome("a rejection cancels the other requests", outcome, TOKEN_INACTIVE)
        self.assertLess(outcome.seconds, TIMEOUT / 2)


class ConnectionTests(ValidatedServiceTestCase):
    """A unit that cannot be reached: the deadline includes the connection."""

    url = ""

    @property
    def unit_url(self) -> str:
        return self.url

    @inlineCallbacks
    def assert_unreachable(self, what: str, url: str) -> Test:
        self.url = url
        self.start(self.settings())
        for _ in range(2):
            outcome = yield self.present()
            self.assert_outcome(what, outcome, SERVICE_UNAVAILABLE)
            self.assertGreater(outcome.seconds, TIMEOUT / 2, what)

    def test_a_name_that_is_never_resolved(self) -> Deferred[None]:
        before = reactor.installNameResolver(SilentResolver())
        self.addCleanup(reactor.installNameResolver, before)
        return self.assert_unreachable("no name resolution", "https://unit1.example/")

    def test_a_connection_that_is_never_accepted(self) -> Deferred[None]:
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.addCleanup(full.close)
        for _ in range(3):
            waiting = socket.socket()
            self.addCleanup(waiting.close)
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        return self.assert_unreachable("no connection", f"http://127.0.0.1:{port}/")

    @inlineCallbacks
    def test_a_tls_handshake_that_never_ends(self) -> Test:
        received: list[bytes] = []
        closed: list[object] = []
        port = reactor.listenTCP(0, Silent(received, closed), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        yield self.assert_unreachable("no handshake", f"https://127.0.0.1:{port.getHost().port}/")
        self.assertTrue(received)
        self.assertNotIn(b"valid-token", b"".join(received))
        yield until(lambda: len(closed) == 6, "no connection is open", 10)


class OverTLS(ValidatedServiceTestCase):
    """The unit has a certificate of a trusted authority."""

    scheme = "https"
    certified_for = "localhost"
    # Twisted itself makes a call that pyOpenSSL has deprecated.
    suppress = (util.suppress(message="Passing pyOpenSSL", category=DeprecationWarning),)

    def endpoint(self) -> str:
        if not hasattr(self, "authority"):
            self.authority = Authority(self.directory)
            self.key, self.certificate = self.authority.issue(self.certified_for)
        return f"ssl:0:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"

    def settings(self, more: str = "") -> Config:
        return super().settings(f'{more}\nca_file = "{self.authority.ca_file}"')


class FaultsOverTLSTests(OverTLS, FaultTests):
    """The same over TLS."""


class WrongServerTestCase(OverTLS):
    """A server that is not the unit receives no request."""

    @inlineCallbacks
    def assert_nothing_sent(self, settings: Config) -> Test:
        self.start(settings)
        outcome = yield self.present()
        self.assert_outcome("a wrong server", outcome, SERVICE_UNAVAILABLE)
        self.assertEqual(self.unit.requests, [])


class OtherAuthorityTests(WrongServerTestCase):
    def test_an_untrusted_authority(self) -> Deferred[None]:
        return self.assert_nothing_sent(ValidatedServiceTestCase.settings(self))


class OtherNameTests(WrongServerTestCase):
    certified_for = "other.example"

    def test_a_certificate_for_another_name(self) -> Deferred[None]:
        return self.assert_nothing_sent(self.settings())


class Silent(Factory):
    """Accepts connections and sends nothing."""

    noisy = False

    def __init__(self, received: list[bytes], closed: list[object]) -> None:
        self._received = received
        self._closed = closed

    def buildProtocol(self, _: Any) -> Any:
        protocol: Any = Protocol()
        protocol.dataReceived = self._received.append
        protocol.connectionLost = self._closed.append
        return protocol


@implementer(IHostnameResolver)
class SilentResolver:
    """Never finishes a resolution."""

    def resolveHostName(self, receiver: Any, name: str, *_: Any, **__: Any) -> Any:
        receiver.resolutionBegan(resolution := _Resolution(name))
        return resolution


@implementer(IHostnameResolver)
class LoopbackResolver:
    """Resolves each host name to 127.0.0.1, and collects the names."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def resolveHostName(
        self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, *_: Any, **__: Any
    ) -> Any:
        self.names.add(hostName)
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        resolutionReceiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
        resolutionReceiver.resolutionComplete()
        return resolution


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None: ...


class CellByHostTests(OverTLS):
    """Cells with host names of their own, and one certificate for all."""

    unit_host = "unit1.example"
    certified_for = "*.unit1.example"

    def settings(self, more: str = "") -> Config:
        settings = super().settings(more)
        port = self.unit_port.getHost().port
        unit = Unit(f"https://unit1.example:{port}/", cell_urls="host")
        return replace(settings, validator=replace(settings.validator, unit=unit))

    @inlineCallbacks
    def test_requests_go_to_the_host_of_the_cell(self) -> Test:
        resolver = LoopbackResolver()
        before = reactor.installNameResolver(resolver)
        self.addCleanup(reactor.installNameResolver, before)
        self.start(self.settings())
        outcome = yield self.present()
        self.assert_outcome("a cell by host", outcome, SUCCESS)
        self.assertEqual(resolver.names, {"cell1.unit1.example"})
        outcome = yield self.present("unknown")
        self.assert_outcome("a cell by host", outcome, TOKEN_INACTIVE)

    @inlineCallbacks
    def test_made_up_hosts_use_no_memory_for_long(self) -> Test:
        before = reactor.installNameResolver(LoopbackResolver())
        self.addCleanup(reactor.installNameResolver, before)
        self.patch(http_agent, "_POOL_RESET_AFTER", 5)
        settings = self.settings()
        authorities = CountedAuthorities(settings.validator.authorities)
        validator = replace(settings.validator, authorities=authorities)
        self.start(replace(settings, validator=validator))
        for number in range(20):
            client = self.connect_http()
            self.assertEqual(client.upgrade(host=f"made-up-{number}.unit1.example"), 101)
            client.present("valid-token")
            text, _ = yield self.reply(client)
            self.assertIn("Token inactive", text)
            client.disconnect()
        self.assertEqual(len({headers["host"] for _, _, headers in self.unit.requests}), 20)
        self.assertEqual(
            authorities.loaded, 1, "each copy of the system's authorities takes nearly 1 MB"
        )
        pool = self.service._validators._agents[0]._pool
        self.assertLessEqual(len(pool._connections), 6)


@implementer(IOpenSSLTrustRoot)
class CountedAuthorities:
    """Counts how often the authorities are loaded into a TLS context."""

    def __init__(self, authorities: Any) -> None:
        self._authorities = authorities
        self.loaded = 0

    def _addCACertsToContext(self, context: Any) -> None:
        self.loaded += 1
        self._authorities._addCACertsToContext(context)
