"""1,000 clients present tokens at the same time, and each check takes 20 ms: counted, not timed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks

from tests.integration.support.validated_service import ValidatedServiceTestCase
from tests.support.fake_unit import USERNAME, Token, answers_after
from topicsvc import config
from topicsvc.settings import Config

CLIENTS = 1000
CONCURRENCY = 32
"""The default of `concurrency`."""

Test = Generator[Deferred[Any], Any, None]


class BurstTestCase(ValidatedServiceTestCase):
    check_timeout = 60

    @inlineCallbacks
    def setUp(self) -> Test:
        yield super().setUp()
        self.unit.inject(answers_after(reactor, 0.020))
        self.start(self.settings())

    @inlineCallbacks
    def burst(self, tokens: list[str]) -> Test:
        """All clients present their tokens in one reactor iteration; all must get Success."""
        for token in tokens:
            self.unit.tokens[token] = Token(int(reactor.seconds()) + 3600, scope="all")
        clients = [self.connect() for _ in tokens]
        began = reactor.seconds()
        for client, token in zip(clients, tokens, strict=True):
            client.present(token)
        replies: Counter[str] = Counter()
        for client in clients:
            text, code = yield self.reply(client)
            replies["Success" if '"Result":"Success"' in text and code is None else text] += 1
        if os.environ.get("TOPICSVC_FIGURES"):
            print(
                f"\n    {self.id().partition('.test_burst.')[2]}: {len(clients)} clients, "
                f"{dict(replies)}, {reactor.seconds() - began:.2f} s, "
                f"{len(self.unit.requests)} requests, at most {self.unit.max_tokens} tokens "
                f"and {self.unit.max_requests} requests in flight"
            )
        self.assertEqual(replies, {"Success": CLIENTS})
        self.assertEqual(len(self.unit.tokens) - 1, len(set(tokens)))


class UnitBurstTests(BurstTestCase):
    REQUESTS_PER_CHECK = 3

    @inlineCallbacks
    def test_different_tokens(self) -> Test:
        yield self.burst([f"token-{number}" for number in range(CLIENTS)])
        self.assertEqual(len(self.unit.requests), self.REQUESTS_PER_CHECK * CLIENTS)
        self.assertLessEqual(self.unit.max_tokens, CONCURRENCY)
        self.assertLessEqual(self.unit.max_requests, self.REQUESTS_PER_CHECK * CONCURRENCY)

    @inlineCallbacks
    def test_one_token(self) -> Test:
        yield self.burst(["token"] * CLIENTS)
        self.assertLessEqual(len(self.unit.requests), self.REQUESTS_PER_CHECK * CLIENTS // 100)
        self.assertEqual(self.unit.max_tokens, 1)


class IntrospectionBurstTests(UnitBurstTests):
    """The same with an introspection endpoint: one request for each check."""

    REQUESTS_PER_CHECK = 1

    def settings(self, more: str = "") -> Config:
        return config.load(f"""
            listen = ["tcp:0"]
            unit_url = "https://unit1.example/"
            [validator]
            kind = "introspection"
            url = "{self.unit_url}cell1/__introspect"
            client_id = "{USERNAME}"
            client_secret_file = "{self.secret_file()}"
            [[validator.rules]]
            scope = "all"
            topics = ["/*"]
            may = ["receive", "send"]
        """)
