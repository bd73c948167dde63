"""Live sessions are checked again, and end when their token was revoked."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.harness import ServiceTestCase
from topicsvc.interfaces import Grant
from topicsvc.websocket.revalidation import Revalidation
from topicsvc.websocket.session import Close, Join, Recheck, Reply, Session, State, Validate

INTERVAL = 30.0


class RevocationTests(ServiceTestCase):
    """Through a whole connection."""

    recheck = INTERVAL

    def wait_for_recheck(self) -> None:
        """Let time pass until somebody is asked about again, or fail."""
        known = len(self.rechecker.questions)
        for _ in range(int(INTERVAL) + 1):
            self.clock.advance(1)
            if len(self.rechecker.questions) > known:
                return
        self.fail("nobody was asked about within an interval")

    def test_within_an_interval_the_token_is_asked_about_again(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.assertEqual(self.rechecker.last.token, "first-token")
        self.assertEqual(len(self.validator.questions), 1)
        client.assert_nothing()

    def test_a_revoked_token_is_inactive(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.rechecker.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        self.assertEqual(self.broker.live, [])

    def test_a_token_that_may_no_longer_receive_is_inactive(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.rechecker.last.grant(self.now + 60, may_receive=False)
        client.assert_refused("AccessToken", "Token inactive", 1008)

    def test_what_cannot_be_decided_changes_nothing(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.rechecker.last.be_unavailable()
        client.assert_nothing()
        self.deliver(b"1")
        self.assertEqual(len(client.texts()), 1)
        self.wait_for_recheck()

    def test_a_fault_of_ours_changes_nothing(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        self.rechecker.last.answer.errback(RuntimeError("said the test"))
        client.assert_nothing()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_grant_is_silent_and_its_expiry_counts(self) -> None:
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

    def test_it_goes_on_for_as_long_as_the_session_lives(self) -> None:
        self.subscribe()
        for _ in range(5):
            self.wait_for_recheck()
            self.rechecker.last.grant(self.now + 3600)
        self.assertEqual(len(self.rechecker.questions), 5)

    def test_the_newest_token_is_asked_about(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.validator.last.grant(self.now + 3600)
        client.assert_success(3600)
        self.wait_for_recheck()
        self.assertEqual(self.rechecker.last.token, "second-token")

    def test_a_token_that_was_not_granted_is_not(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.wait_for_recheck()
        self.assertEqual(self.rechecker.last.token, "first-token")

    def test_a_message_that_comes_meanwhile_waits_and_is_answered_once(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        client.present("second-token")
        client.assert_nothing()
        self.assertEqual(len(self.validator.questions), 1)
        self.rechecker.last.grant(self.now + 3600)
        client.assert_nothing()
        self.assertEqual(self.validator.last.token, "second-token")
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)

    def test_a_message_that_waits_is_taken_up_after_an_outage_too(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        client.present("second-token")
        self.rechecker.last.be_unavailable()
        client.assert_nothing()
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)

    def test_a_client_s_own_check_goes_first(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.advance(INTERVAL * 2)
        self.assertEqual(self.rechecker.questions, [])
        self.validator.last.grant(self.now + 3600)
        self.wait_for_recheck()
        self.assertEqual(self.rechecker.last.token, "second-token")

    def test_a_turn_that_is_missed_is_taken_when_the_client_s_check_has_no_verdict(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        client.present("third-token")
        self.advance(INTERVAL + 1)
        self.assertEqual(self.rechecker.questions, [])
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.assertEqual(self.rechecker.last.token, "first-token")
        self.assertEqual(len(self.validator.questions), 2)
        self.rechecker.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)

    def test_what_waits_behind_a_turn_that_was_missed_is_taken_up(self) -> None:
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
        self.assertEqual(len(self.rechecker.questions), 1)

    def test_a_grant_makes_up_for_a_turn_that_was_missed(self) -> None:
        client = self.subscribe()
        client.present("second-token")
        self.advance(INTERVAL + 1)
        self.validator.last.grant(self.now + 3600)
        client.assert_success(3600)
        client.present("third-token")
        self.validator.last.be_unavailable()
        client.assert_error("AccessToken", "Service unavailable")
        self.assertEqual(self.rechecker.questions, [])

    def test_a_session_that_runs_out_meanwhile_is_closed_at_the_next_beat(self) -> None:
        client = self.subscribe(lifetime=INTERVAL + 1)
        self.wait_for_recheck()
        self.advance(61)
        self.assertTrue(self.rechecker.last.was_cancelled)
        self.assert_close(client.frames()[-1], 1008, "Session expired")

    def test_a_session_that_has_run_out_is_not_brought_back_without_a_word(self) -> None:
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

    def test_what_was_asked_before_it_ran_out_is_answered(self) -> None:
        client = self.subscribe(lifetime=INTERVAL + 1)
        expiry = self.now + INTERVAL + 1
        self.wait_for_recheck()
        client.present("second-token")
        self.clock.advance(expiry - self.now)
        self.rechecker.last.grant(self.now + 3600)
        self.validator.last.grant(self.now + 60)
        client.assert_success(60)

    def test_a_client_that_leaves_meanwhile(self) -> None:
        client = self.subscribe()
        self.wait_for_recheck()
        client.disconnect()
        self.assertTrue(self.rechecker.last.was_cancelled)
        self.assert_nothing_left()

    def test_only_some_are_asked_about_at_once(self) -> None:
        clients = [self.subscribe() for _ in range(5)]
        self.advance(INTERVAL)
        self.assertEqual(len(self.rechecker.questions), 2)
        self.rechecker.questions[0].refuse()
        self.assertEqual(len(self.rechecker.questions), 3)
        self.rechecker.questions[1].grant(self.now + 3600)
        self.rechecker.questions[2].be_unavailable()
        self.assertEqual(len(self.rechecker.questions), 5)
        for client in clients:
            client.disconnect()
        self.assert_nothing_left()

    def test_stopping(self) -> None:
        self.subscribe()
        self.wait_for_recheck()
        self.websocket_server.stopService()
        self.iterate()
        self.assertTrue(self.rechecker.last.was_cancelled)


class OffTests(ServiceTestCase):
    def test_without_the_setting_nothing_is_asked_and_no_token_kept(self) -> None:
        client = self.connect()
        client.present("canary-token")
        self.validator.last.grant(self.now + 3600)
        self.broker.confirm()
        client.texts()
        [protocol] = self.websocket_server._wheel
        session = protocol._session
        self.assertIs(session.state, State.ACTIVE)
        self.assertNotIn("canary-token", [session._token, session._presented_token])
        self.advance(600)
        self.assertEqual(self.rechecker.questions, [])


class SpreadTests(SynchronousTestCase):
    """`Revalidation` by itself."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[tuple[float, int]] = []
        self.takes_a_while = False

    def again(self, member: int) -> bool:
        self.asked.append((self.clock.seconds(), member))
        return self.takes_a_while

    def rechecks(self, interval: float = 60.0, at_once: int = 8) -> Revalidation[int]:
        rechecks = Revalidation(self.clock, interval, at_once, self.again, Random(1))
        rechecks.start()
        self.addCleanup(rechecks.stop)
        return rechecks

    def test_those_who_came_together_are_spread(self) -> None:
        rechecks = self.rechecks()
        for member in range(6000):
            rechecks.add(member)
        self.clock.pump([1.0] * 60)
        self.assertEqual(sorted(member for _, member in self.asked), list(range(6000)))
        a_second = [sum(1 for at, _ in self.asked if at == now) for now in range(1, 61)]
        self.assertLess(max(a_second), 150)
        self.assertGreater(min(a_second), 60)

    def test_each_once_in_an_interval(self) -> None:
        rechecks = self.rechecks()
        rechecks.add(1)
        self.clock.pump([1.0] * 600)
        times = [at for at, _ in self.asked]
        self.assertEqual(len(times), 10)
        self.assertEqual({after - before for before, after in zip(times, times[1:])}, {60.0})  # noqa: B905, RUF007

    def test_a_slow_judge_makes_the_round_longer_and_nobody_is_asked_about_twice(self) -> None:
        self.takes_a_while = True
        rechecks = self.rechecks()
        for member in range(20):
            rechecks.add(member)
        self.clock.pump([1.0] * 600)
        self.assertEqual(len(self.asked), 8)
        self.takes_a_while = False
        for _, member in list(self.asked):
            rechecks.done(member)
        self.assertEqual(sorted(member for _, member in self.asked), list(range(20)))

    def test_one_that_fails_does_not_stop_the_others(self) -> None:
        def again(member: int) -> bool:
            self.asked.append((0, member))
            raise RuntimeError("said the test")

        rechecks = Revalidation(self.clock, 60, 1, again, Random(1))
        rechecks.start()
        for member in range(3):
            rechecks.add(member)
        self.clock.pump([1.0] * 60)
        self.assertEqual(len(self.asked), 3)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)
        rechecks.stop()

    def test_a_pause_is_not_made_up_for(self) -> None:
        rechecks = self.rechecks()
        rechecks.add(1)
        self.clock.advance(6000)
        self.assertEqual(len(self.asked), 1)

    def test_who_has_gone_is_not_asked_about(self) -> None:
        rechecks = self.rechecks(at_once=1)
        self.takes_a_while = True
        for member in range(3):
            rechecks.add(member)
        self.clock.pump([1.0] * 60)
        [(_, first)] = self.asked
        second, third = sorted({0, 1, 2} - {first})
        rechecks.discard(second)
        rechecks.discard(first)
        self.assertEqual([member for _, member in self.asked], [first, third])
        rechecks.discard(third)
        self.clock.pump([1.0] * 120)
        self.assertEqual(len(self.asked), 2)


inputs = st.lists(
    st.tuples(
        st.sampled_from(["token", "recheck", "granted", "refused", "undecided", "failed",
                         "joined", "check_expiry"]),
        st.floats(0, 5),
        st.floats(-1, 20),
    ),
    max_size=40,
)  # fmt: skip


class PromiseTests(SynchronousTestCase):
    """The rule book: an unasked check never meets another, and never answers a client."""

    @given(inputs)
    def test_whatever_happens(self, events: list[tuple[str, float, float]]) -> None:
        session, now = Session(keeps_token=True), 1000.0
        asked = ""  # the question that is under way, if any
        requests = replies = revoked = 0
        for event, pause, life in events:
            now += pause
            if event in ("granted", "refused") and asked not in ("Validate", "Recheck"):
                continue
            if event in ("undecided", "failed") and not asked:
                continue
            if event == "joined" and asked != "Join":
                continue
            was, answered = session.state, ""
            match event:
                case "token":
                    requests += was is not State.CLOSED
                    effects = session.received(b'{"AccessToken":"x"}', False, now)
                case "granted":
                    answered, asked = asked, ""
                    effects = session.granted(Grant("me", now + life, True, False), now)
                case "refused" | "undecided" | "failed" | "joined":
                    answered, asked = asked, ""
                    effects = getattr(session, event)(now)
                case _:
                    effects = getattr(session, event)(now)
            for effect in effects:
                if isinstance(effect, Validate | Recheck | Join):
                    self.assertEqual(asked, "", "one question at a time")
                    asked = type(effect).__name__
                    if isinstance(effect, Recheck):
                        self.assertEqual((event, was), ("recheck", State.ACTIVE))
                elif isinstance(effect, Reply):
                    # What a client hears unasked is one thing: that its token was revoked.
                    if answered == "Recheck" and Close(1008, "Token inactive") in effects:
                        revoked += 1
                    else:
                        replies += 1
                elif isinstance(effect, Close):
                    asked = ""
        self.assertLessEqual(revoked, 1)
        self.assertLessEqual(replies, requests)
