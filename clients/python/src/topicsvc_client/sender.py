"""Sends messages over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl as tls
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from typing import Any

from .rules.failures import SendFailed
from .rules.responses import code_in, pause_before_retry, status_text
from .rules.tokens import checked_token
from .rules.urls import ascii_url
from .threads import Threads
from .topic import GetTokenFunction, result_of

__all__ = ["send"]

TIMEOUT = 10.0
"""Seconds for the connection, and for each part of the response."""

MAX_BODY = 65536
"""Bytes of an error response that are read."""

MAX_REQUESTS = 32
"""Requests of this process at a time. Others wait: each request needs a thread."""

_threads = Threads(MAX_REQUESTS)


async def send(
    url: str, value: Any, get_token: GetTokenFunction, ssl: tls.SSLContext | None = None
) -> None:
    """Send one message.

    If the service asks to send it again later, this is done, for at most 60 seconds. If it
    refuses the token, ``get_token("refused")`` is called once. At most 32 requests of a process are
    under way at a time; others wait.

    If the call is cancelled, it ends at once. A request that has begun goes on in its thread for up
    to 10 seconds, and the message may be sent.

    Args:
        url: the URL to send to, ``https://`` or ``http://``.
        value: the body: any value that `json.dumps` takes.
        get_token: as for `Topic`.
        ssl: as for `Topic`.

    Raises:
        SendFailed: the message was not accepted, or there was no response. In the latter case it is
            not known whether the service has taken it.
        ValueError: the URL is not that of a topic, `value` has no JSON form, or the result of
            `get_token` is not a token.
    """
    url = ascii_url(url, "https", "http")
    body = json_body(value)
    token = checked_token(await result_of(get_token("first")))
    was_refused = False
    paused = 0.0
    while True:
        response = await _threads.run(partial(post, url, body, token, ssl))
        if response.status == http.client.OK:
            return
        pause = pause_before_retry(response.status, response.retry_after, paused)
        if response.status == http.client.UNAUTHORIZED and not was_refused:
            was_refused = True
            token = checked_token(await result_of(get_token("refused")))
        elif pause is not None:
            paused += pause
            await asyncio.sleep(pause)
        else:
            text = status_text(response.status, response.body)
            raise SendFailed(text, response.status, code_in(response.body))


def json_body(value: Any) -> bytes:
    """The body of a request.

    Raises:
        ValueError: the value has no JSON form.
    """
    try:
        return json.dumps(value, allow_nan=False).encode("utf-8")
    except RecursionError:
        raise ValueError("the value has no JSON form: it is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"the value has no JSON form: {error}") from error


@dataclass(frozen=True, slots=True)
class Response:
    """The response to one request."""

    status: int
    retry_after: str = ""
    body: bytes = b""


def post(url: str, body: bytes, token: str, ssl: tls.SSLContext | None) -> Response:
    """Send one request; blocks until there is a response.

    Raises:
        SendFailed: there was none.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=ssl))
    request = urllib.request.Request(url, body, headers)  # noqa: S310, the scheme is checked
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            return Response(response.status)
    except urllib.error.HTTPError as error:
        with error:
            retry_after = error.headers.get("Retry-After", "")
            return Response(error.code, retry_after, error.read(MAX_BODY))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise SendFailed(f"no response: {reason or type(error).__name__}") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token is for the server of the URL, and for no other."""

    def redirect_request(self, *_: Any) -> None:
        return None
