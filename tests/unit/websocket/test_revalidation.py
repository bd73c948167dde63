"""Sessions are checked again, and end when their token was revoked."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import INJECTED
from tests.support.harness import ServiceTestCase
from topicsvc.interfaces import Grant
from topicsvc.websocket.revalidation import Revalidation
from topicsvc.websocket.session import Close, Join, Recheck, Reply, Session, State, Validate

INTERVAL = 30.0


class RevocationTests(ServiceTestCase):
    """Through a whole connection."""

    recheck = INTERVAL

    def wait_for_recheck(self) -> None:
        """Advance the clock until a token is checked again; fail after one interval."""
        known = len(self.rechecker.checks)
        for _ in range(int(INTERVAL) + 1):
            self.clock.advance(1)
            if len(self.rechecker.checks) > known:
                return
        self.fail("no token was checked within an interval")

    def test_the_token_is_checked_again_within_an_interval(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.assertEqual(self.rechecker.last.token, "first-token")
        self.assertEqual(len(self.validator.checks), 1)
        client.assert_nothing()

    def test_a_revoked_token_is_inactive(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.rechecker.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        self.assertEqual(self.broker.active, [])

    def test_data_that_waits_is_dropped_at_the_revocation(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        client.transport.is_congested = True
        self.deliver(b'"%s"' % (b"x" * 70000))
        self.deliver(b"2")
        self.rechecker.last.refuse()
        client.transport.drain()
        (_, data), (_, error), close = client.frames()
        self.assertGreater(len(data), 70000)  # it had left the queue before the revocation
        self.assert_error_text(error, "AccessToken", "Token inactive")
        self.assert_close(close, 1008, "Token inactive")

    def test_a_token_that_may_no_longer_receive_is_inactive(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.rechecker.last.grant(self.now + 60, may_receive=False)
        client.assert_refused("AccessToken", "Token inactive", 1008)

    def test_an_unavailable_validator_has_no_effect(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.rechecker.last.be_unavailable()
        client.assert_nothing()
        self.deliver(b"1")
        self.assertEqual(len(client.texts()), 1)
        self.wait_for_recheck()

    def test_an_internal_error_has_no_effect(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.rechecker.last.result.errback(RuntimeError("injected by the test"))
        client.assert_nothing()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_grant_sets_the_expiry_without_a_reply(self) -> None:
        client = self.subscribe(lifetime=3600)
        self.wait_for_recheck()
        self.rechecker.last.grant(self.now + 5)
        client.assert_nothing()
        self.advance(4)
        self.deliver(b"1")
        self.assertEqual(len(client.texts()), 1)
        self.advance(1)
        self.deliver(b"2")
        client.assert_nothing()

    def test_an_active_session_is_checked_in_every_interval(self) -> None:
        self.subscribe()
        for _ in range(5):
            self.wait_for_recheck()
            self.rechecker.last.grant(self.now + 3600)
        self.assertEqual(len(self.rechecker.checks), 5)

    def test_the_newest_granted_token_is_checked(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.validator.last.grant(self.now + 3600)
        client.assert_success(3600)
        self.wait_for_recheck()
        self.assertEqual(self.rechecker.last.token, "second-token")

    def test_a_token_that_was_not_granted_is_not_checked_again(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.wait_for_recheck()
        self.assertEqual(self.rechecker.last.token, "first-token")

    def test_a_message_during_a_recheck_waits_and_gets_one_reply(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        client.present("second-token")
        client.assert_nothing()
        self.assertEqual(len(self.validator.checks), 1)
        self.rechecker.last.grant(self.now + 3600)
        client.assert_nothing()
        self.assertEqual(self.validator.last.token, "second-token")
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)

    def test_a_waiting_message_is_handled_after_a_recheck_without_a_result(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        client.present("second-token")
        self.rechecker.last.be_unavailable()
        client.assert_nothing()
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)

    def test_a_recheck_waits_for_the_client_s_own_check(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.advance(INTERVAL * 2)
        self.assertEqual(self.rechecker.checks, [])
        self.validator.last.grant(self.now + 3600)
        self.wait_for_recheck()
        self.assertEqual(self.rechecker.last.token, "second-token")

    def test_a_missed_recheck_follows_a_check_without_a_result(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        client.present("third-token")
        self.advance(INTERVAL + 1)
        self.assertEqual(self.rechecker.checks, [])
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.assertEqual(self.rechecker.last.token, "first-token")
        self.assertEqual(len(self.validator.checks), 2)
        self.rechecker.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)

    def test_a_message_that_waits_behind_a_missed_recheck_is_handled(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        client.present("third-token")
        self.advance(INTERVAL + 1)
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.rechecker.last.grant(self.now + 3600)
        self.assertEqual(self.validator.last.token, "third-token")
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.assertEqual(len(self.rechecker.checks), 1)

    def test_a_grant_replaces_a_missed_recheck(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.advance(INTERVAL + 1)
        self.validator.last.grant(self.now + 3600)
        client.assert_success(3600)
        client.present("third-token")
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.assertEqual(self.rechecker.checks, [])

    def test_a_session_that_expires_during_a_recheck_is_closed_at_the_next_heartbeat(self) -> None:
        client = self.subscribe(lifetime=INTERVAL + 1)
        self.wait_for_recheck()
        self.advance(61)
        self.assertTrue(self.rechecker.last.was_cancelled)
        self.assert_close(client.frames()[-1], 1008, "Session expired")

    def test_a_recheck_does_not_extend_an_expired_session(self) -> None:
        client = self.subscribe(lifetime=INTERVAL + 1)
        expiry = self.now + INTERVAL + 1
        self.wait_for_recheck()
        self.clock.advance(expiry - self.now)
        self.deliver(b"1")
        self.rechecker.last.grant(self.now + 3600)
        self.deliver(b"2")
        client.assert_nothing()
        client.present("second-token")
        client.assert_refused("Unknown", "Session expired", 1008)

    def test_a_token_presented_before_the_expiry_is_answered(self) -> None:
        client = self.subscribe(lifetime=INTERVAL + 1)
        expiry = self.now + INTERVAL + 1
        self.wait_for_recheck()
        client.present("second-token")
        self.clock.advance(expiry - self.now)
        self.rechecker.last.grant(self.now + 3600)
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)

    def test_a_disconnect_cancels_a_recheck(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        client.disconnect()
        self.assertTrue(self.rechecker.last.was_cancelled)
        self.assert_nothing_left()

    def test_the_number_of_rechecks_in_progress_is_limited(self) -> None:
        clients = [self.subscribe() for _ in range(5)]
        self.advance(INTERVAL)
        self.assertEqual(len(self.rechecker.checks), 2)
        self.rechecker.checks[0].refuse()
        self.assertEqual(len(self.rechecker.checks), 3)
        self.rechecker.checks[1].grant(self.now + 3600)
        self.rechecker.checks[2].be_unavailable()
        self.assertEqual(len(self.rechecker.checks), 5)
        for client in clients:
            client.disconnect()
        self.assert_nothing_left()

    def test_stopping_cancels_a_recheck(self) -> None:
        self.subscribe()
        self.wait_for_recheck()
        self.websocket_server.stopService()
        self.iterate()
        self.assertTrue(self.rechecker.last.was_cancelled)


class DisabledTests(ServiceTestCase):
    def test_without_the_setting_no_token_is_kept_or_checked_again(self) -> None:
        client = self.connect()
        client.present("canary-token")
        self.validator.last.grant(self.now + 3600)
        self.broker.confirm()
        client.texts()
        [connection] = self.websocket_server._wheel
        session = connection._session
        self.assertIs(session.state, State.ACTIVE)
        self.assertNotIn("canary-token", [session._token, session._presented_token])
        self.advance(600)
        self.assertEqual(self.rechecker.checks, [])


class RevalidationTests(SynchronousTestCase):
    """`Revalidation` by itself."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.checked: list[tuple[float, int]] = []
        self.is_in_progress = False

    def recheck(self, member: int) -> bool:
        self.checked.append((self.clock.seconds(), member))
        return self.is_in_progress

    def start(self, interval: float = 60.0, at_once: int = 8) -> Revalidation[int]:
        revalidation = Revalidation(self.clock, interval, at_once, self.recheck, Random(1))
        revalidation.start()
        self.addCleanup(revalidation.stop)
        return revalidation

    def test_members_added_together_are_spread_over_the_interval(self) -> None:
        revalidation = self.start()
        for member in range(6000):
            revalidation.add(member)
        self.clock.pump([1.0] * 60)
        self.assertEqual(sorted(member for _, member in self.checked), list(range(6000)))
        a_second = [sum(1 for at, _ in self.checked if at == now) for now in range(1, 61)]
        self.assertLess(max(a_second), 150)
        self.assertGreater(min(a_second), 60)

    def test_each_member_is_checked_once_in_an_interval(self) -> None:
        revalidation = self.start()
        revalidation.add(1)
        self.clock.pump([1.0] * 600)
        times = [at for at, _ in self.checked]
        self.assertEqual(len(times), 10)
        self.assertEqual({after - before for before, after in zip(times, times[1:])}, {60.0})  # noqa: B905, RUF007

    def test_a_slow_validator_prolongs_the_round_without_double_checks(self) -> None:
        self.is_in_progress = True
        revalidation = self.start()
        for member in range(20):
            revalidation.add(member)
        self.clock.pump([1.0] * 600)
        self.assertEqual(len(self.checked), 8)
        self.is_in_progress = False
        for _, member in list(self.checked):
            revalidation.done(member)
        self.assertEqual(sorted(member for _, member in self.checked), list(range(20)))

    def test_an_error_of_one_member_does_not_affect_the_others(self) -> None:
        def recheck(member: int) -> bool:
            self.checked.append((0, member))
            raise RuntimeError("injected by the test")

        revalidation = Revalidation(self.clock, 60, 1, recheck, Random(1))
        revalidation.start()
        for member in range(3):
            revalidation.add(member)
        self.clock.pump([1.0] * 60)
        self.assertEqual(len(self.checked), 3)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)
        revalidation.stop()

    def test_missed_rounds_are_not_repeated(self) -> None:
        revalidation = self.start()
        revalidation.add(1)
        self.clock.advance(6000)
        self.assertEqual(len(self.checked), 1)

    def test_removed_members_are_not_checked(self) -> None:
        revalidation = self.start(at_once=1)
        self.is_in_progress = True
        for member in range(3):
            revalidation.add(member)
        self.clock.pump([1.0] * 60)
        [(_, first)] = self.checked
        second, third = sorted({0, 1, 2} - {first})
        revalidation.discard(second)
        revalidation.discard(first)
        self.assertEqual([member for _, member in self.checked], [first, third])
        revalidation.discard(third)
        self.clock.pump([1.0] * 120)
        self.assertEqual(len(self.checked), 2)


inputs = st.lists(
    st.tuples(
        st.sampled_from(["token", "recheck", "granted", "refused", "undecided", "failed",
                         "joined", "check_expiry"]),
        st.floats(0, 5),
        st.floats(-1, 20),
    ),
    max_size=40,
)  # fmt: skip


class SessionTests(SynchronousTestCase):
    """The session: a recheck never runs beside another check, and a client gets no reply to it."""

    @given(inputs)
    def test_invariants_hold_for_any_order_of_events(
        self, events: list[tuple[str, float, float]]
    ) -> None:
        session, now = Session(keeps_token=True), 1000.0
        pending = ""  # the request in progress
        requests = replies = revoked = 0
        for event, pause, lifetime in events:
            now += pause
            if event in ("granted", "refused") and pending not in ("Validate", "Recheck"):
                continue
            if event in ("undecided", "failed") and not pending:
                continue
            if event == "joined" and pending != "Join":
                continue
            before, answered = session.state, ""
            match event:
                case "token":
                    requests += before is not State.CLOSED
                    effects = session.received(b'{"AccessToken":"x"}', False, now)
                case "granted":
                    answered, pending = pending, ""
                    effects = session.granted(Grant("me", now + lifetime, True, False), now)
                case "refused":
                    answered, pending = pending, ""
                    effects = session.refused(now, INJECTED)
                case "undecided" | "failed" | "joined":
                    answered, pending = pending, ""
                    effects = getattr(session, event)(now)
                case _:
                    effects = getattr(session, event)(now)
            for effect in effects:
                if isinstance(effect, Validate | Recheck | Join):
                    self.assertEqual(pending, "", "one request at a time")
                    pending = type(effect).__name__
                    if isinstance(effect, Recheck):
                        self.assertEqual((event, before), ("recheck", State.ACTIVE))
                elif isinstance(effect, Reply):
                    # The only reply without a request is that the token was revoked.
                    if answered == "Recheck" and any(
                        isinstance(each, Close) and each.reason == "Token inactive"
                        for each in effects
                    ):
                        revoked += 1
                    else:
                        replies += 1
                elif isinstance(effect, Close):
                    pending = ""
        self.assertLessEqual(revoked, 1)
        self.assertLessEqual(replies, requests)
