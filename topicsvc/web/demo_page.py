"""The page of a demo: static files, and a token for clients of this machine."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from topicsvc.demo import TOPIC, sample_curl
from topicsvc.demo.files import page_files
from topicsvc.errors import HostRefused
from topicsvc.strict_json import compact
from topicsvc.topics import Unit
from topicsvc.web import responses
from topicsvc.web.http_connection import Exchange, PendingSend
from topicsvc.web.responses import Header, Response, error_response
from topicsvc.web.site import Resource

__all__ = ["DemoPage"]

DATA_PATH = b"/demo.json"
"""The URLs of the topic, and a new token, for the page."""

_ALLOW = (b"Allow", b"GET, HEAD")
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    b"connect-src 'self' %s; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: tuple[Header, ...] = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Cache-Control", b"no-store"),
)


class DemoPage:
    """Responds to requests for the page, and leaves all others to `tree`.

    Scripts of other pages cannot read the token: no header allows it, and ``Host`` must be the
    unit's, so that a name of somebody else that leads to this machine is of no use.

    Args:
        tree: responds to other requests.
        unit: parses hosts.
        new_token: makes a token for the topic of the demo.
    """

    def __init__(self, tree: Resource, unit: Unit, new_token: Callable[[], str]) -> None:
        self._tree = tree
        self._unit = unit
        self._new_token = new_token
        self._files = page_files()

    def respond(self, exchange: Exchange) -> Response | PendingSend | None:
        """See `topicsvc.web.site.Resource`."""
        head = exchange.head
        if head.path != DATA_PATH and head.path not in self._files:
            return self._tree.respond(exchange)
        if head.method not in (b"GET", b"HEAD"):
            return error_response(responses.METHOD_NOT_ALLOWED, headers=(_ALLOW,))
        try:
            self._unit.origin(exchange.hosts)
        except HostRefused as error:
            return error_response(responses.BAD_HOST, str(error))
        if head.path == DATA_PATH:
            return self._data(exchange)
        file = self._files[head.path]
        policy = _POLICY % _websocket_origin(exchange).encode("ascii")
        headers = ((b"Content-Type", file.content_type), (b"Content-Security-Policy", policy))
        return Response(200, (*headers, *_HEADERS), file.content)

    def _data(self, exchange: Exchange) -> Response:
        websocket_origin = _websocket_origin(exchange)
        send_url = websocket_origin.replace("ws", "http", 1) + TOPIC.send_path
        document = {
            "url": websocket_origin + TOPIC.websocket_path,
            "sendUrl": send_url,
            "token": self._new_token() if _is_local(exchange.quota.host) else "",
            "curl": sample_curl(send_url),
        }
        headers = ((b"Content-Type", b"application/json"), *_HEADERS)
        return Response(200, headers, compact(document))


def _websocket_origin(exchange: Exchange) -> str:
    """The origin of WebSocket URLs, as the client sees this server."""
    scheme, _, rest = exchange.url("http").partition("://")
    return f"{'wss' if scheme == 'https' else 'ws'}://{rest.partition('/')[0]}"


def _is_local(host: str | None) -> bool:
    """Whether the client runs on this machine."""
    try:
        return host is not None and ip_address(host).is_loopback
    except ValueError:
        return False
