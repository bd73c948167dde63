"""The HTTP and WebSocket side in memory and in virtual time, with a client that checks it.

A test describes what a client sends and receives::

    client = self.connect()
    client.present("a-token")
    self.validator.last.grant(expires_at=self.now + 60)
    self.broker.confirm()
    client.assert_success(expires_in=60)
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.support.fakes import FakeBroker, FakeValidator, WallClock
from topicsvc.admission.limits import Limits
from topicsvc.delivery.history import History
from topicsvc.delivery.hub import Hub
from topicsvc.interfaces import Message, Revocation
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import HistorySettings, LimitSettings, LocalSettings, SessionSettings
from topicsvc.topics import TopicAddress, Unit
from topicsvc.web.handshake import UpgradeResource
from topicsvc.web.metadata import MetadataResource
from topicsvc.web.refused_sends import RefusedSends
from topicsvc.web.send import SendResource
from topicsvc.web.site import WORK_PER_ITERATION, TopicSite, TopicTree
from topicsvc.websocket.messages import data_frame, positioned
from topicsvc.websocket.server import WebSocketServer

EPOCH = 1518612600.0
"""Time of day at the start of every test: that of the specification's samples."""

CLOCK_AT_START = 5000.0
"""The clock's seconds at that time; they are not a time of day."""

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
SENDER = "https://cell2.unit1.example/"
WEBSOCKET_PATH = "/__topic/box1/col.topic.name"
SEND_PATH = "/box1/col/topic/name"
HOST = "cell1.unit1.example"
TRANSPORT_BUFFER = 65536
MAX_BODY = 1000
MAX_BATCH = 100


@implementer(ITCPTransport)
class MemoryTransport:
    """A TCP transport whose peer is the test.

    Attributes:
        written: bytes that the peer can read.
        is_congested: whether the peer has stopped reading; written bytes stay in the buffer.
        lost: the reason of the lost connection; None: it is connected.
        has_ended: whether this side has closed its half.
        is_reading: whether bytes of the peer are read at once.
        unread: bytes that the peer has sent while reading was paused.
    """

    disconnecting = False

    def __init__(self, clock: Clock, port: int, host: str = "192.0.2.7") -> None:
        self.clock = clock
        self.protocol: Any = None
        self.written = bytearray()
        self.buffered = bytearray()
        self.is_congested = False
        self.lost: Failure | None = None
        self.has_ended = False
        self.is_reading = True
        self.unread = bytearray()
        self.producer: Any = None
        self._is_paused = False
        self._peer = IPv4Address("TCP", host, port)

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if self.lost is not None or self.has_ended:
            return
        (self.buffered if self.is_congested else self.written).extend(data)
        if len(self.buffered) > TRANSPORT_BUFFER and self.producer and not self._is_paused:
            self._is_paused = True
            self.producer.pauseProducing()

    def writeSequence(self, chunks: list[bytes]) -> None:
        self.write(b"".join(chunks))

    def drain(self) -> None:
        """The peer reads everything that is buffered, and goes on reading."""
        self.is_congested = False
        self.written += self.buffered
        self.buffered.clear()
        if self._is_paused:
            self._is_paused = False
            self.producer.resumeProducing()
        if self.disconnecting:
            self.lose(ConnectionDone())

    def lose(self, reason: Exception) -> None:
        if self.lost is None:
            self.lost = Failure(reason)
            self.protocol.connectionLost(self.lost)

    def loseConnection(self) -> None:
        self.disconnecting = True
        if not self.buffered:
            self.clock.callLater(0, self.lose, ConnectionDone())

    def loseWriteConnection(self) -> None:
        self.has_ended = True

    def abortConnection(self) -> None:
        self.clock.callLater(0, self.lose, ConnectionAborted())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None, "a producer is registered already"
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None
        self._is_paused = False

    def getPeer(self) -> IPv4Address:
        return self._peer

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 443)

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None: ...

    def getTcpKeepAlive(self) -> bool:
        return False

    def receive(self, data: bytes) -> None:
        """The peer sends `data`."""
        self.unread += data
        if self.is_reading:
            self.read()

    def read(self) -> None:
        while self.unread and self.is_reading and self.lost is None:
            data = bytes(self.unread[:TRANSPORT_BUFFER])
            del self.unread[:TRANSPORT_BUFFER]
            self.protocol.dataReceived(data)

    def pauseProducing(self) -> None:
        self.is_reading = False

    def resumeProducing(self) -> None:
        self.is_reading = self.lost is None
        if self.unread and self.is_reading:
            self.clock.callLater(0, self.read)

    def stopProducing(self) -> None: ...


class Client:
    """The client at the other end of a `MemoryTransport`."""

    def __init__(self, test: ServiceTestCase, host: str = "192.0.2.7", site: Any = None) -> None:
        self.test = test
        self.transport = MemoryTransport(test.clock, test.next_port(), host)
        self.transport.protocol = (site or test.site).buildProtocol(self.transport.getPeer())
        self.transport.protocol.makeConnection(self.transport)
        self.status = 0
        self.headers: dict[str, list[str]] = {}

    # Sends.

    def send_raw(self, data: bytes) -> None:
        if self.transport.lost is None:
            self.transport.receive(data)

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        body: bytes = b"",
        version: str = "HTTP/1.1",
    ) -> bytes:
        """Send one HTTP request; return the response's body as far as it has arrived."""
        pairs = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
        if not any(name.lower() == "host" for name, _ in pairs):
            pairs.insert(0, ("Host", HOST))
        if body:
            pairs.append(("Content-Length", str(len(body))))
        lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in pairs)]
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return self.read_answer()

    def upgrade(self, path: str = WEBSOCKET_PATH, host: str = HOST) -> int:
        """Ask for a WebSocket; return the status."""
        self.request("GET", path, {"Host": host, **HANDSHAKE})
        return self.status

    def send_frame(self, opcode: int, payload: bytes, fin: bool = True, rsv: int = 0) -> None:
        mask = b"\x01\x02\x03\x04"
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 65536:
            length = b"\xfe" + size.to_bytes(2, "big")
        else:
            length = b"\xff" + size.to_bytes(8, "big")
        self.send_raw(bytes([fin << 7 | rsv << 4 | opcode]) + length + mask + masked)

    def send_text(self, text: str) -> None:
        self.send_frame(1, text.encode())

    def present(self, token: str, **more: Any) -> None:
        self.send_text(json.dumps({"AccessToken": token, **more}))

    def disconnect(self) -> None:
        self.transport.lose(ConnectionDone())

    # Receives.

    def read_answer(self) -> bytes:
        """Take one HTTP response from the written bytes, as far as it has arrived."""
        head, found, rest = bytes(self.transport.written).partition(b"\r\n\r\n")
        if not found:
            return b""
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            self.headers.setdefault(name.lower(), []).append(value)
        size = int(self.headers.get("content-length", ["0"])[0])
        body, self.transport.written[:] = rest[:size], rest[size:]
        return body

    def frames(self) -> list[tuple[int, bytes]]:
        """Take all frames from the written bytes: opcode and payload."""
        data, frames = bytes(self.transport.written), []
        self.transport.written.clear()
        while data:
            opcode, size, at = data[0] & 0x0F, data[1], 2
            assert data[0] & 0xF0 == 0x80, "a server's frame is final and has no reserved bits"
            assert size < 128, "a server's frame has no mask"
            if size > 125:
                width = 2 if size == 126 else 8
                size, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
            frames.append((opcode, data[at : at + size]))
            data = data[at + size :]
        return frames

    def texts(self) -> list[bytes]:
        """Take all frames; fail if one is not a text message."""
        frames = self.frames()
        self.test.assertEqual({opcode for opcode, _ in frames} - {1}, set(), frames)
        return [payload for _, payload in frames]

    def assert_nothing(self) -> None:
        self.test.assertEqual(self.frames(), [])

    def assert_success(self, expires_in: int) -> None:
        [text] = self.texts()
        self.test.assert_success_text(text, expires_in)

    def assert_error(self, response: str, reason: str) -> None:
        """The only frame is this error; there is no close."""
        [text] = self.texts()
        self.test.assert_error_text(text, response, reason)

    def assert_refused(self, response: str, reason: str, code: int, close_reason: str = "") -> None:
        """The frames are this error and this close."""
        (opcode, text), close = self.frames()
        self.test.assertEqual(opcode, 1)
        self.test.assert_error_text(text, response, reason)
        self.test.assert_close(close, code, close_reason or reason)

    def assert_closed(self, code: int, reason: str) -> None:
        """The only frame is this close."""
        [close] = self.frames()
        self.test.assert_close(close, code, reason)


BEARER = {"Authorization": "Bearer a-token"}

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class ServiceTestCase(SynchronousTestCase):
    """A service whose validator and broker are fakes."""

    settings = SessionSettings()
    unit = Unit("https://unit1.example/")
    trust_via = False
    drain = 0.0
    recheck = 0.0
    rechecks_at_once = 2
    limits_settings = LimitSettings()
    history = HistorySettings()

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = CLOCK_AT_START
        self.wall = WallClock(self.clock, EPOCH)
        self.validator = FakeValidator()
        self.broker = self.make_broker()
        history = History(self.history, self.clock) if self.history.seconds else None
        self.hub = Hub(self.broker, self.clock, self.wall, data_frame, positioned, history)
        self.rechecker = FakeValidator()
        revocation = Revocation(self.rechecker, self.recheck, self.rechecks_at_once)
        self.limits = Limits(self.clock, self.wall, self.limits_settings)
        self.websocket_server = WebSocketServer(
            self.validator,
            self.hub,
            self.clock,
            self.wall,
            self.settings,
            WorkBudget(self.clock, WORK_PER_ITERATION),
            WorkBudget(self.clock, WORK_PER_ITERATION),
            self.drain,
            random=Random(1),
            revocation=revocation if self.recheck else None,
            limits=self.limits,
        )
        self.websocket_server.startService()
        self.refused_sends = RefusedSends(self.clock, self.websocket_server.context.token_ids)
        self.send_resource = SendResource(
            self.unit,
            self.validator,
            self.broker,
            lambda: self.hub.is_full,
            self.wall,
            self.trust_via,
            MAX_BATCH,
            self.refused_sends,
        )
        upgrade = UpgradeResource(self.unit, self.websocket_server.new_connection)
        self.metadata = MetadataResource(self.unit, LocalSettings(b""))
        self.send_resource.metadata = self.metadata
        self.site = TopicSite(
            TopicTree(self.unit, upgrade, self.send_resource, self.metadata),
            self.clock,
            MAX_BODY,
            self.limits,
            self.websocket_server.context.slow_consumers,
            self.websocket_server.context.budget,
        )
        self._port = 50000

    def make_broker(self) -> FakeBroker:
        return FakeBroker()

    def tearDown(self) -> None:
        # Every close reason is in topicsvc.websocket.close_reasons.
        self.assertEqual(self.websocket_server.context.session_log.ended["other"], 0)

    def next_port(self) -> int:
        self._port += 1
        return self._port

    @property
    def now(self) -> float:
        return self.wall()

    def advance(self, seconds: float) -> None:
        """Advance the clock in steps of at most 1 s, so that timers run in their order."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(1, end - self.clock.seconds()))

    def iterate(self) -> None:
        """Run one reactor iteration."""
        self.clock.advance(0)

    def client(self, address: str = "192.0.2.7") -> Client:
        return Client(self, address)

    def connect(
        self, path: str = WEBSOCKET_PATH, host: str = HOST, address: str = "192.0.2.7"
    ) -> Client:
        """A client whose opening handshake is complete."""
        client = self.client(address)
        self.assertEqual(client.upgrade(path, host), 101)
        return client

    def subscribe(self, lifetime: float = 3600) -> Client:
        """A client whose session is active for `lifetime` seconds."""
        client = self.connect()
        client.present("first-token")
        self.validator.last.grant(self.now + lifetime)
        if not self.broker.subscriptions[-1].result.called:
            self.broker.confirm()
        client.assert_success(int(lifetime))
        return client

    def deliver(self, body: bytes = b"1", sender: str | None = SENDER) -> None:
        """The broker delivers a message, and the hub delivers it to the sessions."""
        self.broker.deliver(Message(TOPIC, sender, body))
        self.iterate()

    def assert_success_text(self, text: bytes, expires_in: int) -> None:
        golden = b'{"Response":"AccessToken","Result":"Success","ExpiresIn":%d,"Timestamp":%d}'
        self.assertEqual(text, golden % (expires_in, int(self.now)))

    def assert_error_text(self, text: bytes, response: str, reason: str) -> None:
        golden = b'{"Response":"%s","Result":"Error","Reason":"%s","Timestamp":%d}'
        self.assertEqual(text, golden % (response.encode(), reason.encode(), int(self.now)))

    def assert_close(self, frame: tuple[int, bytes], code: int, reason: str) -> None:
        opcode, payload = frame
        self.assertEqual(
            (opcode, int.from_bytes(payload[:2], "big"), payload[2:].decode()), (8, code, reason)
        )

    def assert_nothing_left(self) -> None:
        """No connection, subscription, check or timer is left."""
        self.assertEqual(len(self.websocket_server), 0)
        self.assertEqual(self.hub.topics, 0)
        self.assertEqual(self.broker.active, [])
        self.assertEqual((self.limits.connections.total, self.limits.unauthenticated.total), (0, 0))
        self.assertEqual(len(self.limits.token_deadlines), 0)
        self.assertEqual(
            (
                len(self.websocket_server.context.slow_consumers),
                self.websocket_server.context.slow_consumers.total,
            ),
            (0, 0),
        )
        self.websocket_server.stopService()
        self.assertEqual([call.func for call in self.clock.getDelayedCalls()], [])


class HttpTestCase(ServiceTestCase):
    """A service, with helpers for HTTP requests."""

    def assert_error_response(
        self, client: Client, body: bytes, status: int, code: str, text: str
    ) -> None:
        self.assertEqual(client.status, status)
        self.assertEqual(client.headers["content-type"], ["application/json"])
        golden = '{"code":"%s","message":{"lang":"en","value":"%s"}}'
        self.assertEqual(body.decode(), golden % (code, text))

    def start_request(
        self, method: str = "POST", body: bytes = b"1", path: str = SEND_PATH
    ) -> Client:
        """A client that has sent a request with a token and waits for the response."""
        client = self.client()
        self.assertEqual(client.request(method, path, BEARER, body), b"")
        self.assertEqual(client.status, 0)
        return client
