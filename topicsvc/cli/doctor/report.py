"""What doctor finds, and how it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from topicsvc.settings import Config

__all__ = ["CheckResult", "Reporter"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one trial has shown.

    Attributes:
        level: whether that is good.
        what: what was tried, as an operator knows it.
        text: what was seen, and what to do about it.
    """

    level: Literal["ok", "warn", "FAIL"]
    what: str
    text: str


class Reporter:
    """Tries something and tells what it has found.

    Args:
        settings: what to try.
        reactor: tries it.
        tell: takes each finding.
        now: the time of day, in seconds since the epoch.
    """

    def __init__(
        self,
        settings: Config,
        reactor: Any,
        tell: Callable[[CheckResult], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._now = now
        self._reactor = reactor
        self.tell = tell

    def ok(self, what: str, text: str) -> None:
        """It is good."""
        self.tell(CheckResult("ok", what, text))

    def warn(self, what: str, text: str) -> None:
        """It is good, or cannot be seen, and somebody should look at it."""
        self.tell(CheckResult("warn", what, text))

    def fail(self, what: str, text: str) -> None:
        """It does not work."""
        self.tell(CheckResult("FAIL", what, text))
