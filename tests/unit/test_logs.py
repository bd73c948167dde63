"""The log as JSON, one object on each line, and as text for people."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import fail
from twisted.logger import FileLogObserver, Logger, globalLogPublisher
from twisted.python import log as legacy_log
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.logs import as_json, as_text, json_lines, of_worker, problem


class AsJsonTests(SynchronousTestCase):
    log = Logger()

    def setUp(self) -> None:
        self.lines: list[str] = []
        observer = lambda event: self.lines.append(as_json(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def test_an_event_is_one_line_with_its_fields(self) -> None:
        self.log.warn("it is {what}\nfor {seconds:.1f} s", what="lost", seconds=1.25, n=None)
        [line] = self.lines
        self.assertEqual((line.count("\n"), line[-1]), (1, "\n"))
        [record] = self.records
        self.assertRegex(record.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
        self.assertEqual(
            record,
            {"level": "warn", "system": "tests.unit.test_logs.AsJsonTests",
             "message": "it is lost\nfor 1.2 s",
             "what": "lost", "seconds": 1.25, "n": None},
        )  # fmt: skip

    def test_values_of_other_types_are_only_in_the_message(self) -> None:
        self.log.info("{path} {number} {thing}", path=b"/\xff", number=float("inf"), thing=self.id)
        [record] = self.records
        self.assertEqual(set(record), {"time", "level", "system", "message"})
        self.assertIn("inf", record["message"])

    def test_a_failure_has_type_and_traceback_but_no_text(self) -> None:
        try:
            raise KeyError("a-secret-token")
        except KeyError:
            self.log.failure("it failed for {name}", name="somebody")
        legacy_log.err(KeyError("a-secret-token"), "the legacy log")
        fail(KeyError("a-secret-token"))
        self.assertGreaterEqual(len(self.flushLoggedErrors(KeyError)), 3)
        self.assertNotIn("a-secret-token", "".join(self.lines))
        first, legacy, *_, unhandled = self.records
        self.assertEqual(first["message"], "it failed for somebody")
        self.assertEqual(first["error"], "builtins.KeyError")
        self.assertRegex(first["traceback"][-1], r"test_logs\.py:\d+ in test_a_failure")
        self.assertEqual(
            (legacy["message"], legacy["error"]), ("the legacy log", "builtins.KeyError")
        )
        self.assertEqual(unhandled["error"], "builtins.KeyError")

    def test_an_os_error_has_its_strerror(self) -> None:
        try:
            Path("/nowhere/at/all").read_bytes()
        except OSError:
            self.log.failure("no file")
        self.flushLoggedErrors(OSError)
        self.assertEqual(self.records[0]["strerror"], "No such file or directory")

    def test_it_writes_to_standard_output_before_redirection(self) -> None:
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        observer = json_lines()
        self.patch(sys, "stdout", io.StringIO())
        observer({"log_time": 0, "log_format": "hello"})
        self.assertEqual(json.loads(out.getvalue())["message"], "hello")


class AsTextTests(SynchronousTestCase):
    log = Logger()

    def setUp(self) -> None:
        self.text = ""

        def observe(event: dict[str, Any]) -> None:
            self.text += as_text(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def test_an_event_is_one_line_with_time_level_and_text(self) -> None:
        self.log.warn("it is {what}", what="lost")
        self.log.critical("it is gone")
        time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"
        self.assertRegex(self.text, rf"\A{time} warn  it is lost\n{time} critical it is gone\n\Z")

    def test_text_of_the_network_does_not_drive_a_terminal(self) -> None:
        self.log.info("refused: {reason}", reason="a\nb\x9b2J\u202e")
        self.assertTrue(self.text.endswith("refused: a\\u000ab\\u009b2J\\u202e\n"), self.text)

    def test_a_failure_has_its_traceback_and_type_but_no_text(self) -> None:
        try:
            raise OSError(2, "No such file", "a-secret-token")
        except OSError:
            self.log.failure("it failed")
        self.flushLoggedErrors(OSError)
        self.assertRegex(
            self.text,
            r"\A\S+ critical it failed\n\t\S+test_logs\.py:\d+ in test_a_failure_has\w+"
            r"\n\tbuiltins\.FileNotFoundError: No such file\n\Z",
        )

    def test_what_twistd_logs_about_itself_is_left_out(self) -> None:
        Logger("twisted.scripts._twistd_unix.UnixAppLogger").info("twistd starting up")
        self.assertEqual(self.text, "")


class ProblemTests(SynchronousTestCase):
    def test_output_that_would_be_lost_is_refused(self) -> None:
        good = {"logger": json_lines, "nodaemon": True, "logfile": None, "syslog": False}
        self.assertIsNone(problem(good))
        self.assertIsNone(problem({}))
        self.assertIsNone(problem({"logger": print, "nodaemon": False}))
        self.assertIn("--nodaemon", problem({**good, "nodaemon": False}))
        self.assertIn("--logfile", problem({**good, "logfile": "x"}))
        self.assertIn("--syslog", problem({**good, "syslog": True}))


class WorkerTests(SynchronousTestCase):
    """Lines of workers have the number of the worker."""

    def lines(self, number: int | None) -> list[str]:
        """An event as text and as JSON."""
        found: list[str] = []
        for formatter in (as_text, as_json):
            out = io.StringIO()
            observer: Any = FileLogObserver(out, formatter)
            if number is not None:
                observer = of_worker(observer, number)
            Logger("x", observer=observer).info("it is {what}", what="lost")
            found.append(out.getvalue())
        return found

    def test_text_has_it_in_front_of_the_message(self) -> None:
        self.assertTrue(self.lines(12)[0].endswith(" info  worker 12: it is lost\n"))
        self.assertTrue(self.lines(None)[0].endswith(" info  it is lost\n"))

    def test_json_has_a_field(self) -> None:
        record = json.loads(self.lines(12)[1])
        self.assertEqual((record["worker"], record["message"]), (12, "it is lost"))
        self.assertNotIn("worker", json.loads(self.lines(None)[1]))
