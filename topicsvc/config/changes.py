"""Compares two configurations: which changes can be applied to a running service."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from twisted.logger import Logger

from topicsvc.config.broker import queue_problem
from topicsvc.errors import ConfigError
from topicsvc.settings import BrokerSettings, Config, HistorySettings, KafkaSettings, RedisSettings

__all__ = ["PARENT_ONLY", "Changes", "compare", "keep_for_restart", "log_reload"]

_NEEDS_RESTART = {
    "listen": "listen",
    "admin": "admin.listen",
    "unit": "unit_url, hosts or validator.cell_urls",
    "broker": "[broker]",
    "history": "[history]",
    "workers": "workers",
}
"""The fields of `Config` that cannot change while the service runs, and how the log names them."""

PARENT_ONLY = ("listen", "admin", "workers")
"""The fields of `Config` that workers get from their parent, which alone can compare them."""

_NAMES = {"topics": "topics", "checks": "[validator]", "operator": "[admin]"}

_VALIDATION = ("validator", "checks", "topics")
"""The fields of `Config` that determine how tokens are validated."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The result of a comparison.

    Attributes:
        settings: the settings to apply now.
        applied: names of the settings that change now, for the log.
        needs_restart: names of the settings that change only at a restart, for the log.
        validation: whether the validation of tokens changes now.
    """

    settings: Config
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]
    validation: bool


def compare(old: Config, new: Config) -> Changes:
    """Determine which changes from `old` to `new` can be applied while the service runs.

    Token validation may use the unit's URL. If the unit changes, changes of the validation
    therefore need a restart too.

    Raises:
        ConfigError: the settings that would be in effect together do not fit each other.
    """
    changed = {
        each.name for each in fields(Config) if getattr(old, each.name) != getattr(new, each.name)
    }
    needs_restart = {_NEEDS_RESTART[name] for name in changed & set(_NEEDS_RESTART)}
    if _without_history(old.broker) == _without_history(new.broker):
        needs_restart.discard("[broker]")  # it contains [history]
    kept = changed & set(_NEEDS_RESTART)
    if "unit" in kept and changed & set(_VALIDATION):
        kept |= changed & set(_VALIDATION)
        needs_restart.add("[validator] and topics (because the unit changes)")
    applied = changed - kept
    settings = replace(new, **{name: getattr(old, name) for name in kept})
    problem = queue_problem(settings.history, settings.session.send_queue)
    if problem is not None:
        raise ConfigError([f"history.bytes: {problem} (history.bytes changes at a restart only)"])
    return Changes(
        settings,
        tuple(sorted({_NAMES.get(name, f"[{name}]") for name in applied})),
        tuple(sorted(needs_restart)),
        bool(applied & set(_VALIDATION)),
    )


def _without_history(broker: BrokerSettings) -> BrokerSettings:
    if isinstance(broker, RedisSettings | KafkaSettings):
        return replace(broker, history=HistorySettings())
    return broker


def keep_for_restart(old: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """Compare the settings that only the parent of workers can compare.

    Returns:
        `new` with the old values of `PARENT_ONLY`, and the names of those that differ.
    """
    kept = {name: getattr(old, name) for name in PARENT_ONLY}
    differ = [_NEEDS_RESTART[name] for name in PARENT_ONLY if kept[name] != getattr(new, name)]
    return replace(new, **kept), tuple(differ)


def log_reload(log: Logger, applied: Iterable[str], needs_restart: Iterable[str]) -> None:
    """Log what a reload has changed, and what it has not."""
    waiting = sorted(set(needs_restart))
    for what in waiting:
        log.warn("{what}: needs a restart; the old value stays in effect", what=what)
    nothing = "nothing changes without a restart" if waiting else "nothing has changed"
    log.info("reloaded: {what}", what=", ".join(applied) or nothing)
