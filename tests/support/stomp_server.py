"""A STOMP broker in memory, controlled by the test, in virtual time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from zope.interface import implementer

from tests.support.scripted_broker import ScriptedTransport
from topicsvc.brokers.activemq.stomp_frames import Decoder, Frame, encode


@implementer(IStreamClientEndpoint)
class ScriptedBroker:
    """The endpoint that the client connects to.

    Attributes:
        is_listening: connections are accepted.
        hangs: connecting neither succeeds nor fails.
        responds: new peers send the greeting and receipts at once.
        greeting: headers of the CONNECTED frame.
        peers: the connections of the client, in their order.
        attempts: the times of the client's attempts to connect.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_listening = True
        self.hangs = False
        self.responds = True
        self.greeting = {"version": "1.2", "heart-beat": "5000,5000"}
        self.peers: list[ScriptedPeer] = []
        self.attempts: list[float] = []

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        self.attempts.append(self.clock.seconds())
        if self.hangs:
            return Deferred()
        if not self.is_listening:
            return fail(ConnectError(string="simulated"))
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        self.peers.append(ScriptedPeer(self, protocol))
        protocol.makeConnection(self.peers[-1])
        return succeed(protocol)

    @property
    def connected(self) -> list[ScriptedPeer]:
        return [peer for peer in self.peers if not peer.is_closed]

    def shut_down(self) -> None:
        """Close all connections, and accept no new one."""
        self.is_listening = False
        for peer in self.connected:
            peer.close()

    def freeze(self) -> None:
        """Accept connections and respond to nothing, as after SIGSTOP."""
        self.responds = False
        for peer in self.connected:
            peer.responds = False


class ScriptedPeer(ScriptedTransport):
    """The broker's side of one connection.

    Attributes:
        frames: those that the client has sent.
        heartbeats: the number of heartbeats that the client has sent.
        is_paused: the client does not read; bytes for it wait.
        responds: the greeting and receipts are sent at once.
    """

    def __init__(self, broker: ScriptedBroker, protocol: Any) -> None:
        super().__init__(broker.clock, protocol, broker.responds)
        self.frames: list[Frame] = []
        self.heartbeats = 0
        self._broker = broker
        self._decoder = Decoder()

    # Called by the client.

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "written after the connection was closed"
        if data == b"\n":
            self.heartbeats += 1
        self._decoder.feed(data)
        while (frame := self._decoder.next_frame()) is not None:
            self.frames.append(frame)
            if self.responds:
                self._broker.clock.callLater(0, self.respond, frame)

    # Called by the test.

    def received(self, command: str) -> list[Frame]:
        """The frames of the client with this command."""
        return [frame for frame in self.frames if frame.command == command]

    @property
    def destinations(self) -> list[str]:
        """The destinations of the current subscriptions."""
        ended = {frame.headers["id"] for frame in self.received("UNSUBSCRIBE")}
        subscribed = self.received("SUBSCRIBE")
        return [
            each.headers["destination"] for each in subscribed if each.headers["id"] not in ended
        ]

    def respond(self, frame: Frame) -> None:
        """Send what the frame requests: the greeting or a receipt."""
        if frame.command == "CONNECT":
            self.send_frame("CONNECTED", **self._broker.greeting)
        if "receipt" in frame.headers:
            self.send_frame("RECEIPT", receipt_id=frame.headers["receipt"])

    def refuse(self, frame: Frame, why: str) -> None:
        """Send an ERROR frame about a request."""
        self.send_frame("ERROR", receipt_id=frame.headers["receipt"], message=why)

    def send_message(self, destination: str, body: bytes, **headers: str) -> None:
        """Send a message, with the id of the subscription to this destination."""
        for frame in self.received("SUBSCRIBE"):
            if frame.headers["destination"] == destination:
                headers = {"subscription": frame.headers["id"], **headers}
        self.send_frame("MESSAGE", body, **{"destination": destination, **headers})

    def send_frame(self, command: str, body: bytes = b"", **headers: str) -> None:
        named = {name.replace("receipt_id", "receipt-id"): value for name, value in headers.items()}
        self.send_bytes(encode(Frame(command, named, body)))
