"""The admin pages of several workers: the parent asks each worker, and merges the answers.

A worker that does not answer in time is left out. The response says so, and
``topicsvc_workers_unanswered_total`` counts it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.admin.answers import Answer, error_answer, json_answer, text_answer
from topicsvc.admin.inspection import NO_SESSION, NO_TOPIC
from topicsvc.admin.metrics import ProcessMetrics, certificate_metric, encode
from topicsvc.admin.query import (
    MAX_LIMIT,
    read_end,
    read_limit,
    read_sessions,
    read_topics,
    topic_in_path,
)
from topicsvc.admin.request import AdminRequest
from topicsvc.admin.site import READ, Page, PageTree
from topicsvc.process.usage import count_open_files
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.scheduling.pieces import Pieces
from topicsvc.settings import OperatorSettings
from topicsvc.workers import merged_lists
from topicsvc.workers.control import Response
from topicsvc.workers.merged_lists import Members
from topicsvc.workers.merged_metrics import MergedMetrics, Scrape, read_metrics

__all__ = ["END_TIMEOUT", "LIST_TIMEOUT", "TIMEOUT", "AskedWorker", "Control", "WorkersTree"]

TIMEOUT = 2.0
"""Seconds in which a worker must answer about its health, and give its metrics."""

LIST_TIMEOUT = 5.0
"""Seconds in which a worker must give a list."""

END_TIMEOUT = 10.0
"""Seconds in which a worker must end sessions."""

_PARENT = 0
"""The number of the parent among those of workers."""

_LOG_INTERVAL = 60.0
"""Least seconds between two lines about the same worker."""


class Control(Protocol):
    """The parent's end of a control socket: `topicsvc.workers.control.WorkerControl`."""

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        caller: str = "",
        timeout: float = TIMEOUT,
    ) -> Deferred[Response]:
        """See `topicsvc.workers.control.WorkerControl`."""
        ...


@dataclass(frozen=True, slots=True)
class AskedWorker:
    """A worker that has been ready and has not ended.

    Attributes:
        number: its number; no other worker has had it.
        place: its place, from 1 on: another worker may take it.
        is_serving: whether it serves; otherwise another one has its place, and it ends soon.
        control: asks it.
    """

    number: int
    place: int
    is_serving: bool
    control: Control


@dataclass(frozen=True, slots=True)
class _Answers:
    """The answers of all workers.

    Attributes:
        found: those that can be used.
        unanswered: the places of the workers without such an answer.
    """

    found: tuple[tuple[AskedWorker, Response], ...]
    unanswered: tuple[int, ...]

    def members(self) -> Iterator[Members]:
        """Parse one answer after the other."""
        for _, response in self.found:
            yield json.loads(response.body)


class WorkersTree(PageTree):
    """The admin pages of several workers.

    Args:
        workers: returns the workers that have been ready and have not ended.
        places: how many workers there shall be.
        restarts: returns how many workers of each place have ended by themselves.
        certificate_expiry: returns when the first certificate of the parent expires, in seconds
            since the epoch; None: it has none.
        clock: the reactor, or a clock in its place.
        settings: which pages for operators there are.
    """

    _log = Logger()

    def __init__(
        self,
        workers: Callable[[], Sequence[AskedWorker]],
        places: int,
        restarts: Callable[[], Mapping[int, int]],
        certificate_expiry: Callable[[], float | None],
        clock: IReactorTime,
        settings: OperatorSettings,
    ) -> None:
        super().__init__(clock, settings)
        self._workers = workers
        self._places = range(1, places + 1)
        self._restarts = restarts
        self._certificate_expiry = certificate_expiry
        self._clock = clock
        self._metrics = MergedMetrics()
        self._process = ProcessMetrics()
        self._unanswered = dict.fromkeys(self._places, 0)
        self._throttle = LogThrottle(_LOG_INTERVAL)
        self.pages = {
            b"/health/live": Page(READ, self._live),
            b"/health/ready": Page(READ, self._ready),
            b"/metrics": Page(READ, self._metrics_page),
        }
        self.inspection_pages = {
            b"/topics": Page(READ, self._topics),
            b"/sessions": Page(READ, self._sessions),
            b"/sessions/ended": Page(READ, self._ended),
            b"/senders": Page(READ, self._senders),
        }
        self.topic_page = Page(READ, self._topic)
        self.end_page = Page((b"POST",), self._end)

    def keep_metrics(self, worker: int, text: str) -> None:
        """Keep the counters of a worker that has stopped and ends now."""
        self._metrics.keep(worker, tuple(text_string_to_metric_families(text)))

    def _ask(
        self,
        workers: Sequence[AskedWorker],
        path: str,
        statuses: Iterable[int] = (200,),
        timeout: float = TIMEOUT,
        **request: Any,
    ) -> Deferred[_Answers]:
        """Ask workers at the same time, and wait until each has answered or is late.

        Args:
            workers: the workers.
            path: the path and the query.
            statuses: the status codes of answers that can be used.
            timeout: seconds for the answers.
            request: further arguments of `Control.request`.
        """
        method = request.pop("method", "GET")
        asked: Deferred[Any] = DeferredList(
            [
                worker.control.request(method, path, timeout=timeout, **request)
                for worker in workers
            ],
            consumeErrors=True,
        )
        return asked.addCallback(lambda results: self._sort(results, workers, tuple(statuses)))

    def _sort(
        self,
        results: list[tuple[bool, Response | Failure]],
        workers: Sequence[AskedWorker],
        statuses: tuple[int, ...],
    ) -> _Answers:
        found = []
        unanswered = set()
        for worker, (_, result) in zip(workers, results, strict=True):
            if isinstance(result, Response) and result.status in statuses:
                found.append((worker, result))
            else:
                unanswered.add(worker.place)
                self._count_unanswered(worker, result)
        return _Answers(tuple(found), tuple(sorted(unanswered)))

    def _count_unanswered(self, worker: AskedWorker, result: Response | Failure) -> None:
        self._unanswered[worker.place] += 1
        if not self._throttle.allow(str(worker.place), self._clock.seconds()):
            return
        why = f"status {result.status}" if isinstance(result, Response) else str(result.value)
        self._log.warn(
            "worker {place} is left out of a response of the admin endpoint: {why}; left out since "
            "the start: {count}",
            place=worker.place,
            why=why,
            count=self._unanswered[worker.place],
        )

    def _serving(self) -> list[AskedWorker]:
        return [worker for worker in self._workers() if worker.is_serving]

    @inlineCallbacks
    def _live(self, request: AdminRequest) -> Generator[Deferred[_Answers], _Answers, Answer]:
        """Report whether the reactors of all workers run."""
        answers = yield self._ask(self._serving(), "/health/live")
        if answers.unanswered:
            return text_answer(503, f"no answer of worker {_names(answers.unanswered)}")
        return text_answer(200, "alive")

    @inlineCallbacks
    def _ready(self, request: AdminRequest) -> Generator[Deferred[_Answers], _Answers, Answer]:
        """Report whether new clients may be sent here, and which part of which worker is not ready.

        New connections go to all workers, so all must be ready.
        """
        answers = yield self._ask(self._serving(), "/health/ready", (200, 503))
        parts: dict[int, dict[str, bool]] = {place: {"running": False} for place in self._places}
        parts |= {place: {"answering": False} for place in answers.unanswered}
        merged: dict[str, bool] = {}
        for worker, response in answers.found:
            parts[worker.place] = json.loads(response.body)["parts"]
            for part, is_ready in parts[worker.place].items():
                merged[part] = merged.get(part, True) and is_ready
        merged["workers"] = len(answers.found) == len(parts)
        is_ready = all(merged.values())
        members = {
            "ready": is_ready,
            "parts": merged,
            "workers": [
                {"worker": place, "ready": all(each.values()), "parts": each}
                for place, each in sorted(parts.items())
            ],
        }
        return json_answer(members, 200 if is_ready else 503)

    @inlineCallbacks
    def _metrics_page(self, request: AdminRequest) -> Generator[Deferred[Any], Any, Answer]:
        answers = yield self._ask(self._workers(), "/metrics")
        families = yield self.in_pieces(lambda: self._merge_metrics(answers))
        return Answer(200, *encode(families, request.accept))

    def _merge_metrics(self, answers: _Answers) -> Pieces[list[Metric]]:
        scrapes = []
        for worker, response in answers.found:
            families = yield from read_metrics(response.body.decode("utf-8"))
            place = str(worker.place)
            scrapes.append(Scrape(worker.number, place, not worker.is_serving, families))
        self._process.open_files = yield from count_open_files()
        own = certificate_metric(self._certificate_expiry()), *self._process.collect()
        scrapes.append(Scrape(_PARENT, "parent", False, own))
        running = {_PARENT, *(worker.number for worker in self._workers())}
        ready = sum(worker.is_serving for worker, _ in answers.found)
        return [*self._own_metrics(ready), *self._metrics.merge(scrapes, running)]

    def _own_metrics(self, ready: int) -> Iterator[Metric]:
        yield GaugeMetricFamily("topicsvc_workers", "Workers by the setting.", len(self._places))
        yield GaugeMetricFamily(
            "topicsvc_workers_ready", "Workers that serve and answer in time.", ready
        )
        restarts = self._restarts()
        yield _by_place(
            "topicsvc_worker_restarts",
            "Workers that ended by themselves.",
            {place: restarts.get(place, 0) for place in self._places},
        )
        yield _by_place(
            "topicsvc_workers_unanswered",
            "Requests of the admin endpoint that a worker did not answer in time.",
            self._unanswered,
        )

    def _topics(self, request: AdminRequest) -> Deferred[Answer]:
        sort, limit = read_topics(request.query)
        most = merged_lists.topics_of_each(len(self._places))
        return self._list(
            f"/topics?sort={sort}&limit={most}",
            lambda answers: merged_lists.topics(answers, sort, limit),
        )

    def _sessions(self, request: AdminRequest) -> Deferred[Answer]:
        _, limit = read_sessions(request.query)
        return self._list(
            _with_query("/sessions", request),
            lambda answers: merged_lists.sessions(answers, limit),
        )

    def _ended(self, request: AdminRequest) -> Deferred[Answer]:
        limit = read_limit(request.query)
        return self._list(
            _with_query("/sessions/ended", request),
            lambda answers: merged_lists.ended(answers, limit),
        )

    def _senders(self, request: AdminRequest) -> Deferred[Answer]:
        limit = read_limit(request.query)
        return self._list(
            f"/senders?limit={MAX_LIMIT}",
            lambda answers: merged_lists.senders(answers, limit),
        )

    @inlineCallbacks
    def _list(
        self, path: str, merge: Callable[[Iterable[Members]], Pieces[Members]]
    ) -> Generator[Deferred[Any], Any, Answer]:
        answers: _Answers = yield self._ask(self._workers(), path, timeout=LIST_TIMEOUT)
        if not answers.found:
            return _NO_ANSWER
        members = yield self.in_pieces(lambda: merge(answers.members()))
        return json_answer(_with_unanswered(members, answers))

    def _topic(self, request: AdminRequest) -> Deferred[Answer]:
        if topic_in_path(request.path) is None:
            return succeed(NO_TOPIC)
        asked = self._ask(
            self._workers(), request.path.decode("ascii"), (200, 404), timeout=LIST_TIMEOUT
        )
        return asked.addCallback(self._merge_topic)

    def _merge_topic(self, answers: _Answers) -> Answer:
        if not answers.found:
            return _NO_ANSWER
        found = tuple(each for each in answers.found if each[1].status == 200)
        members = merged_lists.topic(_Answers(found, ()).members())
        if members is not None:
            return json_answer(_with_unanswered(members, answers))
        if answers.unanswered:
            error = f"no answer of worker {_names(answers.unanswered)}; try again"
            return json_answer(_with_unanswered({"error": error}, answers), 503)
        return NO_SESSION

    @inlineCallbacks
    def _end(self, request: AdminRequest) -> Generator[Deferred[_Answers], _Answers, Answer]:
        refusal = self.token.refusal(request.authorization, request.caller)
        if refusal is not None:
            return refusal
        read_end(request.body)
        answers = yield self._ask(
            self._workers(),
            "/sessions/end",
            timeout=END_TIMEOUT,
            method="POST",
            body=request.body,
            caller=request.caller,
        )
        members: Members = {"ended": sum(each["ended"] for each in answers.members())}
        if not answers.unanswered and answers.found:
            return json_answer(members)
        names = _names(answers.unanswered) or "any place"
        members["error"] = f"no answer of worker {names}; send the request again"
        return json_answer(_with_unanswered(members, answers), 503)


_NO_ANSWER = error_answer(
    503, "no worker answers; try again, and see /health/ready", ((b"retry-after", b"1"),)
)


def _by_place(name: str, documentation: str, values: Mapping[int, int]) -> Metric:
    metric = CounterMetricFamily(name, documentation, labels=["worker"])
    for place, value in values.items():
        metric.add_metric([str(place)], value)
    return metric


def _with_query(path: str, request: AdminRequest) -> str:
    query = request.query.decode("ascii")
    return f"{path}?{query}" if query else path


def _with_unanswered(members: Members, answers: _Answers) -> Members:
    """Add the places of workers that are left out, if there are any."""
    return {**members, "unanswered": answers.unanswered} if answers.unanswered else members


def _names(places: Iterable[int]) -> str:
    return ", ".join(map(str, places))
