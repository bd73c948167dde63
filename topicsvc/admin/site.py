"""Serves the pages of an admin site over HTTP, and bounds their work.

`topicsvc.admin.pages` has the pages of one process, `topicsvc.workers.admin_pages` those of several
workers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from topicsvc.admin.answers import Answer, error_answer, text_answer
from topicsvc.admin.operator_token import OperatorToken
from topicsvc.admin.query import TOPICS, InvalidRequest
from topicsvc.admin.request import AdminRequest
from topicsvc.scheduling.pieces import Pieces, run_in_pieces
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import OperatorSettings

__all__ = [
    "END",
    "MAX_BODY",
    "MAX_IN_PROGRESS",
    "READ",
    "WORK_PER_ITERATION",
    "AdminSite",
    "Page",
    "PageTree",
]

T = TypeVar("T")

MAX_BODY = 16384
"""Most bytes of a request's body."""

MAX_IN_PROGRESS = 16
"""Most requests in progress; further ones get 503."""

WORK_PER_ITERATION = 0.003
"""Seconds of work in one reactor iteration; further work waits for the next."""

READ: Final = (b"GET", b"HEAD")
"""The methods of all pages but `END`."""

END = b"/sessions/end"

_NOT_FOUND = text_answer(404, "not found")
_TOO_LONG = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        methods: the methods that it allows.
        respond: makes its response. Fails with `InvalidRequest` if the request cannot be used.
            To cancel it stops the work.
    """

    methods: tuple[bytes, ...]
    respond: Callable[[AdminRequest], Deferred[Answer]]


class PageTree(Resource):
    """The root resource of an admin site: finds the page, bounds its work, reports errors.

    Args:
        clock: the reactor, or a clock in its place.
        settings: which pages for operators there are.

    Attributes:
        token: the token for ending sessions.
        pages: the pages that are always there, by path.
        inspection_pages: those that are there with ``admin.inspect``, by path.
        topic_page: the page below `TOPICS`, with ``admin.inspect``; None: there is none.
        end_page: the page that ends sessions, with ``admin.token_file``; None: there is none.
    """

    isLeaf = True
    _log = Logger()

    def __init__(self, clock: IReactorTime, settings: OperatorSettings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.token = OperatorToken(clock, settings.token)
        self.pages: dict[bytes, Page] = {}
        self.inspection_pages: dict[bytes, Page] = {}
        self.topic_page: Page | None = None
        self.end_page: Page | None = None
        self._inspects = settings.inspect
        self._budget = WorkBudget(clock, WORK_PER_ITERATION)
        self._in_progress = 0

    def configure(self, settings: OperatorSettings) -> None:
        """Apply new settings to requests that arrive from now on."""
        self._inspects = settings.inspect
        self.token.set(settings.token)

    def in_pieces(self, work: Callable[[], T | Pieces[T]]) -> Deferred[T]:
        """Do `work` within the budget of each reactor iteration; see `run_in_pieces`."""
        return run_in_pieces(_in_pieces(work), self._budget)

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
            if request.method in READ:
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
        page = self.page(request)
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

        working = maybeDeferred(page.respond, request)
        return working.addErrback(fail).addCallback(finish)

    def page(self, request: AdminRequest) -> Page | None:
        """Return a page; None: there is none, or it is switched off.

        The parent of several workers has checked what is switched off. Its settings count: a
        worker may have started with newer ones.
        """
        path, is_of_parent = request.path, request.is_of_parent
        if path == END:
            return self.end_page if is_of_parent or self.token.is_set else None
        page = self.pages.get(path)
        if page is None and (is_of_parent or self._inspects):
            page = self.inspection_pages.get(path)
            if page is None and path.startswith(TOPICS):
                page = self.topic_page
        return page


def _in_pieces(work: Callable[[], T | Pieces[T]]) -> Pieces[T]:
    result = work()
    return (yield from result) if isinstance(result, Generator) else result


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

    def __init__(self, tree: PageTree, clock: IReactorTime) -> None:
        super().__init__(tree, _AdminRequest, reactor=clock)  # type: ignore[no-untyped-call]

    def log(self, request: Any) -> None:
        """No access log: probes arrive every few seconds."""
