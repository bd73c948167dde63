"""The results of the doctor's checks, and how checks report them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from topicsvc.settings import Config

__all__ = ["CheckResult", "Reporter"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check.

    Attributes:
        level: whether the check passed.
        subject: what was checked, such as a setting.
        text: what was found, and what to do about it.
    """

    level: Literal["ok", "warn", "FAIL"]
    subject: str
    text: str


class Reporter:
    """Base of classes with checks: reports their results.

    Args:
        settings: the settings to check.
        reactor: the reactor.
        report: called with each result.
        now: returns the time of day, in seconds since the epoch.
    """

    def __init__(
        self,
        settings: Config,
        reactor: Any,
        report: Callable[[CheckResult], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._now = now
        self._reactor = reactor
        self.report = report

    def ok(self, subject: str, text: str) -> None:
        """Report that a check passed."""
        self.report(CheckResult("ok", subject, text))

    def warn(self, subject: str, text: str) -> None:
        """Report something that works or cannot be checked, but needs attention."""
        self.report(CheckResult("warn", subject, text))

    def fail(self, subject: str, text: str) -> None:
        """Report that something does not work."""
        self.report(CheckResult("FAIL", subject, text))
