"""A control socket in memory, between the parent's end and a worker's end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.testing import StringTransport

from topicsvc.workers.control import Members, WorkerControl, WorkerEnd

__all__ = ["ControlSocket"]


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
