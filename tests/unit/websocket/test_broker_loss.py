"""What sessions notice of a lost broker: nothing, or a close that says so."""

from __future__ import annotations

import json

import txaio
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeBroker, FakeValidator
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.admission.limits import Limits
from topicsvc.brokers.memory import MemoryBroker
from topicsvc.delivery.hub import Hub
from topicsvc.errors import BrokerUnavailable, TopicNotFound
from topicsvc.interfaces import Message
from topicsvc.settings import SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.websocket.messages import data_frame, token_request
from topicsvc.websocket.server import WebSocketServer

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
OTHER = TopicAddress("cell1", "box1", ("col",), "other")


class Listener:
    """A member that only remembers."""

    def __init__(self) -> None:
        self.taken = 0
        self.told = 0
        self.fails = False

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        self.taken += count

    def broker_lost(self) -> None:
        self.told += 1
        if self.fails:
            raise RuntimeError("said the test")


class HubTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = FakeBroker(confirms_at_once=True)
        self.hub = Hub(self.broker, self.clock, self.clock.seconds, data_frame)

    def join(self, topic: TopicAddress = TOPIC) -> Listener:
        listener = Listener()
        self.successResultOf(self.hub.join(topic, listener))
        return listener

    def turns(self, count: int = 10) -> None:
        self.clock.pump([0] * count)

    def test_every_member_of_every_topic_is_told_once(self) -> None:
        members = [self.join(TOPIC), self.join(TOPIC), self.join(OTHER)]
        self.broker.break_promises()
        self.turns()
        self.assertEqual([member.told for member in members], [1, 1, 1])

    def test_nothing_is_left_of_a_topic_that_is_lost(self) -> None:
        self.join()
        self.broker.break_promises()
        self.assertEqual(self.hub.topics, 0)
        self.assertEqual(self.broker.live, [])

    def test_members_of_other_topics_hear_nothing(self) -> None:
        mine, other = self.join(TOPIC), self.join(OTHER)
        lost = self.broker.subscriptions[0].lost
        assert lost is not None
        lost()
        lost()
        self.turns()
        self.assertEqual((mine.told, other.told), (1, 0))
        self.broker.bring(Message(OTHER, None, b"1"))
        self.turns()
        self.assertEqual(other.taken, 1)

    def test_what_had_come_before_is_delivered(self) -> None:
        member = self.join()
        self.broker.bring(Message(TOPIC, None, b"1"))
        self.broker.break_promises()
        self.turns()
        self.assertEqual((member.taken, member.told), (1, 1))

    def test_who_comes_after_is_a_member_of_a_new_subscription(self) -> None:
        self.join()
        self.broker.break_promises()
        late = Listener()
        joining = self.hub.join(TOPIC, late)
        self.assertNoResult(joining)  # before those who were there have heard
        self.turns()
        self.successResultOf(joining)
        self.broker.bring(Message(TOPIC, None, b"1"))
        self.turns()
        self.assertEqual((late.taken, late.told), (1, 0))
        self.assertEqual(len(self.broker.subscriptions), 2)

    def test_a_member_that_fails_keeps_no_other_from_hearing(self) -> None:
        first, second = self.join(), self.join()
        first.fails = True
        self.broker.break_promises()
        self.turns()
        self.assertEqual(second.told, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_many_are_told_in_slices(self) -> None:
        self.hub._notifications.per_iteration = 2
        members = [self.join() for _ in range(5)]
        self.turns()
        seen = []

        def look() -> None:
            """Somebody else's turn."""
            seen.append(sum(member.told for member in members))
            if seen[-1] < len(members):
                self.clock.callLater(0, look)

        self.broker.break_promises()
        self.clock.callLater(0, look)
        self.turns()
        self.assertEqual(seen, [2, 4, 5])

    def test_nobody_is_welcomed_to_a_topic_whose_broker_is_away(self) -> None:
        stays = self.join()
        self.broker.is_down = True
        self.failureResultOf(self.hub.join(TOPIC, Listener()), BrokerUnavailable)
        self.failureResultOf(self.hub.join(OTHER, Listener()), BrokerUnavailable)
        self.broker.is_down = False
        self.join(TOPIC)
        self.broker.bring(Message(TOPIC, None, b"1"))
        self.turns()
        self.assertEqual((stays.taken, stays.told), (1, 0))


class SessionTests(SynchronousTestCase):
    """A session over its wire, in memory."""

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
        )
        self.transport = StringTransport()
        quota = ClientQuota.admit(Limits(self.clock, self.clock.seconds), None)
        self.protocol = self.websocket_server.new_connection(TOPIC, quota)
        self.transport.registerProducer(self.protocol, True)  # the HTTP channel
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived(HANDSHAKE)
        self.transport.clear()
        self.protocol.dataReceived(masked(token_request("token")))

    def answers(self) -> list[bytes]:
        """Payloads of the frames written since the last look; they are all short."""
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

    def test_a_live_session_is_closed_with_the_code_that_says_why(self) -> None:
        self.validator.last.grant(expires_at=3600)
        self.assertEqual(json.loads(self.answers()[0])["Result"], "Success")
        self.broker.break_promises()
        self.clock.advance(0)
        self.assertEqual(self.answers(), [(1013).to_bytes(2, "big") + b"Service unavailable"])

    def test_a_session_that_is_lost_while_its_token_is_checked_anew(self) -> None:
        self.validator.last.grant(expires_at=3600)
        self.protocol.dataReceived(masked(token_request("token2")))
        self.answers()
        self.broker.break_promises()
        self.clock.advance(0)
        self.assertTrue(self.validator.last.was_cancelled)
        self.assertEqual(len(self.answers()), 1)

    def test_a_new_token_hears_that_the_service_is_unavailable(self) -> None:
        self.broker.is_down = True
        self.validator.last.grant(expires_at=3600)
        reply, close = self.answers()
        self.assertEqual(json.loads(reply)["Reason"], "Service unavailable")
        self.assertEqual(close[:2], (1013).to_bytes(2, "big"))

    def test_a_topic_that_the_broker_cannot_have_is_told_from_no_other_refusal(self) -> None:
        self.broker.confirms_at_once = False
        self.validator.last.grant(expires_at=3600)
        self.broker.deny(TopicNotFound("no such name"))
        reply, close = self.answers()
        self.assertEqual(json.loads(reply)["Reason"], "Token inactive")
        self.assertEqual(close[:2], (1008).to_bytes(2, "big"))


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def masked(payload: bytes) -> bytes:
    """A short text frame of a client, its mask all zeros."""
    return b"\x81" + bytes([0x80 | len(payload)]) + bytes(4) + payload


class MemoryTests(SynchronousTestCase):
    def test_it_is_always_up_and_says_that_it_is_for_one_process(self) -> None:
        texts: list[str] = []
        observer = lambda event: texts.append(event["log_format"])  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        broker = MemoryBroker()
        broker.startService()
        self.assertTrue(broker.is_up)
        self.assertEqual(len([text for text in texts if "one process" in text]), 1)
