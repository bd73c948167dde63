"""TLS 1.3 key updates by a client in the middle of a session, with both send queues for TLS."""

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
from tests.support.send_queue_cases import HANDSHAKE_ANSWER, TIMEOUT, TlsCase
from topicsvc.delivery.transports import TlsSendQueue, TransportSendQueue, make_send_queue

UPDATES = 20
UPDATE_BOTH, UPDATE_OWN = b"K\n", b"k\n"
"""Commands of s_client: update its keys, with or without a request for new keys of the server."""


class OpenSslClient(ProcessProtocol):
    """``openssl s_client``, which writes received data to its output and reads commands."""

    transport: IProcessTransport

    def __init__(self) -> None:
        self.received = bytearray()
        self.messages = bytearray()
        self.lost: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.received += data

    def errReceived(self, data: bytes) -> None:
        self.messages += data

    def processEnded(self, reason: object) -> None:
        self.lost.callback(None)


class KeyUpdateCase(TlsCase):
    @inlineCallbacks
    def connect(self) -> Any:
        need(shutil.which("openssl"), "openssl (tests/integration/install.sh)")
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
            self.receiver.transport.write(generator.choice([UPDATE_BOTH, UPDATE_OWN]))
            while self.receiver.messages.count(b"KEYUPDATE") < number:
                data = generator.randbytes(generator.choice([1, 500, 40000]))
                self.send_queue.write(data)
                written += data
                yield deferLater(reactor, 0.002)
        # The server can read data with the new keys, so it has processed the updates.
        self.receiver.transport.write(b"understood\n")
        yield until(
            lambda: self.sender.received == b"understood\n", "the server has received it", TIMEOUT
        )
        self.send_queue.write(b"the end")
        yield self.assert_received(bytes(written) + b"the end")
        self.assertTrue(self.receiver.received.startswith(HANDSHAKE_ANSWER))


class KeyUpdateTests(KeyUpdateCase, TestCase):
    kind = TlsSendQueue
    open = staticmethod(make_send_queue)


class KeyUpdateTransportTests(KeyUpdateCase, TestCase):
    kind = TransportSendQueue
    open = staticmethod(TransportSendQueue)
