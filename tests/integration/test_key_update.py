"""New keys in the middle of a TLS 1.3 session, as a client asks for them: on both ways out."""

from __future__ import annotations

import random
import shutil
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tests.integration.support.requirements import need
from tests.support.processes import environment, until
from tests.support.send_queue_cases import HANDSHAKE_ANSWER, TIMEOUT, Tls
from topicsvc.delivery.transports import TlsSendQueue, TransportSendQueue, make_send_queue

UPDATES = 20
BOTH, OWN = b"K\n", b"k\n"
"""Change our keys; the other side is to change its own too, or need not."""


class OpenSslClient(ProcessProtocol):
    """``openssl s_client``: writes what it is sent to its output, and takes orders."""

    transport: IProcessTransport

    def __init__(self) -> None:
        self.received = bytearray()
        self.told = bytearray()
        self.lost: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.received += data

    def errReceived(self, data: bytes) -> None:
        self.told += data

    def processEnded(self, reason: object) -> None:
        self.lost.callback(None)


class KeyUpdateCase(Tls):
    @inlineCallbacks
    def connect(self) -> Any:
        need(shutil.which("openssl"), "openssl")
        self.ready: Deferred[Any] = Deferred()
        self.receiver = OpenSslClient()
        at = f"127.0.0.1:{self.port.getHost().port}"
        command = ["openssl", "s_client", "-brief", "-tls1_3", "-connect", at]
        reactor.spawnProcess(self.receiver, command[0], command, environment())
        self.sender = yield self.ready
        self.send_queue = self.sender.send_queue

    @inlineCallbacks
    def tearDown(self) -> Any:
        self.sender.transport.abortConnection()
        self.receiver.transport.loseConnection()
        yield self.receiver.lost

    @inlineCallbacks
    def test_data_goes_on_under_new_keys(self) -> Any:
        yield self.assert_received(b"")
        generator = random.Random(6)
        written = bytearray()
        for number in range(1, UPDATES + 1):
            self.receiver.transport.write(generator.choice([BOTH, OWN]))
            while self.receiver.told.count(b"KEYUPDATE") < number:
                data = generator.randbytes(generator.choice([1, 500, 40000]))
                self.send_queue.write(data)
                written += data
                yield deferLater(reactor, 0.002)
        # What the client says under its new keys is understood, so the server has seen them.
        self.receiver.transport.write(b"understood\n")
        yield until(lambda: self.sender.received == b"understood\n", "it is heard", TIMEOUT)
        self.send_queue.write(b"the end")
        yield self.assert_received(bytes(written) + b"the end")
        self.assertTrue(self.receiver.received.startswith(HANDSHAKE_ANSWER))


class KeyUpdateTests(KeyUpdateCase, TestCase):
    kind = TlsSendQueue
    open = staticmethod(make_send_queue)


class KeyUpdateTransportTests(KeyUpdateCase, TestCase):
    kind = TransportSendQueue
    open = staticmethod(TransportSendQueue)
