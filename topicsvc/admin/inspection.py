"""Lists topics, sessions and senders for operators.

A list is made in pieces, each within the budget of a reactor iteration. It has what existed when
it began and still exists when its turn comes; the values of an item are those of that moment.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from typing import Any

from topicsvc.admin.answers import Answer, error_answer, json_answer
from topicsvc.admin.query import (
    MAX_LIMIT,
    SORTS,
    read_limit,
    read_sessions,
    read_topics,
    topic_in_path,
)
from topicsvc.admission.addresses import is_within
from topicsvc.delivery.hub import TopicActivity
from topicsvc.scheduling.pieces import Pieces
from topicsvc.web.senders import Senders
from topicsvc.websocket.connection import TopicConnection
from topicsvc.websocket.server import WebSocketServer
from topicsvc.websocket.session_info import EndedSession, SessionInfo
from topicsvc.websocket.session_log import MAX_SUBJECT

__all__ = ["NO_SESSION", "NO_TOPIC", "Inspection", "selector"]

PIECE = 16
"""Items of a piece of work: each takes 1 to 10 us."""

NO_SESSION = error_answer(404, "no session is on this topic; /topics lists those with sessions")
NO_TOPIC = error_answer(404, "not the path of a topic; allowed: /topics/cell1/box1/col/topic/name")

Selector = Callable[[TopicConnection], bool]
"""Whether a session is selected."""

_ORDERS: tuple[Callable[[TopicActivity], int], ...] = (
    lambda activity: activity.sessions,
    lambda activity: activity.messages,
    lambda activity: activity.size,
)
"""By what topics are sorted, in the order of `SORTS`."""


class Inspection:
    """The pages for operators. Each returns its response in pieces.

    Args:
        websocket_server: the sessions.
        senders: returns the counts of senders; None: they are not counted.
    """

    def __init__(
        self, websocket_server: WebSocketServer, senders: Callable[[], Senders | None]
    ) -> None:
        self._websocket_server = websocket_server
        self._hub = websocket_server.context.hub
        self._senders = senders

    def topics(self, query: bytes, most: int = MAX_LIMIT) -> Pieces[Answer]:
        """``/topics``: the topics with the most sessions, messages or bytes.

        Args:
            query: the query, percent-encoded.
            most: the most topics that it may ask for.

        Raises:
            InvalidRequest: the query cannot be used.
        """
        sort, limit = read_topics(query, most)
        return self._topics(_ORDERS[SORTS.index(sort)], limit)

    def _topics(self, order: Callable[[TopicActivity], int], limit: int) -> Pieces[Answer]:
        total = 0
        # A heap of the first ones: the root is the last of them, and is replaced by a better one.
        first: list[tuple[int, int, TopicActivity]] = []
        for total, activity in enumerate(self._hub.activities(), 1):
            item = (order(activity), -total, activity)
            if len(first) < limit:
                heapq.heappush(first, item)
            elif item > first[0]:
                heapq.heapreplace(first, item)
            if not total % PIECE:
                yield
        items = []
        for _, _, activity in sorted(first, reverse=True):
            items.append(json.dumps((yield from self._topic(activity))))
            yield
        return _list("topics", items, total)

    def topic(self, path: bytes) -> Pieces[Answer]:
        """``/topics/{path}``: one topic."""
        topic = topic_in_path(path)
        if topic is None:
            return NO_TOPIC
        activity = self._hub.activity(topic)
        if activity is None:
            return NO_SESSION
        return json_answer((yield from self._topic(activity)))

    def _topic(self, activity: TopicActivity) -> Pieces[dict[str, Any]]:
        queued = activity.queued
        waiting_for = self._websocket_server.context.slow_consumers.waiting_for
        if len(self._websocket_server.context.slow_consumers):
            for number, member in enumerate(self._hub.members(activity.topic), 1):
                queued += waiting_for(member)
                if not number % (8 * PIECE):
                    yield
        return {
            "topic": activity.topic.path,
            "sessions": activity.sessions,
            "messages_per_minute": activity.messages,
            "bytes_per_minute": activity.size,
            "queued_bytes": queued,
        }

    def sessions(self, query: bytes) -> Pieces[Answer]:
        """``/sessions``: active sessions, the oldest first.

        Raises:
            InvalidRequest: the query cannot be used.
        """
        wanted, limit = read_sessions(query)
        return self._sessions([selector(key, value) for key, value in wanted.items()], limit)

    def _sessions(self, selectors: list[Selector], limit: int) -> Pieces[Answer]:
        total = 0
        items: list[str] = []
        for number, connection in enumerate(self._websocket_server.active_sessions(), 1):
            if all(matches(connection) for matches in selectors):
                total += 1
                if len(items) < limit:
                    items.append(json.dumps(_session(connection.info())))
            if not number % PIECE:
                yield
        return _list("sessions", items, total)

    def ended(self, query: bytes, has_times: bool = False) -> Pieces[Answer]:
        """``/sessions/ended``: connections that ended, the last one first.

        Args:
            query: the query, percent-encoded.
            has_times: whether each has ``ended_at``, the time of its end by the clock of all
                processes of the machine, for `topicsvc.workers.merged_lists`.

        Raises:
            InvalidRequest: the query cannot be used.
        """
        return self._ended(read_limit(query), has_times)

    def _ended(self, limit: int, has_times: bool) -> Pieces[Answer]:
        ended = tuple(self._websocket_server.ended_sessions or ())
        items = []
        for number, each in enumerate(reversed(ended[-limit:]), 1):
            members = _ended(each)
            if has_times:
                members["ended_at"] = each.ended_at
            items.append(json.dumps(members))
            if not number % PIECE:
                yield
        return _list("sessions", items, len(ended))

    def senders(self, query: bytes) -> Answer:
        """``/senders``: the senders of the most messages in the last minute.

        Raises:
            InvalidRequest: the query cannot be used.
        """
        limit = read_limit(query)
        senders = self._senders()
        return json_answer(
            {
                "senders": [
                    {
                        "subject": each.subject,
                        "address": each.address,
                        "sends_per_minute": each.messages,
                    }
                    for each in ([] if senders is None else senders.top(limit))
                ]
            }
        )


def selector(key: str, value: Any) -> Selector:
    """Return the function that selects sessions.

    Args:
        key: one of `topicsvc.admin.query.SELECTORS`.
        value: a number, a subject, a `TopicAddress`, or an address or network.
    """
    match key:
        case "id":
            return lambda connection: connection.record.number == value
        case "topic":
            path = value.path
            return lambda connection: connection.record.topic == path
        case "subject":
            kept = value[:MAX_SUBJECT]
            return lambda connection: connection.record.subject == kept
        case _:
            networks = (value,)
            return lambda connection: is_within(connection.address, networks)


def _session(info: SessionInfo) -> dict[str, Any]:
    return {
        "id": info.number,
        "topic": info.topic,
        "address": info.address,
        "subject": info.subject,
        "token": info.token,
        "age": round(info.age, 1),
        "expires_in": None if info.expires_in is None else round(info.expires_in, 1),
        "messages": info.messages,
        "queued_bytes": info.queued,
    }


def _ended(ended: EndedSession) -> dict[str, Any]:
    return {**_session(ended.session), "reason": ended.reason, "detail": ended.detail}


def _list(name: str, items: list[str], total: int) -> Answer:
    """The response ``{"total": N, name: [...]}``, from items in JSON."""
    text = f'{{"total": {total}, "{name}": [{", ".join(items)}]}}\n'
    return Answer(200, "application/json", text.encode("ascii"))
