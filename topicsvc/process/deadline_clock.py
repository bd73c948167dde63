"""A clock for deadlines that stands still while the process does not run.

A process can be stopped (SIGSTOP, a debugger), its machine suspended or its processor taken away.
Bytes of clients arrive meanwhile. Afterwards, Twisted calls the timers before it reads sockets:
each deadline would have passed although the client kept it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

__all__ = ["INTERVAL", "LATE", "LOG_FROM", "DeadlineClock"]

INTERVAL = 0.5
"""Seconds between two looks at the clock."""

LATE = 0.25
"""Seconds by which a timer is late before its iteration reads sockets first."""

LOG_FROM = 1.0
"""Seconds of a stop from which on it is logged."""


@implementer(IReactorTime)
class DeadlineClock:
    """Measures deadlines of clients; `start` is called before the reactor runs.

    If a timer is late by more than `LATE`:

    1. All timers, and this clock, are put off by the time in which the process did not run. Time
       that the process used itself counts: clients could cause it.
    2. Sockets are read and written once, before timers are called.

    With a reactor that has another main loop, such as Twisted's for asyncio, this clock is that of
    the reactor.

    Args:
        reactor: the reactor.
        cpu_time: seconds of processor time that the process has used.

    Attributes:
        stopped: seconds in which the process did not run since `start`.
    """

    _log = Logger()

    def __init__(self, reactor: Any, cpu_time: Callable[[], float]) -> None:
        self.stopped = 0.0
        self._reactor = reactor
        self._cpu_time = cpu_time
        self._cpu = 0.0  # at the last look
        self._due = inf  # the next look
        self._late_at = inf
        self._reads_first = False  # before timers are called
        self._look_call: IDelayedCall | None = None
        self._call_timers: Callable[[], None] | None = None
        self._add_call: Callable[..., IDelayedCall] | None = None

    def start(self) -> None:
        """Watch the reactor from now on."""
        reactor = self._reactor
        if not isinstance(reactor, ReactorBase):
            return
        if type(reactor).doIteration is ReactorBase.doIteration:
            return
        self._call_timers = reactor.runUntilCurrent
        reactor.runUntilCurrent = self._run_until_current  # type: ignore[method-assign]
        self._add_call = reactor.callLater
        reactor.callLater = self._call_later  # type: ignore[assignment, method-assign]
        self._look()

    def stop(self) -> None:
        """Watch no longer."""
        if self._look_call is not None:
            self._look_call.cancel()
            self._look_call = None
        self._due = self._late_at = inf
        if vars(self._reactor).get("runUntilCurrent") == self._run_until_current:
            self._reactor.runUntilCurrent = self._call_timers
            self._reactor.callLater = self._add_call

    def seconds(self) -> float:
        """The time, less that in which the process did not run."""
        now: float = self._reactor.seconds()
        if now > self._late_at:
            self._resume(now)
        return now - self.stopped

    def callLater(
        self,
        delay: float,
        callable: Any,  # noqa: A002 - the interface's name
        *args: Any,
        **kw: Any,
    ) -> IDelayedCall:
        """See `IReactorTime`."""
        call: IDelayedCall = self._reactor.callLater(delay, callable, *args, **kw)
        return call

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """See `IReactorTime`."""
        calls: list[IDelayedCall] = self._reactor.getDelayedCalls()
        return calls

    def _look(self) -> None:
        """Note the time and the processor time; called every `INTERVAL`."""
        self._cpu = self._cpu_time()
        self._due = self._reactor.seconds() + INTERVAL
        self._late_at = self._due + LATE
        self._look_call = self._reactor.callLater(INTERVAL, self._look)

    def _call_later(self, delay: float, *args: Any, **kw: Any) -> IDelayedCall:
        """Make a delayed call, as the reactor does."""
        self.seconds()  # notices a stop: a call that is made after it must not be put off
        assert self._add_call is not None  # noqa: S101 - set by `start`
        return self._add_call(delay, *args, **kw)

    def _run_until_current(self) -> None:
        """Call the timers that are due, as the reactor does in each iteration."""
        now = self._reactor.seconds()
        if now > self._late_at:
            self._resume(now)
        if self._reads_first:
            self._reads_first = False
            self._reactor.doIteration(0)
        assert self._call_timers is not None  # noqa: S101 - set by `start`
        self._call_timers()

    def _resume(self, now: float) -> None:
        """Put off all timers by the time in which the process did not run."""
        cpu = self._cpu_time()
        stopped = now - self._due - (cpu - self._cpu)
        self._cpu = cpu
        # Until `_look` is called, in this iteration or the next.
        self._due = now
        self._late_at = now + INTERVAL + LATE
        self._reads_first = True
        if stopped <= 0:
            return
        self.stopped += stopped
        for call in self._reactor.getDelayedCalls():
            call.delay(stopped)
        if stopped >= LOG_FROM:
            self._log.warn(
                "the process did not run for {seconds:.1f} s: deadlines are put off",
                seconds=stopped,
            )
