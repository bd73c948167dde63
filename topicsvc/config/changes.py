"""Composition: what of two configurations a running service can go over to."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from topicsvc.settings import (
    Config,
)

__all__ = ["Changes", "compare"]

_FIXED = {
    "listen": "listen",
    "admin": "admin",
    "unit": "unit_url, hosts or validator.cell_urls",
    "broker": "[broker]",
}
"""What a process is built around, and how an operator knows it."""

_NAMES = {"topics": "topics", "checks": "[validator]"}

_JUDGED = ("validator", "checks", "topics")
"""What a judge of tokens is made of."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What changes, and what would have to.

    Attributes:
        settings: what holds from now on.
        taken: which settings are new, as an operator knows them.
        waiting: which need a restart; the old ones hold until then.
        judge: whether tokens are judged in another way.
    """

    settings: Config
    taken: tuple[str, ...]
    waiting: tuple[str, ...]
    judge: bool


def compare(old: Config, new: Config) -> Changes:
    """How a service with `old` can follow `new`.

    A judge may ask the unit that the settings name, so with a new unit it waits as well.
    """
    changed = {
        each.name for each in fields(Config) if getattr(old, each.name) != getattr(new, each.name)
    }
    waiting = {_FIXED[name] for name in changed & set(_FIXED)}
    left = changed & set(_FIXED)
    if "unit" in left and changed & set(_JUDGED):
        left |= changed & set(_JUDGED)
        waiting.add("[validator] and topics, with it")
    taken = changed - left
    return Changes(
        replace(new, **{name: getattr(old, name) for name in left}),
        tuple(sorted({_NAMES.get(name, f"[{name}]") for name in taken})),
        tuple(sorted(waiting)),
        bool(taken & set(_JUDGED)),
    )
