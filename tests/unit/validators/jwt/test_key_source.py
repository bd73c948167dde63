"""When keys are fetched, how long they are used, and which tokens wait; in virtual time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.jwt_issuer import jwk, jwks
from tests.support.jwt_issuer import private_key as key
from topicsvc.errors import ValidatorUnavailable
from topicsvc.validators.jwt.key_source import (
    FETCH_INTERVAL,
    MAX_WAITING,
    RETRY_INTERVAL,
    KeySource,
)
from topicsvc.validators.jwt.keys import KeySet, read_keys

MAX_AGE, STALE, TIMEOUT = 3600.0, 86400.0, 5.0


def key_set(*names: str) -> KeySet:
    return read_keys(jwks(*(jwk(key("ES256", name), name) for name in names)))


class KeySourceTestCase(SynchronousTestCase):
    """A source whose fetches end when the test ends them.

    Attributes:
        fetches: the start and the result of each fetch.
        lines: the lines of the log.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1000.0
        self.fetches: list[tuple[float, Deferred[KeySet]]] = []
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        self.source = self.build()

    def observe(self, event: Any) -> None:
        if event["log_namespace"].endswith("KeySource"):
            self.lines.append(str(formatEvent(event)))

    def build(self, max_age: float = MAX_AGE, stale: float = STALE) -> KeySource:
        def fetch() -> Deferred[KeySet]:
            result: Deferred[KeySet] = Deferred()
            self.fetches.append((self.clock.seconds(), result))
            return result

        return KeySource(
            "https://as.example", fetch, self.clock, max_age, stale, TIMEOUT, self.counts
        )

    def advance(self, seconds: float) -> None:
        self.clock.pump([0, seconds, 0])

    def succeed(self, *names: str) -> None:
        """End the fetch in progress; the key set has these keys."""
        self.fetches[-1][1].callback(key_set(*names))

    def fail_fetch(self, reason: str = "status 503") -> None:
        self.fetches[-1][1].errback(ValidatorUnavailable(reason))

    def load(self, *names: str) -> None:
        """Start, and load these keys."""
        self.source.start()
        self.advance(0)
        self.succeed(*names)

    @property
    def starts(self) -> list[float]:
        """When each fetch began, from the first on."""
        return [at - self.fetches[0][0] for at, _ in self.fetches]

    def assert_names(self, *names: str) -> None:
        assert self.source.keys is not None
        self.assertEqual([each.key_id for each in self.source.keys.keys], list(names))


class FetchTests(KeySourceTestCase):
    def test_keys_are_fetched_at_the_start_and_once_in_max_age(self) -> None:
        self.load("a")
        self.assertTrue(self.source.was_loaded)
        self.advance(MAX_AGE - 1)
        self.assertEqual(self.starts, [0])
        self.advance(1)
        self.assertEqual(self.starts, [0, MAX_AGE])
        self.succeed("a", "b")
        self.assert_names("a", "b")
        self.assertEqual(self.counts, {"fetched": 2})

    def test_use_does_not_prolong_the_age(self) -> None:
        self.load("a")
        for _ in range(int(MAX_AGE)):
            self.source.require_keys()
            self.advance(1)
        self.assertEqual(self.starts, [0, MAX_AGE])

    def test_the_age_counts_from_the_start_of_the_last_fetch(self) -> None:
        self.load("a")
        self.advance(100)
        self.source.request_fetch()
        self.advance(2)
        self.succeed("a")
        self.assertEqual(self.source.age, 2)
        self.advance(MAX_AGE - 2)
        self.assertEqual(self.starts, [0, 100, 100 + MAX_AGE])

    def test_fetches_are_at_least_10_seconds_apart(self) -> None:
        self.load("a")
        for _ in range(100):
            self.source.request_fetch()
            self.advance(1)
            if not self.fetches[-1][1].called:
                self.succeed("a")
        gaps = [later - at for at, later in pairwise(self.starts)]
        self.assertEqual(set(gaps), {FETCH_INTERVAL})

    def test_failed_fetches_are_as_far_apart(self) -> None:
        self.load("a")
        for _ in range(100):
            self.source.request_fetch()
            self.advance(1)
            if not self.fetches[-1][1].called:
                self.fail_fetch()
        gaps = [later - at for at, later in pairwise(self.starts)]
        self.assertEqual(set(gaps), {FETCH_INTERVAL})

    def test_only_one_fetch_is_in_progress(self) -> None:
        self.source = self.build(max_age=10)
        self.source.start()
        self.advance(0)
        for _ in range(4):
            self.source.request_fetch()
            self.advance(1)
        self.assertEqual(len(self.fetches), 1)

    def test_a_fetch_has_a_timeout(self) -> None:
        self.source.start()
        self.advance(TIMEOUT)
        self.assertEqual(self.counts, {"failed": 1})
        self.assertIn("no result within 5 s", self.lines[-1])

    def test_an_internal_error_does_not_end_the_fetches(self) -> None:
        self.load("a")
        self.advance(MAX_AGE)
        self.fetches[-1][1].errback(ZeroDivisionError("injected by the test"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assert_names("a")
        self.advance(RETRY_INTERVAL)
        self.succeed("b")
        self.assert_names("b")

    def test_keys_are_not_used_for_ever_if_fetches_end_with_internal_errors(self) -> None:
        self.load("a")
        self.advance(MAX_AGE)
        until = self.clock.seconds() + STALE
        while self.clock.seconds() < until:
            self.assert_names("a")
            self.fetches[-1][1].errback(ZeroDivisionError("injected by the test"))
            self.advance(RETRY_INTERVAL)
        self.assertIsNone(self.source.keys)
        self.assertRaises(ValidatorUnavailable, self.source.require_keys)
        failed = len(self.flushLoggedErrors(ZeroDivisionError))
        self.assertEqual(self.counts, {"fetched": 1, "failed": failed})


class OutageTests(KeySourceTestCase):
    def test_an_issuer_that_is_down_at_the_start(self) -> None:
        self.source.start()
        self.advance(0)
        self.assertIsNone(self.source.require_keys())
        self.fail_fetch("the connection was refused")
        self.assertRaises(ValidatorUnavailable, self.source.require_keys)
        self.assertFalse(self.source.was_loaded)
        self.advance(FETCH_INTERVAL)
        self.assertEqual(self.starts, [0, FETCH_INTERVAL])
        self.succeed("a")
        self.assert_names("a")
        self.assertTrue(self.source.was_loaded)

    def test_the_last_keys_are_used_until_they_are_stale(self) -> None:
        self.load("a")
        self.advance(MAX_AGE)
        self.fail_fetch()
        while self.clock.seconds() < 1000 + MAX_AGE + STALE - 1:
            self.assert_names("a")
            self.advance(1 if self.fetches[-1][1].called else 0)
            if not self.fetches[-1][1].called:
                self.fail_fetch()
        old = self.source.keys
        self.advance(1)
        self.assertIsNone(self.source.keys)
        assert old is not None
        self.assertFalse(old.keys[0].is_current)
        self.assertRaises(ValidatorUnavailable, self.source.require_keys)
        self.assertTrue(self.source.was_loaded)
        self.assertIn("too old (stale)", "\n".join(self.lines))

    def test_keys_come_back_after_they_were_stale(self) -> None:
        self.source = self.build(10, 10)
        self.load("a")
        self.advance(10)
        self.fail_fetch()
        self.advance(10)
        self.assertIsNone(self.source.keys)
        self.succeed("a")
        self.assert_names("a")

    def test_an_early_failure_does_not_shorten_the_use(self) -> None:
        """Made-up key IDs cause a fetch; if it fails, keys serve at least until max_age."""
        self.source = self.build(3600, 10)
        self.load("a")
        self.advance(100)
        self.source.request_fetch()
        self.advance(0)
        self.fail_fetch()
        while self.clock.seconds() < 1000 + 3599:
            self.advance(1)
            if not self.fetches[-1][1].called:
                self.fail_fetch()
            self.assert_names("a")
        self.advance(1)
        self.assertIsNone(self.source.keys)

    def test_a_success_ends_the_outage(self) -> None:
        self.source = self.build(3600, 100)
        self.load("a")
        self.advance(3600)
        self.fail_fetch()
        self.advance(RETRY_INTERVAL)
        self.succeed("a")
        self.advance(3599)
        self.assert_names("a")
        self.assertIn("fetched again", self.lines[-1])

    def test_one_log_line_for_repeated_failures(self) -> None:
        self.load("a")
        self.lines.clear()
        self.advance(MAX_AGE)
        for _ in range(5):
            self.fail_fetch()
            self.advance(RETRY_INTERVAL)
        self.assertEqual(
            self.lines,
            [
                "keys of https://as.example: cannot be fetched: status 503; "
                "the last keys are used for 86400 s"
            ],
        )
        self.fail_fetch("not JSON")
        self.assertEqual(len(self.lines), 2)

    def test_an_empty_key_set_withdraws_all_keys_and_is_not_loaded(self) -> None:
        self.load()
        self.assertFalse(self.source.was_loaded)
        self.advance(RETRY_INTERVAL)
        self.assertEqual(self.starts, [0, RETRY_INTERVAL])
        self.succeed("a")
        self.assertTrue(self.source.was_loaded)
        self.advance(MAX_AGE)
        self.succeed()
        self.assert_names()


class WaitTests(KeySourceTestCase):
    def test_a_token_with_an_unknown_key_waits_for_a_fetch(self) -> None:
        self.load("a")
        self.advance(100)
        waiting = self.source.wait("b", "ES256")
        self.advance(0)
        self.assertNoResult(waiting)
        self.succeed("a", "b")
        self.successResultOf(waiting)

    def test_it_waits_until_the_last_fetch_is_long_enough_ago(self) -> None:
        self.load("a")
        self.advance(3)
        waiting = self.source.wait("b", "ES256")
        self.advance(6.9)
        self.assertEqual(self.starts, [0])
        self.advance(0.1)
        self.assertEqual(self.starts, [0, FETCH_INTERVAL])
        self.succeed("a", "b")
        self.successResultOf(waiting)

    def test_a_key_that_stays_unknown_ends_the_wait(self) -> None:
        self.load("a")
        self.advance(100)
        waiting = self.source.wait("b", "ES256")
        self.advance(0)
        self.succeed("a")
        self.successResultOf(waiting)

    def test_a_fetch_that_began_earlier_can_only_find_the_key(self) -> None:
        """The issuer may have answered it before it published the key."""
        self.load("a")
        self.advance(MAX_AGE)
        late, early = self.source.wait("c", "ES256"), self.source.wait("b", "ES256")
        self.succeed("a", "b")
        self.successResultOf(early)
        self.assertNoResult(late)
        self.advance(FETCH_INTERVAL)
        self.assertEqual(self.starts, [0, MAX_AGE, MAX_AGE + FETCH_INTERVAL])
        self.succeed("a", "b", "c")
        self.successResultOf(late)

    def test_a_token_without_a_name_waits_only_for_a_key_that_may_fit(self) -> None:
        self.source.start()
        self.advance(0)
        fits, other = self.source.wait(None, "ES256"), self.source.wait(None, "RS256")
        self.succeed("a")
        self.advance(0)
        self.successResultOf(fits)
        self.assertNoResult(other)
        self.advance(FETCH_INTERVAL)
        self.succeed("a")
        self.advance(0)
        self.successResultOf(other)

    def test_a_failed_fetch_ends_the_wait_with_an_error(self) -> None:
        self.load("a")
        self.advance(100)
        waiting = self.source.wait("b", "ES256")
        self.advance(0)
        self.fail_fetch()
        self.failureResultOf(waiting, ValidatorUnavailable)

    def test_an_internal_error_ends_the_wait(self) -> None:
        self.load("a")
        self.advance(100)
        waiting = self.source.wait("b", "ES256")
        self.advance(0)
        self.fetches[-1][1].errback(ZeroDivisionError("injected by the test"))
        self.failureResultOf(waiting, RuntimeError)
        self.flushLoggedErrors(ZeroDivisionError)

    def test_a_wait_can_be_cancelled(self) -> None:
        self.load("a")
        self.advance(100)
        waiting = self.source.wait("b", "ES256")
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.advance(0)
        self.succeed("a", "b")
        self.assertEqual(len(self.source._waiting), 0)

    def test_the_number_of_waiting_tokens_is_limited(self) -> None:
        self.load("a")
        waiting = [self.source.wait(str(number), "ES256") for number in range(MAX_WAITING)]
        self.failureResultOf(self.source.wait("more", "ES256"), ValidatorUnavailable)
        self.assertNoResult(waiting[0])
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        self.assertNoResult(self.source.wait("more", "ES256"))

    def test_many_waits_end_in_many_reactor_iterations(self) -> None:
        self.load("a")
        self.advance(100)
        waiting = [self.source.wait(str(number), "ES256") for number in range(100)]
        self.advance(0)
        self.succeed("a")
        self.assertEqual(sum(each.called for each in waiting), 20)
        self.advance(0)
        self.assertTrue(all(each.called for each in waiting))

    def test_a_wait_that_is_cancelled_while_others_end(self) -> None:
        self.load("a")
        self.advance(100)
        waiting = [self.source.wait(str(number), "ES256") for number in range(30)]
        self.advance(0)
        self.succeed("a")
        waiting[29].cancel()
        self.failureResultOf(waiting[29], CancelledError)
        self.advance(0)
        self.assertTrue(all(each.called for each in waiting))


class StopTests(KeySourceTestCase):
    def test_nothing_is_left_after_a_stop(self) -> None:
        self.load("a")
        self.source.stop()
        self.advance(MAX_AGE)
        self.assertEqual(self.starts, [0])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_cancels_a_fetch_without_a_log_line(self) -> None:
        self.source.start()
        self.advance(0)
        self.source.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((self.lines, self.counts), ([], {}))

    def test_a_stop_in_an_outage_leaves_nothing(self) -> None:
        self.load("a")
        self.advance(MAX_AGE)
        self.fail_fetch()
        self.source.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tokens_that_wait_still_get_their_result_after_a_stop(self) -> None:
        self.load("a")
        waiting = self.source.wait("b", "ES256")
        self.source.stop()
        self.advance(FETCH_INTERVAL)
        self.succeed("a", "b")
        self.successResultOf(waiting)
        self.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_failed_fetch_after_a_stop_is_not_repeated(self) -> None:
        self.load("a")
        waiting = self.source.wait("b", "ES256")
        self.source.stop()
        self.advance(FETCH_INTERVAL)
        self.fail_fetch()
        self.failureResultOf(waiting, ValidatorUnavailable)
        self.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ReloadTests(KeySourceTestCase):
    def test_a_new_source_uses_the_keys_of_the_old_one(self) -> None:
        """A reload while the issuer is down must not end the use of its keys."""
        self.load("a")
        self.advance(100)
        old, self.source = self.source, self.build()
        old.stop()
        self.source.start(old)
        self.assert_names("a")
        self.assertTrue(self.source.was_loaded)
        self.advance(MAX_AGE - 101)
        self.assertEqual(self.starts, [0])
        self.advance(1)
        self.assertEqual(self.starts, [0, MAX_AGE])

    def test_reloads_do_not_shorten_the_time_between_fetches(self) -> None:
        self.source.start()
        self.advance(0)
        self.fail_fetch()
        for _ in range(9):
            old, self.source = self.source, self.build()
            old.stop()
            self.source.start(old)
            self.advance(1)
        self.assertEqual(self.starts, [0])
        self.advance(1)
        self.assertEqual(self.starts, [0, FETCH_INTERVAL])

    def test_an_outage_goes_on_across_a_reload(self) -> None:
        self.load("a")
        self.advance(MAX_AGE)
        self.fail_fetch()
        old, self.source = self.source, self.build(MAX_AGE, 30)
        old.stop()
        self.source.start(old)
        self.advance(30)
        self.assertIsNone(self.source.keys)


class LogTests(KeySourceTestCase):
    def test_changes_of_the_keys_are_logged(self) -> None:
        self.load("a")
        self.advance(MAX_AGE)
        self.succeed("a")
        self.advance(MAX_AGE)
        self.succeed("b", "c")
        begin = "keys of https://as.example: "
        self.assertEqual(
            self.lines,
            [
                f"{begin}1 in use (ES256), 1 new, 0 withdrawn",
                f"{begin}2 in use (ES256), 2 new, 1 withdrawn",
            ],
        )

    def test_a_skipped_key_has_one_line(self) -> None:
        odd = read_keys(jwks({"kty": "AKP", "kid": "x"}, jwk(key("ES256"), "a")))
        self.source.start()
        self.advance(0)
        self.fetches[-1][1].callback(odd)
        for _ in range(3):
            self.advance(MAX_AGE)
            self.fetches[-1][1].callback(odd)
        line = (
            'keys of https://as.example: not used: key "x": its type (kty) is "AKP", '
            "which is not supported"
        )
        self.assertEqual(self.lines.count(line), 1)
