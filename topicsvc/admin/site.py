"""The admin site: liveness, readiness, metrics, and pages for operators.

All responses come from memory; no request waits for a broker or a validator. All requests together
have a budget in each reactor iteration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from topicsvc.admin.answers import Answer, error_answer
from topicsvc.admin.ending import Ending
from topicsvc.admin.inspection import TOPICS, Inspection
from topicsvc.admin.metrics import Metrics
from topicsvc.admin.query import InvalidRequest
from topicsvc.admin.request import AdminRequest
from topicsvc.process.usage import count_open_files
from topicsvc.scheduling.pieces import Pieces, run_in_pieces
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import OperatorSettings
from topicsvc.web.send import SendResource
from topicsvc.web.senders import Senders
from topicsvc.websocket.server import WebSocketServer

__all__ = ["MAX_BODY", "MAX_IN_PROGRESS", "WORK_PER_ITERATION", "AdminSite", "AdminTree"]

MAX_BODY = 16384
"""Most bytes of a request's body."""

MAX_IN_PROGRESS = 16
"""Most requests in progress; further ones get 503."""

WORK_PER_ITERATION = 0.003
"""Seconds of work in one reactor iteration; further work waits for the next."""

_TEXT = "text/plain; charset=utf-8"
_NOT_FOUND = Answer(404, _TEXT, b"not found\n")
_READ: Final = (b"GET", b"HEAD")
_TOO_LONG = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class _Page:
    """One page: the methods that it allows, and the function that makes its response."""

    methods: tuple[bytes, ...]
    answer: Callable[[AdminRequest], Answer | Pieces[Answer]]


class AdminTree(Resource):
    """The root resource of the admin site.

    Args:
        parts: returns which parts are ready, by name.
        metrics: the metrics of the service.
        websocket_server: the sessions.
        send: the sends.
        clock: the reactor, or a clock in its place.
        settings: which pages for operators there are.
    """

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        parts: Callable[[], Mapping[str, bool]],
        metrics: Metrics,
        websocket_server: WebSocketServer,
        send: SendResource,
        clock: IReactorTime,
        settings: OperatorSettings,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts = parts
        self._metrics = metrics
        self._websocket_server = websocket_server
        self._send = send
        self._clock = clock
        self._ending = Ending(websocket_server, clock, settings.token)
        self._budget = WorkBudget(clock, WORK_PER_ITERATION)
        self._in_progress = 0
        self._pages = {
            b"/health/live": _Page(_READ, self._live),
            b"/health/ready": _Page(_READ, self._ready),
            b"/metrics": _Page(_READ, self._metrics_page),
        }
        inspection = Inspection(websocket_server, lambda: send.senders)
        self._inspection_pages = {
            b"/topics": _Page(_READ, lambda request: inspection.topics(request.query)),
            b"/sessions": _Page(_READ, lambda request: inspection.sessions(request.query)),
            b"/sessions/ended": _Page(_READ, lambda request: inspection.ended(request.query)),
            b"/senders": _Page(_READ, lambda request: inspection.senders(request.query)),
        }
        self._topic_page = _Page(_READ, lambda request: inspection.topic(request.path))
        self._end_page = _Page((b"POST",), self._end)
        self.configure(settings)

    def configure(self, settings: OperatorSettings) -> None:
        """Apply new settings to requests that arrive from now on."""
        self._inspects = settings.inspect
        self._ending.set_token(settings.token)
        self._websocket_server.keep_ended_sessions(settings.inspect)
        if not settings.inspect:
            self._send.senders = None
        elif self._send.senders is None:
            self._send.senders = Senders(self._clock)

    def render(self, request: Request) -> Any:
        """See `twisted.web.resource.IResource`."""
        answers: list[Answer] = []
        is_later = is_lost = False

        def finish(answer: Answer) -> None:
            if not is_later:
                answers.append(answer)
            elif not is_lost:
                request.write(_write(request, answer))
                request.finish()

        def lost(_: Failure) -> None:
            nonlocal is_lost
            is_lost = True
            if request.method in _READ:
                answering.cancel()

        answering = self.respond(_read(request))
        answering.addCallback(finish)
        if answers:
            return _write(request, answers[0])
        is_later = True
        finished: Deferred[Any] = request.notifyFinish()
        finished.addErrback(lost)
        return NOT_DONE_YET

    def respond(self, request: AdminRequest) -> Deferred[Answer]:
        """Make the response: at once if the budget is enough, otherwise in later iterations.

        Returns:
            Fires with the response. To cancel it stops the work.
        """
        page = self._page(request.path)
        if page is None:
            return succeed(_NOT_FOUND)
        if request.method not in page.methods:
            allowed = b", ".join(page.methods)
            error = f"this page has another method; allowed: {allowed.decode('ascii')}"
            return succeed(error_answer(405, error, ((b"allow", allowed),)))
        if self._in_progress >= MAX_IN_PROGRESS:
            error = f"{MAX_IN_PROGRESS} requests are in progress; try again"
            return succeed(error_answer(503, error, ((b"retry-after", b"1"),)))
        self._in_progress += 1

        def finish(result: Answer) -> Answer:
            self._in_progress -= 1
            return result

        def fail(failure: Failure) -> Answer:
            if failure.check(InvalidRequest):
                return error_answer(400, str(failure.value))
            if not failure.check(CancelledError):
                self._log.failure("internal error: the admin page failed", failure)
            return error_answer(500, "internal error: see the log")

        working = run_in_pieces(_work(page, request), self._budget)
        return working.addErrback(fail).addCallback(finish)

    def _page(self, path: bytes) -> _Page | None:
        """Return a page; None: there is none, or it is switched off."""
        if path == b"/sessions/end":
            return self._end_page if self._ending.is_enabled else None
        page = self._pages.get(path)
        if page is None and self._inspects:
            page = self._inspection_pages.get(path)
            if page is None and path.startswith(TOPICS):
                page = self._topic_page
        return page

    def _live(self, request: AdminRequest) -> Answer:
        """Report that the reactor runs; nothing else is checked."""
        return Answer(200, _TEXT, b"alive\n")

    def _ready(self, request: AdminRequest) -> Answer:
        """Report whether new clients may be sent here, and which part is not ready."""
        parts = dict(self._parts())
        is_ready = all(parts.values())
        body = json.dumps({"ready": is_ready, "parts": parts}).encode("ascii") + b"\n"
        return Answer(200 if is_ready else 503, "application/json", body)

    def _metrics_page(self, request: AdminRequest) -> Pieces[Answer]:
        open_files = yield from count_open_files()
        return Answer(200, *self._metrics.page(request.accept, open_files))

    def _end(self, request: AdminRequest) -> Answer | Pieces[Answer]:
        refusal = self._ending.refusal(request.authorization, request.caller)
        return refusal or self._ending.end(request.body, request.caller)


def _work(page: _Page, request: AdminRequest) -> Pieces[Answer]:
    answer = page.answer(request)
    return answer if isinstance(answer, Answer) else (yield from answer)


def _read(request: Any) -> AdminRequest:
    peer = request.getClientAddress()
    headers = request.requestHeaders
    return AdminRequest(
        request.method,
        request.path,
        request.uri.partition(b"?")[2],
        b",".join(headers.getRawHeaders(b"accept", [])).decode("latin-1"),
        tuple(headers.getRawHeaders(b"authorization", [])),
        request.content.read(),
        getattr(peer, "host", None) or str(peer),
    )


def _write(request: Request, answer: Answer) -> bytes:
    """Set status and headers; return the body, as far as it is sent."""
    request.setResponseCode(answer.status)
    request.setHeader(b"content-type", answer.content_type.encode("ascii"))
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"content-length", b"%d" % len(answer.body))
    for name, value in answer.headers:
        request.setHeader(name, value)
    return b"" if request.method == b"HEAD" else answer.body


class _AdminRequest(Request):
    """A request whose body has at most `MAX_BODY` bytes."""

    _is_too_long = False

    def gotLength(self, length: int | None) -> None:
        if length is not None and length > MAX_BODY:
            self._refuse_body()
            length = 0
        super().gotLength(length)  # type: ignore[no-untyped-call]

    def handleContentChunk(self, data: bytes) -> None:
        if self._is_too_long:
            return
        content: Any = self.content
        if content.tell() + len(data) > MAX_BODY:
            self._refuse_body()
        else:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]

    def process(self) -> None:
        if not self._is_too_long:
            super().process()  # type: ignore[no-untyped-call]

    def _refuse_body(self) -> None:
        """Respond before the rest of the body arrives, and close the connection."""
        self._is_too_long = True
        self.channel.write(_TOO_LONG)
        self.channel.loseConnection()


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
        super().__init__(tree, _AdminRequest, reactor=clock)  # type: ignore[no-untyped-call]

    def log(self, request: Any) -> None:
        """No access log: probes arrive every few seconds."""
