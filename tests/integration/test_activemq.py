"""The ActiveMQ broker with a real ActiveMQ, a JMS client and topicsvc processes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import LoopingCall, deferLater
from twisted.trial.unittest import TestCase

from tests.integration.support.activemq_server import ActiveMQ, JmsPeer, need_activemq
from tests.integration.support.broker_cases import (
    CELL,
    CloseOnLossCases,
    HostileNamesCases,
    KeepOnLossCases,
    PressureCases,
    RightAfterSuccessCases,
    directory,
    figure,
)
from tests.support.broker_contract import BrokerContract, Inbox
from tests.support.processes import Shared, until
from topicsvc.brokers.activemq.broker import ActiveMQBroker
from topicsvc.brokers.message_text import ascii_json
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message
from topicsvc.settings import Login
from topicsvc.topics import TopicAddress

EMOJI = "\N{GRINNING FACE}"

shared = Shared(ActiveMQ)


class ActiveMQTestCase(TestCase):
    """Fixture: an `ActiveMQBroker` in this process, connected to a server that all tests share."""

    timeout = 150

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server: ActiveMQ = yield shared.get()
        self.broker = yield self.connected(f"tcp:127.0.0.1:{self.server.stomp}")

    @inlineCallbacks
    def connected(self, endpoint: str, login: Login | None = None) -> Any:
        broker = ActiveMQBroker(
            clientFromString(reactor, endpoint), reactor, reactor.seconds, login
        )
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the broker is up", 60)
        return broker


class ActiveMQContractTests(BrokerContract, ActiveMQTestCase):
    name = "contract"

    def expected_body(self, body: bytes) -> bytes:
        return ascii_json(body)


class PressureTests(PressureCases, ActiveMQTestCase):
    pass


class LeavingClientsTests(ActiveMQTestCase):
    """ActiveMQ sends no heartbeats while it handles frames that need no answer."""

    timeout = 400
    seconds = 120

    @inlineCallbacks
    def test_the_connection_is_kept_while_clients_leave(self) -> Any:
        """For two minutes, one client leaves every so many seconds, and nothing else happens."""
        brokers = {0.0: self.broker}
        for interval in (1.0, 2.0, 4.0, 4.9, 7.0, 11.0):
            broker = yield self.connected(f"tcp:127.0.0.1:{self.server.stomp}")
            brokers[interval] = broker
            count = int(self.seconds / interval)
            members = []
            for number in range(count):
                topic = TopicAddress("cell1", "box1", (f"leaving{count}",), str(number))
                members.append((yield broker.subscribe(topic, lambda _: None)))
            leaving = LoopingCall(lambda members=members: members and members.pop().stop())
            leaving.start(interval, now=False)
            self.addCleanup(leaving.stop)
        silence = dict.fromkeys(brokers, 0.0)
        end = reactor.seconds() + self.seconds
        while reactor.seconds() < end:
            yield deferLater(reactor, 0.2)
            for interval, broker in brokers.items():
                heard = broker._reader.client._connection.last_heard
                silence[interval] = max(silence[interval], reactor.seconds() - heard)
        for interval, broker in brokers.items():
            figure(f"silence with a client leaving every {interval} s", silence[interval])
            self.assertEqual(broker.losses.reconnects, 0, interval)
            self.assertEqual(broker.losses.gaps, 0, interval)
            self.assertTrue(broker.is_up)


class JmsTests(ActiveMQTestCase):
    """Messages from and to a JMS client, which uses ActiveMQ in the same way as a unit."""

    @inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        self.peer = JmsPeer(self.server)
        yield self.peer.start()
        self.addCleanup(self.peer.stop)
        self.topic = TopicAddress("cell1", "box1", ("jms", "\u65e5\u672c\U00020bb7"), "name")
        self.name = self.topic.broker_name

    @inlineCallbacks
    def test_from_a_unit(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(self.topic, inbox)
        expected = {
            f'{{"hoge":"{EMOJI}\xe9","flag":true}}': f'{{"hoge":"{EMOJI}\xe9","flag":true}}',
            "[1,2.50,1e400]": "[1,2.50,1e400]",
            ' {"a":1,"a":2}\n': '{"a":1,"a":2}',
            '"\\u0000\\ud83d"': '"\\u0000\\ud83d"',
            '{"half":"\ud83d"}': '{"half":"\\ud83d"}',
            "null": "null",
            "not JSON": '{"content":"not JSON"}',
            f"a\0b {EMOJI} \ude00\n": '{"content":"a\\u0000b \\ud83d\\ude00 \\ude00\\n"}',
            "": '{"content":""}',
        }
        for text in expected:
            yield self.peer.send(self.name, CELL, text)
        yield inbox.holds(len(expected))
        self.assertEqual(inbox.bodies, [body.encode() for body in expected.values()])
        self.assertEqual({message.sender for message in inbox.messages}, {CELL})

    @inlineCallbacks
    def test_control_characters_in_headers_do_no_harm(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(self.topic, inbox)
        # ActiveMQ replaces a NUL in a property by U+FFFD, and passes on one in a correlation id.
        yield self.peer.send(self.name, "https://c:1/\\\n\r\0", "1")
        yield self.peer.send_odd(self.name, CELL, "2")
        yield inbox.holds(2)
        senders = [message.sender for message in inbox.messages]
        self.assertEqual(senders, ["https://c:1/\\\n\r\ufffd\ufffd", CELL])
        self.assertEqual(inbox.bodies, [b"1", b"2"])
        self.assertTrue(self.broker.is_up)

    @inlineCallbacks
    def test_a_bytes_message_is_read_as_text(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(self.topic, inbox)
        yield self.peer.send_bytes(self.name, f'["{EMOJI}\0"]')
        yield self.peer.send_bytes(self.name, f'["{EMOJI}"]')
        yield inbox.holds(2)
        wrapped = b'{"content":"[\\"\\ud83d\\ude00\\u0000\\"]"}'
        self.assertEqual(inbox.bodies, [wrapped, f'["{EMOJI}"]'.encode()])

    @inlineCallbacks
    def test_to_a_unit(self) -> Any:
        yield self.peer.subscribe(self.name)
        bodies = [
            f'{{"hoge":"{EMOJI}\xe9\x7f", "flag":true}}',
            "[1,2.50,1e400]",
            '"\\u0000\\ud83d"',
            "null",
        ]
        for body in bodies:
            yield self.broker.publish(Message(self.topic, CELL, body.encode()))
        yield until(
            lambda: len(self.peer.messages) == len(bodies), "the JMS client has received all"
        )
        self.assertEqual(self.peer.others, [])
        for message, body in zip(self.peer.messages, bodies, strict=True):
            self.assertEqual(message.text, ascii_json(body.encode()).decode())
            self.assertEqual(json.loads(message.text), json.loads(body))
            self.assertEqual((message.topic, message.cell), (self.name, CELL))
            self.assertEqual(message.delivery_mode, "memory")
            self.assertLess(abs(message.time_to_live - 3600_000), 5000)
        ids = {str(UUID(message.message_id)) for message in self.peer.messages}
        self.assertEqual(len(ids), len(bodies))


class TlsAndLoginTests(TestCase):
    """A broker with TLS and a login."""

    timeout = 200

    @inlineCallbacks
    def setUp(self) -> Any:
        need_activemq()
        authority, key_store = _certificates(directory(self))
        self.server = ActiveMQ(("topicsvc", "open:sesame\\"), (key_store, "key-store"))
        self.addCleanup(self.server.remove)
        yield self.server.start()
        self.endpoint = f"tls:127.0.0.1:{self.server.stomp}"
        self.trusting = f"{self.endpoint}:trustRoots={authority}"

    def broker(self, endpoint: str, password: str) -> ActiveMQBroker:
        broker = ActiveMQBroker(
            clientFromString(reactor, endpoint),
            reactor,
            reactor.seconds,
            Login("topicsvc", password),
        )
        broker.startService()
        self.addCleanup(broker.stopService)
        return broker

    @inlineCallbacks
    def test_only_a_trusted_server_and_a_valid_login_connect(self) -> Any:
        broker = self.broker(self.trusting, "open:sesame\\")
        wrong = self.broker(self.trusting, "wrong")
        distrusting = self.broker(self.endpoint, "open:sesame\\")
        plain = self.broker(f"tcp:127.0.0.1:{self.server.stomp}", "open:sesame\\")
        yield until(lambda: broker.is_up, "the valid login connects")
        inbox = Inbox()
        topic = TopicAddress("cell1", "box1", ("tls",), "name")
        yield broker.subscribe(topic, inbox)
        yield broker.publish(Message(topic, CELL, b"1"))
        yield inbox.holds(1)
        yield deferLater(reactor, 2)
        for other in (wrong, distrusting, plain):
            self.assertFalse(other.is_up)
            yield self.assertFailure(other.publish(Message(topic, CELL, b"2")), BrokerUnavailable)


class KeepOnLossTests(KeepOnLossCases, TestCase):
    def make_server(self) -> ActiveMQ:
        return ActiveMQ()

    @inlineCallbacks
    def send_many(self, count: int) -> Any:
        peer = JmsPeer(self.server)
        yield peer.start()
        self.addCleanup(peer.stop)
        yield peer.send_many(self.topic.broker_name, CELL, count)

    def check_numbers(self, numbers: list[int]) -> None:
        # The broker stopped while number 2 was being sent, so it may have accepted it.
        self.assertIn(numbers, ([1, 4], [1, 2, 4]))

    def check_log(self, log: str) -> None:
        self.assertEqual(log.count("meanwhile are lost"), 1)


class CloseOnLossTests(CloseOnLossCases, TestCase):
    def make_server(self) -> ActiveMQ:
        return ActiveMQ()


class RightAfterSuccessTests(RightAfterSuccessCases, ActiveMQTestCase):
    pass


class HostileNamesTests(HostileNamesCases, ActiveMQTestCase):
    @inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        self.peer = JmsPeer(self.server)
        yield self.peer.start()
        self.addCleanup(self.peer.stop)

    def names_at_the_broker(self) -> Any:
        return self.peer.topics()


def _certificates(directory: Path) -> tuple[Path, Path]:
    """Create a directory with the certificate of an authority, and a key store signed by it."""
    now = datetime.now(UTC)

    def certificate(subject: str, key: Any, issuer: str, issuer_key: Any, is_ca: bool) -> Any:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
            )
            .sign(issuer_key, hashes.SHA256())
        )

    authority_key = ec.generate_private_key(ec.SECP256R1())
    server_key = ec.generate_private_key(ec.SECP256R1())
    authority = certificate("authority", authority_key, "authority", authority_key, True)
    server = certificate("server", server_key, "authority", authority_key, False)
    trusted = directory / "trusted"
    trusted.mkdir()
    (trusted / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    key_store = directory / "server.p12"
    encryption = serialization.BestAvailableEncryption(b"key-store")
    key_store.write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"server", server_key, server, [authority], encryption
        )
    )
    return trusted, key_store
