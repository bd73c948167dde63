"""Sessions whose broker is lost."""

from __future__ import annotations

import json

import txaio
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import INJECTED, FakeBroker, FakeValidator
from tests.support.raw_client import token_request
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.admission.limits import Limits
from topicsvc.delivery.hub import Hub
from topicsvc.errors import TopicNotFound
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.websocket.messages import data_frame
from topicsvc.websocket.server import WebSocketServer

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")


class SessionTests(SynchronousTestCase):
    """A session in memory, over its wire format."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(txaio.config, "loop", self.clock)
        self.broker = FakeBroker(confirms_at_once=True)
        self.validator = FakeValidator()
        self.websocket_server = WebSocketServer(
            self.validator,
            Hub(self.broker, self.clock, self.clock.seconds, data_frame),
            self.clock,
            self.clock.seconds,
            SessionSettings(),
            WorkBudget(self.clock, 0.004),
            WorkBudget(self.clock, 0.004),
        )
        self.transport = StringTransport()
        quota = ClientQuota.admit(Limits(self.clock, self.clock.seconds), None)
        self.protocol = self.websocket_server.new_connection(TOPIC, quota)
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived(HANDSHAKE)
        self.transport.clear()
        self.protocol.dataReceived(masked(token_request("token")))

    def payloads(self) -> list[bytes]:
        """Payloads of the frames written since the last call."""
        written, payloads = self.transport.value(), []
        self.transport.clear()
        while written:
            length = written[1]
            start = 2
            if length == 126:
                length, start = int.from_bytes(written[2:4], "big"), 4
            payloads.append(written[start : start + length])
            written = written[start + length :]
        return payloads

    def test_an_active_session_is_closed_with_1013(self) -> None:
        self.validator.last.grant(expires_at=3600)
        self.assertEqual(json.loads(self.payloads()[0])["Result"], "Success")
        self.broker.lose_subscriptions()
        self.clock.advance(0)
        self.assertEqual(self.payloads(), [(1013).to_bytes(2, "big") + b"Service unavailable"])

    def test_a_check_in_progress_is_cancelled(self) -> None:
        self.validator.last.grant(expires_at=3600)
        self.protocol.dataReceived(masked(token_request("token2")))
        self.payloads()
        self.broker.lose_subscriptions()
        self.clock.advance(0)
        self.assertTrue(self.validator.last.was_cancelled)
        self.assertEqual(len(self.payloads()), 1)

    def test_a_new_session_is_refused_with_1013(self) -> None:
        self.broker.is_down = True
        self.validator.last.grant(expires_at=3600)
        reply, close = self.payloads()
        self.assertEqual(json.loads(reply)["Reason"], "Service unavailable")
        self.assertEqual(close[:2], (1013).to_bytes(2, "big"))

    def test_a_topic_name_that_the_broker_does_not_allow_is_token_inactive(self) -> None:
        self.broker.confirms_at_once = False
        self.validator.last.grant(expires_at=3600)
        self.broker.reject(TopicNotFound(INJECTED))
        reply, close = self.payloads()
        self.assertEqual(json.loads(reply)["Reason"], "Token inactive")
        self.assertEqual(close[:2], (1008).to_bytes(2, "big"))


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def masked(payload: bytes) -> bytes:
    """A short text frame of a client, with a mask of zeros."""
    return b"\x81" + bytes([0x80 | len(payload)]) + bytes(4) + payload
