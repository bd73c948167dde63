"""The notifications that systemd receives on its socket."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process.systemd import SystemdNotifier


class SystemdNotifierTests(SynchronousTestCase):
    def setUp(self) -> None:
        # A path in trial's directory would be too long for a socket.
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.clock = Clock()
        self.systemd = self.listen(str(Path(directory.name) / "notify"))

    def listen(self, address: str) -> socket.socket:
        systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(systemd.close)
        systemd.bind(address)
        systemd.setblocking(False)
        return systemd

    def notifier(self, **environment: str) -> SystemdNotifier:
        environment.setdefault("NOTIFY_SOCKET", self.systemd.getsockname())
        notifier = SystemdNotifier(environment, self.clock, lambda: 12.5)
        self.addCleanup(notifier.stopped)
        return notifier

    def received(self) -> list[str]:
        """The datagrams since the last call."""
        datagrams = []
        while True:
            try:
                datagrams.append(self.systemd.recv(1000).decode())
            except BlockingIOError:
                return datagrams

    def test_start_reload_and_stop(self) -> None:
        notifier = self.notifier()
        notifier.ready()
        notifier.reloading()
        notifier.ready()
        notifier.stopping(17.2)
        self.assertEqual(
            self.received(),
            [
                "READY=1",
                "RELOADING=1\nMONOTONIC_USEC=12500000",
                "READY=1",
                "STOPPING=1\nEXTEND_TIMEOUT_USEC=18000000",
            ],
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_abstract_socket(self) -> None:
        name = f"topicsvc-test-{os.getpid()}"
        self.systemd = self.listen("\0" + name)
        self.notifier(NOTIFY_SOCKET="@" + name).ready()
        self.assertEqual(self.received(), ["READY=1"])

    def test_the_watchdog_is_fed_by_the_reactor_twice_in_its_timeout(self) -> None:
        notifier = self.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
        self.assertEqual(self.received(), [], "not before it is ready")
        notifier.ready()
        self.assertEqual(self.received(), ["READY=1", "WATCHDOG=1"])
        self.clock.advance(14)
        self.assertEqual(self.received(), [])
        self.clock.advance(1)
        self.assertEqual(self.received(), ["WATCHDOG=1"])
        notifier.ready()
        self.assertEqual(self.received(), ["READY=1"], "reloading does not feed it")
        notifier.stopping(1)
        self.clock.advance(15)
        self.assertIn(
            "WATCHDOG=1", self.received(), "the watchdog is fed until the service has stopped"
        )
        notifier.stopped()
        self.clock.advance(60)
        self.assertEqual(self.received(), [])

    def test_the_watchdog_is_fed_only_if_the_probe_succeeds(self) -> None:
        probes: list[Deferred[object]] = []

        def probe(seconds: float) -> Deferred[object]:
            self.assertEqual(seconds, 5)
            probes.append(Deferred())
            return probes[-1]

        environment = {"NOTIFY_SOCKET": self.systemd.getsockname(), "WATCHDOG_USEC": "10000000"}
        notifier = SystemdNotifier(environment, self.clock, lambda: 12.5, probe)
        self.addCleanup(notifier.stopped)
        notifier.ready()
        self.assertEqual(self.received(), ["READY=1"])
        probes[0].callback(None)
        self.assertEqual(self.received(), ["WATCHDOG=1"])
        self.clock.advance(5)
        probes[1].errback(ZeroDivisionError())
        self.assertEqual(self.received(), [])
        self.clock.advance(5)
        probes[2].callback(None)
        self.assertEqual(self.received(), ["WATCHDOG=1"])

    def test_the_watchdog_of_another_process_is_not_fed(self) -> None:
        self.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID="1").ready()
        self.assertEqual(self.received(), ["READY=1"])

    def test_without_systemd_nothing_is_sent(self) -> None:
        for address in ("", "relative", "vsock:2:1234"):
            self.notifier(NOTIFY_SOCKET=address, WATCHDOG_USEC="1000000").ready()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.received(), [])

    def test_a_missing_socket_is_ignored(self) -> None:
        notifier = self.notifier(NOTIFY_SOCKET="/nowhere/notify", WATCHDOG_USEC="2000000")
        notifier.ready()
        self.clock.advance(10)
        self.assertEqual(self.received(), [])
