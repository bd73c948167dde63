"""Merges the lists of several workers: topics, sessions, ended connections and senders.

Each function takes the parsed answers of the workers, one after the other, and works in pieces:
one for each answer. The results have the members of `topicsvc.admin.inspection`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nlargest
from typing import Any

from topicsvc.admin.query import MAX_LIMIT, MAX_TOPICS, SORTS
from topicsvc.scheduling.pieces import Pieces

__all__ = [
    "MAX_MERGED",
    "ended",
    "senders",
    "sessions",
    "topic",
    "topics",
    "topics_of_each",
]

MAX_MERGED = 20_000
"""Topics of all workers that are merged, if each may list more than `MAX_LIMIT`."""

_ORDERS = ("sessions", "messages_per_minute", "bytes_per_minute")
"""The member by which topics are sorted, in the order of `SORTS`."""

_MERGES: dict[str, Callable[[int, int], int]] = {
    "sessions": int.__add__,
    "messages_per_minute": max,
    "bytes_per_minute": max,
    "queued_bytes": int.__add__,
}
"""How members are merged. Each message of a topic reaches all workers that have its sessions."""

Members = dict[str, Any]


def topics_of_each(workers: int) -> int:
    """The most topics that each of `workers` workers lists."""
    return min(max(MAX_LIMIT, MAX_MERGED // workers), MAX_TOPICS)


def topics(answers: Iterable[Members], sort: str, limit: int) -> Pieces[Members]:
    """Merge lists of topics. A topic of several workers is listed once.

    Topics that a worker has left out of its list are added to ``total``, each as another topic.
    """
    merged: dict[str, Members] = {}
    left_out = 0
    for answer in answers:
        left_out += answer["total"] - len(answer["topics"])
        for each in answer["topics"]:
            _add(merged.setdefault(each["topic"], {"topic": each["topic"]}), each)
        yield
    member = _ORDERS[SORTS.index(sort)]
    found = nlargest(limit, merged.values(), key=lambda each: each[member])
    return {"total": len(merged) + left_out, "topics": found}


def topic(answers: Iterable[Members]) -> Members | None:
    """Merge the answers about one topic; None: there is none."""
    merged: Members = {}
    for each in answers:
        merged.setdefault("topic", each["topic"])
        _add(merged, each)
    return merged or None


def _add(merged: Members, each: Members) -> None:
    for name, merge in _MERGES.items():
        merged[name] = merge(merged.get(name, 0), each[name])


def sessions(answers: Iterable[Members], limit: int) -> Pieces[Members]:
    """Merge lists of sessions: the oldest first."""
    found: list[Members] = []
    total = 0
    for answer in answers:
        total += answer["total"]
        found = sorted([*found, *answer["sessions"]], key=_age, reverse=True)[:limit]
        yield
    return {"total": total, "sessions": found}


def _age(session: Members) -> float:
    age: float = session["age"]
    return age


def ended(answers: Iterable[Members], limit: int) -> Pieces[Members]:
    """Merge lists of ended connections: the last one first.

    The items of the answers have one member more, the time of their end, which is removed.
    """
    found: list[Members] = []
    total = 0
    for answer in answers:
        total += answer["total"]
        found = sorted([*found, *answer["sessions"]], key=_ended_at, reverse=True)[:limit]
        yield
    for each in found:
        del each["ended_at"]
    return {"total": total, "sessions": found}


def _ended_at(session: Members) -> float:
    ended_at: float = session["ended_at"]
    return ended_at


def senders(answers: Iterable[Members], limit: int) -> Pieces[Members]:
    """Merge lists of senders. A sender at several workers is listed once, with the sum."""
    merged: dict[tuple[str | None, str], Members] = {}
    for answer in answers:
        for each in answer["senders"]:
            key = each["subject"], each["address"]
            if key in merged:
                merged[key]["sends_per_minute"] += each["sends_per_minute"]
            else:
                merged[key] = each
        yield
    found = nlargest(limit, merged.values(), key=lambda each: each["sends_per_minute"])
    return {"senders": found}
