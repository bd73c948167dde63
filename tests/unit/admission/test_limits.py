"""How much of everything there may be."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeValidator
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.admission.limits import (
    COUNTED_SETTINGS,
    MAX_POLITE_REFUSALS,
    TOKEN_DEADLINE,
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

    def arrive(self, host: str | None = ANN) -> ClientQuota:
        return ClientQuota.admit(self.limits, host)

    def enter(self, host: str | None = ANN) -> ClientQuota:
        """Somebody for whom there is room."""
        quota = self.arrive(host)
        self.assertIsNone(quota.refused_by)
        return quota

    def assert_refused(self, name: str, host: str | None = ANN) -> ClientQuota:
        before = self.limits.refusals[name]
        quota = self.arrive(host)
        self.assertEqual((quota.refused_by, quota.is_dropped), (name, False))
        self.assertEqual(self.limits.refusals[name], before + 1)
        return quota

    def validate(self, quota: ClientQuota, verdict: str = "refuse") -> Any:
        answer = quota.validate(self.validator, "token", TOPIC)
        if verdict == "grant":
            self.validator.last.grant(self.clock.seconds() + 60)
            return self.successResultOf(answer)
        self.validator.last.refuse()
        return self.failureResultOf(answer, TokenInactive)

    def assert_nothing_kept(self) -> None:
        self.assertEqual((self.limits.connections.total, self.limits.unauthenticated.total), (0, 0))
        self.assertEqual((self.limits.connections._of, self.limits.unauthenticated._of), ({}, {}))
        self.assertEqual(self.limits.polite_refusals, 0)
        self.assertEqual(len(self.limits.token_deadlines), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RoomTests(LimitsTestCase):
    def test_connections_in_all(self) -> None:
        self.set(connections=2)
        visits = [self.enter(ANN), self.enter(BOB)]
        visits.append(self.assert_refused("connections"))
        visits.pop(0).leave()
        visits.append(self.enter())
        for quota in visits:
            quota.leave()
        self.assert_nothing_kept()

    def test_0_is_what_the_process_may_open_less_a_reserve(self) -> None:
        for files, most in ((1024, 768), (65536, 65280), (512, 256), (300, 150), (2, 1), (None, 0)):
            self.set(files)
            self.assertEqual(self.limits.max_connections, most)
        self.set(1024, connections=9)
        self.assertEqual(self.limits.max_connections, 9)

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
        self.set(unauthenticated=2, unauthenticated_per_address=1)
        ann = self.enter(ANN)
        self.assert_refused("unauthenticated_per_address", ANN)
        bob = self.enter(BOB)
        self.assert_refused("unauthenticated", "192.0.2.3")
        self.validate(ann, "grant")
        more = self.enter(ANN)
        for quota in (ann, bob, more):
            quota.leave()
        self.assertEqual((self.limits.connections.total, self.limits.unauthenticated.total), (0, 0))

    def test_those_who_wait_leave_room_for_sessions(self) -> None:
        for connections, waiting, most in (
            (768, 1000, 576), (768, 100, 100), (4, 1000, 3), (1, 1000, 1), (65280, 1000, 1000),
            (768, 0, 0), (0, 1000, 1000),
        ):  # fmt: skip
            self.set(connections=connections, unauthenticated=waiting)
            self.assertEqual(self.limits.max_unauthenticated, most, (connections, waiting))
        self.set(files=1024)
        self.assertEqual(self.limits.max_unauthenticated, 576)

    def test_of_all_connections_a_quarter_is_for_those_with_a_token(self) -> None:
        self.set(connections=8)
        live = self.enter(BOB)
        self.validate(live, "grant")
        for _ in range(6):
            self.enter(ANN)
        self.assert_refused("unauthenticated")
        self.limits.settings = LimitSettings(connections=12)
        for _ in range(3):
            self.enter(ANN)
        self.assert_refused("unauthenticated")
        self.limits.settings = LimitSettings(connections=12, unauthenticated=0)
        for _ in range(2):
            self.enter(ANN)
        self.assert_refused("connections")

    def test_a_token_that_is_no_good_is_not_live(self) -> None:
        self.set(unauthenticated=1)
        self.validate(self.enter())
        self.assert_refused("unauthenticated")

    def test_0_is_no_bound(self) -> None:
        self.set(unauthenticated=0, unauthenticated_per_address=0)
        for _ in range(1500):
            self.enter()

    def test_who_has_no_address_counts_in_all_alone(self) -> None:
        self.set(per_address=1, connections=3, unauthenticated_per_address=1)
        for _ in range(3):
            self.enter(None)
        self.assert_refused("connections", None)

    def test_new_settings_hold_at_once(self) -> None:
        self.enter()
        self.limits.settings = LimitSettings(connections=1)
        self.assert_refused("connections")


class ProxiedTests(LimitsTestCase):
    def test_it_is_counted_by_whom_it_serves(self) -> None:
        self.set(per_address=2, unauthenticated_per_address=0)
        first, second, third = self.enter(None), self.enter(None), self.enter(None)
        first.set_client_address(ANN)
        second.set_client_address(ANN)
        third.set_client_address(ANN)
        self.assertEqual((first.refused_by, second.refused_by), (None, None))
        self.assertEqual(third.refused_by, "per_address")
        for quota in (first, second, third):
            quota.leave()
        self.assert_nothing_kept()

    def test_it_may_serve_one_after_another(self) -> None:
        self.set(unauthenticated_per_address=1)
        quota = self.enter(None)
        quota.set_client_address(ANN)
        quota.set_client_address(BOB)
        self.enter(ANN)
        self.assert_refused("unauthenticated_per_address", BOB)
        self.assertIsNone(quota.refused_by)

    def test_the_token_of_one_is_not_that_of_the_next(self) -> None:
        self.set(unauthenticated=1)
        quota = self.enter(None)
        quota.set_client_address(ANN)
        quota._showed_token()
        self.assertEqual(self.limits.unauthenticated.total, 0)
        quota.set_client_address(BOB)
        self.assertEqual(self.limits.unauthenticated.total, 1)
        self.assertIsNone(quota.refused_by)
        quota._showed_token()
        other = self.enter(ANN)
        quota.set_client_address(ANN)
        self.assertEqual(quota.refused_by, "unauthenticated")
        quota.leave()
        other.leave()
        self.assert_nothing_kept()

    def test_saying_it_again_changes_nothing(self) -> None:
        self.set(per_address=1)
        quota = self.enter(ANN)
        quota.set_client_address(ANN)
        quota.set_client_address(f"::ffff:{ANN}")
        self.assertIsNone(quota.refused_by)


class LateTests(LimitsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: list[float] = []

    def enter(self, host: str | None = ANN) -> ClientQuota:
        quota = super().enter(host)
        quota.on_token_deadline = lambda: self.told.append(self.clock.seconds())
        return quota

    def test_who_shows_no_live_token_is_late(self) -> None:
        quota = self.enter()
        self.clock.advance(TOKEN_DEADLINE / 2)
        self.validate(quota)
        self.clock.advance(TOKEN_DEADLINE / 2 - 1)
        self.assertFalse(quota.is_past_token_deadline)
        self.clock.advance(1)
        self.assertTrue(quota.is_past_token_deadline)
        self.assertEqual(self.told, [self.clock.seconds()])
        self.validate(quota, "grant")
        self.assertFalse(quota.is_past_token_deadline, "better late than never")
        quota.leave()
        self.assert_nothing_kept()

    def test_who_has_shown_one_is_not(self) -> None:
        quota = self.enter()
        self.validate(quota, "grant")
        self.clock.advance(10 * TOKEN_DEADLINE)
        self.assertFalse(quota.is_past_token_deadline)
        quota.leave()
        self.assert_nothing_kept()

    def test_another_client_of_a_proxy_has_a_time_of_its_own_only_after_a_token(self) -> None:
        quota = self.enter(None)
        quota.set_client_address(ANN)
        self.clock.advance(TOKEN_DEADLINE - 1)
        quota.set_client_address(BOB)
        self.clock.advance(1)
        self.assertTrue(
            quota.is_past_token_deadline, "the place has been held for a minute all the same"
        )
        self.validate(quota, "grant")
        quota.set_client_address(ANN)
        self.clock.advance(TOKEN_DEADLINE - 1)
        self.assertFalse(quota.is_past_token_deadline)
        self.clock.advance(1)
        self.assertTrue(quota.is_past_token_deadline)
        quota.leave()
        self.assert_nothing_kept()

    def test_nobody_is_told_who_has_gone_or_does_not_listen(self) -> None:
        self.enter().leave()
        deaf = self.enter()
        deaf.on_token_deadline = None
        self.clock.advance(TOKEN_DEADLINE)
        self.assertEqual(self.told, [])
        deaf.leave()
        self.assert_nothing_kept()


class AcceptTests(LimitsTestCase):
    def test_so_many_a_second_and_as_many_at_once(self) -> None:
        self.set(accepts_per_second=10, unauthenticated_per_address=0)
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
        told = [self.assert_refused("connections") for _ in range(MAX_POLITE_REFUSALS)]
        dropped = self.arrive()
        self.assertEqual((dropped.refused_by, dropped.is_dropped), ("connections", True))
        self.assertEqual(self.limits.refusals["connections"], MAX_POLITE_REFUSALS + 1)
        dropped.leave()
        self.clock.advance(10)
        self.assertTrue(self.arrive().is_dropped, "as long as those are there")
        told.pop().leave()
        self.assert_refused("connections")

    def test_not_more_than_so_many_a_second(self) -> None:
        for _ in range(MAX_POLITE_REFUSALS):
            self.assert_refused("connections").leave()
        self.assertTrue(self.arrive().is_dropped)
        self.clock.advance(0.5)
        for _ in range(MAX_POLITE_REFUSALS // 2):
            self.assert_refused("connections").leave()
        self.assertTrue(self.arrive().is_dropped)


class FailedTokenTests(LimitsTestCase):
    def assert_not_asked(self, quota: ClientQuota) -> float:
        """Nobody is asked; returns for how long that will be so."""
        asked = len(self.validator.questions)
        failure = self.failureResultOf(
            quota.validate(self.validator, "token", TOPIC), TooManyFailedTokens
        )
        self.assertEqual(len(self.validator.questions), asked)
        return failure.value.seconds

    def test_after_so_many_nobody_is_asked_until_the_minute_is_over(self) -> None:
        self.set(failed_tokens_per_minute=3)
        quota = self.enter()
        self.validate(quota)
        self.clock.advance(20)
        self.validate(quota)
        self.assertEqual(quota.retry_after(), 0)
        self.validate(quota)
        self.assertEqual(self.assert_not_asked(quota), 40)
        self.assertEqual(self.assert_not_asked(self.enter(ANN)), 40)
        self.assertEqual(self.limits.refusals["failed_tokens_per_minute"], 2)
        self.validate(self.enter(BOB))
        self.clock.advance(39)
        self.assert_not_asked(quota)
        self.clock.advance(1)
        self.validate(quota)

    def test_good_tokens_do_not_count(self) -> None:
        self.set(failed_tokens_per_minute=1)
        quota = self.enter()
        for _ in range(5):
            self.validate(quota, "grant")
        self.assertEqual(quota.retry_after(), 0)

    def test_one_that_has_run_out_counts(self) -> None:
        self.set(failed_tokens_per_minute=1)
        quota = self.enter()
        answer = quota.validate(self.validator, "token", TOPIC)
        self.validator.last.grant(self.clock.seconds())
        self.successResultOf(answer)
        self.assert_not_asked(quota)

    def test_what_could_not_be_told_does_not_count_nor_a_topic_that_is_not_there(self) -> None:
        self.set(failed_tokens_per_minute=1)
        quota = self.enter()
        answer = quota.validate(self.validator, "token", TOPIC)
        self.validator.last.be_unavailable()
        self.failureResultOf(answer)
        answer = quota.validate(self.validator, "token", TOPIC)
        self.validator.last.answer.errback(TopicNotFound("said the test"))
        self.failureResultOf(answer, TopicNotFound)
        self.assertEqual(quota.retry_after(), 0)

    def test_0_is_no_bound(self) -> None:
        self.set(failed_tokens_per_minute=0)
        quota = self.enter()
        for _ in range(100):
            self.validate(quota)

    def test_whoever_leaves_cancels_the_question(self) -> None:
        answer = self.enter().validate(self.validator, "token", TOPIC)
        answer.cancel()
        self.failureResultOf(answer)
        self.assertTrue(self.validator.last.was_cancelled)


class MessageTests(LimitsTestCase):
    def test_so_many_a_minute(self) -> None:
        self.set(messages_per_minute=3)
        quota = self.enter()
        self.assertEqual([quota.allow_message() for _ in range(5)], [True] * 3 + [False] * 2)
        self.assertEqual([quota.allow_control_frame() for _ in range(4)], [True] * 3 + [False])
        self.assertEqual(self.limits.refusals["messages_per_minute"], 3)
        self.clock.advance(20)
        self.assertEqual([quota.allow_message() for _ in range(2)], [True, False])

    def test_0_is_no_bound(self) -> None:
        self.set(messages_per_minute=0)
        quota = self.enter()
        self.assertTrue(all(quota.allow_message() for _ in range(1000)))

    def test_frames(self) -> None:
        quota = self.enter()
        self.assertTrue(quota.allow_fragments(128))
        self.assertFalse(quota.allow_fragments(129))
        self.assertEqual(self.limits.refusals["frames_per_message"], 1)


class OriginTests(LimitsTestCase):
    def test_any_unless_told(self) -> None:
        quota = self.enter()
        for values in (None, [], [b"https://any.example"], [b"null"], [b"\xff"], [b"a", b"b"]):
            self.assertTrue(quota.allow_origin(values))

    def test_only_those_that_are_listed_and_who_has_none(self) -> None:
        self.set(allowed_origins=frozenset({"https://app.example"}))
        quota = self.enter()
        for values in (None, [], [b"https://app.example"], [b"HTTPS://App.Example:443"]):
            self.assertTrue(quota.allow_origin(values))
        refused = (
            [b"http://app.example"], [b"https://app.example:8443"], [b"https://evil.example"],
            [b"https://app.example.evil.example"], [b"null"], [b""], [b"*"], [b"\xff"],
            [b"https://app.example", b"https://app.example"],
            [b"https://app.example https://evil.example"], [b"https://app.example/"],
        )  # fmt: skip
        for values in refused:
            with self.subTest(values=values):
                self.assertFalse(quota.allow_origin(values))
        self.assertEqual(self.limits.refusals["allowed_origins"], len(refused))

    def test_null_is_allowed_only_by_name(self) -> None:
        self.set(allowed_origins=frozenset({"null"}))
        self.assertTrue(self.enter().allow_origin([b"null"]))


class CountTests(LimitsTestCase):
    def test_every_bound_has_its_count_from_the_start(self) -> None:
        self.assertEqual(dict(self.limits.refusals), dict.fromkeys(COUNTED_SETTINGS, 0))
