"""topicsvc as its users run it: a process of its own, and clients of it."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from tests.integration.support.processes import Program, free_port, until
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import RIGHTS, make_key, sign_token, write_key
from topicsvc.websocket.messages import token_request

CELL_URL = "http://cell1.localhost/"


class Unit:
    """What all processes of one deployment share: a key, and a broker.

    Args:
        directory: where files may be written.
        broker: the table ``[broker]`` of the configuration.
    """

    def __init__(self, directory: Path, broker: str) -> None:
        self.directory = directory
        self.broker = broker
        self.key = make_key()
        self.key_file = directory / "key"
        write_key(self.key_file, self.key)

    def token(self, life: int = 3600) -> str:
        return sign_token(self.key, CELL_URL, ["/*"], RIGHTS, int(reactor.seconds()) + life)


class Topicsvc:
    """One process.

    Args:
        unit: what it shares with others.
        drain: seconds over which its sessions are closed when it stops.
        endpoint: where it listens; none: on a free port.
    """

    def __init__(self, unit: Unit, drain: float = 0, endpoint: str = "") -> None:
        self._unit = unit
        self.port, self.admin = free_port(), free_port()
        endpoint = endpoint or f"tcp:{self.port}:interface=127.0.0.1:backlog=1000"
        configuration = unit.directory / f"topicsvc-{self.port}.toml"
        configuration.write_text(
            f'listen = ["{endpoint}"]\n'
            f'admin = "tcp:{self.admin}:interface=127.0.0.1"\n'
            'unit_url = "http://localhost/"\n'
            'hosts = ["127.0.0.1"]\n'
            f'[validator]\nkind = "local"\nkey_file = "{unit.key_file}"\n'
            f"[broker]\n{unit.broker}\n"
            f"[stop]\ndrain = {drain}\n"
        )
        twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
        self.program = Program(
            [*twistd, "-n", "--pidfile=", "topicsvc", "--config", str(configuration)],
            unit.directory / f"topicsvc-{self.port}.log",
            {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            unit.directory,
        )

    def start(self) -> Deferred[float]:
        """Start it; fires when it is ready, with how many seconds that took."""
        self.program.start()
        return self.until_ready()

    def until_ready(self, seconds: float = 30) -> Deferred[float]:
        return until(lambda: self.parts.get("broker"), "topicsvc is ready", seconds)

    def until_not_ready(self, seconds: float = 30) -> Deferred[float]:
        return until(lambda: not self.parts["broker"], "topicsvc sees the loss", seconds)

    @property
    def parts(self) -> dict[str, bool]:
        """Which parts are ready; none: it does not answer."""
        assert self.program.runs, self.program.log
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.admin}/health/ready", timeout=5
            ) as answer:
                return json.load(answer)["parts"]
        except urllib.error.HTTPError as answer:
            return json.load(answer)["parts"]
        except urllib.error.URLError:
            return {}

    def send(self, path: str, body: bytes) -> int:
        """Send over HTTP; returns the status."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            body,
            {"Authorization": f"Bearer {self._unit.token()}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code

    @inlineCallbacks
    def connect(self, path: str, subscriber: Subscriber | None = None) -> Any:
        """Open a WebSocket; fires with the subscriber when the handshake is answered."""
        subscriber = subscriber or Subscriber()
        subscriber.path, subscriber.token = path, self._unit.token()
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        yield connectProtocol(endpoint, subscriber)
        yield subscriber.answered
        return subscriber

    @inlineCallbacks
    def join(self, topic: TopicAddress, subscriber: Subscriber | None = None) -> Any:
        """Open a session; fires with the subscriber after Success."""
        subscriber = yield self.connect(topic.websocket_path, subscriber)
        is_welcome = yield subscriber.welcomed
        assert is_welcome, f"no Success: {subscriber.replies}"
        return subscriber


class Subscriber(Protocol):
    """A WebSocket client, as small and as fast as a test of many needs it.

    Attributes:
        status: of the answer to the handshake.
        messages: payloads of data messages.
        close_code: of the close frame; None: there was none.
        answered: fires when the handshake is answered, with the status.
        welcomed: fires when it is known whether there was Success.
        gone: fires when the connection is closed.
        on_success: called in the turn in which Success is read.
    """

    path = ""
    token = ""

    def __init__(self, on_success: Callable[[], object] = lambda: None) -> None:
        self.status = 0
        self.messages: list[bytes] = []
        self.replies: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self.answered: Deferred[int] = Deferred()
        self.welcomed: Deferred[bool] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self._on_success = on_success
        self._buffer = b""

    def connectionMade(self) -> None:
        self.transport.write(
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )

    def present(self) -> None:
        """Present the token."""
        payload = token_request(self.token)
        length = bytes([0xFE]) + len(payload).to_bytes(2, "big")
        self.transport.write(b"\x81" + length + bytes(4) + payload)

    def leave(self) -> Deferred[None]:
        self.transport.loseConnection()
        return self.gone

    def dataReceived(self, data: bytes) -> None:
        data = self._buffer + data
        at = 0
        if not self.status:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                self._buffer = data
                return
            self.status = int(data[9:12])
            self.answered.callback(self.status)
            if self.status != 101:
                self.transport.loseConnection()
                return
            self.present()
        while len(data) - at >= 2:
            length, start = data[at + 1], at + 2
            if length >= 126:
                start = at + (4 if length == 126 else 10)
                length = int.from_bytes(data[at + 2 : start], "big")
            if len(data) < start + length:
                break
            self._frame(data[at] & 15, data[start : start + length])
            at = start + length
        self._buffer = data[at:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == 9:
            self.transport.write(bytes([0x8A, 0x80 | len(payload)]) + bytes(4) + payload)
        elif opcode == 8:
            self.close_code = int.from_bytes(payload[:2], "big")
            self.transport.write(bytes([0x88, 0x82]) + bytes(4) + payload[:2])
        elif payload.startswith(b'{"Response"'):
            self.replies.append(json.loads(payload))
            if self.replies[-1]["Result"] == "Success" and not self.welcomed.called:
                self._on_success()
                self.welcomed.callback(True)
        else:
            self.messages.append(payload)

    def connectionLost(self, reason: Failure) -> None:
        if not self.answered.called:
            self.answered.callback(0)
        if not self.welcomed.called:
            self.welcomed.callback(False)
        self.gone.callback(None)
