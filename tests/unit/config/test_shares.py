"""The limits of a machine are divided among its workers."""

from __future__ import annotations

from dataclasses import fields, replace

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.config.shares import DIVIDED_LIMITS, UNDIVIDED_LIMITS, divide, share
from topicsvc.settings import CheckSettings, Config, HistorySettings, LimitSettings, LocalSettings
from topicsvc.topics import Unit

SETTINGS = Config(("tcp:1",), Unit("https://unit1.example/"), LocalSettings(b"key"))
MAX_WORKERS = 64


class ShareTests(SynchronousTestCase):
    def limits(self, workers: int, **limits: int) -> LimitSettings:
        return share(replace(SETTINGS, limits=LimitSettings(**limits)), workers).limits

    def test_each_limit_is_divided_or_listed_as_not_divided(self) -> None:
        known = {each.name for each in fields(LimitSettings)}
        self.assertEqual({*DIVIDED_LIMITS, *UNDIVIDED_LIMITS}, known)
        self.assertEqual(len(DIVIDED_LIMITS) + len(UNDIVIDED_LIMITS), len(known))

    def test_each_listed_limit_is_divided_and_no_other(self) -> None:
        numbers = {
            each.name: 1000 for each in fields(LimitSettings)
            if isinstance(getattr(LimitSettings(), each.name), int)
        }  # fmt: skip
        limits = self.limits(4, **numbers)
        divided = {name for name in numbers if getattr(limits, name) == 250}
        kept = {name for name in numbers if getattr(limits, name) == 1000}
        self.assertEqual(divided, set(DIVIDED_LIMITS))
        self.assertEqual(kept, set(numbers) - divided)

    def test_a_share_is_rounded_up(self) -> None:
        limits = self.limits(4, connections=1001, unauthenticated=3, accepts_per_second=1)
        self.assertEqual(
            (limits.connections, limits.unauthenticated, limits.accepts_per_second), (251, 1, 1)
        )

    def test_no_limit_stays_no_limit(self) -> None:
        limits = self.limits(3, **dict.fromkeys(DIVIDED_LIMITS, 0))
        self.assertEqual([getattr(limits, name) for name in DIVIDED_LIMITS], [0] * 6)

    def test_all_shares_are_at_least_the_limit_and_less_than_one_more_for_each_worker(self) -> None:
        for workers in range(1, MAX_WORKERS + 1):
            for limit in (1, 2, 63, 64, 65, 1000, 268435456):
                total = divide(limit, workers) * workers
                self.assertTrue(limit <= total < limit + workers, (limit, workers))

    def test_the_concurrent_checks_are_divided_and_nothing_else_of_the_checks(self) -> None:
        checks = CheckSettings(timeout=7, concurrency=33, cache=5, recheck=9)
        self.assertEqual(
            share(replace(SETTINGS, checks=checks), 2).checks, replace(checks, concurrency=17)
        )

    def test_the_memory_of_kept_messages_is_divided_and_nothing_else_of_the_history(self) -> None:
        history = HistorySettings(seconds=7, messages=9, bytes=5000, total=100001)
        self.assertEqual(
            share(replace(SETTINGS, history=history), 2).history, replace(history, total=50001)
        )

    def test_all_other_settings_stay(self) -> None:
        shared = share(SETTINGS, 5)
        again = {name: getattr(SETTINGS, name) for name in ("limits", "checks", "history")}
        self.assertEqual(replace(shared, **again), SETTINGS)

    def test_one_worker_has_all(self) -> None:
        self.assertEqual(share(SETTINGS, 1), SETTINGS)
