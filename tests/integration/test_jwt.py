"""JWTs with an issuer on a real port: faults of its server, and a flood of made-up keys."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Generator
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from tests.integration.support.run_delay import run_delay
from tests.integration.support.validated_service import (
    TOPIC,
    ValidatedServiceTestCase,
    resident,
    sleep,
)
from tests.support.fake_unit import (
    answers,
    drops_every_connection,
    floods,
    floods_with_headers,
    never_answers,
    redirects_to,
    sends_gzip_bomb,
    sends_slowly,
)
from tests.support.jwt_issuer import AUDIENCE, FakeIssuer, b64, jwk
from tests.support.jwt_issuer import private_key as key
from topicsvc import config
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.errors import TokenInactive, TooManyFailedTokens, ValidatorUnavailable
from topicsvc.settings import LimitSettings
from topicsvc.validators.jwt.key_source import FETCH_INTERVAL

Test = Generator[Deferred[Any], Any, None]

MAX_GROWTH = 10_000_000
"""Bytes by which the memory may grow during one fetch."""

ADDRESSES, TOKENS, SECONDS = 100, 10_000, 25
MAX_P99 = 0.020
"""Seconds in which 99 % of the good tokens get their result during the flood, without the time in
which this process waited for a processor."""


class JwtTestCase(ValidatedServiceTestCase):
    """An issuer on a port, and a service that accepts its tokens."""

    @inlineCallbacks
    def setUp(self) -> Test:
        yield super().setUp()
        self.issuer = FakeIssuer(reactor.seconds())
        self.issuer.published.append(jwk(key("Ed25519"), "a2"))
        port = yield self.serve(self.issuer.site())
        self.issuer.issuer = f"http://127.0.0.1:{port.getHost().port}"
        self.start(
            config.load(f"""
                listen = ["tcp:0"]
                unit_url = "https://unit1.example/"
                [validator]
                kind = "jwt"
                timeout = {self.check_timeout}
                [[validator.issuers]]
                issuer = "{self.issuer.issuer}"
                audience = ["{AUDIENCE}"]
                [[validator.rules]]
                scope = "news"
                topics = ["/cell1/*"]
                may = ["receive"]
            """)
        )
        self.stack = self.service._validators


class FaultTests(JwtTestCase):
    """Faults by name; tests/unit/validators/jwt has those that need no socket."""

    @inlineCallbacks
    def test_a_hostile_key_set_is_bounded_in_time_and_memory_and_good_tokens_go_on(self) -> Test:
        outcome = yield self.present(self.issuer.token())
        self.assertIn('"Result":"Success"', outcome.text)
        trap = f"http://127.0.0.1:{self.trap_port.getHost().port}/jwks"
        for name, fault, reason in (
            ("closed connections", drops_every_connection, "the connection was lost"),
            ("silence", never_answers, "no result within 1 s"),
            ("one byte a second", sends_slowly(reactor, 0.1), "no result within 1 s"),
            ("10 MB", floods(10 * 2**20), "a body of more than 262144 bytes"),
            ("10 MB in chunks", floods(10 * 2**20, chunked=True), "a body of more than"),
            ("endless headers", floods_with_headers, "the connection was lost"),
            ("a gzip bomb", sends_gzip_bomb, "an encoded response"),
            ("a redirect", redirects_to(trap), "status 307"),
            ("an error", answers(503), "status 503"),
        ):
            for path in ("/jwks", "openid-configuration"):
                self.issuer.recover()
                self.issuer.inject(fault, path)
                before = resident()
                fetch = self.stack.discoveries[self.issuer.issuer].fetch()
                fetch.addTimeout(self.check_timeout, reactor, self.time_out)
                error = yield self.assertFailure(fetch, ValidatorUnavailable)
                if path == "/jwks" or reason != "status 307":
                    self.assertIn(reason, str(error), name)
                self.assertLess(resident() - before, MAX_GROWTH, name)
                grant = yield self.stack.validator.validate(self.issuer.token(), TOPIC)
                self.assertTrue(grant.may_receive)

    def time_out(self, _: object, seconds: float) -> None:
        raise ValidatorUnavailable(f"no result within {seconds:g} s")

    @inlineCallbacks
    def test_a_real_session_and_a_real_refusal(self) -> Test:
        outcome = yield self.present(self.issuer.token(aud="x"))
        self.assertIn('"Reason":"Token inactive"', outcome.text)
        self.assertEqual(outcome.code, 1008)


class FloodTests(JwtTestCase):
    @inlineCallbacks
    def test_made_up_keys_do_not_delay_good_tokens(self) -> Test:
        """10,000 tokens of 100 addresses; the issuer rolls its key over in the middle."""
        self.service.limits.settings = LimitSettings()
        token = self.issuer.token()
        yield self.stack.validator.validate(token, TOPIC)
        quotas = [
            ClientQuota.admit(self.service.limits, f"192.0.2.{number}")
            for number in range(ADDRESSES)
        ]
        good = ClientQuota.admit(self.service.limits, "198.51.100.1")
        for quota in (*quotas, good):
            self.addCleanup(quota.release)
        made_up: list[Deferred[Any]] = []
        outcomes: Counter[Any] = Counter()
        times: list[float] = []
        rolled: Deferred[Any] | None = None
        seen_after = 0.0
        began, fetches = reactor.seconds(), self.issuer.fetches

        def count(result: Any) -> None:
            outcomes[result.type if isinstance(result, Failure) else "granted"] += 1

        def flood() -> None:
            due = min(TOKENS, int(TOKENS * (reactor.seconds() - began) / SECONDS))
            while len(made_up) < due:
                head = f'{{"alg":"RS256","typ":"at+jwt","kid":"{secrets.token_hex(8)}"}}'
                forged = ".".join([b64(head.encode()), *token.split(".")[1:]])
                quota = quotas[len(made_up) % ADDRESSES]
                check = quota.validate(self.stack.validator, forged, TOPIC)
                made_up.append(check.addBoth(count))

        def seen(grant: Any, since: float) -> None:
            nonlocal seen_after
            seen_after = reactor.seconds() - since
            self.assertTrue(grant.may_receive)

        flooding = LoopingCall(flood)
        flooding.start(0.005)
        while len(made_up) < TOKENS:
            due_at, delay = reactor.seconds() + 0.01, run_delay()
            yield sleep(0.01)
            # A new token each time, which is verified; the delay of the timer counts.
            good_token = self.issuer.token(key("Ed25519"), "EdDSA", {"kid": "a2"})
            yield good.validate(self.stack.validator, good_token, TOPIC)
            times.append(reactor.seconds() - due_at - (run_delay() - delay))
            if rolled is None and reactor.seconds() - began > SECONDS / 2:
                self.issuer.published.append(jwk(key("ES256"), "b"))
                new = self.issuer.token(key("ES256"), "ES256", {"kid": "b"})
                rolled = good.validate(self.stack.validator, new, TOPIC)
                rolled.addCallback(seen, reactor.seconds())
        flooding.stop()
        assert rolled is not None
        yield DeferredList([*made_up, rolled], fireOnOneErrback=True)
        times.sort()
        p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
        seconds = reactor.seconds() - began
        if os.environ.get("TOPICSVC_FIGURES"):
            print(
                f"\n    {len(times)} good tokens: p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, "
                f"max {1e3 * times[-1]:.1f} ms; roll-over seen after {seen_after:.1f} s; "
                f"{self.issuer.fetches - fetches} fetches in {seconds:.0f} s; {dict(outcomes)}"
            )
        self.assertEqual(set(outcomes), {TokenInactive, TooManyFailedTokens})
        self.assertEqual(outcomes.total(), TOKENS)
        self.assertLess(p99, MAX_P99)
        # By the next fetch that is allowed; the one after it would start at 2 * FETCH_INTERVAL.
        self.assertLess(seen_after, 1.5 * FETCH_INTERVAL)
        self.assertLessEqual(self.issuer.fetches - fetches, seconds / FETCH_INTERVAL + 1)
