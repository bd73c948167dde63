"""The site: routes requests, and holds the state that all HTTP connections share."""

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
from topicsvc.web.http_connection import DISCARD_INTERVAL, Exchange, HttpConnection, PendingSend
from topicsvc.web.metadata import PATH, MetadataResource
from topicsvc.web.responses import ANY_ORIGIN, Response, error_response

__all__ = ["Resource", "TopicSite", "TopicTree"]

HEAD_TIMEOUT = 10.0
"""Seconds for a whole request head, from the connection or from the first byte of the head."""

BODY_TIMEOUT = 30.0
"""Seconds for a whole request body."""

IDLE_TIMEOUT = 60.0
"""Seconds that a connection may be idle between two requests."""

CLOSE_TIMEOUT = 5.0
"""Seconds for a client to read a response and close, before the socket is aborted."""

WORK_PER_ITERATION = 0.004
"""Seconds of work on clients' data in one reactor iteration; further work waits for the next."""

STATUSES = (200, 400, 401, 403, 404, 405, 413, 417, 429, 500, 503)
"""Statuses of sends. Each counter starts at 0, else Prometheus would miss its first increase."""


class Resource(Protocol):
    """Responds to requests."""

    def respond(self, exchange: Exchange) -> Response | PendingSend | None:
        """Respond to a request.

        Returns:
            A response; a `PendingSend`, which reads the body; or None, if the connection was
            handed over.
        """
        ...


class TopicTree:
    """Chooses between WebSocket handshake and sending, by the path.

    Args:
        unit: knows which paths are WebSocket URLs.
        upgrade: handles WebSocket URLs.
        send: handles other URLs; None: sending is disabled.
        metadata: handles its own URL; None: there are no metadata.
    """

    def __init__(
        self,
        unit: Unit,
        upgrade: Resource,
        send: Resource | None,
        metadata: MetadataResource | None = None,
    ) -> None:
        self._unit = unit
        self._upgrade = upgrade
        self._metadata = metadata
        self._is_draining = False
        self.set_send(send)

    def set_send(self, send: Resource | None) -> None:
        """Enable sending; None: disable it."""
        self._send = send

    def drain(self) -> None:
        """From now on respond to every request with 503, and close its connection."""
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
        if head.path == PATH and self._metadata is not None and self._metadata.is_known:
            return self._metadata.respond(exchange)
        if self._send is None or self._unit.is_websocket_path(head.path):
            return self._upgrade.respond(exchange)
        return self._send.respond(exchange)


@implementer(IProtocolNegotiationFactory)
class TopicSite(Factory):
    """Makes the connections of the public ports.

    Args:
        resource: responds to requests.
        clock: the reactor, or a clock in its place.
        max_body: most bytes of a request's body.
        limits: the limits on clients.
        slow_consumers: send queues of clients that do not read.
        budget: the time for work on requests in one reactor iteration.
        deadline_clock: measures deadlines of clients; None: `clock`.

    Attributes:
        connections: open HTTP connections, without those that became a WebSocket.
        sends: completed sends, by HTTP status.
    """

    protocol = HttpConnection
    noisy = False

    def __init__(
        self,
        resource: Resource,
        clock: IReactorTime,
        max_body: int,
        limits: Limits,
        slow_consumers: SlowConsumers,
        budget: WorkBudget,
        deadline_clock: IReactorTime | None = None,
    ) -> None:
        self.resource = resource
        self.clock = clock
        self.max_body = max_body
        self.limits = limits
        self.slow_consumers = slow_consumers
        self.connections = 0
        self.sends: Counter[int] = Counter(dict.fromkeys(STATUSES, 0))
        self.budget = budget
        timer = deadline_clock or clock
        self.head_deadlines = Deadlines(timer, HEAD_TIMEOUT, HttpConnection.deadline_passed)
        self.body_deadlines = Deadlines(timer, BODY_TIMEOUT, HttpConnection.deadline_passed)
        self.idle_deadlines = Deadlines(timer, IDLE_TIMEOUT, HttpConnection.deadline_passed)
        self.close_deadlines = Deadlines(timer, CLOSE_TIMEOUT, HttpConnection.deadline_passed)
        self.discard_pauses = Deadlines(clock, DISCARD_INTERVAL, HttpConnection.read_on)
        self._date = (-1, b"")

    def date(self) -> bytes:
        """Return the ``Date`` of a response; it is formatted once a second."""
        second = int(self.clock.seconds())
        if second != self._date[0]:
            self._date = (second, datetimeToString())
        return self._date[1]

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only: over HTTP/2 the transport cannot be handed over to a WebSocket."""
        return [b"http/1.1"]
