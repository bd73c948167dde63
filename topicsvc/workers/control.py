"""The control socket between the parent process and one worker.

Each message is a JSON object in a netstring. The parent sends requests, ``{"id": 1, "do": "get",
...}``; the worker answers each, ``{"id": 1, ...}`` or ``{"id": 1, "error": "..."}``. The worker
sends events without an answer, ``{"event": "ready", ...}``. Both sides bound messages in bytes. The
parent bounds its requests in time and, for each kind, in number: a worker that does not answer the
admin pages can still be told to end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import NetstringReceiver
from twisted.python.failure import Failure

from topicsvc.admin.answers import Answer
from topicsvc.admin.request import AdminRequest
from topicsvc.errors import WorkerFailed, WorkerUnavailable

__all__ = [
    "MAX_MESSAGE",
    "MAX_OTHERS",
    "MAX_READS",
    "TIMEOUT",
    "Members",
    "Response",
    "WorkerControl",
    "WorkerEnd",
    "encode_event",
    "read_request",
    "write_response",
]

MAX_MESSAGE = 8 * 1024 * 1024
"""Most bytes of a message. A list of 1,000 sessions has less than 1 MiB."""

MAX_READS = 48
"""Most requests to the admin pages of one worker without an answer, the late ones included."""

MAX_OTHERS = 16
"""Most requests of each other kind to one worker without an answer, the late ones included."""

_READ = "get"

TIMEOUT = 5.0
"""Seconds in which a worker must answer a request."""

Members = dict[str, Any]
"""The members of a message."""


@dataclass(frozen=True, slots=True)
class Response:
    """The response of a worker's admin pages.

    Attributes:
        status: the status code of HTTP.
        headers: the headers; their names are in lower case.
        body: the body.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class _Messages(NetstringReceiver):
    """Sends and receives messages."""

    MAX_LENGTH = MAX_MESSAGE
    _log = Logger()
    transport: Any

    def send(self, members: Members) -> None:
        """Send a message.

        Raises:
            ValueError: it has more than `MAX_MESSAGE` bytes.
        """
        text = json.dumps(members, separators=(",", ":")).encode("ascii")
        if len(text) > MAX_MESSAGE:
            raise ValueError(f"a message of {len(text)} bytes; allowed: {MAX_MESSAGE}")
        self.sendString(text)

    def stringReceived(self, text: bytes) -> None:
        try:
            self.message_received(json.loads(text))
        except Exception:
            self._log.failure("internal error: a message of a control socket failed")

    def message_received(self, members: Members) -> None:
        """A message has arrived."""
        raise NotImplementedError


class WorkerControl(_Messages):
    """The parent's end of a control socket.

    Args:
        clock: measures the timeouts.
        on_event: called with the name of each event and with its members.
        on_lost: called once, when the worker has closed the socket.
    """

    def __init__(
        self,
        clock: IReactorTime,
        on_event: Callable[[str, Members], None],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._on_event = on_event
        self._on_lost = on_lost
        self._pending: dict[int, tuple[str, Deferred[Members]]] = {}
        self._counts: Counter[str] = Counter()  # of those, by what they shall do
        self._last_id = 0
        self._is_lost = False

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        caller: str = "",
        timeout: float = TIMEOUT,
    ) -> Deferred[Response]:
        """Ask the admin pages of the worker.

        Args:
            method: the method of HTTP.
            path: the path of the URL, and its query, percent-encoded.
            body: the body.
            headers: ``accept`` and ``authorization``, as far as they are needed.
            caller: the address of the client, for the log.
            timeout: seconds for the answer.

        Returns:
            Fires with the response. Fails with `WorkerUnavailable`: see `call`.
        """
        answer = self.call(
            _READ,
            timeout,
            method=method,
            path=path,
            headers=dict(headers or {}),
            body=_text(body),
            caller=caller,
        )
        return answer.addCallback(
            lambda members: Response(members["status"], members["headers"], _bytes(members["body"]))
        )

    def call(self, do: str, timeout: float = TIMEOUT, **members: Any) -> Deferred[Members]:
        """Send a request to the worker.

        Args:
            do: what the worker shall do.
            timeout: seconds for the answer.
            members: further members of the message.

        Returns:
            Fires with the members of the answer. Fails with `WorkerFailed`, if the answer is an
            error. Fails with `WorkerUnavailable`, if the socket is closed, if the answer is late,
            or if `MAX_READS` or `MAX_OTHERS` requests of this kind have no answer.
        """
        if self._is_lost or not self.connected:
            return fail(WorkerUnavailable("its control socket is closed"))
        most = MAX_READS if do == _READ else MAX_OTHERS
        if self._counts[do] >= most:
            return fail(WorkerUnavailable(f"{most} requests have no answer yet"))
        self._last_id += 1
        number = self._last_id
        try:
            self.send({"id": number, "do": do, **members})
        except ValueError as error:
            return fail(WorkerUnavailable(str(error)))
        answer: Deferred[Members] = Deferred()
        # It stays pending after the timeout: a worker that reads nothing must not get more.
        self._pending[number] = do, answer
        self._counts[do] += 1
        result: Deferred[Members] = Deferred()
        answer.chainDeferred(result)

        def too_late(_: object, seconds: float) -> Members:
            raise WorkerUnavailable(f"no answer within {seconds:g} s")

        return result.addTimeout(timeout, self._clock, too_late)

    def message_received(self, members: Members) -> None:
        """See `_Messages`."""
        if "event" in members:
            self._on_event(members.pop("event"), members)
            return
        do, answer = self._pending.pop(members.pop("id"))
        self._counts[do] -= 1
        if "error" in members:
            answer.errback(WorkerFailed(members["error"]))
        else:
            answer.callback(members)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_lost = True
        pending, self._pending = self._pending, {}
        for _, answer in pending.values():
            answer.errback(WorkerUnavailable("its control socket is closed"))
        self._on_lost()

    def close(self) -> None:
        """Close the socket: the worker ends."""
        if not self._is_lost and self.connected:
            self.transport.loseConnection()


class WorkerEnd(_Messages):
    """The worker's end of a control socket.

    Args:
        actions: by name, what requests may do: called with the members of a request, each returns
            the members of its answer, or a Deferred with them. The text of an exception of the
            kind `WorkerUnavailable` is the error that the parent gets.
        on_lost: called once, when the parent has closed the socket, or has ended.
    """

    def __init__(
        self,
        actions: Mapping[str, Callable[[Members], Any]],
        on_lost: Callable[[], None],
    ) -> None:
        self._actions = actions
        self._on_lost = on_lost

    def tell(self, event: str, **members: Any) -> None:
        """Send an event."""
        if self.connected:
            self.send({"event": event, **members})

    def message_received(self, members: Members) -> None:
        """See `_Messages`."""
        number, do = members.pop("id"), members.pop("do")
        action = self._actions.get(do)
        if action is None:
            self.send({"id": number, "error": f"there is no {do}"})
            return
        answering = maybeDeferred(action, members)
        answering.addErrback(self._error)
        answering.addCallback(self._answer, number)
        answering.addErrback(lambda failure: self._log.failure("internal error", failure))

    def _error(self, failure: Failure) -> Members:
        if not failure.check(WorkerUnavailable):
            self._log.failure("internal error: a request of the parent failed", failure)
            return {"error": "internal error: see the log"}
        return {"error": str(failure.value)}

    def _answer(self, members: Members, number: int) -> None:
        if not self.connected:
            return
        try:
            self.send({"id": number, **members})
        except ValueError as error:
            self.send({"id": number, "error": str(error)})

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_lost()


def encode_event(event: str, **members: Any) -> bytes:
    """An event as `WorkerEnd.tell` sends it, for a worker whose reactor does not run."""
    text = json.dumps({"event": event, **members}).encode("ascii")
    return b"%d:%s," % (len(text), text)


def read_request(members: Members) -> AdminRequest:
    """The request in the members of a ``get``; see `WorkerControl.request`."""
    path, _, query = members["path"].partition("?")
    authorization = members["headers"].get("authorization")
    return AdminRequest(
        _bytes(members["method"]),
        _bytes(path),
        _bytes(query),
        members["headers"].get("accept", ""),
        () if authorization is None else (_bytes(authorization),),
        _bytes(members["body"]),
        members["caller"],
        is_of_parent=True,
    )


def write_response(answer: Answer) -> Members:
    """The members of the answer to a ``get``."""
    headers = {_text(name).lower(): _text(value) for name, value in answer.headers}
    return {
        "status": answer.status,
        "headers": {"content-type": answer.content_type, **headers},
        "body": _text(answer.body),
    }


def _text(value: bytes) -> str:
    """Bytes as a string that JSON can hold, whatever they are."""
    return value.decode("utf-8", "surrogateescape")


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")
