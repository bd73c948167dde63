"""Runs topicsvc with an additional control port, which publishes messages and measures memory.

Usage: ``python -m bench.server CONFIG``. It prints its ports on one line, the control port last.
See `Control` for the commands.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from functools import cache
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.protocols.basic import LineOnlyReceiver

from bench.message import SENDER, body
from bench.sessions import pin
from topicsvc import config
from topicsvc.interfaces import Message
from topicsvc.process.setup import tune_gc, use_monotonic_clock
from topicsvc.service import TopicService
from topicsvc.topics import TopicAddress


@cache
def topic(number: int) -> TopicAddress:
    return TopicAddress("cell1", "box1", ("col",), f"t{number}")


class Iterations:
    """Measures the processor time of each reactor iteration, in seconds."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._last = time.thread_time()
        self._timeout = reactor.timeout
        # The main loop calls it once in each iteration.
        reactor.timeout = self._measure

    def take(self) -> list[float]:
        """Return the times since the last call."""
        times, self._times = self._times, []
        return times

    def _measure(self) -> float | None:
        now = time.thread_time()
        self._times.append(now - self._last)
        self._last = now
        return self._timeout()


class Control(LineOnlyReceiver):
    """The control port: one command on each line.

    ``burst N`` publishes one message to each of the first N topics, without HTTP, to measure
    the fan-out alone. ``memory`` returns the resident memory in bytes. ``lag`` returns the
    longest delay of a timer since the last ``lag``, in microseconds; the first one starts it.
    ``iterations`` returns the processor time of each reactor iteration since the last
    ``iterations``, in microseconds; the first one starts it.
    """

    delimiter = b"\n"
    max_lag = 0.0
    is_measuring = False
    iterations: Iterations | None = None

    def lineReceived(self, line: bytes) -> None:
        if line == b"memory":
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.sendLine(b"%d" % (pages * os.sysconf("SC_PAGE_SIZE")))
            return
        if line == b"lag":
            self.sendLine(b"%d" % (self.max_lag * 1e6))
            self.max_lag = 0.0
            if not self.is_measuring:
                self.is_measuring = True
                self.measure(reactor.seconds())
            return
        if line == b"iterations":
            if self.iterations is None:
                self.iterations = Iterations()
            self.sendLine(b" ".join(b"%d" % (1e6 * each) for each in self.iterations.take()))
            return
        for number in range(int(line.split()[1])):
            self.factory.broker.publish(Message(topic(number), SENDER, body()))

    def measure(self, due: float) -> None:
        """Record how late this call is, and schedule the next one in 1 ms."""
        now = reactor.seconds()
        self.max_lag = max(self.max_lag, now - due)
        reactor.callLater(0.001, self.measure, now + 0.001)


def main() -> None:
    pin(0)
    log = open(sys.argv[1] + ".log", "w")  # noqa: SIM115 - open until the process ends
    globalLogBeginner.beginLoggingTo([textFileLogObserver(log)], redirectStandardIO=False)
    use_monotonic_clock(reactor)
    service = TopicService(config.read(Path(sys.argv[1])), reactor)
    service.privilegedStartService()
    service.startService()
    tune_gc()
    control = Factory.forProtocol(Control)
    control.broker = service.broker
    ports = [port.getHost().port for port in service.ports]
    ports.append(reactor.listenTCP(0, control, interface="127.0.0.1").getHost().port)
    print(*ports, flush=True)
    reactor.run()


main()
