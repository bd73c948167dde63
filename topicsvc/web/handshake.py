"""The WebSocket opening handshake: validates the request and hands the transport over."""

from __future__ import annotations

import re
from collections.abc import Callable

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.errors import HostRefused, PathRefused
from topicsvc.topics import TopicAddress, Unit
from topicsvc.web import responses
from topicsvc.web.responses import respond, respond_too_many_failed_tokens, url_of
from topicsvc.web.site import TopicRequest
from topicsvc.websocket.connection import TopicConnection

__all__ = ["UpgradeResource"]

_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_VERSION = b"13"


class UpgradeResource(Resource):
    """Responds to a WebSocket URL: hands the transport over, or responds with an error.

    Args:
        unit: parses hosts and paths.
        new_connection: makes the protocol of a connection to a topic; it returns None if the
            service is stopping.
    """

    isLeaf = True

    def __init__(
        self,
        unit: Unit,
        new_connection: Callable[[TopicAddress, ClientQuota], TopicConnection | None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit = unit
        self._new_connection = new_connection

    def render(self, request: TopicRequest) -> bytes | int:
        """See `twisted.web.resource.IResource`."""
        hosts = request.requestHeaders.getRawHeaders(b"host")
        try:
            topic = self._unit.websocket_topic(hosts, request.path)
        except HostRefused as error:
            return respond(request, responses.BAD_HOST, str(error))
        except PathRefused:
            return respond(request, responses.NOT_FOUND, url_of(request))
        if request.method != b"GET":
            return respond(request, responses.METHOD_NOT_ALLOWED, headers={b"allow": b"GET"})
        if not _has_list_item(request, b"upgrade", b"websocket") or _version(request) != _VERSION:
            return respond(
                request,
                responses.UPGRADE_REQUIRED,
                headers={
                    b"upgrade": b"websocket",
                    b"connection": b"upgrade",
                    b"sec-websocket-version": _VERSION,
                },
            )
        problem = _handshake_problem(request)
        if problem is not None:
            return respond(request, responses.NOT_A_HANDSHAKE, problem)
        quota = request.quota
        if not quota.allow_origin(request.requestHeaders.getRawHeaders(b"origin")):
            return respond(request, responses.ORIGIN_REFUSED)
        seconds = quota.retry_after()
        if seconds:
            return respond_too_many_failed_tokens(request, seconds)
        [key] = request.requestHeaders.getRawHeaders(b"sec-websocket-key", [])
        connection = self._new_connection(topic, quota)
        if connection is None:
            return respond(request, responses.UNAVAILABLE)
        request.channel.hand_over(connection)
        connection.accept(key.decode("ascii"))
        return NOT_DONE_YET


def _has_list_item(request: TopicRequest, header: bytes, item: bytes) -> bool:
    """Whether a header's comma-separated list contains `item` (RFC 6455, section 4.2.1)."""
    values = request.requestHeaders.getRawHeaders(header, [])
    return any(item == each.strip().lower() for value in values for each in value.split(b","))


def _version(request: TopicRequest) -> bytes | None:
    versions = request.requestHeaders.getRawHeaders(b"sec-websocket-version", [])
    return versions[0] if len(versions) == 1 else None


def _handshake_problem(request: TopicRequest) -> str | None:
    """Return why a request is not a valid handshake; None: it is valid."""
    if request.clientproto != b"HTTP/1.1":
        return "HTTP/1.1 is needed"
    if not _has_list_item(request, b"connection", b"upgrade"):
        return "no Connection: upgrade"
    if request.content.read(1) or request.requestHeaders.hasHeader(b"transfer-encoding"):
        return "a handshake has no body"
    keys = request.requestHeaders.getRawHeaders(b"sec-websocket-key", [])
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        return "exactly one Sec-WebSocket-Key of 16 bytes is needed"
    return None
