"""The WebSocket opening handshake: validates the request and hands the transport over."""

from __future__ import annotations

import re
from collections.abc import Callable

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.errors import HostRefused, PathRefused
from topicsvc.topics import TopicAddress, Unit
from topicsvc.web import responses
from topicsvc.web.http_connection import Exchange
from topicsvc.web.http_parser import RequestHead
from topicsvc.web.responses import Response, error_response, too_many_failed_tokens
from topicsvc.websocket.connection import TopicConnection

__all__ = ["UpgradeResource"]

_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_VERSION = b"13"


class UpgradeResource:
    """Responds to a WebSocket URL: hands the transport over, or responds with an error.

    Args:
        unit: parses hosts and paths.
        new_connection: makes the protocol of a connection to a topic; it returns None if the
            service is stopping.
    """

    def __init__(
        self,
        unit: Unit,
        new_connection: Callable[[TopicAddress, ClientQuota], TopicConnection | None],
    ) -> None:
        self._unit = unit
        self._new_connection = new_connection

    def respond(self, exchange: Exchange) -> Response | None:
        """See `topicsvc.web.site.Resource`."""
        head, quota = exchange.head, exchange.quota
        try:
            topic = self._unit.websocket_topic(exchange.hosts, head.path)
        except HostRefused as error:
            return error_response(responses.BAD_HOST, str(error))
        except PathRefused:
            return error_response(responses.NOT_FOUND, exchange.url(self._unit.scheme))
        if head.method != b"GET":
            return error_response(responses.METHOD_NOT_ALLOWED, headers=((b"Allow", b"GET"),))
        if not _is_upgrade_to_version_13(head):
            return error_response(
                responses.UPGRADE_REQUIRED,
                headers=(
                    (b"Upgrade", b"websocket"),
                    (b"Connection", b"upgrade"),
                    (b"Sec-WebSocket-Version", _VERSION),
                ),
            )
        problem = _handshake_problem(head)
        if problem is not None:
            return error_response(responses.NOT_A_HANDSHAKE, problem)
        if not quota.allow_origin(head.headers.get(b"origin")):
            return error_response(responses.ORIGIN_REFUSED)
        seconds = quota.retry_after()
        if seconds:
            return too_many_failed_tokens(seconds)
        connection = self._new_connection(topic, quota)
        if connection is None:
            return error_response(responses.UNAVAILABLE)
        exchange.hand_over(connection)
        connection.accept(head.headers[b"sec-websocket-key"][0])
        exchange.connection.deliver_rest(connection)
        return None


def _is_upgrade_to_version_13(head: RequestHead) -> bool:
    """Whether a request asks for WebSocket version 13 (RFC 6455, section 4.2.1)."""
    if head.get_all(b"sec-websocket-version") != [_VERSION]:
        return False
    return b"websocket" in head.tokens(b"upgrade")


def _handshake_problem(head: RequestHead) -> str | None:
    """Return why a request is not a valid handshake; None: it is valid."""
    if head.minor != 1:
        return "HTTP/1.1 is needed"
    if b"upgrade" not in head.tokens(b"connection"):
        return "no Connection: upgrade"
    if head.has_body:
        return "a handshake has no body"
    keys = head.get_all(b"sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        return "exactly one Sec-WebSocket-Key of 16 bytes is needed"
    return None
