"""The admin site: liveness, readiness and metrics.

All responses come from memory; no request waits for a broker or a validator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from topicsvc.admin.metrics import Metrics

__all__ = ["AdminSite", "AdminTree"]

_TEXT = "text/plain; charset=utf-8"

Page = Callable[[Request], tuple[int, str, bytes]]
"""Renders a page: status, content type, body."""


class AdminTree(Resource):
    """The root resource of the admin site, with three pages.

    Args:
        parts: returns which parts are ready, by name.
        metrics: the metrics of the service.
    """

    isLeaf = True

    def __init__(self, parts: Callable[[], Mapping[str, bool]], metrics: Metrics) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts = parts
        self._metrics = metrics
        self._pages: dict[bytes, Page] = {
            b"/health/live": self._live,
            b"/health/ready": self._ready,
            b"/metrics": self._metrics_page,
        }

    def render(self, request: Request) -> bytes:
        """See `twisted.web.resource.IResource`."""
        page = self._pages.get(request.path)
        if page is None:
            status, content_type, body = 404, _TEXT, b"not found\n"
        elif request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            status, content_type, body = 405, _TEXT, b"GET or HEAD\n"
        else:
            status, content_type, body = page(request)
        request.setResponseCode(status)
        request.setHeader(b"content-type", content_type.encode("ascii"))
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"content-length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body

    def _live(self, request: Request) -> tuple[int, str, bytes]:
        """Report that the reactor runs; nothing else is checked."""
        return 200, _TEXT, b"alive\n"

    def _ready(self, request: Request) -> tuple[int, str, bytes]:
        """Report whether new clients may be sent here, and which part is not ready."""
        parts = dict(self._parts())
        is_ready = all(parts.values())
        body = json.dumps({"ready": is_ready, "parts": parts}).encode("ascii") + b"\n"
        return 200 if is_ready else 503, "application/json", body

    def _metrics_page(self, request: Request) -> tuple[int, str, bytes]:
        accept = b",".join(request.requestHeaders.getRawHeaders(b"accept", []))
        return 200, *self._metrics.page(accept.decode("latin-1"))


class _QuietChannel(HTTPChannel):
    """An HTTP/1.1 connection without a ``Server`` header in its responses."""

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        headers.removeHeader(b"server")
        super().writeHeaders(version, code, reason, headers)  # type: ignore[no-untyped-call]


class AdminSite(Site):
    """The admin site.

    Args:
        tree: its root resource.
        clock: the reactor, or a clock in its place.
    """

    protocol = _QuietChannel  # type: ignore[assignment]
    noisy = False

    def __init__(self, tree: AdminTree, clock: IReactorTime) -> None:
        super().__init__(tree, reactor=clock)  # type: ignore[no-untyped-call]

    def log(self, request: Any) -> None:
        """No access log: probes arrive every few seconds."""
