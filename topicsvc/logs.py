"""Writes the log as JSON, one object on each line, or as text for people.

``twistd --nodaemon --logger topicsvc.logs.json_lines topicsvc ...``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    formatTime,
)
from twisted.python.failure import Failure
from zope.interface import provider

from topicsvc.printable import printable

__all__ = [
    "as_json",
    "as_text",
    "json_lines",
    "of_worker",
    "plain_fields",
    "problem",
    "text_lines",
]

_LEGACY = frozenset({"format", "isError", "message", "system", "time", "why"})
"""Keys that Twisted's legacy log adds to its events."""


def json_lines() -> FileLogObserver:
    """Make an observer that writes to standard output.

    twistd calls this before it redirects standard output to the log.
    """
    return FileLogObserver(sys.stdout, as_json)


def text_lines() -> FileLogObserver:
    """Make an observer that writes text for people to standard output; see `as_text`."""
    return FileLogObserver(sys.stdout, as_text)


def of_worker(observer: ILogObserver, number: int) -> ILogObserver:
    """Return an observer whose lines have the number of a worker: the field ``worker``."""

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        observer({**event, "worker": number})

    observing: ILogObserver = observe
    return observing


def as_text(event: LogEvent) -> str:
    """Format one event as its time, its level and its text.

    The text is made `printable`, as it may come from the network. The lines of a traceback
    follow, each behind a tab, without the exception's own text: see `as_json`. What twistd logs
    about itself is left out.
    """
    if str(event.get("log_namespace", "")).startswith("twisted.scripts."):
        return ""
    failure = event.get("log_failure") or event.get("failure")
    level = event.get("log_level", LogLevel.info).name
    worker = f"worker {event['worker']}: " if "worker" in event else ""
    text = printable(_message(event, failure))
    lines = [f"{formatTime(event['log_time'])} {level:<5} {worker}{text}"]
    if isinstance(failure, Failure):
        members = _failure(failure)
        lines += [*members.pop("traceback"), ": ".join(members.values())]
    return "\n\t".join(lines) + "\n"


def problem(twistd: Mapping[str, Any]) -> str | None:
    """Why the output of `json_lines` would be lost; None: it is not lost, or not in use.

    Args:
        twistd: the options of twistd.
    """
    if twistd.get("logger") is not json_lines:
        return None
    if not twistd.get("nodaemon"):
        return (
            "--logger writes JSON to standard output, which a daemon does not have: add --nodaemon"
        )
    if twistd.get("logfile") or twistd.get("syslog"):
        return "--logger writes JSON to standard output: remove --logfile and --syslog"
    return None


def as_json(event: LogEvent) -> str:
    """Format one event as one line.

    ``time``, ``level``, ``system`` and ``message`` are always present. The other members are the
    event's own fields that are strings, numbers, booleans or None.

    An exception adds its type (``error``), its ``traceback`` and, for an error of the operating
    system, ``strerror``. Its text is left out, because it may quote data of a client.
    """
    failure = event.get("log_failure") or event.get("failure")
    at = datetime.fromtimestamp(event["log_time"], UTC)
    record: dict[str, Any] = {
        "time": at.isoformat(timespec="milliseconds"),
        "level": event.get("log_level", LogLevel.info).name,
        "system": event.get("log_namespace", "-"),
        "message": _message(event, failure),
    }
    record.update((key, value) for key, value in plain_fields(event).items() if key not in record)
    if isinstance(failure, Failure):
        record |= _failure(failure)
    return json.dumps(record, separators=(",", ":")) + "\n"


def plain_fields(event: LogEvent) -> dict[str, Any]:
    """The event's own fields that are strings, numbers, booleans or None."""
    return {
        key: value
        for key, value in event.items()
        if key not in _LEGACY and not key.startswith("log_") and _is_plain(value)
    }


def _message(event: LogEvent, failure: object) -> str:
    if failure is not None and "log_legacy" in event:
        # The legacy log formats the whole failure, its text included.
        return str(event.get("why") or "Unhandled error")
    return formatEvent(event)


def _failure(failure: Failure) -> dict[str, Any]:
    kind = failure.type
    members: dict[str, Any] = {
        "error": "unknown" if kind is None else f"{kind.__module__}.{kind.__qualname__}",
        "traceback": [f"{file}:{line} in {name}" for name, file, line, *_ in failure.frames],
    }
    if isinstance(failure.value, OSError) and failure.value.strerror:
        members["strerror"] = failure.value.strerror
    return members


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, (str, int))
