"""What a client does with the response to a send or to a handshake."""

from __future__ import annotations

import json
import re
from http import HTTPStatus

__all__ = [
    "LONGEST_PAUSE",
    "code_in",
    "pause_before_retry",
    "reason_in",
    "seconds_of",
    "status_text",
]

LONGEST_PAUSE = 60.0
"""Most seconds that one message waits before it is sent, all pauses together."""

_NOT_TAKEN = 429
"""The service has not taken the message. After 503 this is not known."""

_SECONDS = re.compile(r"[0-9]{1,9}")
_STATUSES = set(map(int, HTTPStatus))


def seconds_of(retry_after: str) -> float | None:
    """The seconds of a header ``Retry-After``; None if it has none.

    A date (RFC 9110, section 10.2.3) is not read: the service sends seconds.
    """
    return float(retry_after) if _SECONDS.fullmatch(retry_after) else None


def pause_before_retry(status: int, retry_after: str, paused: float) -> float | None:
    """The seconds after which a message can be sent again; None: it cannot.

    Args:
        status: the HTTP status.
        retry_after: the header ``Retry-After``.
        paused: the seconds of the earlier pauses of this message.
    """
    seconds = seconds_of(retry_after)
    if status != _NOT_TAKEN or seconds is None or paused + seconds > LONGEST_PAUSE:
        return None
    return max(seconds, 1.0)


def status_text(status: int, body: bytes | bytearray) -> str:
    """The status of an HTTP error response with its reason, on one line."""
    reason = reason_in(body.decode("utf-8", "replace"))
    if not reason and status in _STATUSES:
        reason = HTTPStatus(status).phrase
    return f"{status} {reason}".rstrip()


def reason_in(body: str) -> str:
    """The reason in the body of an HTTP error response, on one line."""
    try:
        return str(json.loads(body)["message"]["value"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return " ".join(body[:200].split())


def code_in(body: bytes) -> str:
    """The code in the body of an HTTP error response; empty if there is none."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
