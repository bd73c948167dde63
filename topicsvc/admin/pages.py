"""The admin pages of one process: liveness, readiness, metrics, and pages for operators.

All responses come from memory; no request waits for a broker or a validator. All requests together
have a budget in each reactor iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IReactorTime

from topicsvc.admin.answers import Answer, json_answer, text_answer
from topicsvc.admin.ending import Ending
from topicsvc.admin.inspection import Inspection
from topicsvc.admin.metrics import Metrics
from topicsvc.admin.query import MAX_LIMIT, MAX_TOPICS
from topicsvc.admin.request import AdminRequest
from topicsvc.admin.site import READ, Page, PageTree
from topicsvc.process.usage import count_open_files
from topicsvc.scheduling.pieces import Pieces
from topicsvc.settings import OperatorSettings
from topicsvc.web.send import SendResource
from topicsvc.web.senders import Senders
from topicsvc.websocket.server import WebSocketServer

__all__ = ["AdminTree"]


class AdminTree(PageTree):
    """The admin pages of one process.

    Args:
        parts: returns which parts are ready, by name.
        metrics: the metrics of the service.
        websocket_server: the sessions.
        send: the sends.
        clock: the reactor, or a clock in its place.
        settings: which pages for operators there are.
    """

    def __init__(
        self,
        parts: Callable[[], Mapping[str, bool]],
        metrics: Metrics,
        websocket_server: WebSocketServer,
        send: SendResource,
        clock: IReactorTime,
        settings: OperatorSettings,
    ) -> None:
        super().__init__(clock, settings)
        self._parts = parts
        self._metrics = metrics
        self._websocket_server = websocket_server
        self._send = send
        self._clock = clock
        self._ending = Ending(websocket_server)
        inspection = Inspection(websocket_server, lambda: send.senders)
        self.pages = {
            b"/health/live": self.in_pieces_page(self._live),
            b"/health/ready": self.in_pieces_page(self._ready),
            b"/metrics": self.in_pieces_page(self._metrics_page),
        }
        self.inspection_pages = {
            b"/topics": self.in_pieces_page(
                lambda request: inspection.topics(
                    request.query, MAX_TOPICS if request.is_of_parent else MAX_LIMIT
                )
            ),
            b"/sessions": self.in_pieces_page(lambda request: inspection.sessions(request.query)),
            b"/sessions/ended": self.in_pieces_page(
                lambda request: inspection.ended(request.query, request.is_of_parent)
            ),
            b"/senders": self.in_pieces_page(lambda request: inspection.senders(request.query)),
        }
        self.topic_page = self.in_pieces_page(lambda request: inspection.topic(request.path))
        self.end_page = self.in_pieces_page(self._end, (b"POST",))
        self.configure(settings)

    def in_pieces_page(
        self,
        answer: Callable[[AdminRequest], Answer | Pieces[Answer]],
        methods: tuple[bytes, ...] = READ,
    ) -> Page:
        """A page whose response is made in pieces."""
        return Page(methods, lambda request: self.in_pieces(lambda: answer(request)))

    def configure(self, settings: OperatorSettings) -> None:
        """Apply new settings to requests that arrive from now on."""
        super().configure(settings)
        self._websocket_server.keep_ended_sessions(settings.inspect)
        if not settings.inspect:
            self._send.senders = None
        elif self._send.senders is None:
            self._send.senders = Senders(self._clock)

    def _live(self, request: AdminRequest) -> Answer:
        """Report that the reactor runs; nothing else is checked."""
        return text_answer(200, "alive")

    def _ready(self, request: AdminRequest) -> Answer:
        """Report whether new clients may be sent here, and which part is not ready."""
        parts = dict(self._parts())
        is_ready = all(parts.values())
        return json_answer({"ready": is_ready, "parts": parts}, 200 if is_ready else 503)

    def _metrics_page(self, request: AdminRequest) -> Pieces[Answer]:
        open_files = yield from count_open_files()
        return Answer(200, *self._metrics.page(request.accept, open_files))

    def _end(self, request: AdminRequest) -> Answer | Pieces[Answer]:
        refusal = None
        if not request.is_of_parent:  # the parent has checked the token
            refusal = self.token.refusal(request.authorization, request.caller)
        return refusal or self._ending.end(request.body, request.caller)
