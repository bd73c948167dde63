"""What scripted brokers, and tests with them, have in common for every kind of broker."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent
from twisted.python.failure import Failure


class ScriptedTransport(StringTransport):
    """The broker's side of one connection of a client.

    Attributes:
        is_closed: the connection is closed.
        is_paused: the client does not read; bytes for it wait.
        responds: the broker closes the connection if the client does.
    """

    def __init__(self, clock: Clock, protocol: Any, responds: bool) -> None:
        super().__init__()
        self.is_closed = False
        self.is_paused = False
        self.responds = responds
        self._clock = clock
        self._unsent = b""
        self._protocol = protocol

    # Called by the client.

    def loseConnection(self) -> None:
        if self.responds:
            self._clock.callLater(0, self.close)

    def abortConnection(self) -> None:
        self._clock.callLater(0, self.close, ConnectionAborted())

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False
        self._clock.callLater(0, self.send_bytes, b"")

    # Called by the test.

    def send_bytes(self, data: bytes) -> None:
        self._unsent += data
        if self._unsent and not self.is_closed and not self.is_paused:
            data, self._unsent = self._unsent, b""
            self._protocol.dataReceived(data)

    def close(self, reason: Exception | None = None) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._protocol.connectionLost(Failure(reason or ConnectionDone()))


def log_lines(events: list[LogEvent], word: str) -> list[str]:
    """The lines of topicsvc's log that contain `word`."""
    texts = [
        event["log_format"].format(**event)
        for event in events
        if event.get("log_format") and event["log_namespace"].startswith("topicsvc")
    ]
    return [text for text in texts if word in text]
