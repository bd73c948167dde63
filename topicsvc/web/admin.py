"""Adapter: what an operator's machines ask: is it alive, is it ready."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from twisted.web.resource import Resource
from twisted.web.server import Request

__all__ = ["admin_tree"]


class _Live(Resource):
    """The loop turns; nothing else is asked."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        request.setHeader(b"content-type", b"text/plain")
        return b"alive\n"


class _Ready(Resource):
    """Whether new clients should be sent here, and which part says no."""

    isLeaf = True

    def __init__(self, parts: Callable[[], Mapping[str, bool]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts = parts

    def render_GET(self, request: Request) -> bytes:
        parts = dict(self._parts())
        is_ready = all(parts.values())
        request.setResponseCode(200 if is_ready else 503)
        request.setHeader(b"content-type", b"application/json")
        return json.dumps({"ready": is_ready, "parts": parts}).encode("ascii") + b"\n"


def admin_tree(parts: Callable[[], Mapping[str, bool]]) -> Resource:
    """The admin side's resources.

    Args:
        parts: tells which parts are ready, by name.
    """
    root, health = Resource(), Resource()
    root.putChild(b"health", health)
    health.putChild(b"live", _Live())
    health.putChild(b"ready", _Ready(parts))
    return root
