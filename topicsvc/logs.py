"""Adapter: the log as JSON, one object a line, for machines.

``twistd --nodaemon --logger topicsvc.logs.json_lines topicsvc ...``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from twisted.logger import FileLogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure

__all__ = ["as_json", "json_lines", "problem"]

_LEGACY = frozenset({"format", "isError", "message", "system", "time", "why"})
"""What Twisted's older log adds to its events."""


def json_lines() -> FileLogObserver:
    """An observer that writes to standard output; twistd calls this before it redirects that."""
    return FileLogObserver(sys.stdout, as_json)


def problem(twistd: Mapping[str, Any]) -> str | None:
    """What keeps `json_lines` from being read by anybody; None: nothing, or it is not used.

    Args:
        twistd: its options.
    """
    if twistd.get("logger") is not json_lines:
        return None
    if not twistd.get("nodaemon"):
        return "a daemon has no standard output for JSON: give twistd --nodaemon too"
    if twistd.get("logfile") or twistd.get("syslog"):
        return "JSON goes to standard output: --logger excludes --logfile and --syslog"
    return None


def as_json(event: LogEvent) -> str:
    """One line for one event.

    ``time``, ``level``, ``system`` and ``message`` are always there; the rest are the event's own
    fields, those that JSON knows. Of an exception its type is told, the way it went and what the
    system calls it, not its text: that may quote what a client has sent.
    """
    failure = event.get("log_failure") or event.get("failure")
    at = datetime.fromtimestamp(event["log_time"], UTC)
    record: dict[str, Any] = {
        "time": at.isoformat(timespec="milliseconds"),
        "level": event.get("log_level", LogLevel.info).name,
        "system": event.get("log_namespace", "-"),
        "message": _message(event, failure),
    }
    for key, value in event.items():
        is_ours = key not in _LEGACY and key not in record and not key.startswith("log_")
        if is_ours and _is_plain(value):
            record[key] = value
    if isinstance(failure, Failure):
        record |= _failure(failure)
    return json.dumps(record, separators=(",", ":")) + "\n"


def _message(event: LogEvent, failure: object) -> str:
    if failure is not None and "log_legacy" in event:
        # The older log's text of a failure is the whole of it.
        return str(event.get("why") or "Unhandled error")
    return formatEvent(event)


def _failure(failure: Failure) -> dict[str, Any]:
    kind = failure.type
    told: dict[str, Any] = {
        "error": "unknown" if kind is None else f"{kind.__module__}.{kind.__qualname__}",
        "traceback": [f"{file}:{line} in {name}" for name, file, line, *_ in failure.frames],
    }
    if isinstance(failure.value, OSError) and failure.value.strerror:
        told["strerror"] = failure.value.strerror
    return told


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, (str, int))
