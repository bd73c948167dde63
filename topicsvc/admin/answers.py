"""The responses of the admin endpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "error_answer", "json_answer", "text_answer"]

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: status, content type, body and further headers."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_answer(members: dict[str, Any], status: int = 200) -> Answer:
    """A JSON object on one line, in ASCII: control characters are escaped."""
    return Answer(status, JSON, json.dumps(members).encode("ascii") + b"\n")


def error_answer(status: int, error: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """``{"error": "..."}``."""
    return Answer(status, JSON, json_answer({"error": error}).body, headers)


def text_answer(status: int, line: str) -> Answer:
    """One line of text, in ASCII."""
    return Answer(status, "text/plain; charset=utf-8", line.encode("ascii") + b"\n")
