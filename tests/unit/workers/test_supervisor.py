"""The rules for workers: restarts, reloads, rolling restarts and stops, in virtual time."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.workers.supervisor import (
    MAX_DELAY,
    MIN_DELAY,
    RELOAD_GRACE,
    STABLE,
    Apply,
    Check,
    Crashed,
    Drain,
    Drop,
    Effect,
    Fail,
    GiveUpLater,
    NotReloaded,
    OtherSettings,
    Refuse,
    Reloaded,
    RollEnded,
    RollFailed,
    Start,
    Started,
    StartLater,
    Stopped,
    Supervisor,
)


class SupervisorTestCase(SynchronousTestCase):
    """A supervisor with 3 places; workers 1, 2 and 3 are ready."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.supervisor = Supervisor(3)
        self.supervisor.start()
        for worker in (1, 2, 3):
            self.ready(worker)

    def ready(self, worker: int, digest: str = "old") -> list[Effect]:
        return self.supervisor.ready(worker, digest, self.clock.seconds())

    def ended(
        self, worker: int, reason: str = "exit code 1", is_refused: bool = False
    ) -> list[Effect]:
        return self.supervisor.ended(worker, reason, self.clock.seconds(), is_refused)

    def check(
        self, workers: Iterable[int], problems: Iterable[str] = (), digest: str = "new"
    ) -> list[Effect]:
        """The workers have checked; return the effects of the last one."""
        effects: list[Effect] = []
        for worker in workers:
            self.assertEqual(effects, [])
            effects = self.supervisor.checked(worker, problems, digest)
        return effects


class StartTests(SupervisorTestCase):
    def test_a_worker_is_started_at_each_place_and_all_must_be_ready(self) -> None:
        supervisor = Supervisor(2)
        self.assertEqual(supervisor.start(), [Start(1, 1), Start(2, 2)])
        self.assertEqual(supervisor.ready(2, "old", 0), [])
        self.assertFalse(supervisor.is_started)
        self.assertEqual(supervisor.ready(1, "old", 0), [Started()])
        self.assertTrue(supervisor.is_started)
        self.assertEqual(supervisor.serving, {1: 1, 2: 2})

    def test_a_worker_that_fails_before_all_are_ready_ends_all_with_its_reason(self) -> None:
        supervisor = Supervisor(2)
        supervisor.start()
        supervisor.ready(1, "old", 0)
        self.assertEqual(supervisor.ended(2, "no such file", 0), [Fail(2, "no such file")])

    def test_neither_a_reload_nor_a_rolling_restart_begins_before_all_are_ready(self) -> None:
        supervisor = Supervisor(2)
        supervisor.start()
        self.assertEqual(supervisor.roll(), [])
        self.assertEqual(supervisor.reload(), [])
        self.assertEqual(supervisor.ready(1, "old", 0), [])
        self.assertEqual(supervisor.ready(2, "old", 0), [Started(), Check((1, 2))])


class CrashTests(SupervisorTestCase):
    def crash(self, worker: int) -> float:
        """Return the delay until the next start."""
        crashed, later, *_ = self.ended(worker, "signal 9")
        assert isinstance(later, StartLater)
        self.assertEqual(crashed, Crashed(later.place, "signal 9", later.delay))
        self.clock.advance(later.delay)
        return later.delay

    def start_again(self, place: int) -> int:
        [start] = self.supervisor.start_again(place)
        assert isinstance(start, Start)
        self.assertEqual(start.place, place)
        return start.worker

    def test_a_crashed_worker_is_replaced_after_a_delay(self) -> None:
        self.clock.advance(STABLE)
        self.assertEqual(self.crash(2), MIN_DELAY)
        self.assertEqual(self.supervisor.serving, {1: 1, 2: None, 3: 3})
        self.assertEqual(self.start_again(2), 4)
        self.assertEqual(self.ready(4), [])
        self.assertEqual(self.supervisor.serving, {1: 1, 2: 4, 3: 3})

    def test_the_delay_doubles_up_to_its_most_while_workers_do_not_become_ready(self) -> None:
        delays = [self.crash(2)]
        for _ in range(8):
            delays.append(self.crash(self.start_again(2)))
        self.assertEqual(delays, [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0, 3.0])
        self.assertEqual((delays[0], delays[-1]), (MIN_DELAY, MAX_DELAY))

    def test_the_delay_doubles_for_workers_that_are_ready_only_for_a_moment(self) -> None:
        self.crash(1)
        worker = self.start_again(1)
        self.ready(worker)
        self.clock.advance(STABLE - 0.001)
        self.assertEqual(self.crash(worker), 2 * MIN_DELAY)

    def test_a_worker_that_was_stable_counts_as_a_first_crash(self) -> None:
        self.crash(1)
        self.crash(self.start_again(1))
        worker = self.start_again(1)
        self.ready(worker)
        self.clock.advance(STABLE)
        self.assertEqual(self.crash(worker), MIN_DELAY)

    def test_places_count_their_crashes_for_themselves(self) -> None:
        self.crash(1)
        self.crash(self.start_again(1))
        self.assertEqual(self.supervisor.crashes, {1: 2, 2: 0, 3: 0})
        self.assertEqual(self.crash(2), MIN_DELAY)

    def test_a_place_without_a_worker_counts_the_seconds_until_one_is_ready(self) -> None:
        self.assertEqual(self.supervisor.unserved(self.clock.seconds()), 0)
        self.ended(2)
        self.clock.advance(4)
        self.ended(3)
        self.clock.advance(1)
        self.assertEqual(self.supervisor.unserved(self.clock.seconds()), 5)
        self.ready(self.start_again(2))
        self.assertEqual(self.supervisor.unserved(self.clock.seconds()), 1)

    def test_a_worker_that_never_becomes_ready_does_not_restart_the_count(self) -> None:
        self.ended(2)
        for _ in range(5):
            self.clock.advance(3)
            self.ended(self.start_again(2))
        self.assertEqual(self.supervisor.unserved(self.clock.seconds()), 15)

    def test_a_place_does_not_count_while_its_settings_keep_its_workers_from_starting(self) -> None:
        self.ended(2)
        self.clock.advance(2)
        self.assertEqual(self.supervisor.unserved(self.clock.seconds()), 2)
        self.ended(self.start_again(2), is_refused=True)
        self.clock.advance(60)
        self.assertEqual(self.supervisor.unserved(self.clock.seconds()), 0)
        worker = self.start_again(2)
        self.clock.advance(1)
        self.ended(worker)
        self.clock.advance(3)
        self.assertEqual(self.supervisor.unserved(self.clock.seconds()), 3)
        self.ready(self.start_again(2))
        self.assertEqual(self.supervisor.unserved(self.clock.seconds()), 0)

    def test_a_place_without_a_worker_for_some_seconds_refuses_connections(self) -> None:
        self.ended(2)
        self.clock.advance(MAX_DELAY - 0.001)
        self.assertNotIn(Refuse(2), self.ended(self.start_again(2)))
        self.clock.advance(0.001)
        self.assertEqual(self.ended(self.start_again(2))[-1], Refuse(2))
        for worker in (1, 3):
            self.ended(worker)
        self.assertNotIn(Refuse(2), self.ended(self.start_again(2)))

    def test_a_worker_that_starts_with_other_settings_is_reported(self) -> None:
        self.crash(1)
        worker = self.start_again(1)
        self.assertEqual(self.ready(worker, "edited"), [OtherSettings(1)])
        self.crash(2)
        self.assertEqual(self.ready(self.start_again(2), "old"), [])


class ReloadTests(SupervisorTestCase):
    def test_all_check_first_and_then_all_apply(self) -> None:
        self.assertEqual(self.supervisor.reload(), [Check((1, 2, 3))])
        self.assertEqual(self.check((2, 3, 1)), [Apply((2, 3, 1)), Reloaded()])

    def test_one_problem_keeps_all_from_changing(self) -> None:
        self.supervisor.reload()
        self.check((1,))
        self.supervisor.checked(2, ["limits: bad"], "")
        effects = self.supervisor.checked(3, ["limits: bad", "tls: bad"], "")
        expected = [Drop((1, 2, 3)), NotReloaded(("limits: bad", "tls: bad"))]
        self.assertEqual(effects, expected)

    def test_workers_that_have_read_different_files_do_not_change(self) -> None:
        self.supervisor.reload()
        self.check((1, 2))
        effects = self.check((3,), digest="newer")
        self.assertEqual(effects[0], Drop((1, 2, 3)))
        self.assertIsInstance(effects[1], NotReloaded)

    def test_a_worker_that_ends_is_left_out(self) -> None:
        self.supervisor.reload()
        self.check((1, 2))
        crashed, later, *effects = self.ended(3)
        self.assertIsInstance(crashed, Crashed)
        self.assertEqual(later, StartLater(3, MIN_DELAY))
        self.assertEqual(effects, [Apply((1, 2)), Reloaded()])

    def test_a_worker_that_ends_after_its_check_is_not_told_to_apply(self) -> None:
        self.supervisor.reload()
        self.check((1, 2))
        self.ended(1)
        self.assertEqual(self.check((3,)), [Apply((2, 3)), Reloaded()])

    def test_a_reload_waits_for_workers_that_start(self) -> None:
        self.ended(2)
        self.supervisor.start_again(2)
        self.assertEqual(self.supervisor.reload(), [])
        self.assertEqual(self.ready(4), [Check((1, 4, 3))])

    def test_a_worker_does_not_start_while_the_others_check(self) -> None:
        self.supervisor.reload()
        self.ended(2)
        self.assertEqual(self.supervisor.start_again(2), [GiveUpLater(1, RELOAD_GRACE)])
        self.assertEqual(self.check((1, 3)), [Apply((1, 3)), Reloaded(), Start(4, 2)])
        self.assertEqual(self.supervisor.give_up(1), [])

    def given_up(self, *numbers: int) -> NotReloaded:
        text = "worker {} has not answered yet, and another one must start: reload again"
        return NotReloaded(tuple(text.format(number) for number in numbers))

    def test_a_start_does_not_wait_long_for_a_worker_that_is_blocked_while_it_checks(self) -> None:
        self.supervisor.reload()
        self.ended(2)
        self.supervisor.start_again(2)
        self.check((3,))
        effects = self.supervisor.give_up(1)
        self.assertEqual(effects, [Drop((3, 1)), self.given_up(1), Start(4, 2)])
        self.assertEqual(self.supervisor.checked(1, [], "new"), [])
        self.assertEqual(self.ready(4), [])

    def test_a_rolling_restart_does_not_wait_long_for_it_either(self) -> None:
        self.supervisor.reload()
        self.assertEqual(self.supervisor.roll(), [GiveUpLater(1, RELOAD_GRACE)])
        effects = self.supervisor.give_up(1)
        self.assertEqual(effects, [Drop((1, 2, 3)), self.given_up(1, 2, 3), Start(4, 1)])

    def test_a_reload_is_given_up_once_and_the_next_one_is_another(self) -> None:
        self.supervisor.reload()
        self.supervisor.reload()
        self.ended(2)
        self.supervisor.start_again(2)
        self.assertEqual(self.supervisor.roll(), [])
        self.supervisor.give_up(1)
        effects = self.ready(4)
        self.assertEqual(effects, [Start(5, 1)])
        self.assertEqual(self.ready(5), [Drain(1, is_replaced=True), Check((5, 4, 3))])
        self.assertEqual(self.supervisor.give_up(1), [])
        self.assertEqual(self.ended(1, ""), [GiveUpLater(2, RELOAD_GRACE)])

    def test_after_a_stop_nothing_is_given_up(self) -> None:
        self.supervisor.reload()
        self.supervisor.roll()
        self.supervisor.stop()
        self.assertEqual(self.supervisor.give_up(1), [])

    def test_reloads_during_a_reload_are_one_more(self) -> None:
        self.supervisor.reload()
        for _ in range(5):
            self.assertEqual(self.supervisor.reload(), [])
        effects = self.check((1, 2, 3))
        self.assertEqual(effects, [Apply((1, 2, 3)), Reloaded(), Check((1, 2, 3))])
        self.assertEqual(self.check((1, 2, 3)), [Apply((1, 2, 3)), Reloaded()])

    def test_an_answer_that_nobody_waits_for_changes_nothing(self) -> None:
        self.assertEqual(self.supervisor.checked(1, [], "new"), [])
        self.supervisor.reload()
        self.check((1,))
        self.assertEqual(self.supervisor.checked(1, ["late"], "new"), [])

    def test_workers_that_start_after_a_reload_have_its_settings(self) -> None:
        self.supervisor.reload()
        self.check((1, 2, 3))
        self.ended(1)
        self.supervisor.start_again(1)
        self.assertEqual(self.ready(4, "new"), [])

    def test_if_all_workers_end_while_they_check_the_next_ones_check(self) -> None:
        self.supervisor.reload()
        self.check((1,))
        for worker in (1, 2, 3):
            effects = self.ended(worker)
        self.assertEqual([type(each) for each in effects], [Crashed, StartLater])
        self.supervisor.start_again(1)
        self.assertEqual(self.ready(4, "new"), [OtherSettings(1), Check((4,))])
        self.assertEqual(self.check((4,)), [Apply((4,)), Reloaded()])
        self.supervisor.start_again(2)
        self.assertEqual(self.ready(5, "new"), [])

    def test_without_workers_a_reload_waits_for_the_next_one(self) -> None:
        for worker in (1, 2, 3):
            self.ended(worker)
        self.assertEqual(self.supervisor.reload(), [])
        self.supervisor.start_again(1)
        self.assertEqual(self.ready(4), [Check((4,))])


class RollTests(SupervisorTestCase):
    def test_each_new_worker_is_ready_before_the_old_one_drains(self) -> None:
        effects = self.supervisor.roll()
        for old, new in ((1, 4), (2, 5), (3, 6)):
            self.assertEqual(effects, [Start(new, old)])
            self.assertEqual(self.supervisor.serving[old], old)
            self.assertEqual(self.ready(new), [Drain(old, is_replaced=True)])
            effects = self.ended(old, "")
        self.assertEqual(effects, [RollEnded()])
        self.assertEqual(self.supervisor.serving, {1: 4, 2: 5, 3: 6})

    def test_workers_that_drain_are_still_there_and_those_that_start_are_not_yet(self) -> None:
        self.supervisor.roll()
        serving = [(1, 1, True), (2, 2, True), (3, 3, True)]
        self.assertEqual(self.supervisor.have_been_ready, serving)
        self.ready(4)
        self.assertEqual(
            self.supervisor.have_been_ready,
            [(1, 1, False), (2, 2, True), (3, 3, True), (4, 1, True)],
        )

    def test_if_a_new_worker_fails_the_old_ones_stay(self) -> None:
        self.supervisor.roll()
        self.assertEqual(self.ended(4, "bad file"), [RollFailed(1, "bad file")])
        self.assertEqual(self.supervisor.serving, {1: 1, 2: 2, 3: 3})
        self.assertEqual(self.supervisor.roll(), [Start(5, 1)])

    def test_a_further_rolling_restart_follows_when_the_first_has_ended(self) -> None:
        self.supervisor.roll()
        for _ in range(3):
            self.assertEqual(self.supervisor.roll(), [])
        for old, new in ((1, 4), (2, 5), (3, 6)):
            self.ready(new)
            effects = self.ended(old, "")
        self.assertEqual(effects, [RollEnded(), Start(7, 1)])

    def test_an_old_worker_that_crashes_is_replaced_by_the_new_one(self) -> None:
        self.supervisor.roll()
        self.assertEqual(self.ended(1), [Crashed(1, "exit code 1", 0)])
        self.assertEqual(self.ready(4), [Start(5, 2)])

    def test_another_place_may_crash_meanwhile(self) -> None:
        self.supervisor.roll()
        _, later = self.ended(2)
        self.assertEqual(later, StartLater(2, MIN_DELAY))
        self.assertEqual(self.ready(4), [Drain(1, is_replaced=True)])
        self.assertEqual(self.supervisor.start_again(2), [Start(5, 2)])
        self.assertEqual(self.ended(1, ""), [])  # one start at a time
        self.assertEqual(self.ready(5), [Start(6, 2)])

    def test_a_place_without_a_worker_is_left_out(self) -> None:
        self.ended(2)
        self.supervisor.roll()
        self.ready(4)
        self.assertEqual(self.ended(1, ""), [Start(5, 3)])

    def test_a_reload_waits_for_the_new_worker_and_the_roll_for_the_reload(self) -> None:
        self.supervisor.roll()
        self.assertEqual(self.supervisor.reload(), [])
        effects = self.ready(4)
        self.assertEqual(effects, [Drain(1, is_replaced=True), Check((4, 2, 3))])
        self.assertEqual(self.ended(1, ""), [GiveUpLater(1, RELOAD_GRACE)])
        self.assertEqual(self.check((4, 2, 3)), [Apply((4, 2, 3)), Reloaded(), Start(5, 2)])

    def test_a_rolling_restart_brings_new_settings_without_a_report(self) -> None:
        self.supervisor.roll()
        for old, new in ((1, 4), (2, 5), (3, 6)):
            self.assertEqual(self.ready(new, "new"), [Drain(old, is_replaced=True)])
            self.ended(old, "")
        self.ended(4)
        self.supervisor.start_again(1)
        self.assertEqual(self.ready(7, "new"), [])

    def test_a_rolling_restart_whose_last_place_has_no_worker_brings_new_settings(self) -> None:
        self.ended(3)
        self.supervisor.roll()
        for old, new in ((1, 4), (2, 5)):
            self.ready(new, "new")
            effects = self.ended(old, "")
        self.assertEqual(effects, [RollEnded()])
        self.supervisor.start_again(3)
        self.assertEqual(self.ready(6, "new"), [])

    def test_a_reload_after_the_last_new_worker_has_the_last_word_on_the_settings(self) -> None:
        self.supervisor.roll()
        for old, new in ((1, 4), (2, 5)):
            self.ready(new, "new")
            self.ended(old, "")
        self.ready(6, "new")
        self.supervisor.reload()
        self.check((4, 5, 6), digest="newer")
        self.assertEqual(self.ended(3, ""), [RollEnded()])
        self.ended(4)
        self.supervisor.start_again(1)
        self.assertEqual(self.ready(7, "newer"), [])

    def test_a_rolling_restart_that_failed_keeps_the_settings_of_before(self) -> None:
        self.supervisor.roll()
        self.ready(4, "new")
        self.ended(1, "")
        self.assertEqual(self.ended(5), [RollFailed(2, "exit code 1")])
        self.ended(3)
        self.supervisor.start_again(3)
        self.assertEqual(self.ready(6, "new"), [OtherSettings(3)])

    def test_it_goes_on_if_a_place_loses_its_old_worker_and_its_new_one(self) -> None:
        self.supervisor.roll()
        self.ended(1)
        effects = self.ended(4)
        self.assertEqual([type(each) for each in effects], [Crashed, StartLater, Start])
        self.assertEqual(effects[-1], Start(5, 2))


class NotAppliedTests(SupervisorTestCase):
    """A worker has failed to apply the settings of a reload."""

    def test_the_next_worker_is_ready_before_it_drains_and_the_others_stay(self) -> None:
        self.assertEqual(self.supervisor.not_applied(2), [Start(4, 2)])
        self.assertEqual(self.ready(4), [Drain(2, is_replaced=True)])
        self.assertEqual(self.ended(2, ""), [])
        self.assertEqual(self.supervisor.serving, {1: 1, 2: 4, 3: 3})

    def test_several_are_replaced_one_after_another(self) -> None:
        self.assertEqual(self.supervisor.not_applied(2), [Start(4, 2)])
        self.assertEqual(self.supervisor.not_applied(3), [])
        self.ready(4)
        self.assertEqual(self.ended(2, ""), [Start(5, 3)])

    def test_one_that_a_rolling_restart_has_replaced_already_is_replaced_again(self) -> None:
        self.supervisor.roll()
        self.ready(4)
        self.assertEqual(self.supervisor.not_applied(4), [])
        started = [1]
        for old, new, place in ((1, 5, 2), (2, 6, 3), (3, 7, 1)):
            self.assertEqual(self.ended(old, ""), [Start(new, place)])
            self.ready(new)
            started.append(place)
        self.assertEqual(started, [1, 2, 3, 1])
        self.assertEqual(self.ended(4, ""), [RollEnded()])

    def test_a_rolling_restart_meanwhile_follows(self) -> None:
        self.supervisor.not_applied(2)
        self.assertEqual(self.supervisor.roll(), [])
        self.ready(4)
        self.assertEqual(self.ended(2, ""), [Start(5, 1)])

    def test_one_that_has_ended_or_is_replaced_or_stops_changes_nothing(self) -> None:
        self.supervisor.roll()
        self.assertEqual(self.supervisor.not_applied(1), [])
        self.ready(4)
        self.assertEqual(self.supervisor.not_applied(1), [])
        self.ended(3)
        self.assertEqual(self.supervisor.not_applied(3), [])
        self.supervisor.stop()
        self.assertEqual(self.supervisor.not_applied(2), [])


class StopTests(SupervisorTestCase):
    def test_all_drain_together_and_nothing_starts_again(self) -> None:
        effects = self.supervisor.stop()
        self.assertEqual(effects, [Drain(worker, is_replaced=False) for worker in (1, 2, 3)])
        self.assertEqual(self.ended(2), [])
        self.assertEqual(self.supervisor.start_again(2), [])
        self.assertEqual(self.ended(1), [])
        self.assertEqual(self.ended(3), [Stopped()])

    def test_workers_that_start_and_those_that_drain_already_are_waited_for(self) -> None:
        self.supervisor.roll()
        self.ready(4)
        self.ended(2)
        self.supervisor.start_again(2)
        drains = {each.worker for each in self.supervisor.stop() if isinstance(each, Drain)}
        self.assertEqual(drains, {1, 3, 4, 5})
        self.assertEqual(set(self.supervisor.alive), drains)
        self.assertEqual(self.ready(5), [])

    def test_without_workers_a_stop_ends_at_once(self) -> None:
        for worker in (1, 2, 3):
            self.ended(worker)
        self.assertEqual(self.supervisor.stop(), [Stopped()])

    def test_reloads_and_rolling_restarts_are_over(self) -> None:
        self.supervisor.reload()
        self.supervisor.stop()
        self.assertEqual(self.supervisor.checked(1, [], "new"), [])
        self.assertEqual((self.supervisor.reload(), self.supervisor.roll()), ([], []))

    def test_a_failure_before_all_are_ready_is_no_reason_during_a_stop(self) -> None:
        supervisor = Supervisor(1)
        supervisor.start()
        supervisor.stop()
        self.assertEqual(supervisor.ended(1, "", 0), [Stopped()])
