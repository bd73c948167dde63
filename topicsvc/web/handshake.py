"""Adapter: the WebSocket opening handshake, from a strict look at the request to the handover."""

from __future__ import annotations

import re
from collections.abc import Callable

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from topicsvc.admission.client_quota import ClientQuota
from topicsvc.errors import HostRefused, PathRefused
from topicsvc.topics import TopicAddress, Unit
from topicsvc.web import responses
from topicsvc.web.responses import answer, too_many_failed_tokens, url_of
from topicsvc.web.site import TopicRequest
from topicsvc.websocket.connection import TopicConnection

__all__ = ["UpgradeResource"]

_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_VERSION = b"13"


class UpgradeResource(Resource):
    """Answers a WebSocket URL: hands the connection over, or says what is wrong.

    Args:
        unit: reads addresses.
        build: makes the protocol of a connection to a topic; None: the service is stopping.
    """

    isLeaf = True

    def __init__(
        self, unit: Unit, build: Callable[[TopicAddress, ClientQuota], TopicConnection | None]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit = unit
        self._build = build

    def render(self, request: TopicRequest) -> bytes | int:
        """See `twisted.web.resource.IResource`."""
        hosts = request.requestHeaders.getRawHeaders(b"host")
        try:
            topic = self._unit.websocket_topic(hosts, request.path)
        except HostRefused as error:
            return answer(request, responses.BAD_HOST, str(error))
        except PathRefused:
            return answer(request, responses.NOT_FOUND, url_of(request))
        if request.method != b"GET":
            return answer(request, responses.METHOD_NOT_ALLOWED, headers={b"allow": b"GET"})
        if not _asks_for(request, b"upgrade", b"websocket") or _version(request) != _VERSION:
            return answer(
                request,
                responses.UPGRADE_REQUIRED,
                headers={
                    b"upgrade": b"websocket",
                    b"connection": b"upgrade",
                    b"sec-websocket-version": _VERSION,
                },
            )
        fault = _fault(request)
        if fault is not None:
            return answer(request, responses.NOT_A_HANDSHAKE, fault)
        quota = request.quota
        if not quota.allow_origin(request.requestHeaders.getRawHeaders(b"origin")):
            return answer(request, responses.ORIGIN_REFUSED)
        seconds = quota.retry_after()
        if seconds:
            return too_many_failed_tokens(request, seconds)
        [key] = request.requestHeaders.getRawHeaders(b"sec-websocket-key", [])
        protocol = self._build(topic, quota)
        if protocol is None:
            return answer(request, responses.UNAVAILABLE)
        request.channel.hand_over(protocol)
        protocol.accept(key.decode("ascii"))
        return NOT_DONE_YET


def _asks_for(request: TopicRequest, header: bytes, token: bytes) -> bool:
    """Whether a header's comma-separated list holds `token` (RFC 6455, section 4.2.1)."""
    values = request.requestHeaders.getRawHeaders(header, [])
    return any(token == item.strip().lower() for value in values for item in value.split(b","))


def _version(request: TopicRequest) -> bytes | None:
    versions = request.requestHeaders.getRawHeaders(b"sec-websocket-version", [])
    return versions[0] if len(versions) == 1 else None


def _fault(request: TopicRequest) -> str | None:
    """What keeps a request from being a handshake; None: nothing."""
    if request.clientproto != b"HTTP/1.1":
        return "HTTP/1.1 is needed"
    if not _asks_for(request, b"connection", b"upgrade"):
        return "no Connection: upgrade"
    if request.content.read(1) or request.requestHeaders.hasHeader(b"transfer-encoding"):
        return "a handshake has no body"
    keys = request.requestHeaders.getRawHeaders(b"sec-websocket-key", [])
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        return "exactly one Sec-WebSocket-Key of 16 bytes is needed"
    return None
