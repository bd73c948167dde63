"""The messages on the wire: requests, replies and data. No other module knows the JSON keys.

A request is the payload of a text message. Replies and data are whole, unmasked WebSocket
frames (RFC 6455, section 5.2), ready to be written.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

from topicsvc.errors import InvalidMessage
from topicsvc.interfaces import Message, Place
from topicsvc.settings import Timestamps
from topicsvc.strict_json import compact, ignore_number, reject_constant, reject_duplicates

__all__ = [
    "INVALID_MESSAGE",
    "MAX_TOKEN",
    "SERVICE_UNAVAILABLE",
    "SESSION_EXPIRED",
    "TOKEN_BLANKS",
    "TOKEN_INACTIVE",
    "TokenRequest",
    "data_frame",
    "ends_with_close",
    "error_reply",
    "parse_request",
    "pong_frame",
    "position_frame",
    "positioned",
    "success_reply",
    "text_frame",
    "whole_text",
]

_MAX_CONTROL_PAYLOAD = 125
_CONTROL_HEAD = 6  # with the mask
_FINAL_CLOSE = 0x88
_MASKED = 0x80


TOKEN_INACTIVE = "Token inactive"
INVALID_MESSAGE = "Invalid message"
SESSION_EXPIRED = "Session expired"
SERVICE_UNAVAILABLE = "Service unavailable"

MAX_TOKEN = 32768
"""Most characters of a token."""

TOKEN_BLANKS = " \t\n\v\f\r"
"""Characters around a token that are ignored, as units ignore them: blanks and line ends."""

MAX_SENDERS = 1024
"""Most cell URLs whose JSON form is cached."""

_TOKEN_KEY = "AccessToken"
_SINCE_KEY = "Since"
_SINCE = re.compile(r"[!-~]{1,128}")
_TOKEN = re.compile(rf"[!-~]{{1,{MAX_TOKEN}}}")

_request_decoder = json.JSONDecoder(
    object_pairs_hook=reject_duplicates,
    parse_int=ignore_number,
    parse_float=ignore_number,
    parse_constant=reject_constant,
)


class TokenRequest(NamedTuple):
    """A token message.

    Attributes:
        token: the token, without blanks and line ends around it.
        has_since: whether the client asks for positions.
        since: the position behind which it wants to go on; None: it begins now.
    """

    token: str
    has_since: bool = False
    since: str | None = None


def parse_request(payload: bytes) -> TokenRequest:
    """Parse a token message.

    Args:
        payload: the payload of a text message.

    Raises:
        InvalidMessage: it is not one JSON object with a well-formed ``AccessToken``, or its
            ``Since`` is not well-formed.
    """
    try:
        members = _request_decoder.decode(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidMessage("not one JSON value") from error
    token = members.get(_TOKEN_KEY) if isinstance(members, dict) else None
    if not isinstance(token, str):
        raise InvalidMessage("no token in it")
    token = token.strip(TOKEN_BLANKS)
    if not _TOKEN.fullmatch(token):
        raise InvalidMessage("no token in it")
    if _SINCE_KEY not in members:
        return TokenRequest(token)
    since = members[_SINCE_KEY]
    if since is not None and not (isinstance(since, str) and _SINCE.fullmatch(since)):
        raise InvalidMessage("no position in it")
    return TokenRequest(token, True, since)


def success_reply(
    expires_in: int, now: float, timestamps: Timestamps, place: Place | None = None
) -> bytes:
    """The frame that reports that a token was granted for `expires_in` more seconds.

    Args:
        expires_in: whole seconds.
        now: the time of day, in seconds since the epoch.
        timestamps: the unit of ``Timestamp``.
        place: of a session with positions.
    """
    timestamp = _timestamp(now, timestamps)
    payload = b'{"Response":"AccessToken","Result":"Success","ExpiresIn":%d,"Timestamp":%d}' % (
        expires_in,
        timestamp,
    )
    if place is not None:
        members = {
            "Position": place.position,
            "Missed": place.is_missed,
            "Heartbeat": int(place.heartbeat)
            if place.heartbeat == int(place.heartbeat)
            else place.heartbeat,
        }
        payload = payload[:-1] + b"," + compact(members)[1:]
    return text_frame(payload)


def error_reply(reason: str, now: float, timestamps: Timestamps) -> bytes:
    """The frame that reports why a request was not granted.

    ``Response`` is ``AccessToken`` if the reason concerns a token, else ``Unknown``.
    """
    about_token = reason in (TOKEN_INACTIVE, SERVICE_UNAVAILABLE)
    response = _TOKEN_KEY if about_token else "Unknown"
    members: dict[str, Any] = {"Response": response, "Result": "Error", "Reason": reason}
    members["Timestamp"] = _timestamp(now, timestamps)
    return text_frame(compact(members))


def _timestamp(now: float, timestamps: Timestamps) -> int:
    return int(now if timestamps == "seconds" else now * 1000)


def data_frame(message: Message) -> bytes:
    """The frame that delivers `message` to a client: ``{"From":...,"Body":...}``."""
    return text_frame(b'{"From":%s,"Body":%s}' % (_sender(message.sender), message.body))


def positioned(frame: bytes, position: str) -> bytes:
    """Add a position to the frame of a message: ``{"From":...,"Body":...,"Position":...}``.

    Args:
        frame: what `data_frame` has returned.
        position: visible ASCII that JSON does not escape.
    """
    payload = frame[2 if frame[1] < 126 else 4 if frame[1] == 126 else 10 : -1]
    return text_frame(b'%s,"Position":"%s"}' % (payload, position.encode("ascii")))


def position_frame(position: str | None) -> bytes:
    """The heartbeat of a session with positions: ``{"Position":...}``; None: they are off."""
    return text_frame(compact({"Position": position}))


@lru_cache(MAX_SENDERS)
def _sender(url: str | None) -> bytes:
    return json.dumps(url).encode("ascii")


def text_frame(payload: bytes) -> bytes:
    """One unfragmented, unmasked text frame with `payload`."""
    length = len(payload)
    if length < 126:
        return b"\x81%c%s" % (length, payload)
    if length < 65536:
        return b"\x81\x7e%s%s" % (length.to_bytes(2, "big"), payload)
    return b"\x81\x7f%s%s" % (length.to_bytes(8, "big"), payload)


def whole_text(data: bytes, max_payload: int) -> bytes | None:
    """Return the payload of the client's text message, if `data` is exactly that message.

    Most token messages arrive in this way. They need no frame parser.

    Args:
        data: what one read returned.
        max_payload: most bytes of the payload.

    Returns:
        None: `data` is not one masked, unfragmented text frame (RFC 6455, section 5.2) with
        at most `max_payload` bytes of UTF-8; the frame parser handles it.
    """
    size = len(data)
    if size < 6 or data[0] != 0x81:
        return None
    length = data[1] - 0x80  # negative: not masked
    start = 2
    if length == 126 and size > 8:
        length = int.from_bytes(data[2:4], "big")
        start = 4
        if length < 126:
            return None
    elif length > 125:
        return None
    if size != start + 4 + length or length > max_payload:
        return None
    mask = data[start : start + 4] * (length // 4 + 1)
    masked = int.from_bytes(data[start + 4 :], "big") ^ int.from_bytes(mask[:length], "big")
    payload = masked.to_bytes(length, "big")
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return payload


def pong_frame(payload: bytes) -> bytes:
    """One unmasked pong with `payload`, at most 125 bytes."""
    return b"\x8a%c%s" % (len(payload), payload)


def ends_with_close(data: bytes) -> bool:
    """Whether the last bytes of `data` are a whole close frame of a client.

    After an error the beginning of a frame is no longer known. The frame is found from its end:
    its first two bytes, a mask of four bytes, and a payload of at most 125 bytes (RFC 6455,
    section 5.5), which is empty or begins with a code. Data that only looks like it is rare.
    """
    size = len(data)
    for length in range(min(_MAX_CONTROL_PAYLOAD, size - _CONTROL_HEAD) + 1):
        start = size - _CONTROL_HEAD - length
        if data[start] == _FINAL_CLOSE and data[start + 1] == _MASKED | length and length != 1:
            return True
    return False
