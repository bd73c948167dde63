"""Which changes of a configuration are applied to a running service."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.config.changes import Changes, compare, keep_for_restart, log_reload
from topicsvc.errors import ConfigError
from topicsvc.settings import (
    ActiveMQSettings,
    CheckSettings,
    Config,
    HistorySettings,
    KafkaSettings,
    LocalSettings,
    OperatorSettings,
    PersoniumSettings,
    RedisSettings,
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

    def test_another_history_alone_is_not_another_broker(self) -> None:
        """The settings of Redis and Kafka contain those of ``[history]``."""
        new = HistorySettings(messages=7)
        for make in (RedisSettings, KafkaSettings):
            old = replace(OLD, broker=make("a"))
            changes = compare(old, replace(old, history=new, broker=make("a", history=new)))
            self.assertEqual((changes.needs_restart, changes.settings), (("[history]",), old))
            changes = compare(old, replace(old, history=new, broker=make("b", history=new)))
            self.assertEqual(changes.needs_restart, ("[broker]", "[history]"))
            self.assertEqual(changes.settings, old)

    def test_a_send_queue_that_is_too_small_for_the_history_in_effect_is_refused(self) -> None:
        """The new history would fit, but the old one stays in effect until a restart."""
        small = SessionSettings(send_queue=65536)
        new = replace(OLD, session=small, history=HistorySettings(bytes=32768))
        [problem] = self.assertRaises(ConfigError, compare, OLD, new).problems
        self.assertEqual(
            problem,
            "history.bytes: 524288 is more than half of session.send_queue, 65536; a client that "
            "returns would be closed as a slow consumer; allowed: at most 32768, or a larger "
            "session.send_queue (history.bytes changes at a restart only)",
        )
        enough = self.compare(session=SessionSettings(send_queue=1048576))
        self.assertEqual(enough.needs_restart, ())
        off = replace(OLD, history=HistorySettings(seconds=0))
        self.assertEqual(compare(off, replace(off, session=small)).applied, ("[session]",))

    def test_the_parent_keeps_what_only_a_restart_changes(self) -> None:
        new = replace(OLD, listen=("tcp:2",), admin="tcp:3", workers=2, stop=StopSettings(1))
        settings, differ = keep_for_restart(OLD, new)
        self.assertEqual(settings, replace(OLD, stop=StopSettings(1)))
        self.assertEqual(differ, ("listen", "admin.listen", "workers"))
        self.assertEqual(keep_for_restart(OLD, OLD), (OLD, ()))


class LogTests(SynchronousTestCase):
    def lines(self, applied: list[str], needs_restart: list[str]) -> list[str]:
        lines: list[str] = []

        class Log:
            def info(self, text: str, **fields: str) -> None:
                lines.append(text.format(**fields))

            warn = info

        log_reload(Log(), applied, needs_restart)  # type: ignore[arg-type]
        return lines

    def test_the_last_line_does_not_contradict_the_others(self) -> None:
        waits = "workers: needs a restart; the old value stays in effect"
        for applied, waiting, lines in (
            ([], [], ["reloaded: nothing has changed"]),
            ([], ["workers"] * 2, [waits, "reloaded: nothing changes without a restart"]),
            (["[send]"], ["workers"], [waits, "reloaded: [send]"]),
        ):
            self.assertEqual(self.lines(applied, waiting), lines)
