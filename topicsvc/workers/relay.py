"""Brings the log of a worker into the log of the parent.

The parent rotates its file, so only the parent can write it. A worker writes its events to a pipe,
one JSON object on each line, and waits if the pipe is full.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, globalLogPublisher
from zope.interface import provider

from topicsvc.logs import plain_fields

__all__ = ["MAX_LINE", "LogReceiver", "relay_to"]

MAX_LINE = 256 * 1024
"""Most bytes of an event."""


def relay_to(descriptor: int) -> ILogObserver:
    """Return an observer that writes events to a pipe."""

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        line = {
            "time": event["log_time"],
            "level": event.get("log_level", LogLevel.info).name,
            "namespace": event.get("log_namespace", "-"),
            "text": text[: MAX_LINE // 8],  # JSON in ASCII has up to 6 bytes for a character
            "fields": {
                key: value if not isinstance(value, str) else value[:1000]
                for key, value in plain_fields(event).items()
            },
        }
        data = json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]

    observing: ILogObserver = observe
    return observing


class LogReceiver:
    """Emits the events that a worker has written to its pipe.

    Args:
        number: the number of the worker.
        publish: takes the events.
    """

    def __init__(
        self, number: int, publish: Callable[[LogEvent], None] = globalLogPublisher
    ) -> None:
        self._number = number
        self._publish = publish
        self._rest = b""

    def receive(self, data: bytes) -> None:
        """Take bytes of the pipe."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            self._rest = b""
        for line in lines:
            with suppress(ValueError):  # what a worker that was killed has left
                self._publish(_event(json.loads(line), self._number))


def _event(members: dict[str, Any], number: int) -> LogEvent:
    level, namespace = members["level"], members["namespace"]
    return {
        **members["fields"],
        "log_time": members["time"],
        "log_level": LogLevel.levelWithName(level),
        "log_namespace": namespace,
        "log_system": f"worker {number}, {namespace}#{level}",
        "log_format": "{text}",
        "text": members["text"],
        "worker": number,
    }
