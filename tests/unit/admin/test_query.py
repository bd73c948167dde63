"""Queries and bodies of requests to the admin endpoint."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.admin.query import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    MAX_REASON,
    InvalidRequest,
    Query,
    read_end,
    topic_in_path,
)
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
KEYS = ("sort", "limit", "topic", "address", "subject")


class QueryTests(SynchronousTestCase):
    def assert_invalid(self, query: str, error: str) -> None:
        """The error names the key, what is wrong and what is allowed."""
        with self.assertRaises(InvalidRequest) as caught:
            keys = Query(query.encode(), KEYS)
            keys.limit()
            keys.choice("sort", ("sessions", "messages"))
            keys.topic("topic")
            keys.network("address")
        self.assertIn(error, str(caught.exception))
        self.assertIn("; allowed: ", str(caught.exception))

    def test_defaults(self) -> None:
        keys = Query(b"", KEYS)
        self.assertEqual(keys.limit(), DEFAULT_LIMIT)
        self.assertEqual(keys.choice("sort", ("sessions", "messages")), "sessions")
        self.assertEqual((keys.text("subject"), keys.topic("topic")), (None, None))
        self.assertIsNone(keys.network("address"))

    def test_values_are_percent_decoded(self) -> None:
        query = b"limit=1000&sort=messages&subject=%C3%A4+b%23me&topic=%2Fcell1/box1/col/topic/name"
        keys = Query(query + b"&address=2001:db8::%2F32", KEYS)
        self.assertEqual((keys.limit(), keys.choice("sort", ("x", "messages"))), (1000, "messages"))
        self.assertEqual((keys.text("subject"), keys.topic("topic")), ("ä b#me", TOPIC))
        self.assertEqual(keys.network("address"), ip_network("2001:db8::/32"))

    def test_a_wrong_limit_sort_or_key_says_what_is_allowed(self) -> None:
        for limit in ("0", "-1", "1001", "1e2", "", "1.5", "%D9%A3", "9" * 5000):
            self.assert_invalid(f"limit={limit}", f"a whole number from 1 to {MAX_LIMIT}")
        self.assert_invalid("sort=age", '"age" is not one of these; allowed: sessions, messages')
        self.assert_invalid("lmit=5", '"lmit": there is no such key; allowed: sort, limit, topic')
        self.assert_invalid("limit=5&limit=6", "limit: given twice; allowed: once")
        self.assert_invalid("topic=/cell1", 'topic: "/cell1": not /{cell}/{box}')
        self.assert_invalid("address=example.org", 'address: "example.org" is no address')
        self.assert_invalid("address=10.0.0.1/8", "is no address")

    def test_a_query_that_is_not_one_is_refused(self) -> None:
        for query in ("limit", "subject=%FF", "&", "limit=1&" * 9, "%zz"):
            self.assert_invalid(query, "query: ")

    def test_an_error_is_printable_and_short(self) -> None:
        with self.assertRaises(InvalidRequest) as caught:
            Query(b"%1B%5B31m" + b"x" * 9000 + b"=1", KEYS)
        self.assertTrue(str(caught.exception).isprintable())
        self.assertLess(len(str(caught.exception)), 300)


class TopicInPathTests(SynchronousTestCase):
    def test_the_path_is_percent_decoded(self) -> None:
        for path in (b"/topics/cell1/box1/col/topic/name", b"/topics/cell1/%62ox1/col/topic/name"):
            self.assertEqual(topic_in_path(path), TOPIC)

    def test_other_paths_are_no_topics(self) -> None:
        for path in (b"", b"x", b"/cell1/box1/col/topic/name", b"cell1/box1/col/name", b"%FF/%"):
            self.assertIsNone(topic_in_path(b"/topics/" + path))


class ReadEndTests(SynchronousTestCase):
    def read(self, **members: Any) -> tuple[str, Any, str]:
        return read_end(json.dumps(members).encode())

    def test_each_selector(self) -> None:
        for key, value, read in (
            ("id", 17, 17),
            ("subject", "https://cell2/#me", "https://cell2/#me"),
            ("topic", TOPIC.path, TOPIC),
            ("address", "192.0.2.7", ip_network("192.0.2.7/32")),
            ("address", "2001:db8::/64", ip_network("2001:db8::/64")),
        ):
            self.assertEqual(self.read(**{key: value}, reason="abuse"), (key, read, "abuse"))

    def test_other_bodies_say_what_is_allowed(self) -> None:
        allowed = 'allowed: {"reason": ...} and exactly one of id, subject, topic, address'
        for body in (
            b"",
            b"null",
            b"[1]",
            b"\xff",
            b"[" * 9000,
            b'{"id": 1, "reason": "x"',
            b'{"id": 1, "id": 2, "reason": "x"}',
            b'{"id": NaN, "reason": "x"}',
            b'{"reason": "x"}',
            b'{"id": 1, "topic": "/c/b/c/topic/n", "reason": "x"}',
            b'{"id": 1, "reason": "x", "force": true}',
        ):
            with self.assertRaises(InvalidRequest) as caught:
                read_end(body)
            self.assertIn(allowed, str(caught.exception), body[:40])

    def test_wrong_values_are_refused(self) -> None:
        for members in (
            {"id": "17"},
            {"id": True},
            {"id": 1.5},
            {"id": None},
            {"subject": ""},
            {"subject": 5},
            {"topic": "/cell1"},
            {"topic": ["/cell1/box1/col/topic/name"]},
            {"address": "somewhere"},
        ):
            with self.assertRaises(InvalidRequest) as caught:
                self.read(**members, reason="abuse")
            self.assertIn("; allowed: ", str(caught.exception))

    def test_a_reason_is_required_and_bounded(self) -> None:
        self.assertEqual(self.read(id=1, reason="x" * MAX_REASON)[2], "x" * MAX_REASON)
        for reason in ("", " \n", "x" * (MAX_REASON + 1), None, 5, ["x"]):
            with self.assertRaises(InvalidRequest) as caught:
                self.read(id=1, reason=reason)
            self.assertIn(f"1 to {MAX_REASON} characters", str(caught.exception))
        with self.assertRaises(InvalidRequest):
            self.read(id=1)
