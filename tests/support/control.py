"""Control sockets in memory: with a real worker's end, or with answers that a test has set."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.testing import StringTransport

from topicsvc.errors import WorkerUnavailable
from topicsvc.workers.control import Members, Response, WorkerControl, WorkerEnd

__all__ = ["READY", "ControlSocket", "FakeControl"]

READY = {"listening": True, "accepting": True, "broker": True}
"""The parts of a worker that is ready."""


class ControlSocket:
    """Both ends; `pump` carries what they have written.

    Attributes:
        parent: the parent's end.
        worker: the worker's end.
        events: the events that the parent has got.
        lost: the ends that have lost the socket.
    """

    def __init__(
        self, clock: IReactorTime, actions: Mapping[str, Callable[[Members], Any]]
    ) -> None:
        self.events: list[tuple[str, Members]] = []
        self.lost: list[str] = []
        self.parent = WorkerControl(
            clock,
            lambda event, members: self.events.append((event, members)),
            lambda: self.lost.append("parent"),
        )
        self.worker = WorkerEnd(actions, lambda: self.lost.append("worker"))
        self.parent_transport = StringTransport()
        self.worker_transport = StringTransport()
        self.parent.makeConnection(self.parent_transport)
        self.worker.makeConnection(self.worker_transport)

    def pump(self) -> None:
        """Carry bytes until both ends are silent."""
        while self.parent_transport.value() or self.worker_transport.value():
            for transport, other in (
                (self.parent_transport, self.worker),
                (self.worker_transport, self.parent),
            ):
                data = transport.value()
                transport.clear()
                if data:
                    other.dataReceived(data)  # type: ignore[no-untyped-call]


class FakeControl:
    """Answers requests as told, or not at all.

    Attributes:
        answers: a status and JSON or text, by path without its query.
        is_frozen: whether it does not answer: the request fails after its timeout.
        requests: the requests so far.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.answers: dict[str, tuple[int, Any]] = {
            "/health/live": (200, "alive\n"),
            "/health/ready": (200, {"ready": True, "parts": READY}),
            "/metrics": (200, ""),
        }
        self.is_frozen = False
        self.requests: list[tuple[str, str, bytes, dict[str, str], str]] = []

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        caller: str = "",
        timeout: float = 0,
    ) -> Deferred[Response]:
        self.requests.append((method, path, body, dict(headers or {}), caller))
        if self.is_frozen:
            late: Deferred[Response] = Deferred()

            def too_late(_: object, seconds: float) -> None:
                raise WorkerUnavailable(f"no answer within {seconds:g} s")

            return late.addTimeout(timeout, self._clock, too_late)
        status, content = self.answers[path.partition("?")[0]]
        text = content if isinstance(content, str) else json.dumps(content)
        return succeed(Response(status, {}, text.encode()))
