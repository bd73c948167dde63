"""`Limits` and `ClientQuota`: each limit, and the deadline for a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import INJECTED, FakeValidator
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.admission.limits import (
    COUNTED_SETTINGS,
    MAX_LOGGED_ADDRESSES,
    MAX_POLITE_REFUSALS,
    TOKEN_DEADLINE,
    Limits,
)
from topicsvc.errors import TokenInactive, TooManyFailedTokens, TooManySessions, TopicNotFound
from topicsvc.settings import LimitSettings
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
ANN, BOB = "192.0.2.1", "192.0.2.2"


class LimitsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1518612600.0
        self.validator = FakeValidator()
        self.set_limits()

    def set_limits(self, max_open_files: int | None = None, **settings: Any) -> None:
        self.limits = Limits(
            self.clock, self.clock.seconds, LimitSettings(**settings), max_open_files
        )

    def admit(self, host: str | None = ANN) -> ClientQuota:
        return ClientQuota.admit(self.limits, host)

    def enter(self, host: str | None = ANN) -> ClientQuota:
        """Admit a connection that exceeds no limit."""
        quota = self.admit(host)
        self.assertIsNone(quota.exceeded_limit)
        return quota

    def assert_refused(self, name: str, host: str | None = ANN) -> ClientQuota:
        before = self.limits.refusals[name]
        quota = self.admit(host)
        self.assertEqual((quota.exceeded_limit, quota.is_closed_unanswered), (name, False))
        self.assertEqual(self.limits.refusals[name], before + 1)
        return quota

    def validate(self, quota: ClientQuota, outcome: str = "refuse") -> Any:
        answer = quota.validate(self.validator, "token", TOPIC)
        if outcome == "grant":
            self.validator.last.grant(self.clock.seconds() + 60)
            return self.successResultOf(answer)
        self.validator.last.refuse()
        return self.failureResultOf(answer, TokenInactive)

    def assert_nothing_kept(self) -> None:
        self.assertEqual((self.limits.connections.total, self.limits.unauthenticated.total), (0, 0))
        self.assertEqual(
            (self.limits.connections._by_address, self.limits.unauthenticated._by_address), ({}, {})
        )
        self.assertEqual(self.limits.polite_refusals, 0)
        self.assertEqual(len(self.limits.token_deadlines), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ConnectionLimitTests(LimitsTestCase):
    def test_total_connections(self) -> None:
        self.set_limits(connections=2)
        quotas = [self.enter(ANN), self.enter(BOB)]
        quotas.append(self.assert_refused("connections"))
        quotas.pop(0).release()
        quotas.append(self.enter())
        for quota in quotas:
            quota.release()
        self.assert_nothing_kept()

    def test_0_connections_means_the_file_limit_less_a_reserve(self) -> None:
        for max_open_files, expected in (
            (1024, 768),
            (65536, 65280),
            (512, 256),
            (300, 150),
            (2, 1),
            (None, 0),
        ):
            self.set_limits(max_open_files)
            self.assertEqual(self.limits.max_connections, expected)
        self.set_limits(1024, connections=9)
        self.assertEqual(self.limits.max_connections, 9)

    def test_connections_of_one_address(self) -> None:
        self.set_limits(per_address=1)
        first = self.enter(ANN)
        self.assert_refused("per_address", ANN).release()
        self.enter(BOB).release()
        first.release()
        self.enter(ANN).release()
        self.assert_nothing_kept()

    def test_an_ipv6_network_is_one_address(self) -> None:
        self.set_limits(per_address=1)
        self.enter("2001:db8:1:2::1")
        self.assert_refused("per_address", "2001:db8:1:2:ffff::9")
        self.enter("2001:db8:1:3::1")

    def test_unauthenticated_connections(self) -> None:
        self.set_limits(unauthenticated=2, unauthenticated_per_address=1)
        ann = self.enter(ANN)
        self.assert_refused("unauthenticated_per_address", ANN)
        bob = self.enter(BOB)
        self.assert_refused("unauthenticated", "192.0.2.3")
        self.validate(ann, "grant")
        more = self.enter(ANN)
        for quota in (ann, bob, more):
            quota.release()
        self.assertEqual((self.limits.connections.total, self.limits.unauthenticated.total), (0, 0))

    def test_at_most_three_quarters_of_connections_are_unauthenticated(self) -> None:
        for connections, unauthenticated, expected in (
            (768, 1000, 576), (768, 100, 100), (4, 1000, 3), (1, 1000, 1), (65280, 1000, 1000),
            (768, 0, 0), (0, 1000, 1000),
        ):  # fmt: skip
            self.set_limits(connections=connections, unauthenticated=unauthenticated)
            self.assertEqual(
                self.limits.max_unauthenticated, expected, (connections, unauthenticated)
            )
        self.set_limits(max_open_files=1024)
        self.assertEqual(self.limits.max_unauthenticated, 576)

    def test_the_last_quarter_is_for_authenticated_connections(self) -> None:
        self.set_limits(connections=8)
        authenticated = self.enter(BOB)
        self.validate(authenticated, "grant")
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

    def test_a_connection_with_a_failed_token_stays_unauthenticated(self) -> None:
        self.set_limits(unauthenticated=1)
        self.validate(self.enter())
        self.assert_refused("unauthenticated")

    def test_0_means_no_limit(self) -> None:
        self.set_limits(unauthenticated=0, unauthenticated_per_address=0)
        for _ in range(1500):
            self.enter()

    def test_without_an_address_only_the_totals_apply(self) -> None:
        self.set_limits(per_address=1, connections=3, unauthenticated_per_address=1)
        for _ in range(3):
            self.enter(None)
        self.assert_refused("connections", None)

    def test_new_settings_apply_at_once(self) -> None:
        self.enter()
        self.limits.settings = LimitSettings(connections=1)
        self.assert_refused("connections")


class ClientAddressTests(LimitsTestCase):
    def test_the_forwarded_address_counts(self) -> None:
        self.set_limits(per_address=2, unauthenticated_per_address=0)
        first, second, third = self.enter(None), self.enter(None), self.enter(None)
        first.set_client_address(ANN)
        second.set_client_address(ANN)
        third.set_client_address(ANN)
        self.assertEqual((first.exceeded_limit, second.exceeded_limit), (None, None))
        self.assertEqual(third.exceeded_limit, "per_address")
        for quota in (first, second, third):
            quota.release()
        self.assert_nothing_kept()

    def test_the_address_may_change(self) -> None:
        self.set_limits(unauthenticated_per_address=1)
        quota = self.enter(None)
        quota.set_client_address(ANN)
        quota.set_client_address(BOB)
        self.enter(ANN)
        self.assert_refused("unauthenticated_per_address", BOB)
        self.assertIsNone(quota.exceeded_limit)

    def test_a_new_client_is_unauthenticated_again(self) -> None:
        self.set_limits(unauthenticated=1)
        quota = self.enter(None)
        quota.set_client_address(ANN)
        quota._set_authenticated()
        self.assertEqual(self.limits.unauthenticated.total, 0)
        quota.set_client_address(BOB)
        self.assertEqual(self.limits.unauthenticated.total, 1)
        self.assertIsNone(quota.exceeded_limit)
        quota._set_authenticated()
        other = self.enter(ANN)
        quota.set_client_address(ANN)
        self.assertEqual(quota.exceeded_limit, "unauthenticated")
        quota.release()
        other.release()
        self.assert_nothing_kept()

    def test_the_same_address_again_changes_nothing(self) -> None:
        self.set_limits(per_address=1)
        quota = self.enter(ANN)
        quota.set_client_address(ANN)
        quota.set_client_address(f"::ffff:{ANN}")
        self.assertIsNone(quota.exceeded_limit)


class TokenDeadlineTests(LimitsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.deadlines: list[float] = []

    def enter(self, host: str | None = ANN) -> ClientQuota:
        quota = super().enter(host)
        quota.on_token_deadline = lambda: self.deadlines.append(self.clock.seconds())
        return quota

    def test_without_a_valid_token_the_deadline_passes(self) -> None:
        quota = self.enter()
        self.clock.advance(TOKEN_DEADLINE / 2)
        self.validate(quota)
        self.clock.advance(TOKEN_DEADLINE / 2 - 1)
        self.assertFalse(quota.is_past_token_deadline)
        self.clock.advance(1)
        self.assertTrue(quota.is_past_token_deadline)
        self.assertEqual(self.deadlines, [self.clock.seconds()])
        self.validate(quota, "grant")
        self.assertFalse(
            quota.is_past_token_deadline, "a valid token counts after the deadline too"
        )
        quota.release()
        self.assert_nothing_kept()

    def test_with_a_valid_token_it_does_not(self) -> None:
        quota = self.enter()
        self.validate(quota, "grant")
        self.clock.advance(10 * TOKEN_DEADLINE)
        self.assertFalse(quota.is_past_token_deadline)
        quota.release()
        self.assert_nothing_kept()

    def test_another_client_of_a_proxy_gets_a_new_deadline_only_after_a_valid_token(self) -> None:
        quota = self.enter(None)
        quota.set_client_address(ANN)
        self.clock.advance(TOKEN_DEADLINE - 1)
        quota.set_client_address(BOB)
        self.clock.advance(1)
        self.assertTrue(
            quota.is_past_token_deadline, "the connection was unauthenticated for a minute"
        )
        self.validate(quota, "grant")
        quota.set_client_address(ANN)
        self.clock.advance(TOKEN_DEADLINE - 1)
        self.assertFalse(quota.is_past_token_deadline)
        self.clock.advance(1)
        self.assertTrue(quota.is_past_token_deadline)
        quota.release()
        self.assert_nothing_kept()

    def test_no_callback_after_release_or_without_one(self) -> None:
        self.enter().release()
        silent = self.enter()
        silent.on_token_deadline = None
        self.clock.advance(TOKEN_DEADLINE)
        self.assertEqual(self.deadlines, [])
        silent.release()
        self.assert_nothing_kept()


class AcceptRateTests(LimitsTestCase):
    def test_the_rate_and_its_burst(self) -> None:
        self.set_limits(accepts_per_second=10, unauthenticated_per_address=0)
        for _ in range(10):
            self.enter()
        self.assert_refused("accepts_per_second")
        self.clock.advance(0.1)
        self.enter()
        self.assert_refused("accepts_per_second")
        self.clock.advance(5)
        for _ in range(10):
            self.enter()


class PoliteRefusalTests(LimitsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.set_limits(connections=1)
        self.enter()

    def test_a_limited_number_is_answered_at_once(self) -> None:
        answered = [self.assert_refused("connections") for _ in range(MAX_POLITE_REFUSALS)]
        closed = self.admit()
        self.assertEqual(
            (closed.exceeded_limit, closed.is_closed_unanswered), ("connections", True)
        )
        self.assertEqual(self.limits.refusals["connections"], MAX_POLITE_REFUSALS + 1)
        closed.release()
        self.clock.advance(10)
        self.assertTrue(
            self.admit().is_closed_unanswered, "until one of the answered connections is closed"
        )
        answered.pop().release()
        self.assert_refused("connections")

    def test_a_limited_number_is_answered_in_a_second(self) -> None:
        for _ in range(MAX_POLITE_REFUSALS):
            self.assert_refused("connections").release()
        self.assertTrue(self.admit().is_closed_unanswered)
        self.clock.advance(0.5)
        for _ in range(MAX_POLITE_REFUSALS // 2):
            self.assert_refused("connections").release()
        self.assertTrue(self.admit().is_closed_unanswered)


class FailedTokenTests(LimitsTestCase):
    def assert_not_checked(self, quota: ClientQuota) -> float:
        """The token is refused without a check; returns the seconds until tokens are checked."""
        checks = len(self.validator.checks)
        failure = self.failureResultOf(
            quota.validate(self.validator, "token", TOPIC), TooManyFailedTokens
        )
        self.assertEqual(len(self.validator.checks), checks)
        return failure.value.seconds

    def test_after_the_limit_no_token_is_checked_until_the_minute_ends(self) -> None:
        self.set_limits(failed_tokens_per_minute=3)
        quota = self.enter()
        self.validate(quota)
        self.clock.advance(20)
        self.validate(quota)
        self.assertEqual(quota.retry_after(), 0)
        self.validate(quota)
        self.assertEqual(self.assert_not_checked(quota), 40)
        self.assertEqual(self.assert_not_checked(self.enter(ANN)), 40)
        self.assertEqual(self.limits.refusals["failed_tokens_per_minute"], 2)
        self.validate(self.enter(BOB))
        self.clock.advance(39)
        self.assert_not_checked(quota)
        self.clock.advance(1)
        self.validate(quota)

    def test_valid_tokens_do_not_count(self) -> None:
        self.set_limits(failed_tokens_per_minute=1)
        quota = self.enter()
        for _ in range(5):
            self.validate(quota, "grant")
        self.assertEqual(quota.retry_after(), 0)

    def test_an_expired_token_counts(self) -> None:
        self.set_limits(failed_tokens_per_minute=1)
        quota = self.enter()
        answer = quota.validate(self.validator, "token", TOPIC)
        self.validator.last.grant(self.clock.seconds())
        self.successResultOf(answer)
        self.assert_not_checked(quota)

    def test_neither_an_outage_nor_an_unknown_topic_counts(self) -> None:
        self.set_limits(failed_tokens_per_minute=1)
        quota = self.enter()
        answer = quota.validate(self.validator, "token", TOPIC)
        self.validator.last.be_unavailable()
        self.failureResultOf(answer)
        answer = quota.validate(self.validator, "token", TOPIC)
        self.validator.last.result.errback(TopicNotFound(INJECTED))
        self.failureResultOf(answer, TopicNotFound)
        self.assertEqual(quota.retry_after(), 0)

    def test_0_means_no_limit(self) -> None:
        self.set_limits(failed_tokens_per_minute=0)
        quota = self.enter()
        for _ in range(100):
            self.validate(quota)

    def test_cancelling_cancels_the_check(self) -> None:
        answer = self.enter().validate(self.validator, "token", TOPIC)
        answer.cancel()
        self.failureResultOf(answer)
        self.assertTrue(self.validator.last.was_cancelled)


class MessageRateTests(LimitsTestCase):
    def test_messages_and_control_frames_a_minute(self) -> None:
        self.set_limits(messages_per_minute=3)
        quota = self.enter()
        self.assertEqual([quota.allow_message() for _ in range(5)], [True] * 3 + [False] * 2)
        self.assertEqual([quota.allow_control_frame() for _ in range(4)], [True] * 3 + [False])
        self.assertEqual(self.limits.refusals["messages_per_minute"], 3)
        self.clock.advance(20)
        self.assertEqual([quota.allow_message() for _ in range(2)], [True, False])

    def test_0_means_no_limit(self) -> None:
        self.set_limits(messages_per_minute=0)
        quota = self.enter()
        self.assertTrue(all(quota.allow_message() for _ in range(1000)))

    def test_frames_per_message(self) -> None:
        quota = self.enter()
        self.assertTrue(quota.allow_fragments(128))
        self.assertFalse(quota.allow_fragments(129))
        self.assertEqual(self.limits.refusals["frames_per_message"], 1)


class OriginTests(LimitsTestCase):
    def test_any_origin_by_default(self) -> None:
        quota = self.enter()
        for values in (None, [], [b"https://any.example"], [b"null"], [b"\xff"], [b"a", b"b"]):
            self.assertTrue(quota.allow_origin(values))

    def test_listed_origins_and_requests_without_one(self) -> None:
        self.set_limits(allowed_origins=frozenset({"https://app.example"}))
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
        self.set_limits(allowed_origins=frozenset({"null"}))
        self.assertTrue(self.enter().allow_origin([b"null"]))


class RefusalCountTests(LimitsTestCase):
    def test_every_limit_has_a_count_from_the_start(self) -> None:
        self.assertEqual(dict(self.limits.refusals), dict.fromkeys(COUNTED_SETTINGS, 0))


class RefusalLogTests(LimitsTestCase):
    """The log names the addresses that limits refuse."""

    def setUp(self) -> None:
        super().setUp()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    @property
    def lines(self) -> list[str]:
        """Take the lines."""
        lines = [formatEvent(each) for each in self.events]
        self.events.clear()
        return lines

    def test_each_limit_names_the_address(self) -> None:
        cases: dict[str, tuple[dict[str, Any], Callable[[ClientQuota], object], str]] = {
            "per_address": ({"per_address": 1}, lambda _: self.admit(), ""),
            "unauthenticated_per_address": (
                {"unauthenticated_per_address": 1}, lambda _: self.admit(), ""
            ),
            "accepts_per_second": ({"accepts_per_second": 1}, lambda _: self.admit(), ""),
            "messages_per_minute": (
                {"messages_per_minute": 1},
                lambda quota: [quota.allow_message() for _ in range(2)],
                "",
            ),
            "frames_per_message": ({}, lambda quota: quota.allow_fragments(129), ""),
            "allowed_origins": (
                {"allowed_origins": frozenset({"https://app.example"})},
                lambda quota: quota.allow_origin([b"https://evil.example\n"]),
                ' (origin "https://evil.example\\n")',
            ),
            "failed_tokens_per_minute": (
                {"failed_tokens_per_minute": 1},
                lambda quota: (self.validate(quota), quota.retry_after()),
                "",
            ),
            "connections_per_cell": (
                {"connections_per_cell": 1},
                lambda quota: (
                    quota.enter_cell("cell1"),
                    self.assertRaises(TooManySessions, quota.enter_cell, "cell1"),
                ),
                " (cell cell1)",
            ),
            "sends_per_minute": (
                {"sends_per_minute": 1},
                lambda quota: [quota.use_sends("a-token", "cell1") for _ in range(2)],
                "",
            ),
            "sends_per_minute_per_cell": (
                {"sends_per_minute_per_cell": 1},
                lambda quota: [quota.use_sends("a-token", "cell1") for _ in range(2)],
                " (cell cell1)",
            ),
        }  # fmt: skip
        shared = {"connections", "unauthenticated", "queued_bytes"}
        self.assertEqual(set(cases) | shared, set(COUNTED_SETTINGS))
        for name, (settings, act, detail) in cases.items():
            self.set_limits(**settings)
            act(self.enter())
            with self.subTest(name=name):
                self.assertEqual(
                    self.lines,
                    [
                        f"limits.{name} is reached by {ANN}{detail}; "
                        "refusals since the start: 1 (docs/security.md)"
                    ],
                )

    def test_limits_of_all_clients_name_the_address_with_the_most_connections(self) -> None:
        for name in ("connections", "unauthenticated"):
            self.set_limits(**{name: 3})
            for host in (ANN, ANN, None):
                self.enter(host)
            self.assert_refused(name, BOB)
            self.assertEqual(
                self.lines,
                [
                    f"limits.{name} is reached by {BOB} (2 of 3 are from {ANN}); "
                    "refusals since the start: 1 (docs/security.md)"
                ],
            )

    def test_a_client_without_a_known_address(self) -> None:
        self.set_limits(connections=1)
        self.enter(None)
        self.assert_refused("connections", None)
        self.assertEqual(
            self.lines,
            ["limits.connections is reached; refusals since the start: 1 (docs/security.md)"],
        )

    def test_each_address_has_at_most_one_line_a_minute(self) -> None:
        self.set_limits(per_address=1)
        self.enter(ANN)
        self.enter(BOB)
        for _ in range(59):
            self.admit(ANN)
            self.admit(BOB)
            self.clock.advance(1)
        lines = self.lines
        self.assertEqual([line.split(";")[0].split()[-1] for line in lines], [ANN, BOB])
        self.clock.advance(1)
        self.admit(ANN)
        [line] = self.lines
        self.assertIn("refusals since the start: 119 ", line)

    def test_a_flood_of_addresses_is_some_lines_a_minute_for_each_limit(self) -> None:
        self.set_limits(unauthenticated_per_address=1, unauthenticated=0)
        for number in range(1000):
            self.enter(f"10.0.{number // 250}.{number % 250}")
            self.admit(f"10.0.{number // 250}.{number % 250}")
        self.assertEqual(len(self.lines), MAX_LOGGED_ADDRESSES)
        self.set_limits(messages_per_minute=1)
        quota = self.enter()
        self.assertEqual([quota.allow_message() for _ in range(2)], [True, False])
        self.assertEqual(len(self.lines), 1)


class CellTests(LimitsTestCase):
    """`limits.connections_per_cell`."""

    def test_a_cell_has_at_most_so_many_sessions(self) -> None:
        self.set_limits(connections_per_cell=2)
        quotas = [self.enter(ANN), self.enter(BOB), self.enter(BOB)]
        quotas[0].enter_cell("cell1")
        quotas[1].enter_cell("cell1")
        self.assertRaises(TooManySessions, quotas[2].enter_cell, "cell1")
        quotas[2].enter_cell("cell2")
        self.assertEqual(self.limits.refusals["connections_per_cell"], 1)
        quotas[0].release()
        self.enter().enter_cell("cell1")

    def test_closed_connections_leave_no_trace(self) -> None:
        quotas = [self.enter() for _ in range(3)]
        for number, quota in enumerate(quotas):
            quota.enter_cell(f"cell{number % 2}")
        self.assertEqual(self.limits.cells.total, 3)
        for quota in quotas:
            quota.release()
        self.assertEqual((self.limits.cells.total, self.limits.cells._by_address), (0, {}))
        self.assert_nothing_kept()

    def test_sessions_are_counted_before_a_limit_is_set(self) -> None:
        self.enter().enter_cell("cell1")
        self.limits.settings = LimitSettings(connections_per_cell=1)
        self.assertRaises(TooManySessions, self.enter().enter_cell, "cell1")
