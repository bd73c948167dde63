"""How much of everything there may be."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeValidator
from topicsvc.admission.client_quota import Visit
from topicsvc.admission.limits import (
    COUNTED,
    COURTESY,
    LATE,
    Limits,
)
from topicsvc.errors import TokenInactive, TooManyFailedTokens, TopicNotFound
from topicsvc.settings import LimitSettings
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
ANN, BOB = "192.0.2.1", "192.0.2.2"


class LimitsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1518612600.0
        self.validator = FakeValidator()
        self.set()

    def set(self, files: int | None = None, **settings: Any) -> None:
        self.limits = Limits(self.clock, self.clock.seconds, LimitSettings(**settings), files)

    def arrive(self, host: str | None = ANN) -> Visit:
        return self.limits.arrive(host)

    def enter(self, host: str | None = ANN) -> Visit:
        """Somebody for whom there is room."""
        visit = self.arrive(host)
        self.assertIsNone(visit.refused_by)
        return visit

    def assert_refused(self, name: str, host: str | None = ANN) -> Visit:
        before = self.limits.hits[name]
        visit = self.arrive(host)
        self.assertEqual((visit.refused_by, visit.is_dropped), (name, False))
        self.assertEqual(self.limits.hits[name], before + 1)
        return visit

    def judge(self, visit: Visit, verdict: str = "refuse") -> Any:
        answer = visit.judge(self.validator, "token", TOPIC)
        if verdict == "grant":
            self.validator.last.grant(self.clock.seconds() + 60)
            return self.successResultOf(answer)
        self.validator.last.refuse()
        return self.failureResultOf(answer, TokenInactive)

    def assert_nothing_kept(self) -> None:
        self.assertEqual((self.limits.connections.total, self.limits.waiting.total), (0, 0))
        self.assertEqual((self.limits.connections._of, self.limits.waiting._of), ({}, {}))
        self.assertEqual(self.limits.turned_away, 0)
        self.assertEqual(len(self.limits.not_late), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RoomTests(LimitsTestCase):
    def test_connections_in_all(self) -> None:
        self.set(connections=2)
        visits = [self.enter(ANN), self.enter(BOB)]
        visits.append(self.assert_refused("connections"))
        visits.pop(0).leave()
        visits.append(self.enter())
        for visit in visits:
            visit.leave()
        self.assert_nothing_kept()

    def test_0_is_what_the_process_may_open_less_a_reserve(self) -> None:
        for files, most in ((1024, 768), (65536, 65280), (512, 256), (300, 150), (2, 1), (None, 0)):
            self.set(files)
            self.assertEqual(self.limits.most_connections, most)
        self.set(1024, connections=9)
        self.assertEqual(self.limits.most_connections, 9)

    def test_connections_of_one_address(self) -> None:
        self.set(per_address=1)
        first = self.enter(ANN)
        self.assert_refused("per_address", ANN).leave()
        self.enter(BOB).leave()
        first.leave()
        self.enter(ANN).leave()
        self.assert_nothing_kept()

    def test_an_ipv6_network_is_one_address(self) -> None:
        self.set(per_address=1)
        self.enter("2001:db8:1:2::1")
        self.assert_refused("per_address", "2001:db8:1:2:ffff::9")
        self.enter("2001:db8:1:3::1")

    def test_who_has_not_shown_a_live_token(self) -> None:
        self.set(waiting=2, waiting_per_address=1)
        ann = self.enter(ANN)
        self.assert_refused("waiting_per_address", ANN)
        bob = self.enter(BOB)
        self.assert_refused("waiting", "192.0.2.3")
        self.judge(ann, "grant")
        more = self.enter(ANN)
        for visit in (ann, bob, more):
            visit.leave()
        self.assertEqual((self.limits.connections.total, self.limits.waiting.total), (0, 0))

    def test_those_who_wait_leave_room_for_sessions(self) -> None:
        for connections, waiting, most in (
            (768, 1000, 576), (768, 100, 100), (4, 1000, 3), (1, 1000, 1), (65280, 1000, 1000),
            (768, 0, 0), (0, 1000, 1000),
        ):  # fmt: skip
            self.set(connections=connections, waiting=waiting)
            self.assertEqual(self.limits.most_waiting, most, (connections, waiting))
        self.set(files=1024)
        self.assertEqual(self.limits.most_waiting, 576)

    def test_of_all_connections_a_quarter_is_for_those_with_a_token(self) -> None:
        self.set(connections=8)
        live = self.enter(BOB)
        self.judge(live, "grant")
        for _ in range(6):
            self.enter(ANN)
        self.assert_refused("waiting")
        self.limits.settings = LimitSettings(connections=12)
        for _ in range(3):
            self.enter(ANN)
        self.assert_refused("waiting")
        self.limits.settings = LimitSettings(connections=12, waiting=0)
        for _ in range(2):
            self.enter(ANN)
        self.assert_refused("connections")

    def test_a_token_that_is_no_good_is_not_live(self) -> None:
        self.set(waiting=1)
        self.judge(self.enter())
        self.assert_refused("waiting")

    def test_0_is_no_bound(self) -> None:
        self.set(waiting=0, waiting_per_address=0)
        for _ in range(1500):
            self.enter()

    def test_who_has_no_address_counts_in_all_alone(self) -> None:
        self.set(per_address=1, connections=3, waiting_per_address=1)
        for _ in range(3):
            self.enter(None)
        self.assert_refused("connections", None)

    def test_new_settings_hold_at_once(self) -> None:
        self.enter()
        self.limits.settings = LimitSettings(connections=1)
        self.assert_refused("connections")


class ProxiedTests(LimitsTestCase):
    def test_it_is_counted_by_whom_it_serves(self) -> None:
        self.set(per_address=2, waiting_per_address=0)
        first, second, third = self.enter(None), self.enter(None), self.enter(None)
        first.comes_from(ANN)
        second.comes_from(ANN)
        third.comes_from(ANN)
        self.assertEqual((first.refused_by, second.refused_by), (None, None))
        self.assertEqual(third.refused_by, "per_address")
        for visit in (first, second, third):
            visit.leave()
        self.assert_nothing_kept()

    def test_it_may_serve_one_after_another(self) -> None:
        self.set(waiting_per_address=1)
        visit = self.enter(None)
        visit.comes_from(ANN)
        visit.comes_from(BOB)
        self.enter(ANN)
        self.assert_refused("waiting_per_address", BOB)
        self.assertIsNone(visit.refused_by)

    def test_the_token_of_one_is_not_that_of_the_next(self) -> None:
        self.set(waiting=1)
        visit = self.enter(None)
        visit.comes_from(ANN)
        visit._showed_token()
        self.assertEqual(self.limits.waiting.total, 0)
        visit.comes_from(BOB)
        self.assertEqual(self.limits.waiting.total, 1)
        self.assertIsNone(visit.refused_by)
        visit._showed_token()
        other = self.enter(ANN)
        visit.comes_from(ANN)
        self.assertEqual(visit.refused_by, "waiting")
        visit.leave()
        other.leave()
        self.assert_nothing_kept()

    def test_saying_it_again_changes_nothing(self) -> None:
        self.set(per_address=1)
        visit = self.enter(ANN)
        visit.comes_from(ANN)
        visit.comes_from(f"::ffff:{ANN}")
        self.assertIsNone(visit.refused_by)


class LateTests(LimitsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: list[float] = []

    def enter(self, host: str | None = ANN) -> Visit:
        visit = super().enter(host)
        visit.when_late = lambda: self.told.append(self.clock.seconds())
        return visit

    def test_who_shows_no_live_token_is_late(self) -> None:
        visit = self.enter()
        self.clock.advance(LATE / 2)
        self.judge(visit)
        self.clock.advance(LATE / 2 - 1)
        self.assertFalse(visit.is_late)
        self.clock.advance(1)
        self.assertTrue(visit.is_late)
        self.assertEqual(self.told, [self.clock.seconds()])
        self.judge(visit, "grant")
        self.assertFalse(visit.is_late, "better late than never")
        visit.leave()
        self.assert_nothing_kept()

    def test_who_has_shown_one_is_not(self) -> None:
        visit = self.enter()
        self.judge(visit, "grant")
        self.clock.advance(10 * LATE)
        self.assertFalse(visit.is_late)
        visit.leave()
        self.assert_nothing_kept()

    def test_another_client_of_a_proxy_has_a_time_of_its_own_only_after_a_token(self) -> None:
        visit = self.enter(None)
        visit.comes_from(ANN)
        self.clock.advance(LATE - 1)
        visit.comes_from(BOB)
        self.clock.advance(1)
        self.assertTrue(visit.is_late, "the place has been held for a minute all the same")
        self.judge(visit, "grant")
        visit.comes_from(ANN)
        self.clock.advance(LATE - 1)
        self.assertFalse(visit.is_late)
        self.clock.advance(1)
        self.assertTrue(visit.is_late)
        visit.leave()
        self.assert_nothing_kept()

    def test_nobody_is_told_who_has_gone_or_does_not_listen(self) -> None:
        self.enter().leave()
        deaf = self.enter()
        deaf.when_late = None
        self.clock.advance(LATE)
        self.assertEqual(self.told, [])
        deaf.leave()
        self.assert_nothing_kept()


class AcceptTests(LimitsTestCase):
    def test_so_many_a_second_and_as_many_at_once(self) -> None:
        self.set(accepts_per_second=10, waiting_per_address=0)
        for _ in range(10):
            self.enter()
        self.assert_refused("accepts_per_second")
        self.clock.advance(0.1)
        self.enter()
        self.assert_refused("accepts_per_second")
        self.clock.advance(5)
        for _ in range(10):
            self.enter()


class CourtesyTests(LimitsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.set(connections=1)
        self.enter()

    def test_only_some_are_told_the_rest_is_dropped(self) -> None:
        told = [self.assert_refused("connections") for _ in range(COURTESY)]
        dropped = self.arrive()
        self.assertEqual((dropped.refused_by, dropped.is_dropped), ("connections", True))
        self.assertEqual(self.limits.hits["connections"], COURTESY + 1)
        dropped.leave()
        self.clock.advance(10)
        self.assertTrue(self.arrive().is_dropped, "as long as those are there")
        told.pop().leave()
        self.assert_refused("connections")

    def test_not_more_than_so_many_a_second(self) -> None:
        for _ in range(COURTESY):
            self.assert_refused("connections").leave()
        self.assertTrue(self.arrive().is_dropped)
        self.clock.advance(0.5)
        for _ in range(COURTESY // 2):
            self.assert_refused("connections").leave()
        self.assertTrue(self.arrive().is_dropped)


class FailedTokenTests(LimitsTestCase):
    def assert_not_asked(self, visit: Visit) -> float:
        """Nobody is asked; returns for how long that will be so."""
        asked = len(self.validator.questions)
        failure = self.failureResultOf(
            visit.judge(self.validator, "token", TOPIC), TooManyFailedTokens
        )
        self.assertEqual(len(self.validator.questions), asked)
        return failure.value.seconds

    def test_after_so_many_nobody_is_asked_until_the_minute_is_over(self) -> None:
        self.set(failed_tokens_per_minute=3)
        visit = self.enter()
        self.judge(visit)
        self.clock.advance(20)
        self.judge(visit)
        self.assertEqual(visit.bars(), 0)
        self.judge(visit)
        self.assertEqual(self.assert_not_asked(visit), 40)
        self.assertEqual(self.assert_not_asked(self.enter(ANN)), 40)
        self.assertEqual(self.limits.hits["failed_tokens_per_minute"], 2)
        self.judge(self.enter(BOB))
        self.clock.advance(39)
        self.assert_not_asked(visit)
        self.clock.advance(1)
        self.judge(visit)

    def test_good_tokens_do_not_count(self) -> None:
        self.set(failed_tokens_per_minute=1)
        visit = self.enter()
        for _ in range(5):
            self.judge(visit, "grant")
        self.assertEqual(visit.bars(), 0)

    def test_one_that_has_run_out_counts(self) -> None:
        self.set(failed_tokens_per_minute=1)
        visit = self.enter()
        answer = visit.judge(self.validator, "token", TOPIC)
        self.validator.last.grant(self.clock.seconds())
        self.successResultOf(answer)
        self.assert_not_asked(visit)

    def test_what_could_not_be_told_does_not_count_nor_a_topic_that_is_not_there(self) -> None:
        self.set(failed_tokens_per_minute=1)
        visit = self.enter()
        answer = visit.judge(self.validator, "token", TOPIC)
        self.validator.last.be_unavailable()
        self.failureResultOf(answer)
        answer = visit.judge(self.validator, "token", TOPIC)
        self.validator.last.answer.errback(TopicNotFound("said the test"))
        self.failureResultOf(answer, TopicNotFound)
        self.assertEqual(visit.bars(), 0)

    def test_0_is_no_bound(self) -> None:
        self.set(failed_tokens_per_minute=0)
        visit = self.enter()
        for _ in range(100):
            self.judge(visit)

    def test_whoever_leaves_cancels_the_question(self) -> None:
        answer = self.enter().judge(self.validator, "token", TOPIC)
        answer.cancel()
        self.failureResultOf(answer)
        self.assertTrue(self.validator.last.was_cancelled)


class MessageTests(LimitsTestCase):
    def test_so_many_a_minute(self) -> None:
        self.set(messages_per_minute=3)
        visit = self.enter()
        self.assertEqual([visit.takes_message() for _ in range(5)], [True] * 3 + [False] * 2)
        self.assertEqual([visit.takes_control() for _ in range(4)], [True] * 3 + [False])
        self.assertEqual(self.limits.hits["messages_per_minute"], 3)
        self.clock.advance(20)
        self.assertEqual([visit.takes_message() for _ in range(2)], [True, False])

    def test_0_is_no_bound(self) -> None:
        self.set(messages_per_minute=0)
        visit = self.enter()
        self.assertTrue(all(visit.takes_message() for _ in range(1000)))

    def test_frames(self) -> None:
        visit = self.enter()
        self.assertTrue(visit.takes_frames(128))
        self.assertFalse(visit.takes_frames(129))
        self.assertEqual(self.limits.hits["frames_per_message"], 1)


class OriginTests(LimitsTestCase):
    def test_any_unless_told(self) -> None:
        visit = self.enter()
        for values in (None, [], [b"https://any.example"], [b"null"], [b"\xff"], [b"a", b"b"]):
            self.assertTrue(visit.takes_origins(values))

    def test_only_those_that_are_listed_and_who_has_none(self) -> None:
        self.set(allowed_origins=frozenset({"https://app.example"}))
        visit = self.enter()
        for values in (None, [], [b"https://app.example"], [b"HTTPS://App.Example:443"]):
            self.assertTrue(visit.takes_origins(values))
        refused = (
            [b"http://app.example"], [b"https://app.example:8443"], [b"https://evil.example"],
            [b"https://app.example.evil.example"], [b"null"], [b""], [b"*"], [b"\xff"],
            [b"https://app.example", b"https://app.example"],
            [b"https://app.example https://evil.example"], [b"https://app.example/"],
        )  # fmt: skip
        for values in refused:
            with self.subTest(values=values):
                self.assertFalse(visit.takes_origins(values))
        self.assertEqual(self.limits.hits["allowed_origins"], len(refused))

    def test_null_is_allowed_only_by_name(self) -> None:
        self.set(allowed_origins=frozenset({"null"}))
        self.assertTrue(self.enter().takes_origins([b"null"]))


class CountTests(LimitsTestCase):
    def test_every_bound_has_its_count_from_the_start(self) -> None:
        self.assertEqual(dict(self.limits.hits), dict.fromkeys(COUNTED, 0))
