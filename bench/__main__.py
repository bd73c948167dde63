"""One command, one table: ``python -m bench [--runs N] [--seconds S] [--quick]``.

Servers run on one core, the load on another. Each run measures every server; the ratios are
taken within a run, and the table shows the medians of all runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.load import Burst, FanOut, Figures, open_sessions, pin, start_sessions
from bench.servers import Library, Nchan, Topicsvc, running
from tests.integration.certificates import Authority

IN_FLIGHT = (1, 4, 16, 64)

Results = dict[str, list[float]]


class Bench:
    """What is measured, and how much of it.

    Args:
        subscribers: of the one topic.
        topics: with one subscriber each.
        starts: sessions that are started.
        idle: sessions whose memory is measured.
        seconds: of each measurement.
        peers: whether others are measured too.
    """

    def __init__(
        self, subscribers: int, topics: int, starts: int, idle: int, seconds: float, peers: bool
    ) -> None:
        self.subscribers = subscribers
        self.topics = topics
        self.starts = starts
        self.idle = idle
        self.seconds = seconds
        self.peers = peers
        self.results: Results = {}
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self.authority = Authority(self.directory)

    def run(self) -> None:
        """Measure everything once."""
        for tls in (False, True):
            self.fan_out("topicsvc", self.topicsvc, tls)
            if self.peers:
                self.fan_out("nchan", lambda: Nchan(self.directory, self.authority), tls)
        if self.peers:
            self.fan_out("Autobahn", lambda: Library("autobahn_broadcast"))
            self.fan_out("websockets", lambda: Library("websockets_broadcast"))
        self.many_topics()
        self.session_starts("topicsvc, with a token", self.topicsvc)
        if self.peers:
            self.session_starts("Autobahn, handshake alone", lambda: Library("autobahn_broadcast"))
        self.memory()

    def topicsvc(self) -> Topicsvc:
        return Topicsvc(self.directory, self.authority)

    def fan_out(self, name: str, make: Callable[[], object], tls: bool = False) -> None:
        kind = "TLS" if tls else "plain"
        with running(make) as server:
            target = server.target(True) if tls else server.target()
            subscribers = open_sessions(target, self.subscribers)
            for in_flight in IN_FLIGHT:
                figures = FanOut(target, subscribers).run(in_flight, self.seconds, 0.3)
                self.note(f"{kind}, {in_flight} in flight: {name}", figures)
            for sock in subscribers:
                sock.close()

    def many_topics(self) -> None:
        with running(self.topicsvc) as server:
            target = server.target()
            subscribers = open_sessions(target, self.topics)
            figures = FanOut(target, subscribers).run(1, self.seconds, 0.3)
            self.note(f"one topic with {self.topics}, 1 in flight: topicsvc", figures)
            for sock in subscribers:
                sock.close()
        with running(self.topicsvc) as server:
            target = server.target()
            subscribers = open_sessions(target, self.topics, self.topics)
            burst = Burst(subscribers, target.frame, lambda: server.burst(self.topics))
            self.note(f"{self.topics} topics with one each: topicsvc", burst.run(self.seconds))
            for sock in subscribers:
                sock.close()

    def session_starts(self, name: str, make: Callable[[], object]) -> None:
        with running(make) as server:
            figures, sockets = start_sessions(server.target(), self.starts, 50)
            for sock in sockets:
                sock.close()
        self.results.setdefault(f"session starts/s: {name}", []).append(figures.rate)
        self.results.setdefault(f"{name} idle", []).append(figures.idle)

    def memory(self) -> None:
        for tls in (False, True):
            with running(self.topicsvc) as server:
                first = open_sessions(server.target(tls), 100)
                before = server.memory()
                more = open_sessions(server.target(tls), self.idle)
                time.sleep(0.5)
                size = (server.memory() - before) / self.idle / 1024
                for sock in first + more:
                    sock.close()
            kind = "TLS" if tls else "plain"
            self.results.setdefault(f"KiB per idle session, {kind}", []).append(size)

    def note(self, name: str, figures: Figures) -> None:
        self.results.setdefault(name, []).append(figures.rate)
        for part, label in ((0.5, "p50"), (0.99, "p99")):
            self.results.setdefault(f"{name} {label}", []).append(figures.percentile(part) * 1000)
        self.results.setdefault(f"{name} idle", []).append(figures.idle)

    # The table.

    def median(self, name: str) -> float:
        return statistics.median(self.results[name])

    def ratio(self, one: str, other: str) -> float:
        pairs = zip(self.results[one], self.results[other], strict=True)
        return statistics.median(first / second for first, second in pairs)

    def print(self, runs: int) -> None:
        print(f"\n{runs} runs; medians; {platform.processor() or platform.machine()}, ", end="")
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}\n")
        print("| what | deliveries/s | p50 ms | p99 ms | load idle | topicsvc is |")
        print("|---|---|---|---|---|---|")
        for name in self.results:
            if name + " p50" not in self.results:
                continue
            self._print_row(name)
        print("\n| what | figure |\n|---|---|")
        for name, values in self.results.items():
            if name.startswith(("session", "KiB")):
                print(f"| {name} | {statistics.median(values):,.1f} |")
        starts = [name for name in self.results if name.startswith("session")]
        if len(starts) == 2:
            print(f"| session starts: topicsvc is | {self.ratio(*starts):.2f} x |")
        many = f"{self.topics} topics with one each: topicsvc"
        one = f"one topic with {self.topics}, 1 in flight: topicsvc"
        print(f"| many topics: of one topic's deliveries | {self.ratio(many, one):.2f} x |")

    def _print_row(self, name: str) -> None:
        scenario, _, server = name.partition(": ")
        mine = f"{scenario}: topicsvc"
        against = ""
        if server != "topicsvc" and mine in self.results:
            against = f"{self.ratio(mine, name):.2f} x"
        print(
            f"| {name} | {self.median(name):,.0f} | {self.median(name + ' p50'):.1f} "
            f"| {self.median(name + ' p99'):.1f} | {self.median(name + ' idle'):.0%} | {against} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--runs", type=int, default=5, help="how often all is measured (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument(
        "--quick", action="store_true", help="small, once, topicsvc alone: is a delivery missing?"
    )
    options = parser.parse_args()
    pin(1)
    if options.quick:
        bench, runs = Bench(50, 50, 100, 50, 0.3, peers=False), 1
    else:
        bench, runs = Bench(1000, 10000, 4000, 2000, options.seconds, peers=True), options.runs
    for run in range(runs):
        print(f"run {run + 1} of {runs}", flush=True)
        bench.run()
    bench.print(runs)


main()
