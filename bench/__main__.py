"""The command: ``python -m bench``; `main` has its options.

Servers run on one core, the load on another. Each run measures each server. Ratios are computed
within a run; the tables show the medians of all runs.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from bench.load import Burst, FanOut, ManyTopics, Sends
from bench.probe import Probe
from bench.results import Results
from bench.servers import Library, Nchan, Server, Topicsvc, checkout, processor_time, running
from bench.sessions import Target, open_sessions, pin, start_sessions
from tests.support.certificates import Authority

IN_FLIGHT = (1, 4, 16, 64)
WARM_UP = 0.3
BATCH = 1000
"""Messages in one request of newline-delimited JSON."""

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
        earlier: another checkout of topicsvc, measured as a peer; None: none.
        rows: the groups of rows to measure, of `GROUPS`.
    """

    GROUPS = ("fan-out", "topics", "sends", "batches", "starts", "memory", "waits")

    def __init__(
        self,
        directory: Path,
        subscribers: int,
        topics: int,
        starts: int,
        idle: int,
        seconds: float,
        peers: bool,
        earlier: Path | None = None,
        rows: Collection[str] = GROUPS,
    ) -> None:
        self.directory = directory
        self.subscribers = subscribers
        self.topics = topics
        self.starts = starts
        self.idle = idle
        self.seconds = seconds
        self.peers = peers
        self.earlier = earlier
        self.rows = rows
        self.results = Results()
        self.authority = Authority(self.directory)

    def run(self) -> None:
        """Make each measurement once."""
        if "fan-out" in self.rows:
            for tls in (False, True):
                for name, make in self.servers():
                    self.fan_out(name, make, tls)
            if self.peers:
                self.fan_out("Autobahn", self.autobahn)
                self.fan_out("websockets", lambda: Library("websockets_broadcast"))
        if "topics" in self.rows:
            self.one_topic()
            self.burst()
            for topics in sorted({min(1000, self.topics), self.topics}):
                for name, make in self.servers():
                    self.many_topics(name, make, topics)
        if "sends" in self.rows:
            for name, make in self.servers():
                self.sends(name, make)
        if "batches" in self.rows:
            self.batches()
        if "starts" in self.rows:
            for tls in (False, True):
                for name, make in self.servers():
                    self.session_starts(name, make, tls)
            if self.peers:
                self.session_starts("Autobahn, handshake only", self.autobahn)
        if "memory" in self.rows:
            self.memory()

    def servers(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The servers with all features, by name."""
        yield "topicsvc", self.topicsvc
        if self.earlier is not None:
            earlier = self.earlier
            yield (
                "topicsvc before",
                lambda: Topicsvc(self.directory, self.authority, earlier),
            )
        if self.peers:
            yield "nchan", self.nchan

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

    def many_topics(self, name: str, make: Callable[[], Server], topics: int) -> None:
        with running(make) as server:
            target = server.target()
            with _Open(target, topics, topics) as subscribers:
                for in_flight in IN_FLIGHT:
                    scenario = f"{topics} topics, by HTTP, {in_flight} in flight"
                    with self._time(server, f"message, {scenario}: {name}") as timed:
                        load = ManyTopics(target, subscribers)
                        figures = load.run(in_flight, self.seconds, WARM_UP)
                        timed.count = load.sent
                    self.results.add(f"{scenario}: {name}", figures)

    def sends(self, name: str, make: Callable[[], Server]) -> None:
        with running(make) as server:
            for in_flight in (1, 16):
                scenario = f"sends, 1 connection, no subscriber, {in_flight} in flight"
                with self._time(server, f"message, {scenario}: {name}") as timed:
                    load = Sends(server.target())
                    figures = load.run(in_flight, self.seconds, WARM_UP)
                    timed.count = load.sent
                self.results.add(f"{scenario}: {name}", figures)

    def batches(self) -> None:
        with running(self.topicsvc) as server, _Open(server.target(), 1) as subscribers:
            figures = FanOut(server.batches(BATCH), subscribers).run(2, self.seconds, WARM_UP)
            self.results.add(f"batches of {BATCH}, 1 subscriber, 2 in flight: topicsvc", figures)

    def session_starts(self, name: str, make: Callable[[], Server], tls: bool = False) -> None:
        kind = "TLS session starts" if tls else "session starts"
        with running(make) as server:
            target = server.target(True) if tls else server.target()
            with self._time(server, f"{kind[:-1]}: {name}") as timed:
                figures, sockets = start_sessions(target, self.starts, 50)
                timed.count = self.starts
            for sock in sockets:
                sock.close()
        self.results.add_figure(f"{kind}/s: {name}", figures.rate)
        self.results.add_figure(f"load idle during {kind}, %, {name}", 100 * figures.idle)

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

    @contextlib.contextmanager
    def _time(self, server: Server, what: str) -> Iterator[_Timed]:
        """Measure the processor time of a server during a ``with`` block, for each `what`."""
        before, timed = processor_time(server.process), _Timed()
        yield timed
        seconds = processor_time(server.process) - before
        self.results.add_figure(
            f"processor time, \u00b5s, of a {what}", 1e6 * seconds / timed.count
        )

    def print(self, runs: int) -> None:
        self.results.print(runs)
        if "topics" in self.rows:
            self.results.print_ratio(
                "many topics, compared with one topic", self._burst, self._one_topic
            )

    @property
    def _one_topic(self) -> str:
        return f"one topic with {self.topics}, 1 in flight: topicsvc"

    @property
    def _burst(self) -> str:
        return f"{self.topics} topics with one each, one to each in flight: topicsvc"


class _Timed:
    """What a server did during a measurement.

    Attributes:
        count: number of messages or sessions.
    """

    count = 1


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
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=Bench.GROUPS,
        default=Bench.GROUPS,
        help="measure these groups of rows only",
    )
    parser.add_argument(
        "--compare",
        type=checkout,
        metavar="DIRECTORY",
        help="measure another checkout of topicsvc too",
    )
    parser.add_argument("--no-peers", action="store_true", help="measure topicsvc only")
    options = parser.parse_args()
    pin(1)
    with tempfile.TemporaryDirectory(prefix="topicsvc-bench-") as name:
        if options.quick:
            sizes, seconds, runs = (50, 50, 100, 50), 0.3, 1
        else:
            sizes, seconds, runs = (1000, 10000, 4000, 2000), options.seconds, options.runs
        bench = Bench(
            Path(name),
            *sizes,
            seconds=seconds,
            peers=not options.quick and not options.no_peers,
            earlier=options.compare,
            rows=options.rows,
        )
        for run in range(runs):
            print(f"run {run + 1} of {runs}", flush=True)
            bench.run()
        if "waits" in options.rows:
            print("longest waits, once", flush=True)
            bench.longest_waits()
        bench.print(runs)


if __name__ == "__main__":
    main()
