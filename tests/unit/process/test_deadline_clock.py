"""`DeadlineClock`: deadlines after the process was stopped, with a reactor in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process.deadline_clock import INTERVAL, LATE, DeadlineClock
from topicsvc.scheduling.deadlines import Deadlines

STOP = 11.0


class FakeReactor(ReactorBase):
    """A reactor whose main loop runs in virtual time.

    Attributes:
        now: the time.
        cpu: processor time of the process.
        sockets: calls for bytes that have arrived; a poll makes all of them.
        log: what happened, in its order.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.cpu = 5.0
        self.sockets: deque[Callable[[], object]] = deque()
        self.log: list[str] = []
        super().__init__()

    def installWaker(self) -> None: ...

    def seconds(self) -> float:
        return self.now

    def doIteration(self, delay: float | None) -> None:
        self.log.append("poll")
        if self.sockets:
            while self.sockets:
                self.sockets.popleft()()
        else:
            self.now += delay or 0

    def run_for(self, seconds: float) -> None:
        """The main loop, as `ReactorBase.mainLoop` has it."""
        end = self.now + seconds
        while self.now < end:
            self.runUntilCurrent()
            timeout = self.timeout()
            self.doIteration(min(end - self.now, end if timeout is None else timeout))


class DeadlineClockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.clock = DeadlineClock(self.reactor, lambda: self.reactor.cpu)
        self.clock.start()
        self.expired: list[str] = []
        self.deadlines = Deadlines[str](self.clock, 10.0, self.expire)
        self.reactor.run_for(0.1)

    def expire(self, member: str) -> None:
        self.reactor.log.append(f"expired {member}")
        self.expired.append(member)

    def stop_process(self, seconds: float = STOP, cpu: float = 0.0) -> None:
        self.reactor.now += seconds
        self.reactor.cpu += cpu
        self.reactor.log.clear()

    def test_after_a_stop_what_arrived_in_time_is_read_before_a_deadline_passes(self) -> None:
        self.deadlines.start("client")
        self.reactor.run_for(3)
        self.stop_process()
        self.reactor.sockets.append(lambda: self.deadlines.cancel("client"))
        self.reactor.run_for(60)
        self.assertEqual(self.expired, [])

    def test_after_a_stop_a_client_has_the_time_that_it_had_left(self) -> None:
        self.deadlines.start("client")
        self.reactor.run_for(3)
        self.stop_process()
        self.reactor.run_for(6)
        self.assertEqual(self.expired, [])
        self.reactor.run_for(1 + INTERVAL)
        self.assertEqual(self.expired, ["client"])

    def test_each_client_has_it_whenever_its_deadline_started(self) -> None:
        self.deadlines.start("first")
        self.reactor.run_for(3)
        self.deadlines.start("second")
        self.stop_process()
        self.reactor.run_for(0.1)
        self.deadlines.start("third")
        self.reactor.run_for(7 + INTERVAL)
        self.assertEqual(self.expired, ["first"])
        self.reactor.run_for(2)
        self.assertEqual(self.expired, ["first"])
        self.reactor.run_for(1 + INTERVAL)
        self.assertEqual(self.expired, ["first", "second", "third"])

    def test_timers_of_libraries_are_put_off_as_well(self) -> None:
        """As the timeout of a request to the validator."""
        called: list[float] = []
        self.reactor.callLater(5, lambda: called.append(self.reactor.now))
        self.reactor.run_for(1)
        self.stop_process()
        resumed_at = self.reactor.now
        self.reactor.run_for(3.9 - INTERVAL)
        self.assertEqual(called, [])
        self.reactor.run_for(1)
        self.assertLessEqual(abs(called[0] - resumed_at - 4), INTERVAL)

    def test_a_timer_that_was_due_is_called_behind_the_sockets(self) -> None:
        """As the heartbeat, which closes a session whose pong lies in the socket."""
        self.reactor.callLater(0.2, lambda: self.reactor.log.append("timer"))
        self.stop_process(seconds=1)
        self.reactor.sockets.append(lambda: self.reactor.log.append("pong"))
        self.reactor.run_for(1)
        self.assertEqual(self.reactor.log[:3], ["poll", "pong", "timer"])

    def test_a_stop_within_a_poll_also_lets_sockets_be_read_first(self) -> None:
        """The poll does not know what arrived meanwhile, and its calls notice the stop."""
        self.reactor.callLater(0.2, lambda: self.reactor.log.append("timer"))
        self.stop_process(seconds=1)
        self.reactor.callLater(0, lambda: None)
        self.reactor.sockets.append(lambda: self.reactor.log.append("pong"))
        self.reactor.run_for(1)
        self.assertEqual(self.reactor.log[:3], ["poll", "pong", "timer"])

    def test_time_that_the_process_uses_counts(self) -> None:
        """Clients could cause work to extend their deadlines; sockets are read first."""
        self.deadlines.start("client")
        self.reactor.run_for(3)
        self.stop_process(cpu=STOP)
        self.reactor.sockets.append(lambda: self.reactor.log.append("read"))
        self.reactor.run_for(0.1)
        self.assertEqual(self.reactor.log[:3], ["poll", "read", "expired client"])
        self.assertEqual(self.clock.stopped, 0)

    def test_without_a_stop_deadlines_last_as_long_as_before(self) -> None:
        self.deadlines.start("client")
        self.reactor.run_for(9.9)
        self.assertEqual(self.expired, [])
        self.reactor.run_for(0.2)
        self.assertEqual(self.expired, ["client"])
        self.assertEqual(self.clock.stopped, 0)

    def test_a_stop_during_the_calls_of_timers(self) -> None:
        """The next deadline of this iteration sees the time that is put off."""
        self.deadlines.start("first")
        self.reactor.run_for(5)
        self.deadlines.start("second")
        self.reactor.callLater(4.99, self.stop_process)
        self.reactor.run_for(5 + STOP)
        self.reactor.run_for(1)
        self.assertNotIn("second", self.expired)

    def test_calls_that_are_made_after_the_stop_are_not_put_off(self) -> None:
        """As work for the next iteration, which bytes in the first poll cause."""
        for delay in (0, 2):
            with self.subTest(delay=delay):
                self.reactor.run_for(1)
                self.stop_process()
                self.reactor.sockets.append(
                    lambda delay=delay: self.reactor.callLater(
                        delay, lambda: self.reactor.log.append("called")
                    )
                )
                self.reactor.doIteration(0)  # the poll in which the process was stopped
                self.reactor.run_for(delay + 0.1)
                self.assertIn("called", self.reactor.log)

    def test_deadlines_are_put_off_although_calls_are_made_after_the_stop(self) -> None:
        self.deadlines.start("client")
        self.reactor.run_for(3)
        self.stop_process()
        self.reactor.sockets.append(lambda: self.reactor.callLater(0, lambda: None))
        self.reactor.doIteration(0)
        self.reactor.run_for(6)
        self.assertEqual(self.expired, [])
        self.reactor.run_for(1 + INTERVAL)
        self.assertEqual(self.expired, ["client"])

    def test_a_long_stop_is_logged_once(self) -> None:
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.stop_process(seconds=INTERVAL + 2 * LATE)
        self.reactor.run_for(5)
        self.assertEqual(events, [])
        self.stop_process()
        self.reactor.run_for(5)
        [event] = events
        self.assertLessEqual(abs(event["seconds"] - STOP), INTERVAL)

    def test_stop_restores_the_reactor(self) -> None:
        self.clock.stop()
        self.assertEqual(self.reactor.runUntilCurrent.__func__, ReactorBase.runUntilCurrent)
        self.assertEqual(self.reactor.callLater.__func__, ReactorBase.callLater)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.stop_process()
        self.assertEqual(self.clock.seconds(), self.reactor.now)

    def test_a_reactor_with_another_main_loop_is_left_alone(self) -> None:
        clock = Clock()
        deadline_clock = DeadlineClock(clock, lambda: 0.0)
        deadline_clock.start()
        clock.advance(100)
        self.assertEqual((deadline_clock.seconds(), clock.getDelayedCalls()), (100, []))
        deadline_clock.stop()
