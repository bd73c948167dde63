"""A STOMP broker in memory, scripted by the test, in virtual time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from topicsvc.brokers.activemq.stomp_frames import Decoder, Frame, encode


@implementer(IStreamClientEndpoint)
class ScriptedBroker:
    """Where the client connects to.

    Attributes:
        is_there: connections are accepted.
        hangs: connecting neither succeeds nor fails.
        obeys: peers greet and confirm as soon as they are asked.
        greeting: headers of the greeting.
        peers: the client's connections, in their order.
        attempts: when the client tried to connect.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_there = True
        self.hangs = False
        self.obeys = True
        self.greeting = {"version": "1.2", "heart-beat": "5000,5000"}
        self.peers: list[ScriptedPeer] = []
        self.attempts: list[float] = []

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        self.attempts.append(self.clock.seconds())
        if self.hangs:
            return Deferred()
        if not self.is_there:
            return fail(ConnectError(string="said the test"))
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        self.peers.append(ScriptedPeer(self, protocol))
        protocol.makeConnection(self.peers[-1])
        return succeed(protocol)

    @property
    def live(self) -> list[ScriptedPeer]:
        return [peer for peer in self.peers if not peer.is_gone]

    def go(self) -> None:
        """All connections are lost, and no new one is accepted."""
        self.is_there = False
        for peer in self.live:
            peer.close()

    def freeze(self) -> None:
        """As SIGSTOP does: connections are accepted and nothing is answered."""
        self.obeys = False
        for peer in self.live:
            peer.obeys = False


class ScriptedPeer(StringTransport):
    """The broker's end of one connection.

    Attributes:
        frames: what the client has sent.
        beats: heart-beats that the client has sent.
        is_unread: the client does not read; what is said waits for it.
        obeys: greets and confirms as soon as it is asked.
    """

    def __init__(self, broker: ScriptedBroker, protocol: Any) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.beats = 0
        self.is_gone = False
        self.is_unread = False
        self._unread = b""
        self.obeys = broker.obeys
        self._broker = broker
        self._protocol = protocol
        self._decoder = Decoder()

    # The client's side.

    def write(self, data: bytes) -> None:
        assert not self.is_gone, "written after the end"
        if data == b"\n":
            self.beats += 1
        self._decoder.feed(data)
        while (frame := self._decoder.next_frame()) is not None:
            self.frames.append(frame)
            if self.obeys:
                self._broker.clock.callLater(0, self.obey, frame)

    def loseConnection(self) -> None:
        if self.obeys:
            self._broker.clock.callLater(0, self.close)

    def abortConnection(self) -> None:
        self._broker.clock.callLater(0, self.close, ConnectionAborted())

    def pauseProducing(self) -> None:
        self.is_unread = True

    def resumeProducing(self) -> None:
        self.is_unread = False
        self._broker.clock.callLater(0, self.say_bytes, b"")

    # The test's side.

    def sent(self, command: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.command == command]

    @property
    def destinations(self) -> list[str]:
        """What is subscribed."""
        ended = {frame.headers["id"] for frame in self.sent("UNSUBSCRIBE")}
        subscribed = self.sent("SUBSCRIBE")
        return [
            each.headers["destination"] for each in subscribed if each.headers["id"] not in ended
        ]

    def obey(self, frame: Frame) -> None:
        """Do what the client asks."""
        if frame.command == "CONNECT":
            self.say("CONNECTED", **self._broker.greeting)
        if "receipt" in frame.headers:
            self.say("RECEIPT", receipt_id=frame.headers["receipt"])

    def refuse(self, frame: Frame, why: str) -> None:
        self.say("ERROR", receipt_id=frame.headers["receipt"], message=why)

    def bring(self, destination: str, body: bytes, **headers: str) -> None:
        """A message, as the broker sends it to whoever has subscribed."""
        for frame in self.sent("SUBSCRIBE"):
            if frame.headers["destination"] == destination:
                headers = {"subscription": frame.headers["id"], **headers}
        self.say("MESSAGE", body, **{"destination": destination, **headers})

    def say(self, command: str, body: bytes = b"", **headers: str) -> None:
        named = {name.replace("receipt_id", "receipt-id"): value for name, value in headers.items()}
        self.say_bytes(encode(Frame(command, named, body)))

    def say_bytes(self, data: bytes) -> None:
        self._unread += data
        if self._unread and not self.is_gone and not self.is_unread:
            data, self._unread = self._unread, b""
            self._protocol.dataReceived(data)

    def close(self, reason: Exception | None = None) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._protocol.connectionLost(Failure(reason or ConnectionDone()))
