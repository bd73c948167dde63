from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.kafka import record_queue
from topicsvc.brokers.kafka.record_queue import Record, RecordQueue


class ThreadedClock(Clock):
    """A clock that other threads report to."""

    def callFromThread(self, do: Callable[..., Any], *arguments: Any) -> None:
        self.callLater(0, do, *arguments)

    def turn(self) -> None:
        """One turn of the reactor: what is asked for in it waits for the next."""
        for call in self.getDelayedCalls():
            do, arguments = call.func, call.args
            call.cancel()
            do(*arguments)


def records(*numbers: int, size: int = 1) -> list[Record]:
    return [Record("1", b"%d" % number * size, None) for number in numbers]


class InflowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ThreadedClock()
        self.taken: list[Record] = []
        self.inflow = RecordQueue(self.clock, self.taken.append)

    def test_all_arrives_in_its_order(self) -> None:
        self.inflow.put(records(1, 2))
        self.inflow.put(records(3))
        self.assertEqual(self.taken, [])
        self.clock.turn()
        self.assertEqual(self.taken, records(1, 2, 3))
        self.inflow.put(records(4))
        self.clock.turn()
        self.assertEqual(self.taken, records(1, 2, 3, 4))

    def test_a_turn_takes_a_number_of_them(self) -> None:
        self.patch(record_queue, "TURN_RECORDS", 2)
        self.inflow.put(records(1, 2, 3, 4, 5))
        counts = []
        for _ in range(4):
            self.clock.turn()
            counts.append(len(self.taken))
        self.assertEqual(counts, [2, 4, 5, 5])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_turn_takes_a_number_of_bytes(self) -> None:
        self.inflow.put(records(1, 2, 3, size=record_queue.TURN_BYTES))
        self.clock.turn()
        self.assertEqual(len(self.taken), 1)

    def test_it_is_full_by_number_and_has_room_again_at_the_half(self) -> None:
        self.patch(record_queue, "MOST_RECORDS", 4)
        self.patch(record_queue, "TURN_RECORDS", 1)
        self.inflow.put(records(*range(5)))
        seen = [(self.inflow.is_full, self.inflow.has_room)]
        for _ in range(3):
            self.clock.turn()
            seen.append((self.inflow.is_full, self.inflow.has_room))
        self.assertEqual(seen, [(True, False), (False, False), (False, False), (False, True)])

    def test_it_is_full_by_bytes(self) -> None:
        self.patch(record_queue, "MOST_BYTES", 1000)
        self.inflow.put(records(1, size=2000))
        self.assertTrue(self.inflow.is_full)
        self.clock.turn()
        self.assertTrue(self.inflow.has_room)

    def test_one_that_cannot_be_taken_does_not_keep_the_next(self) -> None:
        def take(record: Record) -> None:
            if record.value == b"1":
                raise RuntimeError("said the test")
            self.taken.append(record)

        self.inflow = RecordQueue(self.clock, take)
        self.inflow.put(records(1, 2))
        self.clock.turn()
        self.assertEqual(self.taken, records(2))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_nothing_is_taken_once_it_is_closed(self) -> None:
        self.inflow.put(records(1))
        self.inflow.close()
        self.inflow.put(records(2))
        self.clock.turn()
        self.assertEqual(self.taken, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing_is_taken_while_it_is_paused(self) -> None:
        self.inflow.put(records(1))
        self.inflow.pause()
        self.clock.turn()
        self.inflow.put(records(2))
        self.clock.turn()
        self.assertEqual(self.taken, [])
        self.assertEqual(self.clock.getDelayedCalls(), [], "nobody looks in vain")
        self.inflow.resume()
        self.inflow.resume()
        self.clock.turn()
        self.assertEqual(self.taken, records(1, 2))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_can_be_paused_by_the_one_who_takes(self) -> None:
        def take(record: Record) -> None:
            self.taken.append(record)
            self.inflow.pause()

        self.inflow = RecordQueue(self.clock, take)
        self.inflow.put(records(1, 2))
        self.clock.turn()
        self.assertEqual(self.taken, records(1))
        self.inflow.resume()
        self.clock.turn()
        self.assertEqual(self.taken, records(1, 2))

    def test_one_that_is_paused_becomes_full_and_has_room_when_it_goes_on(self) -> None:
        self.patch(record_queue, "MOST_RECORDS", 4)
        self.inflow.pause()
        for number in range(5):
            self.inflow.put(records(number))
            self.clock.turn()
        self.assertTrue(self.inflow.is_full)
        self.inflow.resume()
        self.clock.turn()
        self.assertTrue(self.inflow.has_room)

    def test_one_that_is_closed_while_it_is_paused_stays_empty(self) -> None:
        self.inflow.put(records(1))
        self.inflow.pause()
        self.inflow.close()
        self.inflow.resume()
        self.clock.turn()
        self.assertEqual(self.taken, [])
