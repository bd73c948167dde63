"""A real ActiveMQ, a JMS peer, and whole topicsvc processes."""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from twisted.internet import reactor
from twisted.internet.defer import gatherResults, inlineCallbacks
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from tests.broker_contract import BrokerContract, Inbox
from tests.integration.activemq_server import ActiveMQ, JmsPeer, need_activemq
from tests.integration.processes import Shared, until
from tests.integration.topicsvc_process import Subscriber, Topicsvc, Unit
from topicsvc.address import TopicAddress
from topicsvc.brokers.activemq import ActiveMQBroker
from topicsvc.brokers.login import Login
from topicsvc.brokers.textmessage import ascii_json
from topicsvc.errors import BrokerUnavailable, PathRefused
from topicsvc.ports import Message

NOTICED = 20
BACK = 10
CELL = "https://cell2.unit1.example/"
EMOJI = "\N{GRINNING FACE}"

_log = Logger()
shared = Shared(ActiveMQ)


def figure(what: str, seconds: float) -> None:
    _log.info("FIGURE {what}: {seconds:.2f} s", what=what, seconds=seconds)


class AdapterTests(TestCase):
    """Fixture: the adapter in this process, beside the shared broker."""

    timeout = 60

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server: ActiveMQ = yield shared.get()
        self.broker = yield self.connected(f"tcp:127.0.0.1:{self.server.stomp}")

    @inlineCallbacks
    def connected(self, endpoint: str, login: Login | None = None) -> Any:
        broker = ActiveMQBroker(clientFromString(reactor, endpoint), reactor, login)
        broker.startService()
        self.addCleanup(broker.stopService)
        yield until(lambda: broker.is_up, "the broker is up", 15)
        return broker


class ActiveMQContractTests(BrokerContract, AdapterTests):
    name = "contract"

    def carried(self, body: bytes) -> bytes:
        return ascii_json(body)


class JmsTests(AdapterTests):
    """What a unit sends is received, and what a unit receives was sent as it likes it."""

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
    def test_what_no_header_should_hold_harms_nobody(self) -> Any:
        inbox = Inbox()
        yield self.broker.subscribe(self.topic, inbox)
        # ActiveMQ itself makes U+FFFD of a property's NUL; a correlation id's it passes on.
        yield self.peer.send(self.name, "https://c:1/\\\n\r\0", "1")
        yield self.peer.send_odd(self.name, CELL, "2")
        yield inbox.holds(2)
        senders = [message.sender for message in inbox.messages]
        self.assertEqual(senders, ["https://c:1/\\\n\r\ufffd\ufffd", CELL])
        self.assertEqual(inbox.bodies, [b"1", b"2"])
        self.assertTrue(self.broker.is_up)

    @inlineCallbacks
    def test_bytes_are_taken_as_text(self) -> Any:
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
        yield until(lambda: len(self.peer.messages) == len(bodies), "the peer has them")
        self.assertEqual(self.peer.others, [])
        for message, body in zip(self.peer.messages, bodies, strict=True):
            self.assertEqual(message.text, ascii_json(body.encode()).decode())
            self.assertEqual(json.loads(message.text), json.loads(body))
            self.assertEqual((message.topic, message.cell), (self.name, CELL))
            self.assertEqual(message.delivery_mode, "memory")
            self.assertLess(abs(message.time_to_live - 3600_000), 5000)
        ids = {str(UUID(message.message_id)) for message in self.peer.messages}
        self.assertEqual(len(ids), len(bodies))

    @inlineCallbacks
    def test_names_that_activemq_would_read_otherwise_never_reach_it(self) -> Any:
        unit = Unit(_directory(self), f'kind = "activemq"\nendpoint = "{self.endpoint}"')
        service = Topicsvc(unit)
        self.addCleanup(service.program.stop)
        yield service.start()
        hostile = ["a>", "*", "a,cell2", "a,topic%3A%2F%2Fb", "a?consumer.retroactive=true", "a.b"]
        hostile += ["%3E", "%2A", "a%2Cb", "a%3Fb", "a%0Ab", "a%00", ">", "a%2Eb", "%2F", "a:b"]
        for name in hostile:
            path = f"/cell1/__topic/box1/probe.topic.{name}"
            subscriber = yield service.connect(path)
            # What stands behind a "?" is a query: it is never looked at.
            if name.startswith("a?"):
                self.assertEqual(subscriber.status, 101)
                self.assertTrue((yield subscriber.welcomed))
                yield subscriber.leave()
            else:
                self.assertEqual(subscriber.status, 404, name)
                self.assertEqual(service.send(f"/cell1/box1/probe/topic/{name}", b"1"), 404)
            yield subscriber.gone
        for name in ("a>", "*", "a,b", "a?b", "a.b", "a:b", "a/b", "a b", "a\n", ""):
            self.assertRaises(PathRefused, TopicAddress, "cell1", "box1", ("probe",), name)
        # An honest topic is the proof that the peer would have seen the others.
        self.assertEqual(service.send("/cell1/box1/probe/topic/honest", b"1"), 200)
        yield deferLater(reactor, 0.5)
        topics = yield self.peer.topics()
        probes = sorted(name for name in topics if "probe" in name)
        self.assertEqual(probes, [f"cell1.box1.probe.topic.{name}" for name in ("a", "honest")])

    @property
    def endpoint(self) -> str:
        return f"tcp:127.0.0.1:{self.server.stomp}"


class TlsAndLoginTests(TestCase):
    """A broker that wants a password and shows a certificate."""

    timeout = 90

    @inlineCallbacks
    def setUp(self) -> Any:
        need_activemq()
        directory = _directory(self)
        authority, key_store = _certificates(directory)
        self.server = ActiveMQ(("topicsvc", "open:sesame\\"), (key_store, "key-store"))
        self.addCleanup(self.server.remove)
        yield self.server.start()
        self.endpoint = f"tls:127.0.0.1:{self.server.stomp}"
        self.trusting = f"{self.endpoint}:trustRoots={authority}"

    def broker(self, endpoint: str, password: str) -> ActiveMQBroker:
        broker = ActiveMQBroker(
            clientFromString(reactor, endpoint), reactor, Login("topicsvc", password)
        )
        broker.startService()
        self.addCleanup(broker.stopService)
        return broker

    @inlineCallbacks
    def test_who_is_let_in(self) -> Any:
        good = self.broker(self.trusting, "open:sesame\\")
        wrong = self.broker(self.trusting, "wrong")
        distrusting = self.broker(self.endpoint, "open:sesame\\")
        plain = self.broker(f"tcp:127.0.0.1:{self.server.stomp}", "open:sesame\\")
        yield until(lambda: good.is_up, "the good one is let in")
        inbox = Inbox()
        topic = TopicAddress("cell1", "box1", ("tls",), "name")
        yield good.subscribe(topic, inbox)
        yield good.publish(Message(topic, CELL, b"1"))
        yield inbox.holds(1)
        yield deferLater(reactor, 2)
        for other in (wrong, distrusting, plain):
            self.assertFalse(other.is_up)
            yield self.assertFailure(other.publish(Message(topic, CELL, b"2")), BrokerUnavailable)


class ProcessesTests(TestCase):
    """Fixture: two topicsvc processes, a broker of their own, sessions at both."""

    timeout = 120
    on_loss = "keep"
    sessions = 50

    @inlineCallbacks
    def setUp(self) -> Any:
        self.server = ActiveMQ()
        self.addCleanup(self.server.remove)
        yield self.server.start()
        endpoint = f"tcp:127.0.0.1:{self.server.stomp}"
        settings = f'kind = "activemq"\nendpoint = "{endpoint}"\non_loss = "{self.on_loss}"'
        self.unit = Unit(_directory(self), settings)
        self.services = [Topicsvc(self.unit), Topicsvc(self.unit)]
        for service in self.services:
            self.addCleanup(service.program.stop)
        yield gatherResults([service.start() for service in self.services])
        self.topic = TopicAddress("cell1", "box1", ("many",), "name")
        self.subscribers = yield gatherResults(
            [self.services[each % 2].join(self.topic) for each in range(self.sessions)]
        )
        self.addCleanup(self.leave)

    def leave(self) -> Any:
        return gatherResults([subscriber.leave() for subscriber in self.subscribers])

    def send(self, number: int) -> int:
        """Over HTTP, by turns through both processes; returns the status."""
        service = self.services[number % 2]
        return service.send(self.topic.send_path, b'{"number":%d}' % number)

    @inlineCallbacks
    def arrives(self, number: int) -> Any:
        """A message, sent now, reaches every session; fires with how long that took."""
        began = monotonic()
        self.assertEqual(self.send(number), 200)
        expected = b'"Body":{"number":%d}}' % number
        yield until(
            lambda: all(
                each.messages and each.messages[-1].endswith(expected) for each in self.subscribers
            ),
            "the message reaches everybody",
        )
        return monotonic() - began


class KeepOnLossTests(ProcessesTests):
    """Fifty sessions that nothing drives away."""

    @inlineCallbacks
    def test_ten_thousand_messages_to_fifty_sessions(self) -> Any:
        peer = JmsPeer(self.server)
        yield peer.start()
        self.addCleanup(peer.stop)
        count = 10000
        began = monotonic()
        yield peer.send_many(self.topic.broker_name, CELL, count)
        figure(f"{count} messages sent by the JMS peer", monotonic() - began)
        yield until(
            lambda: all(len(each.messages) >= count for each in self.subscribers), "all arrive", 60
        )
        figure(f"{count} messages at each of {self.sessions} sessions", monotonic() - began)
        yield self.arrives(count)
        expected = [_data(CELL, number) for number in range(count)]
        for subscriber in self.subscribers:
            self.assertEqual(subscriber.messages[:-1], expected)

    @inlineCallbacks
    def test_kill_and_restart(self) -> Any:
        yield self.arrives(1)
        began = monotonic()
        self.server.program.kill()
        yield gatherResults([service.until_not_ready(NOTICED) for service in self.services])
        figure("kill -9 noticed", monotonic() - began)
        yield self.is_refused_while_away()
        yield self.server.start()
        yield self.is_back("restart")

    @inlineCallbacks
    def test_stop_and_continue(self) -> Any:
        yield self.arrives(1)
        began = monotonic()
        self.server.program.pause()
        sending = deferToThread(self.send, 2)
        yield gatherResults([service.until_not_ready(NOTICED) for service in self.services])
        figure("SIGSTOP noticed", monotonic() - began)
        self.assertEqual((yield sending), 503)
        yield self.is_refused_while_away()
        yield deferLater(reactor, 30 - (monotonic() - began))
        self.server.program.resume()
        yield self.is_back("SIGCONT")

    @inlineCallbacks
    def is_refused_while_away(self) -> Any:
        """New tokens and sends are refused, those who are there stay."""
        self.assertEqual(self.send(3), 503)
        for topic in (self.topic, TopicAddress("cell1", "box1", ("many",), "other")):
            subscriber = yield self.services[0].connect(topic.websocket_path)
            self.assertFalse((yield subscriber.welcomed))
            self.assertEqual(subscriber.replies[0]["Reason"], "Service unavailable")
            self.assertEqual(subscriber.close_code, 1013)

    @inlineCallbacks
    def is_back(self, what: str) -> Any:
        """Everything works again in time, for all who were there and for who comes now."""
        began = monotonic()
        yield gatherResults([service.until_ready(BACK) for service in self.services])
        newcomer = yield self.services[1].join(self.topic)
        yield self.arrives(4)
        figure(f"working again after {what}", monotonic() - began)
        self.assertLess(monotonic() - began, BACK)
        self.assertEqual([each.close_code for each in self.subscribers], [None] * self.sessions)
        for subscriber in self.subscribers:
            numbers = [json.loads(each)["Body"]["number"] for each in subscriber.messages]
            # Number 2 was under way when the broker stopped: nobody knows, so it may come.
            self.assertIn(numbers, ([1, 4], [1, 2, 4]))
        yield until(lambda: newcomer.messages, "the newcomer has it too")
        yield newcomer.leave()
        for service in self.services:
            self.assertEqual(service.program.log.count("is lost"), 1)


class CloseOnLossTests(ProcessesTests):
    """Sessions of an operator who wants clients to know of the gap."""

    on_loss = "close"
    sessions = 10

    @inlineCallbacks
    def test_sessions_are_closed_with_the_code_that_says_why(self) -> Any:
        yield self.arrives(1)
        self.server.program.kill()
        yield gatherResults([subscriber.gone for subscriber in self.subscribers])
        self.assertEqual([each.close_code for each in self.subscribers], [1013] * self.sessions)


class RightAfterSuccessTests(AdapterTests):
    """Whatever is sent after a client has read Success reaches it."""

    timeout = 120
    tries = 1000
    at_once = 4

    @inlineCallbacks
    def test_nothing_is_missed(self) -> Any:
        endpoint = f"tcp:127.0.0.1:{self.server.stomp}"
        service = Topicsvc(Unit(_directory(self), f'kind = "activemq"\nendpoint = "{endpoint}"'))
        self.addCleanup(service.program.stop)
        yield service.start()
        numbers = iter(range(self.tries))
        began = monotonic()
        yield gatherResults([self.try_all(service, numbers) for _ in range(self.at_once)])
        figure(f"{self.tries} tries", monotonic() - began)

    @inlineCallbacks
    def try_all(self, service: Topicsvc, numbers: Any) -> Any:
        for number in numbers:
            # Each on a topic that nobody has subscribed before.
            topic = TopicAddress("cell1", "box1", ("tries",), str(number))
            message = Message(topic, CELL, b'{"number":%d}' % number)
            sent: list[Any] = []
            subscriber = Subscriber(
                lambda message=message, sent=sent: sent.append(self.broker.publish(message))
            )
            yield service.join(topic, subscriber)
            yield sent[0]
            yield until(lambda each=subscriber: each.messages, f"message {number} arrives", 5)
            self.assertEqual(subscriber.messages, [_data(CELL, number)])
            yield subscriber.leave()


def _data(sender: str, number: int) -> bytes:
    return b'{"From":"%s","Body":{"number":%d}}' % (sender.encode(), number)


def _directory(test: TestCase) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="topicsvc-test-"))
    test.addCleanup(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _certificates(directory: Path) -> tuple[Path, Path]:
    """A directory with an authority's certificate, and a key store signed by it."""
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
