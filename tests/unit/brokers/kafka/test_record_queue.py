"""The queue of records between the polling thread and the reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.kafka import record_queue
from topicsvc.brokers.kafka.record_queue import Record, RecordQueue


class ThreadedClock(Clock):
    """A clock with `callFromThread`."""

    def callFromThread(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.callLater(0, function, *arguments)

    def iterate(self) -> None:
        """Run one reactor iteration: calls that are scheduled in it wait for the next one."""
        for call in self.getDelayedCalls():
            function, arguments = call.func, call.args
            call.cancel()
            function(*arguments)


def records(*numbers: int, size: int = 1) -> list[Record]:
    return [Record("1", b"%d" % number * size, None, 0, number, 0) for number in numbers]


class RecordQueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ThreadedClock()
        self.taken: list[Record] = []
        self.queue = RecordQueue(self.clock, self.taken.append)

    def test_records_arrive_in_their_order(self) -> None:
        self.queue.put(records(1, 2))
        self.queue.put(records(3))
        self.assertEqual(self.taken, [])
        self.clock.iterate()
        self.assertEqual(self.taken, records(1, 2, 3))
        self.queue.put(records(4))
        self.clock.iterate()
        self.assertEqual(self.taken, records(1, 2, 3, 4))

    def test_one_iteration_takes_a_limited_number_of_records(self) -> None:
        self.patch(record_queue, "RECORDS_PER_ITERATION", 2)
        self.queue.put(records(1, 2, 3, 4, 5))
        counts = []
        for _ in range(4):
            self.clock.iterate()
            counts.append(len(self.taken))
        self.assertEqual(counts, [2, 4, 5, 5])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_iteration_takes_a_limited_number_of_bytes(self) -> None:
        self.queue.put(records(1, 2, 3, size=record_queue.BYTES_PER_ITERATION))
        self.clock.iterate()
        self.assertEqual(len(self.taken), 1)

    def test_it_is_full_by_number_and_has_room_again_at_half_of_it(self) -> None:
        self.patch(record_queue, "MAX_RECORDS", 4)
        self.patch(record_queue, "RECORDS_PER_ITERATION", 1)
        self.queue.put(records(*range(5)))
        seen = [(self.queue.is_full, self.queue.has_room)]
        for _ in range(3):
            self.clock.iterate()
            seen.append((self.queue.is_full, self.queue.has_room))
        self.assertEqual(seen, [(True, False), (False, False), (False, False), (False, True)])

    def test_it_is_full_by_bytes(self) -> None:
        self.patch(record_queue, "MAX_BYTES", 1000)
        self.queue.put(records(1, size=2000))
        self.assertTrue(self.queue.is_full)
        self.clock.iterate()
        self.assertTrue(self.queue.has_room)

    def test_an_exception_for_one_record_does_not_stop_the_next(self) -> None:
        def take(record: Record) -> None:
            if record.value == b"1":
                raise RuntimeError("simulated")
            self.taken.append(record)

        self.queue = RecordQueue(self.clock, take)
        self.queue.put(records(1, 2))
        self.clock.iterate()
        self.assertEqual(self.taken, records(2))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_no_record_is_taken_after_close(self) -> None:
        self.queue.put(records(1))
        self.queue.close()
        self.queue.put(records(2))
        self.clock.iterate()
        self.assertEqual(self.taken, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_record_is_taken_during_a_pause(self) -> None:
        self.queue.put(records(1))
        self.queue.pause()
        self.clock.iterate()
        self.queue.put(records(2))
        self.clock.iterate()
        self.assertEqual(self.taken, [])
        self.assertEqual(self.clock.getDelayedCalls(), [], "no call is scheduled")
        self.queue.resume()
        self.queue.resume()
        self.clock.iterate()
        self.assertEqual(self.taken, records(1, 2))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_callback_may_pause_it(self) -> None:
        def take(record: Record) -> None:
            self.taken.append(record)
            self.queue.pause()

        self.queue = RecordQueue(self.clock, take)
        self.queue.put(records(1, 2))
        self.clock.iterate()
        self.assertEqual(self.taken, records(1))
        self.queue.resume()
        self.clock.iterate()
        self.assertEqual(self.taken, records(1, 2))

    def test_a_paused_queue_becomes_full_and_has_room_after_resume(self) -> None:
        self.patch(record_queue, "MAX_RECORDS", 4)
        self.queue.pause()
        for number in range(5):
            self.queue.put(records(number))
            self.clock.iterate()
        self.assertTrue(self.queue.is_full)
        self.queue.resume()
        self.clock.iterate()
        self.assertTrue(self.queue.has_room)

    def test_a_queue_that_is_closed_during_a_pause_stays_empty(self) -> None:
        self.queue.put(records(1))
        self.queue.pause()
        self.queue.close()
        self.queue.resume()
        self.clock.iterate()
        self.assertEqual(self.taken, [])
