"""HTTP responses, and the errors with Personium's codes and texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from math import ceil

__all__ = [
    "BAD_HOST",
    "BAD_LINE",
    "BAD_REQUEST",
    "EXPECTATION_FAILED",
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
    "TOO_MANY_LINES",
    "TOO_MANY_REQUESTS",
    "TOO_MANY_SENDS",
    "UNAVAILABLE",
    "UPGRADE_REQUIRED",
    "ApiError",
    "Header",
    "Response",
    "error_response",
    "too_many_failed_tokens",
    "too_many_sends",
]

RETRY_AFTER = b"1"
"""Seconds, as a header value: most outages end within that time or last much longer."""

Header = tuple[bytes, bytes]


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
BAD_LINE = ApiError(400, "PR400-SV-0002", "Line {0} is not one JSON value.")
BAD_HOST = ApiError(400, "PR400-CM-0005", "Host is not this unit. [{0}].")
NOT_A_HANDSHAKE = ApiError(400, "PR400-WS-0001", "Not a WebSocket handshake: {0}.")
NO_TOKEN = ApiError(401, "PR401-AU-0001", "Authorization required.")
TOKEN_INACTIVE = ApiError(401, "PR401-AU-0006", "Token parse error.")
NO_PRIVILEGE = ApiError(403, "PR403-AU-0002", "Necessary privilege is lacking.")
ORIGIN_REFUSED = ApiError(403, "PR403-WS-0001", "Pages of this origin may not connect.")
NOT_FOUND = ApiError(404, "PR404-DV-0001", "Resource not found. [{0}].")
METHOD_NOT_ALLOWED = ApiError(405, "PR405-MC-0001", "Method not allowed.")
TOO_BIG = ApiError(413, "PR413-SV-0001", "The body is larger than {0} bytes.")
TOO_MANY_LINES = ApiError(413, "PR413-SV-0002", "The body has more than {0} lines.")
EXPECTATION_FAILED = ApiError(417, "PR417-SV-0001", "Only 100-continue can be expected.")
UPGRADE_REQUIRED = ApiError(426, "PR426-WS-0001", "Connect with WebSocket version 13.")
TOO_MANY_SENDS = ApiError(429, "PR429-SV-0001", "Too many messages in a minute.")
INTERNAL_ERROR = ApiError(500, "PR500-SV-0001", "Internal error.")
TOO_MANY_REQUESTS = ApiError(503, "PR503-SV-0001", "Too many concurrent requests.")
UNAVAILABLE = ApiError(503, "PR503-SV-0002", "Server connection error.")
TOO_MANY_FAILED_TOKENS = ApiError(503, "PR503-SV-0003", "Too many tokens were no good.")

ANY_ORIGIN: Header = (b"Access-Control-Allow-Origin", b"*")
_EXPOSED: Header = (b"Access-Control-Expose-Headers", b"Retry-After")


class Response:
    """A final response, before its framing.

    Attributes:
        status: HTTP status.
        headers: header fields, without framing (``Content-Length``, ``Connection``) and ``Date``.
        body: the content.
        closes: whether the connection is closed after it.
    """

    __slots__ = ("_date", "_encoded", "body", "closes", "headers", "status")

    def __init__(
        self, status: int, headers: tuple[Header, ...] = (), body: bytes = b"", closes: bool = False
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.closes = closes
        self._date = self._encoded = b""

    def encode(self, date: bytes, closes: bool, is_head: bool) -> bytes:
        """Return the response as bytes.

        Args:
            date: value of the ``Date`` field.
            closes: whether the connection is closed after this response.
            is_head: whether the request is HEAD; then there is no content (RFC 9110, section
                9.3.2).
        """
        if is_head or closes:
            return self._encode(date, closes, is_head)
        if date != self._date:  # a response that is used again is encoded once a second
            self._date, self._encoded = date, self._encode(date, closes, is_head)
        return self._encoded

    def _encode(self, date: bytes, closes: bool, is_head: bool) -> bytes:
        others = self.headers
        connection = b""
        if closes:
            # A 426 has `Connection: upgrade`; `close` is added to it.
            values = [value for name, value in others if name == b"Connection"]
            others = tuple(each for each in others if each[0] != b"Connection")
            connection = b"Connection: %s\r\n" % b", ".join([*values, b"close"])
        return b"%s%sDate: %s\r\n%sContent-Length: %d\r\n\r\n%s" % (
            _status_line(self.status),
            b"".join([b"%s: %s\r\n" % each for each in others]),
            date,
            connection,
            len(self.body),
            b"" if is_head else self.body,
        )


@lru_cache(64)
def _status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode("ascii"))


def error_response(
    error: ApiError, detail: str = "", headers: tuple[Header, ...] = (), closes: bool = False
) -> Response:
    """Return the response for `error`. `headers` may contain another ``Retry-After``."""
    fields = [(b"Content-Type", b"application/json")]
    if error.status == 503 and not any(name == b"Retry-After" for name, _ in headers):
        fields.append((b"Retry-After", RETRY_AFTER))
    return Response(error.status, (*fields, *headers), error.body(detail), closes)


def too_many_failed_tokens(seconds: float, headers: tuple[Header, ...] = ()) -> Response:
    """Return the response that no token from the client's address is checked for `seconds`."""
    return _retry_later(TOO_MANY_FAILED_TOKENS, seconds, headers)


def too_many_sends(seconds: float, headers: tuple[Header, ...] = ()) -> Response:
    """Return the response that the same messages may be sent in `seconds`."""
    # Scripts of pages cannot read other headers of a response from another origin.
    return _retry_later(TOO_MANY_SENDS, seconds, (*headers, _EXPOSED))


def _retry_later(error: ApiError, seconds: float, headers: tuple[Header, ...]) -> Response:
    retry_after = (b"Retry-After", b"%d" % ceil(seconds))
    return error_response(error, headers=(retry_after, *headers))
