"""Which changes of a configuration are applied to a running service."""

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
    OperatorSettings,
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

    def test_equal_configurations(self) -> None:
        same = Unit("https://unit1.example/")
        changes = self.compare(unit=same, validator=PersoniumSettings(same, "u", "secret"))
        self.assertEqual(
            (changes.applied, changes.needs_restart, changes.validation), ((), (), False)
        )

    def test_settings_that_are_applied_at_once(self) -> None:
        for field, value, name in (
            ("session", SessionSettings(ping_interval=1), "[session]"),
            ("send", SendSettings(max_body=1), "[send]"),
            ("stop", StopSettings(1), "[stop]"),
            ("validator", LocalSettings(b"k"), "[validator]"),
            ("checks", CheckSettings(timeout=1), "[validator]"),
            ("operator", OperatorSettings(True, "t"), "[admin]"),
            ("topics", (TopicPattern.parse("/*"),), "topics"),
        ):
            changes = self.compare(**{field: value})
            self.assertEqual((changes.applied, changes.needs_restart), ((name,), ()))
            self.assertEqual(getattr(changes.settings, field), value)
            self.assertEqual(changes.validation, field in ("validator", "checks", "topics"))

    def test_settings_that_need_a_restart(self) -> None:
        for field, value, name in (
            ("listen", ("tcp:2",), "listen"),
            ("admin", "tcp:3", "admin.listen"),
            ("broker", ActiveMQSettings("tcp:x:1"), "[broker]"),
            ("unit", Unit("https://unit2.example/"), "unit_url, hosts or validator.cell_urls"),
        ):
            changes = self.compare(**{field: value}, stop=StopSettings(1))
            self.assertEqual((changes.applied, changes.needs_restart), (("[stop]",), (name,)))
            self.assertEqual(changes.settings, replace(OLD, stop=StopSettings(1)))

    def test_with_another_unit_validation_changes_at_the_restart(self) -> None:
        unit = Unit("https://unit2.example/")
        changes = self.compare(unit=unit, validator=PersoniumSettings(unit, "u", "secret"))
        self.assertEqual(changes.settings, OLD)
        self.assertFalse(changes.validation)
        self.assertIn("[validator] and topics (because the unit changes)", changes.needs_restart)

    def test_no_secret_is_in_the_names(self) -> None:
        self.assertNotIn("secret", str(self.compare(validator=LocalSettings(b"k")).applied))
