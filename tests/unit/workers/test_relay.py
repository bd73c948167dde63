"""The log of a worker reaches the log of the parent."""

from __future__ import annotations

import io
import os
from typing import Any

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    textFileLogObserver,
)
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.workers.relay import MAX_LINE, LogReceiver, relay_to


class RelayTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.read, self.write = os.pipe()
        self.addCleanup(os.close, self.read)
        self.events: list[LogEvent] = []
        self.log = Logger("topicsvc.service", observer=self.observer())
        self.receiver = LogReceiver(2, self.events.append)

    def observer(self) -> ILogObserver:
        return LogPublisher(relay_to(self.write))

    def received(self) -> list[LogEvent]:
        os.close(self.write)
        while data := os.read(self.read, 7):
            self.receiver.receive(data)
        return self.events

    def test_an_event_arrives_with_its_text_its_level_and_the_number_of_the_worker(self) -> None:
        self.log.warn("session {session} of {peer}", session=7, peer="192.0.2.1", other=object())
        [event] = self.received()
        self.assertEqual(event["log_level"], LogLevel.warn)
        self.assertEqual((event["worker"], event["session"], event["peer"]), (2, 7, "192.0.2.1"))
        self.assertNotIn("other", event)
        out = io.StringIO()
        textFileLogObserver(out)(event)
        self.assertIn("[worker 2, topicsvc.service#warn] session 7 of 192.0.2.1\n", out.getvalue())

    def test_a_traceback_arrives(self) -> None:
        try:
            raise ZeroDivisionError("it is zero")
        except ZeroDivisionError:
            self.log.failure("internal error")
        [event] = self.received()
        self.assertIn("ZeroDivisionError: it is zero", event["text"])

    def test_braces_and_lines_of_a_text_stay(self) -> None:
        self.log.info("{text}", text="{a}\nb \u2028 \udc80")
        [event] = self.received()
        self.assertEqual(event["text"], "{a}\nb \u2028 \udc80")

    def test_a_long_text_is_cut(self) -> None:
        self.patch(os, "write", self.collect)
        self.collected = b""
        self.log.info("{text}", text="\u2028" * MAX_LINE, more="x" * MAX_LINE)
        self.assertLess(len(self.collected), MAX_LINE)
        self.receiver.receive(self.collected)
        self.assertEqual(len(self.events), 1)
        os.close(self.write)

    def collect(self, _: int, data: bytes) -> int:
        """Write at most 1,000 bytes at once."""
        self.collected += data[:1000]
        return len(data[:1000])

    def test_what_a_killed_worker_has_left_and_endless_lines_are_dropped(self) -> None:
        os.close(self.write)
        self.receiver.receive(b'{"time": 1, "lev\n')
        self.receiver.receive(b"x" * (MAX_LINE + 1))
        self.receiver.receive(b"\n")
        self.assertEqual(self.events, [])
        rest: Any = self.receiver._rest
        self.assertEqual(rest, b"")
