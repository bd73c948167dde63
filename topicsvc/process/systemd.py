"""Adapter: what systemd is told: ready, reloading, stopping, and that the loop turns.

One datagram to the socket that ``$NOTIFY_SOCKET`` names (sd_notify(3)). Without it nobody
wants to know, and nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from math import ceil

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

__all__ = ["SystemdNotifier"]

_MILLION = 1_000_000


class SystemdNotifier:
    """Tells the service manager where we stand.

    Args:
        environment: where its wishes are: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC``, ``WATCHDOG_PID``.
        clock: turns the watchdog's wheel.
        monotonic: the seconds of ``CLOCK_MONOTONIC``, which systemd compares with.
    """

    _log = Logger()

    def __init__(
        self,
        environment: Mapping[str, str],
        clock: IReactorTime,
        monotonic: Callable[[], float],
    ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._monotonic = monotonic
        self._complained = False
        self._alive: LoopingCall | None = None
        patience = _patience(environment)
        if self._address and patience:
            self._alive = LoopingCall(self._tell, "WATCHDOG=1")
            self._alive.clock = clock
            # Half of it, as sd_watchdog_enabled(3) advises.
            self._every = patience / 2

    def ready(self) -> None:
        """Started, or reloaded."""
        self._tell("READY=1")
        if self._alive is not None and not self._alive.running:
            self._alive.start(self._every)

    def reloading(self) -> None:
        """The settings are being read again; `ready` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(self._monotonic() * _MILLION)}")

    def stopping(self, seconds: float) -> None:
        """Stopping has begun, and will not take longer than so many seconds."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={ceil(seconds) * _MILLION}")

    def stopped(self) -> None:
        """The end: the loop need not turn any more."""
        if self._alive is not None and self._alive.running:
            self._alive.stop()

    def _tell(self, *assignments: str) -> None:
        """Send one datagram; that it cannot be sent is told once and harms nobody."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(assignments).encode("ascii"), self._address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._log.warn(
                    "$NOTIFY_SOCKET cannot be told: {reason}", reason=error.strerror or str(error)
                )


def _address(name: str) -> str:
    """The address of a socket: a path, or an abstract name behind an at sign."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _patience(environment: Mapping[str, str]) -> float:
    """Seconds of silence after which the watchdog bites; 0: there is none for this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / _MILLION if text.isdecimal() else 0
