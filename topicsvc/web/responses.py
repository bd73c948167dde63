"""Error responses of the HTTP side, with Personium's codes and texts."""

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
    "raw_response",
    "respond",
    "respond_too_many_failed_tokens",
    "url_of",
]

RETRY_AFTER = b"1"
"""Seconds, as a header value: most outages end within that time or last much longer."""


@dataclass(frozen=True, slots=True)
class ApiError:
    """One kind of error.

    Attributes:
        status: HTTP status.
        code: Personium's code, or a code of topicsvc in the same form.
        text: the message; ``{0}`` is replaced by details.
    """

    status: int
    code: str
    text: str

    def body(self, detail: str = "") -> bytes:
        """Return the JSON document of the error."""
        message = {"lang": "en", "value": self.text.replace("{0}", detail)}
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


def respond(
    request: Request, error: ApiError, detail: str = "", headers: dict[bytes, bytes] | None = None
) -> bytes:
    """Set the status and headers of `error`; return the body to write."""
    request.setResponseCode(error.status, RESPONSES.get(error.status, b"Upgrade Required"))
    request.setHeader(b"content-type", b"application/json")
    if error.status == 503:
        request.setHeader(b"retry-after", RETRY_AFTER)
    for name, value in (headers or {}).items():
        request.setHeader(name, value)
    return error.body(detail)


def respond_too_many_failed_tokens(request: Request, seconds: float) -> bytes:
    """Respond that for `seconds` no token from the client's address is checked."""
    return respond(request, TOO_MANY_FAILED_TOKENS, headers={b"retry-after": b"%d" % ceil(seconds)})


def raw_response(error: ApiError, detail: str = "") -> bytes:
    """Return a whole response, head and body, after which the connection is closed."""
    body = error.body(detail)
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
    """Return the URL of a request without its query, which may contain a token."""
    host = request.requestHeaders.getRawHeaders(b"host", [b""])[0]
    scheme = "https" if request.isSecure() else "http"
    path = request.path.decode("latin-1")
    return f"{scheme}://{host.decode('latin-1')}{path}" if path.startswith("/") else path
