"""Adapter: the errors of the HTTP side, with Personium's codes and texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from typing import Any

from twisted.web.http import RESPONSES, Request

__all__ = [
    "BAD_HOST",
    "BAD_REQUEST",
    "INTERNAL_ERROR",
    "METHOD_NOT_ALLOWED",
    "NOT_A_HANDSHAKE",
    "NOT_FOUND",
    "NOT_JSON",
    "NO_PRIVILEGE",
    "NO_TOKEN",
    "ORIGIN_REFUSED",
    "TOKEN_INACTIVE",
    "TOO_BIG",
    "TOO_MANY_FAILED_TOKENS",
    "TOO_MANY_REQUESTS",
    "UNAVAILABLE",
    "UPGRADE_REQUIRED",
    "ApiError",
    "answer",
    "early_answer",
    "too_many_failed_tokens",
]

RETRY_AFTER = b"1"
"""Seconds, as a header: an outage is usually over by then or lasts much longer."""


@dataclass(frozen=True, slots=True)
class ApiError:
    """One kind of error.

    Attributes:
        status: HTTP status.
        code: Personium's code, or one of ours in its form.
        text: its message; ``{0}`` stands for what it is about.
    """

    status: int
    code: str
    text: str

    def body(self, about: str = "") -> bytes:
        """The JSON document that tells it."""
        message = {"lang": "en", "value": self.text.replace("{0}", about)}
        document = {"code": self.code, "message": message}
        return json.dumps(document, separators=(",", ":")).encode("ascii")


NOT_JSON = ApiError(400, "PR400-OD-0001", "JSON parse error.")
BAD_REQUEST = ApiError(400, "PR400-SV-0001", "Not a request as RFC 9112 has it.")
BAD_HOST = ApiError(400, "PR400-CM-0005", "Host is not this unit. [{0}].")
NOT_A_HANDSHAKE = ApiError(400, "PR400-WS-0001", "Not a WebSocket handshake: {0}.")
NO_TOKEN = ApiError(401, "PR401-AU-0001", "Authorization required.")
TOKEN_INACTIVE = ApiError(401, "PR401-AU-0006", "Token parse error.")
NO_PRIVILEGE = ApiError(403, "PR403-AU-0002", "Necessary privilege is lacking.")
ORIGIN_REFUSED = ApiError(403, "PR403-WS-0001", "Pages of this origin may not connect.")
NOT_FOUND = ApiError(404, "PR404-DV-0001", "Resource not found. [{0}].")
METHOD_NOT_ALLOWED = ApiError(405, "PR405-MC-0001", "Method not allowed.")
TOO_BIG = ApiError(413, "PR413-SV-0001", "The body is larger than {0} bytes.")
UPGRADE_REQUIRED = ApiError(426, "PR426-WS-0001", "Connect with WebSocket version 13.")
INTERNAL_ERROR = ApiError(500, "PR500-SV-0001", "Internal error.")
TOO_MANY_REQUESTS = ApiError(503, "PR503-SV-0001", "Too many concurrent requests.")
UNAVAILABLE = ApiError(503, "PR503-SV-0002", "Server connection error.")
TOO_MANY_FAILED_TOKENS = ApiError(503, "PR503-SV-0003", "Too many tokens were no good.")


def answer(
    request: Request, error: ApiError, about: str = "", headers: dict[bytes, bytes] | None = None
) -> bytes:
    """Set the status and headers of `error`; return the body to write."""
    request.setResponseCode(error.status, RESPONSES.get(error.status, b"Upgrade Required"))
    request.setHeader(b"content-type", b"application/json")
    if error.status == 503:
        request.setHeader(b"retry-after", RETRY_AFTER)
    for name, value in (headers or {}).items():
        request.setHeader(name, value)
    return error.body(about)


def too_many_failed_tokens(request: Request, seconds: float) -> bytes:
    """Answer that for so many seconds no token from there is looked at."""
    return answer(request, TOO_MANY_FAILED_TOKENS, headers={b"retry-after": b"%d" % ceil(seconds)})


def early_answer(error: ApiError, about: str = "") -> bytes:
    """A whole answer for a connection that ends with it, whatever else was asked."""
    body = error.body(about)
    lines = [
        b"HTTP/1.1 %d %s" % (error.status, RESPONSES[error.status]),
        b"Content-Type: application/json",
        b"Access-Control-Allow-Origin: *",
        b"Connection: close",
        b"Content-Length: %d" % len(body),
    ]
    if error.status == 503:
        lines.append(b"Retry-After: " + RETRY_AFTER)
    return b"\r\n".join([*lines, b"", body])


def url_of(request: Any) -> str:
    """The URL that a request asked for, without its query: a token may stand there."""
    host = request.requestHeaders.getRawHeaders(b"host", [b""])[0]
    scheme = "https" if request.isSecure() else "http"
    path = request.path.decode("latin-1")
    return f"{scheme}://{host.decode('latin-1')}{path}" if path.startswith("/") else path
