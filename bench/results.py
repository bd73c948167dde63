"""The figures of all runs, and their tables."""

from __future__ import annotations

import os
import platform
import statistics

from bench.sessions import Figures

__all__ = ["Results"]

_PARTS = ((0.5, "p50"), (0.99, "p99"))


class Results:
    """Figures by name, one of each run. A name is ``scenario: server``, or a scenario alone."""

    def __init__(self) -> None:
        self._figures: dict[str, list[float]] = {}

    def add(self, name: str, figures: Figures) -> None:
        """Add a measurement of deliveries."""
        self.add_figure(name, figures.rate)
        for part, label in _PARTS:
            self.add_figure(f"{name} {label}", figures.percentile(part) * 1000)
        self.add_figure(f"{name} idle", figures.idle)

    def add_figure(self, name: str, value: float) -> None:
        """Add one figure."""
        self._figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self._figures[name])

    def ratio(self, one: str, other: str) -> float:
        """Return `one` divided by `other` within each run, as the median of the runs."""
        pairs = zip(self._figures[one], self._figures[other], strict=True)
        return statistics.median(first / second for first, second in pairs)

    def print(self, runs: int) -> None:
        """Print the tables as Markdown."""
        print(f"\n{runs} runs; medians; {platform.processor() or platform.machine()}, ", end="")
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}\n")
        print("| what | deliveries/s | p50 ms | p99 ms | load idle | topicsvc is |")
        print("|---|---|---|---|---|---|")
        parts = ("p50", "p99", "idle")
        derived = {f"{name} {part}" for name in self._figures for part in parts}
        deliveries = [name for name in self._figures if f"{name} p50" in self._figures]
        for name in deliveries:
            self._print_row(name)
        print("\n| what | figure |\n|---|---|")
        for name in self._figures:
            if name not in deliveries and name not in derived:
                ratio = self._ratio_to_topicsvc(name)
                figure = f"{self.median(name):,.1f}"
                print(f"| {name} | {figure}{ratio and f' (topicsvc is {ratio})'} |")

    def print_ratio(self, label: str, one: str, other: str) -> None:
        """Print one more row: the ratio of two scenarios."""
        print(f"| {label} | {self.ratio(one, other):.2f} x |")

    def _print_row(self, name: str) -> None:
        print(
            f"| {name} | {self.median(name):,.0f} | {self.median(name + ' p50'):.1f} "
            f"| {self.median(name + ' p99'):.1f} | {self.median(name + ' idle'):.0%} "
            f"| {self._ratio_to_topicsvc(name)} |"
        )

    def _ratio_to_topicsvc(self, name: str) -> str:
        scenario, _, server = name.partition(": ")
        own = f"{scenario}: topicsvc"
        if server in ("", "topicsvc") or own not in self._figures:
            return ""
        return f"{self.ratio(own, name):.2f} x"
