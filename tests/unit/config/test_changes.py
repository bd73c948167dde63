"""What of two configurations a running service goes over to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.config.changes import Changes, compare
from topicsvc.settings import (
    ActiveMQSettings,
    CheckSettings,
    Config,
    LocalSettings,
    PersoniumSettings,
    SendSettings,
    SessionSettings,
    StopSettings,
)
from topicsvc.topics import TopicPattern, Unit

UNIT = Unit("https://unit1.example/")
OLD = Config(("tcp:1",), UNIT, PersoniumSettings(UNIT, "u", "secret"))


class CompareTests(SynchronousTestCase):
    def compare(self, **changed: Any) -> Changes:
        return compare(OLD, replace(OLD, **changed))

    def test_nothing(self) -> None:
        same = Unit("https://unit1.example/")
        changes = self.compare(unit=same, validator=PersoniumSettings(same, "u", "secret"))
        self.assertEqual((changes.taken, changes.waiting, changes.judge), ((), (), False))

    def test_what_is_taken(self) -> None:
        for field, value, name in (
            ("session", SessionSettings(ping_interval=1), "[session]"),
            ("send", SendSettings(max_body=1), "[send]"),
            ("stop", StopSettings(1), "[stop]"),
            ("validator", LocalSettings(b"k"), "[validator]"),
            ("checks", CheckSettings(timeout=1), "[validator]"),
            ("topics", (TopicPattern.parse("/*"),), "topics"),
        ):
            changes = self.compare(**{field: value})
            self.assertEqual((changes.taken, changes.waiting), ((name,), ()))
            self.assertEqual(getattr(changes.settings, field), value)
            self.assertEqual(changes.judge, field in ("validator", "checks", "topics"))

    def test_what_needs_a_restart(self) -> None:
        for field, value, name in (
            ("listen", ("tcp:2",), "listen"),
            ("admin", "tcp:3", "admin"),
            ("broker", ActiveMQSettings("tcp:x:1"), "[broker]"),
            ("unit", Unit("https://unit2.example/"), "unit_url, hosts or validator.cell_urls"),
        ):
            changes = self.compare(**{field: value}, stop=StopSettings(1))
            self.assertEqual((changes.taken, changes.waiting), (("[stop]",), (name,)))
            self.assertEqual(changes.settings, replace(OLD, stop=StopSettings(1)))

    def test_another_unit_is_not_asked_before_the_restart(self) -> None:
        unit = Unit("https://unit2.example/")
        changes = self.compare(unit=unit, validator=PersoniumSettings(unit, "u", "secret"))
        self.assertEqual(changes.settings, OLD)
        self.assertFalse(changes.judge)
        self.assertIn("[validator] and topics, with it", changes.waiting)

    def test_no_secret_is_in_a_name(self) -> None:
        self.assertNotIn("secret", str(self.compare(validator=LocalSettings(b"k")).taken))
