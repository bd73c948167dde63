"""The public port's factory: routes requests, and holds what all HTTP connections share."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from twisted.internet.interfaces import IProtocolNegotiationFactory, IReactorTime
from twisted.internet.protocol import Factory
from twisted.web.http import datetimeToString
from zope.interface import implementer

from topicsvc.admission.limits import Limits
from topicsvc.delivery.slow_consumers import SlowConsumers
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.topics import Unit
from topicsvc.web import responses
from topicsvc.web.http_connection import Exchange, HttpConnection, PendingSend
from topicsvc.web.responses import ANY_ORIGIN, Response, error_response

__all__ = ["Resource", "TopicSite", "TopicTree"]

HEAD_TIMEOUT = 10.0
"""Seconds for a whole request head, from the connection or the end of the silence before it."""

BODY_TIMEOUT = 30.0
"""Seconds for a whole body."""

IDLE_TIMEOUT = 60.0
"""Seconds that a connection may be silent between two requests."""

CLOSE_TIMEOUT = 5.0
"""Seconds for a client to take a response and close, before the socket is aborted."""

WORK_PER_ITERATION = 0.004
"""Seconds of work on requests in one reactor iteration; the rest waits for the next."""

STATUSES = (200, 400, 401, 403, 404, 405, 413, 500, 503)
"""What a send may be answered with. Each is counted from 0, or its first would not be seen."""


class Resource(Protocol):
    """Answers requests."""

    def respond(self, exchange: Exchange) -> Response | PendingSend | None:
        """Answer; or want the body; None: the connection was handed over."""
        ...


class TopicTree:
    """Tells the two sides apart by the path: WebSocket URLs and send URLs.

    Args:
        unit: reads addresses.
        upgrade: answers WebSocket URLs.
        send: answers send URLs; None: nothing can be sent.
    """

    def __init__(self, unit: Unit, upgrade: Resource, send: Resource | None) -> None:
        self._unit = unit
        self._upgrade = upgrade
        self._is_draining = False
        self.set_send(send)

    def set_send(self, send: Resource | None) -> None:
        """Take what is sent; None: take nothing."""
        self._send = send

    def drain(self) -> None:
        """From now on answer every request with 503, and close its connection."""
        self._is_draining = True

    def respond(self, exchange: Exchange) -> Response | PendingSend | None:
        """See `Resource`."""
        if self._is_draining:
            return error_response(responses.UNAVAILABLE, headers=(ANY_ORIGIN,), closes=True)
        head = exchange.head
        if head.path == b"*":  # the server as a whole (RFC 9110, section 9.3.7)
            if head.method == b"OPTIONS":
                return Response(200)
            return error_response(responses.METHOD_NOT_ALLOWED, headers=((b"Allow", b"OPTIONS"),))
        if self._send is None or self._unit.is_websocket_path(head.path):
            return self._upgrade.respond(exchange)
        return self._send.respond(exchange)


@implementer(IProtocolNegotiationFactory)
class TopicSite(Factory):
    """Makes the public port's connections.

    Args:
        resource: answers requests.
        clock: keeps the deadlines.
        max_body: most bytes of a request's body.
        limits: how many connections there may be, and whose.
        slow_consumers: what waits for clients that do not read.

    Attributes:
        connections: HTTP connections that are open; one that became a WebSocket is not.
        sends: sends that were answered, by HTTP status.
        budget: the time of an iteration for work on requests.
    """

    protocol = HttpConnection

    def __init__(
        self,
        resource: Resource,
        clock: IReactorTime,
        max_body: int,
        limits: Limits,
        slow_consumers: SlowConsumers,
    ) -> None:
        self.resource = resource
        self.clock = clock
        self.max_body = max_body
        self.limits = limits
        self.slow_consumers = slow_consumers
        self.connections = 0
        self.sends: Counter[int] = Counter(dict.fromkeys(STATUSES, 0))
        self.budget = WorkBudget(clock, WORK_PER_ITERATION)
        self.heads = Deadlines(clock, HEAD_TIMEOUT, HttpConnection.deadline_passed)
        self.bodies = Deadlines(clock, BODY_TIMEOUT, HttpConnection.deadline_passed)
        self.idles = Deadlines(clock, IDLE_TIMEOUT, HttpConnection.deadline_passed)
        self.closes = Deadlines(clock, CLOSE_TIMEOUT, HttpConnection.deadline_passed)
        self._date = (-1, b"")

    def date(self) -> bytes:
        """The ``Date`` of a response, made once a second."""
        second = int(self.clock.seconds())
        if second != self._date[0]:
            self._date = (second, datetimeToString())
        return self._date[1]

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only: over HTTP/2 a WebSocket cannot be handed over."""
        return [b"http/1.1"]
