"""The command: ``python -m bench [--runs N] [--seconds S] [--quick]``.

Servers run on one core, the load on another. Each run measures each server. Ratios are computed
within a run; the tables show the medians of all runs.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.load import Burst, FanOut, ManyTopics
from bench.probe import Probe
from bench.results import Results
from bench.servers import Library, Nchan, Server, Topicsvc, running
from bench.sessions import Target, open_sessions, pin, start_sessions
from tests.support.certificates import Authority

IN_FLIGHT = (1, 4, 16, 64)
WARM_UP = 0.3
LONG = 65536
"""Body of a long message, in bytes."""


class Bench:
    """All measurements.

    Args:
        directory: for the servers' files.
        subscribers: number of subscribers of the one topic.
        topics: number of topics with one subscriber each.
        starts: number of sessions to start.
        idle: number of idle sessions whose memory is measured.
        seconds: duration of each measurement, in seconds.
        peers: whether peers are measured too.
    """

    def __init__(
        self,
        directory: Path,
        subscribers: int,
        topics: int,
        starts: int,
        idle: int,
        seconds: float,
        peers: bool,
    ) -> None:
        self.directory = directory
        self.subscribers = subscribers
        self.topics = topics
        self.starts = starts
        self.idle = idle
        self.seconds = seconds
        self.peers = peers
        self.results = Results()
        self.authority = Authority(self.directory)

    def run(self) -> None:
        """Make each measurement once."""
        for tls in (False, True):
            self.fan_out("topicsvc", self.topicsvc, tls)
            if self.peers:
                self.fan_out("nchan", self.nchan, tls)
        if self.peers:
            self.fan_out("Autobahn", self.autobahn)
            self.fan_out("websockets", lambda: Library("websockets_broadcast"))
        self.one_topic()
        self.burst()
        self.many_topics("topicsvc", self.topicsvc)
        if self.peers:
            self.many_topics("nchan", self.nchan)
        self.session_starts("topicsvc", self.topicsvc)
        if self.peers:
            self.session_starts("Autobahn, handshake only", self.autobahn)
        self.memory()

    def topicsvc(self) -> Topicsvc:
        return Topicsvc(self.directory, self.authority)

    def nchan(self) -> Nchan:
        return Nchan(self.directory, self.authority)

    def autobahn(self) -> Library:
        return Library("autobahn_broadcast")

    def fan_out(self, name: str, make: Callable[[], Server], tls: bool = False) -> None:
        kind = "TLS" if tls else "plain"
        with running(make) as server:
            target = server.target(True) if tls else server.target()
            with _Open(target, self.subscribers) as subscribers:
                for in_flight in IN_FLIGHT:
                    figures = FanOut(target, subscribers).run(in_flight, self.seconds, WARM_UP)
                    self.results.add(f"{kind}, {in_flight} in flight: {name}", figures)

    def one_topic(self) -> None:
        with running(self.topicsvc) as server, _Open(server.target(), self.topics) as subscribers:
            figures = FanOut(server.target(), subscribers).run(1, self.seconds, WARM_UP)
            self.results.add(self._one_topic, figures)

    def burst(self) -> None:
        with running(self.topicsvc) as server:
            target = server.target()
            with _Open(target, self.topics, self.topics) as subscribers:
                burst = Burst(subscribers, target.frame, lambda: server.burst(self.topics))
                self.results.add(self._burst, burst.run(self.seconds))

    def many_topics(self, name: str, make: Callable[[], Server]) -> None:
        with running(make) as server:
            target = server.target()
            with _Open(target, self.topics, self.topics) as subscribers:
                for in_flight in IN_FLIGHT:
                    figures = ManyTopics(target, subscribers).run(in_flight, self.seconds, WARM_UP)
                    scenario = f"{self.topics} topics, by HTTP, {in_flight} in flight"
                    self.results.add(f"{scenario}: {name}", figures)

    def session_starts(self, name: str, make: Callable[[], Server]) -> None:
        with running(make) as server:
            figures, sockets = start_sessions(server.target(), self.starts, 50)
            for sock in sockets:
                sock.close()
        self.results.add_figure(f"session starts/s: {name}", figures.rate)
        self.results.add_figure(f"load idle during session starts, %, {name}", 100 * figures.idle)

    def memory(self) -> None:
        for tls in (False, True):
            with running(self.topicsvc) as server, _Open(server.target(tls), 100):
                before = server.memory()
                with _Open(server.target(tls), self.idle):
                    time.sleep(0.5)
                    size = (server.memory() - before) / self.idle / 1024
            kind = "TLS" if tls else "plain"
            self.results.add_figure(f"KiB per idle session, {kind}", size)

    def longest_waits(self) -> None:
        """Measure the longest wait of other clients during a fan-out to all subscribers."""
        for tls in (False, True):
            kind = "TLS" if tls else "plain"
            with (
                running(self.topicsvc) as server,
                _Open(server.target(tls), self.topics) as subscribers,
            ):
                ca_file = str(self.authority.ca_file) if tls else None
                for in_flight, target in ((16, server.target(tls)), (1, server.target(tls, LONG))):
                    with Probe(target, server.admin_port, ca_file) as probe:
                        FanOut(target, subscribers).run(in_flight, 3 * self.seconds, WARM_UP)
                    size = target.frame
                    for name, seconds in probe.durations.items():
                        self.results.add_figure(
                            f"longest wait of {name}, ms, {kind}, {self.topics} subscribers, "
                            f"{in_flight} of {size} bytes in flight, {len(seconds)} samples",
                            max(seconds) * 1000,
                        )

    def print(self, runs: int) -> None:
        self.results.print(runs)
        self.results.print_ratio(
            "many topics, compared with one topic", self._burst, self._one_topic
        )

    @property
    def _one_topic(self) -> str:
        return f"one topic with {self.topics}, 1 in flight: topicsvc"

    @property
    def _burst(self) -> str:
        return f"{self.topics} topics with one each, one to each in flight: topicsvc"


class _Open:
    """Sessions that are open during a ``with`` block."""

    def __init__(self, target: Target, count: int, topics: int = 1) -> None:
        self._sockets = open_sessions(target, count, topics)

    def __enter__(self) -> list[socket.socket]:
        return self._sockets

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--runs", type=int, default=5, help="number of runs (5)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="duration of each measurement (2)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short run of topicsvc alone; fails if a delivery is missing",
    )
    options = parser.parse_args()
    pin(1)
    with tempfile.TemporaryDirectory(prefix="topicsvc-bench-") as name:
        directory = Path(name)
        if options.quick:
            bench, runs = Bench(directory, 50, 50, 100, 50, 0.3, peers=False), 1
        else:
            seconds, runs = options.seconds, options.runs
            bench = Bench(directory, 1000, 10000, 4000, 2000, seconds, peers=True)
        for run in range(runs):
            print(f"run {run + 1} of {runs}", flush=True)
            bench.run()
        print("longest waits, once", flush=True)
        bench.longest_waits()
        bench.print(runs)


if __name__ == "__main__":
    main()
