"""The messages on the wire, as a client sees them. No other module of a client knows JSON keys."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

__all__ = ["Beat", "Granted", "Message", "Refused", "parse", "token_message"]

_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(rf'\{{"From":(null|{_STRING}),"Body":')
_TAIL = re.compile(rf',"Position":({_STRING})\}}\Z')
_LONGEST_TAIL = 1024
"""Characters at the end of a data message in which its position stands."""

_BLANKS = {" ", "\t", "\r", "\n"}
_decoder = json.JSONDecoder(parse_int=str, parse_float=str)
"""Finds the end of a value. Numbers are not converted: they may have any length."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the topic.

    Attributes:
        text: the JSON text of the body, as it was sent.
        sender: the URL of the sending cell; None if the message does not name one.
        position: the place behind this message; None if the service has no positions.
    """

    text: str
    sender: str | None
    position: str | None

    @property
    def body(self) -> Any:
        """The body, as `json.loads` returns it. For exact numbers parse `text`."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Granted:
    """The reply to a token that was granted, or the report of a gap.

    Attributes:
        expires_in: seconds until the session expires.
        position: the place behind which data begins; None: the service has no positions.
        missed: whether messages behind the client's position may be missing.
        heartbeat: longest time in seconds without a message; None: there is no such time.
    """

    expires_in: float
    position: str | None = None
    missed: bool = False
    heartbeat: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The reply to a token that was not granted, or the reason why the session ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: nothing was sent for a while."""

    position: str


def token_message(token: str, since: str | None, *, recover: bool) -> str:
    """The message that presents a token.

    Args:
        token: the token.
        since: the position after which messages are wanted; None: from now on.
        recover: whether to ask for positions.
    """
    members: dict[str, str | None] = {"AccessToken": token}
    if recover:
        members["Since"] = since
    return json.dumps(members, separators=(",", ":"))


def parse(text: str) -> Message | Granted | Refused | Beat | None:
    """Parse a text message of the service; returns None for one that this client does not know.

    Raises:
        ValueError: it is not of this protocol.
    """
    head = _HEAD.match(text)
    if head is not None and text.endswith("}"):
        # The shape that topicsvc sends. The body is not parsed: it may be any JSON value.
        tail = _TAIL.search(text, max(head.end(), len(text) - _LONGEST_TAIL))
        body = text[head.end() : tail.start() if tail else -1]
        return Message(body, json.loads(head[1]), json.loads(tail[1]) if tail else None)
    try:
        return _message(_members(text))
    except (LookupError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError("not a message of this protocol") from error


def _message(texts: dict[str, str]) -> Message | Granted | Refused | Beat | None:
    """Make a message from the texts of its members."""
    body = texts.pop("Body", None)
    members = {key: json.loads(value) for key, value in texts.items()}
    position = _text(members.get("Position"))
    if body is not None:
        return Message(body, _text(members.get("From")), position)
    if "Result" not in members:
        return None if position is None else Beat(position)
    if members["Result"] != "Success":
        return Refused(str(members.get("Reason", "")))
    heartbeat = members.get("Heartbeat")
    return Granted(
        expires_in=float(int(members["ExpiresIn"])),
        position=position,
        missed=members.get("Missed") is True,
        heartbeat=None if heartbeat is None else float(heartbeat),
    )


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} instead of a string")
    return value


def _members(text: str) -> dict[str, str]:
    """Return the members of a JSON object: the text of each value, by key."""
    found: dict[str, str] = {}
    index = _behind(text, 0, "{")
    while text[index] != "}":
        if found:
            index = _behind(text, index, ",")
        if text[index] != '"':
            raise ValueError("a key that is not a string")
        key, index = _decoder.raw_decode(text, index)
        begin = _behind(text, _skip_blanks(text, index), ":")
        _, end = _decoder.raw_decode(text, begin)
        found[key] = text[begin:end]
        index = _skip_blanks(text, end)
    if _skip_blanks(text, index + 1) != len(text):
        raise ValueError("text behind the object")
    return found


def _behind(text: str, index: int, character: str) -> int:
    """Return where the text goes on behind this character, which must come next."""
    index = _skip_blanks(text, index)
    if text[index] != character:
        raise ValueError(f"no {character} at character {index}")
    return _skip_blanks(text, index + 1)


def _skip_blanks(text: str, index: int) -> int:
    while text[index : index + 1] in _BLANKS:
        index += 1
    return index
