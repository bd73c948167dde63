"""The lists of several workers are merged into one."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.admin.query import MAX_LIMIT, MAX_TOPICS
from topicsvc.scheduling.pieces import Pieces
from topicsvc.workers import merged_lists

Members = dict[str, Any]


def result(work: Pieces[Members]) -> Members:
    while True:
        try:
            next(work)
        except StopIteration as end:
            members: Members = end.value
            return members


def topic(name: str, sessions: int, messages: int = 0, size: int = 0, queued: int = 0) -> Members:
    return {
        "topic": f"/cell1/{name}",
        "sessions": sessions,
        "messages_per_minute": messages,
        "bytes_per_minute": size,
        "queued_bytes": queued,
    }


class TopicTests(SynchronousTestCase):
    def merge(self, *lists: list[Members], sort: str = "sessions", limit: int = 100) -> Members:
        answers = [{"total": len(each), "topics": each} for each in lists]
        return result(merged_lists.topics(answers, sort, limit))

    def test_a_topic_of_several_workers_is_listed_once_with_all_sessions(self) -> None:
        """Each message reaches all of these workers: the worker with the most has seen all."""
        found = self.merge([topic("a", 1, 20, 300, 4)], [topic("a", 10, 30, 200, 40)])
        self.assertEqual(found, {"total": 1, "topics": [topic("a", 11, 30, 300, 44)]})

    def test_the_order_is_that_of_all_workers_together(self) -> None:
        found = self.merge([topic("a", 5), topic("b", 3)], [topic("c", 4), topic("b", 3)])
        self.assertEqual(found["topics"], [topic("b", 6), topic("a", 5), topic("c", 4)])

    def test_each_sort_uses_its_member(self) -> None:
        lists = [topic("a", 3, 1, 2), topic("b", 1, 2, 3)], [topic("c", 2, 3, 1)]
        for sort, expected in (("sessions", "acb"), ("messages", "cba"), ("bytes", "bac")):
            found = self.merge(*lists, sort=sort)
            self.assertEqual("".join(each["topic"][-1] for each in found["topics"]), expected)

    def test_the_limit_applies_to_the_merged_list_and_total_counts_all(self) -> None:
        found = self.merge([topic("a", 1), topic("b", 2)], [topic("c", 3)], limit=2)
        self.assertEqual(found, {"total": 3, "topics": [topic("c", 3), topic("b", 2)]})

    def test_topics_that_a_worker_leaves_out_are_in_the_total(self) -> None:
        answers = [{"total": 7, "topics": [topic("a", 1)]}, {"total": 1, "topics": [topic("a", 1)]}]
        found = result(merged_lists.topics(answers, "sessions", 10))
        self.assertEqual((found["total"], len(found["topics"])), (7, 1))

    def test_one_topic_is_merged_in_the_same_way(self) -> None:
        found = merged_lists.topic([topic("a", 1, 2, 3, 4), topic("a", 1, 1, 1, 1)])
        self.assertEqual(found, topic("a", 2, 2, 3, 5))
        self.assertIsNone(merged_lists.topic([]))

    def test_each_worker_lists_more_than_the_limit_if_there_are_few_workers(self) -> None:
        for workers, expected in ((1, MAX_TOPICS), (2, MAX_TOPICS), (4, 5000), (64, MAX_LIMIT)):
            self.assertEqual(merged_lists.topics_of_each(workers), expected)


class SessionTests(SynchronousTestCase):
    def merge(self, *lists: list[Members], limit: int = 100, total: int = 0) -> Members:
        answers = [{"total": total or len(each), "sessions": each} for each in lists]
        return result(merged_lists.sessions(answers, limit))

    def test_the_oldest_session_of_all_workers_is_first(self) -> None:
        one = [{"id": 1, "age": 9.5}, {"id": 2, "age": 3.0}]
        two = [{"id": 3, "age": 9.4}, {"id": 4, "age": 0.1}]
        found = self.merge(one, two)
        self.assertEqual([each["id"] for each in found["sessions"]], [1, 3, 2, 4])
        self.assertEqual(found["total"], 4)

    def test_the_limit_applies_to_the_merged_list_and_total_is_the_sum(self) -> None:
        lists = [[{"id": number, "age": float(number)}] for number in range(5)]
        found = self.merge(*lists, limit=2, total=1000)
        self.assertEqual([each["id"] for each in found["sessions"]], [4, 3])
        self.assertEqual(found["total"], 5000)

    def test_the_connection_that_ended_last_is_first(self) -> None:
        one = [{"id": 1, "age": 1.0, "ended_at": 50.0}, {"id": 2, "age": 9.0, "ended_at": 10.0}]
        two = [{"id": 3, "age": 5.0, "ended_at": 20.0}]
        answers = [{"total": 2, "sessions": one}, {"total": 1, "sessions": two}]
        found = result(merged_lists.ended(answers, 2))
        expected = [{"id": 1, "age": 1.0}, {"id": 3, "age": 5.0}]
        self.assertEqual(found, {"total": 3, "sessions": expected})


class SenderTests(SynchronousTestCase):
    def test_a_sender_at_several_workers_is_listed_once_with_the_sum(self) -> None:
        def sender(subject: str | None, address: str, messages: int) -> Members:
            return {"subject": subject, "address": address, "sends_per_minute": messages}

        answers = [
            {"senders": [sender("a", "192.0.2.1", 5), sender(None, "192.0.2.1", 4)]},
            {"senders": [sender(None, "192.0.2.1", 3), sender("a", "192.0.2.2", 6)]},
        ]
        found = result(merged_lists.senders(answers, 2))
        expected = [sender(None, "192.0.2.1", 7), sender("a", "192.0.2.2", 6)]
        self.assertEqual(found, {"senders": expected})
