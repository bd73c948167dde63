"""Notifies systemd that the service is ready, reloading or stopping, and feeds its watchdog.

Each notification is one datagram to the socket that ``$NOTIFY_SOCKET`` names (sd_notify(3)).
If the variable is not set, nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from math import ceil

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

__all__ = ["SystemdNotifier"]

_MICROSECONDS = 1_000_000


class SystemdNotifier:
    """Sends the state of the service to systemd.

    Args:
        environment: gives ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.
        clock: schedules the watchdog's messages.
        monotonic: returns the seconds of ``CLOCK_MONOTONIC``, which systemd compares with.
        probe: called with the seconds until the next message to the watchdog; the message is sent
            when its Deferred has fired, and not if that fails. None: it is sent at once.
    """

    _log = Logger()

    def __init__(
        self,
        environment: Mapping[str, str],
        clock: IReactorTime,
        monotonic: Callable[[], float],
        probe: Callable[[float], Deferred[object]] | None = None,
    ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._monotonic = monotonic
        self._probe = probe
        self._has_warned = False
        self._watchdog: LoopingCall | None = None
        timeout = _watchdog_timeout(environment)
        if self._address and timeout:
            self._watchdog = LoopingCall(self._feed)
            self._watchdog.clock = clock
            # sd_watchdog_enabled(3) recommends half of the timeout.
            self._interval = timeout / 2

    def ready(self) -> None:
        """The service has started or reloaded."""
        self._notify("READY=1")
        if self._watchdog is not None and not self._watchdog.running:
            self._watchdog.start(self._interval)

    def reloading(self) -> None:
        """The settings are being read again; `ready` reports the end of that."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={int(self._monotonic() * _MICROSECONDS)}")

    def stopping(self, seconds: float) -> None:
        """The service has begun to stop, and needs at most this many seconds."""
        self._notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={ceil(seconds) * _MICROSECONDS}")

    def stopped(self) -> None:
        """The service has stopped: the watchdog gets no more messages."""
        if self._watchdog is not None and self._watchdog.running:
            self._watchdog.stop()

    def _feed(self) -> None:
        """Tell the watchdog that the service works, if it does."""
        if self._probe is None:
            self._notify("WATCHDOG=1")
            return
        self._probe(self._interval).addCallbacks(
            lambda _: self._notify("WATCHDOG=1"), lambda _: None
        )

    def _notify(self, *assignments: str) -> None:
        """Send one datagram. The first failure is logged, later ones are ignored."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(assignments).encode("ascii"), self._address)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self._log.warn(
                    "cannot notify systemd through $NOTIFY_SOCKET: {reason}",
                    reason=error.strerror or str(error),
                )


def _address(name: str) -> str:
    """The socket's address: a path, or an abstract name (with an at sign in the variable)."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _watchdog_timeout(environment: Mapping[str, str]) -> float:
    """The watchdog timeout, in seconds; 0: this process has no watchdog."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / _MICROSECONDS if text.isdecimal() else 0
