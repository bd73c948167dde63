"""A peer: an unchanged Autobahn server that sends each message to all connections."""

import sys

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor

from bench.sessions import pin


class Broadcast(WebSocketServerProtocol):
    def onOpen(self) -> None:
        if not self.http_request_path.startswith("/send"):
            self.factory.members.add(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        prepared = self.factory.prepareMessage(payload, isBinary)
        for member in self.factory.members:
            member.sendPreparedMessage(prepared)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.factory.members.discard(self)


pin(0)
factory = WebSocketServerFactory()
factory.protocol = Broadcast
factory.members = set()
port = reactor.listenTCP(0, factory, backlog=1024, interface="127.0.0.1")
print(port.getHost().port, flush=True)
sys.stdout.flush()
reactor.run()
