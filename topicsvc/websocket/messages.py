"""The messages on the wire: requests, replies and data. No other module knows the JSON keys.

A request is the payload of a text message. Replies and data are whole, unmasked WebSocket
frames (RFC 6455, section 5.2), ready to be written.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from topicsvc.errors import InvalidMessage
from topicsvc.interfaces import Message
from topicsvc.settings import Timestamps
from topicsvc.strict_json import compact, ignore_number, reject_constant, reject_duplicates

__all__ = [
    "INVALID_MESSAGE",
    "MAX_TOKEN",
    "SERVICE_UNAVAILABLE",
    "SESSION_EXPIRED",
    "TOKEN_INACTIVE",
    "data_frame",
    "error_reply",
    "parse_token",
    "pong_frame",
    "success_reply",
    "text_frame",
    "token_request",
]


TOKEN_INACTIVE = "Token inactive"
INVALID_MESSAGE = "Invalid message"
SESSION_EXPIRED = "Session expired"
SERVICE_UNAVAILABLE = "Service unavailable"

MAX_TOKEN = 32768
"""Most characters of a token."""

MAX_SENDERS = 1024
"""Most cell URLs whose JSON form is cached."""

_TOKEN_KEY = "AccessToken"
_TOKEN = re.compile(rf"[!-~]{{1,{MAX_TOKEN}}}")

_request_decoder = json.JSONDecoder(
    object_pairs_hook=reject_duplicates,
    parse_int=ignore_number,
    parse_float=ignore_number,
    parse_constant=reject_constant,
)


def parse_token(payload: bytes) -> str:
    """Return the token of a token message.

    Args:
        payload: the payload of a text message.

    Raises:
        InvalidMessage: it is not one JSON object with a well-formed ``AccessToken``.
    """
    try:
        members = _request_decoder.decode(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidMessage("not one JSON value") from error
    token = members.get(_TOKEN_KEY) if isinstance(members, dict) else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise InvalidMessage("no token in it")
    return token


def token_request(token: str) -> bytes:
    """The message with which a client presents `token`."""
    return compact({_TOKEN_KEY: token})


def success_reply(expires_in: int, now: float, timestamps: Timestamps) -> bytes:
    """The frame that reports that a token was granted for `expires_in` more seconds."""
    return _reply(
        {"Response": _TOKEN_KEY, "Result": "Success", "ExpiresIn": expires_in}, now, timestamps
    )


def error_reply(reason: str, now: float, timestamps: Timestamps) -> bytes:
    """The frame that reports why a request was not granted.

    ``Response`` is ``AccessToken`` if the reason concerns a token, else ``Unknown``.
    """
    about_token = reason in (TOKEN_INACTIVE, SERVICE_UNAVAILABLE)
    response = _TOKEN_KEY if about_token else "Unknown"
    return _reply({"Response": response, "Result": "Error", "Reason": reason}, now, timestamps)


def _reply(members: dict[str, Any], now: float, timestamps: Timestamps) -> bytes:
    members["Timestamp"] = int(now if timestamps == "seconds" else now * 1000)
    return text_frame(compact(members))


def data_frame(message: Message) -> bytes:
    """The frame that delivers `message` to a client: ``{"From":...,"Body":...}``."""
    return text_frame(b'{"From":%s,"Body":%s}' % (_sender(message.sender), message.body))


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


def pong_frame(payload: bytes) -> bytes:
    """One unmasked pong with `payload`, at most 125 bytes."""
    return b"\x8a%c%s" % (len(payload), payload)
